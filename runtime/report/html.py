"""The report of a run: one HTML file with figures and tables, beside the same run under the static partition.

``python -m foreshare.runtime.report LOG.npz OUT.html [--baseline B.npz]`` renders it in a process of its own, so that
matplotlib never enters the memory of the run.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

from foreshare.policies.errors import ForeshareError, HostError, InputError
from foreshare.runtime.runlog import RunLog

from . import figures, sections
from .page import esc, page, section
from .requests import requests
from .run import Run, vm_colours


def report_available() -> str:
    """Return "" where a report can be rendered, else one line that says why not. Imports nothing heavy."""
    if importlib.util.find_spec("matplotlib") is None:
        return "the report needs matplotlib: pip install 'foreshare[report]'"
    return ""


def render(log: RunLog, baseline: RunLog | None = None) -> str:
    """Return the report as one HTML document. Raises HostError without matplotlib, InputError for a broken log."""
    if why := report_available():
        raise HostError(why)
    run, base = Run.of(log), Run.of(baseline) if baseline is not None else None
    colours = vm_colours(run)
    with figures.drawing():
        parts = [
            sections.head(run, base),
            section("numbers", "Numbers", sections.numbers(run, base)),
            section("host", "The host", sections.host(run, base)),
            section("vms", "Each VM", sections.vms(run, base, colours)),
            section("requests", "Requests", requests(run)),
            section("cores", "Core map", sections.cores(run, colours)),
            section("ticks", "Tick time", sections.ticks(run, base)),
            section("events", "Events", sections.events(run)),
            section("about", "About this run", sections.about(run)),
        ]
    return page(f"foreshare run: {esc(log.meta.get('policy', ''))}", "".join(parts))


def write_report(log: RunLog, path: Path, baseline: RunLog | None = None) -> None:
    """Write the report of ``log`` to ``path``. Raises HostError without matplotlib, InputError for a bad one."""
    document = render(log, baseline)
    try:
        path.write_text(document, encoding="utf-8")
    except OSError as e:
        raise InputError(f"cannot write the report {path}: {e.strerror}") from e


def _load(path: Path) -> RunLog:
    try:
        with path.open("rb") as file:
            # np.load leaves the file open when it fails, so what is no archive at all never gets there.
            if not zipfile.is_zipfile(file):
                raise InputError(f"{path} is not a run log: not an .npz archive")
        log = RunLog.load(path)
        parts: tuple[object, object] = (log.meta, log.summary)
        if not all(isinstance(part, dict) for part in parts):
            raise TypeError("meta and summary must be tables")
        return log
    except OSError as e:
        raise InputError(f"cannot read the run log {path}: {e.strerror or e}") from e
    except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as e:
        raise InputError(f"{path} is not a run log: {e}") from e


def main(argv: Sequence[str] | None = None) -> int:
    """Render a report from the command line. Returns 0, or 2 with one line on stderr."""
    parser = argparse.ArgumentParser(prog="python -m foreshare.runtime.report", description="Render a run log as HTML.")
    parser.add_argument("log", type=Path, help="what `foreshare run` recorded (.npz)")
    parser.add_argument("out", type=Path, help="the HTML file to write")
    parser.add_argument("--baseline", type=Path, help="the same run under the static partition (.npz)")
    args = parser.parse_args(argv)
    try:
        write_report(_load(args.log), args.out, _load(args.baseline) if args.baseline else None)
    except ForeshareError as e:
        sys.stderr.write(f"foreshare: {e}\n")
        return 2
    return 0
