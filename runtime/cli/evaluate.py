"""``foreshare evaluate``: policies on a suite of scenarios, paired, with intervals."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from foreshare.policies.learned.source import is_learned
from foreshare.policies.registry import POLICIES
from foreshare.runtime.asking import open_bundle

from .values import cpus, whole, writable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--suite", default="smoke", metavar="S", help="a suite's name, draw:SEED or a .toml file")
    parser.add_argument(
        "--policies",
        default="static,forecast",
        metavar="A,B",
        help=f"which, of {', '.join(POLICIES)}; all: all of these; champion, a bundle's folder or a network's"
        " .npz; for bounds oracle-state, -paying, -free, -triage, -champion",
    )
    parser.add_argument("--seeds", type=whole(1, 1000), default=3, metavar="K", help="seeds per scenario (default 3)")
    parser.add_argument(
        "--jobs", type=whole(1, 256), metavar="J", help="parallel processes (default: one for each CPU)"
    )
    parser.add_argument("--cache", metavar="DIR", help="where finished runs are kept, or none (default: ~/.cache)")
    parser.add_argument("--plain-only", action="store_true", help="measure neither EMU nor the ticks to converge")
    parser.add_argument("--report", type=Path, metavar="F.html", help="write a self-contained report")
    parser.add_argument("--json", action="store_true", help="print one JSON object, nothing else")


def execute(args: argparse.Namespace) -> int:
    """Run the verb."""
    from foreshare.envs.simulator.suites import load_suite
    from foreshare.training.evaluate import evaluate
    from foreshare.training.evaluate_cache import default_cache

    named = [p for p in args.policies.split(",") if p]
    policies = tuple(q for p in named for q in (POLICIES if p == "all" else (p,)))
    for p in policies:
        if p not in POLICIES and is_learned(p) and not p.endswith(".npz"):
            open_bundle(p)
    if args.report is not None:
        writable("--report", args.report)
    suite = load_suite(args.suite)
    cache = None if args.cache == "none" else Path(args.cache) if args.cache else default_cache()
    jobs = args.jobs or cpus()
    with show_progress(f"{suite.name}: {len(policies)} policies x {args.seeds} seeds") as tell:
        result = evaluate(
            suite, policies, args.seeds, jobs=jobs, cache=cache, progress=tell, plain_only=args.plain_only
        )
    if args.report is not None:
        from foreshare.runtime.evaluation_report import render

        args.report.write_text(render(result), encoding="utf-8")
    if args.json:
        sys.stdout.write(json.dumps(result) + "\n")
        return 0
    from foreshare.runtime.evaluation_report import text

    sys.stdout.write(text(result))
    if args.report is not None:
        sys.stdout.write(f"report: {args.report}\n")
    return 0


@contextmanager
def show_progress(title: str) -> Iterator[Callable[[int, int, int], None]]:
    """Yield what shows progress on stderr: a bar on a terminal, a line for every tenth elsewhere."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task: Any = bar.add_task(title, total=None)
            yield lambda done, cached, total: bar.update(task, completed=done, total=total)
        return
    shown = -1

    def tell(done: int, cached: int, total: int) -> None:
        nonlocal shown
        tenth = 10 * done // max(total, 1)
        if tenth > shown:
            shown = tenth
            sys.stderr.write(f"{title}: {done} of {total} runs, {cached} of them from the cache\n")
            sys.stderr.flush()

    yield tell
