"""Shows a run while it goes on: a live view on a terminal, a progress line elsewhere."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from .loop import ControlLoop, Tick
from .observers import RecentEvents, cpu_owner
from .view import LiveView, ProgressLine, Snapshot, open_view


class Show(RecentEvents):
    """Feeds a view as often as it wants to be fed."""

    def __init__(self, view: LiveView | ProgressLine, loop: ControlLoop, seconds: float | None) -> None:
        super().__init__()
        self._view, self._loop, self._seconds = view, loop, seconds

    def on_tick(self, tick: Tick) -> None:
        """See :class:`~.loop.Observer`."""
        super().on_tick(tick)
        if not self._view.due():
            return
        loop, decision = self._loop, self._loop.latency.recent_decision()
        self._view.update(
            Snapshot(
                t_s=self.t_ns * 1e-9,
                seconds_total=self._seconds,
                ticks=loop.counts.ticks,
                missed_ticks=loop.counts.missed,
                by_policy=loop.counts.by_policy,
                by_fallback=loop.counts.by_fallback,
                demand=tick.reading.demand_low,
                usage=tick.reading.usage,
                allocation=tick.held.units,
                cpu_owner=cpu_owner(tick),
                decision_p50_us=decision["p50"],
                decision_p99_us=decision["p99"],
                contentions=loop.meter.contentions,
                events=tuple(self.events),
                cpus=tick.held.cpus,
                policy_fault=tick.decision.fault_kind,
            )
        )


@contextmanager
def show_on(stream: TextIO, facts: dict[str, Any], loop: ControlLoop, seconds: float | None) -> Iterator[Show]:
    """Yield an observer that shows the run on ``stream``; the terminal is put right again on every way out."""
    with open_view(facts, stream, term=os.environ.get("TERM", "")) as view:
        yield Show(view, loop, seconds)
