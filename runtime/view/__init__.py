"""A run as it happens: a live view on a terminal, a line now and then elsewhere."""

from .live import LiveView, ProgressLine, open_view
from .snapshot import Snapshot

__all__ = ["LiveView", "ProgressLine", "Snapshot", "open_view"]
