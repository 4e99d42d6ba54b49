"""The self-contained HTML report of a run."""

from .html import main, render, report_available, write_report

__all__ = ["main", "render", "report_available", "write_report"]
