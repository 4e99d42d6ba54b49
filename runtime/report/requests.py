"""What each VM's analyzer put to the manager, with how sure it was, and how good that turned out to be."""

from __future__ import annotations

from typing import Any

import numpy as np

from foreshare.policies.host import Resource
from foreshare.runtime.tables import NO_VALUE, amount, number

from .page import esc, table
from .run import Run

_VECTOR = (Resource.CPU, Resource.MEMORY, Resource.IO, Resource.CACHE)


def requests(run: Run) -> str:
    """Return the mean request of each VM, [cpu, memory, io, priority] and cache, and the quality of its forecasts."""
    s, meta = run.log.series, run.log.meta
    if "request" not in s or not len(s["request"]):
        return "<p>This run has no requests in its log.</p>"
    low, high = (_mean(s[name]) for name in ("request", "request_high"))
    priority = meta.get("vm_priority", [])
    head = ["VM", "cpu", "memory", "io", "priority", "cache"]
    rows = []
    for vm in range(run.n):
        cells = [f"{amount(low[vm, r], 2)} to {amount(high[vm, r], 2)}" for r in _VECTOR]
        rank = str(priority[vm]) if vm < len(priority) else NO_VALUE
        rows.append([run.vm_name(vm), *cells[:3], esc(rank), cells[3]])
    text = (
        "<p>Means over the run, in units: what a VM was expected to demand in the tick in which the decision lands, to"
        f" what it was taken to stay below nine times out of ten.</p>{table(head, rows, range(1, 6))}"
    )
    return text + _quality(run.log.summary.get("forecasts"))


def _mean(values: Any) -> Any:
    known = np.isfinite(values)
    total = np.where(known, values, 0.0).sum(axis=0, dtype=np.float64)
    return np.divide(total, known.sum(axis=0), out=np.full(total.shape, np.nan), where=known.any(axis=0))


def _quality(scores: Any) -> str:
    if not isinstance(scores, list) or not scores:
        return ""
    rows = []
    for row in scores:
        figures = [
            amount(number(row.get(key)), digits)
            for key, digits in (("mase", 3), ("pinball_q90", 3), ("coverage_q90", 3), ("bad_pct", 1))
        ]
        state = "the last value stands in" if row.get("bad") else "heeded"
        rows.append([esc(row.get("vm", "")), esc(row.get("resource", "")), *figures, state])
    head = ["VM", "resource", "MASE", "pinball 0.9, units", "0.9 covers", "% of ticks bad", "at the end"]
    about = (
        "<h3>How good the forecasts were</h3><p>Of 50 ms ahead, over the last seconds. MASE: the error of the median in"
        " steps of the series from tick to tick. A forecast that is worse than the last value is not heeded: the last"
        " value with a margin stands in for it.</p>"
    )
    return about + f'<div class="tall">{table(head, rows, range(2, 6))}</div>'
