"""Watches how good the forecasts are: says when a VM's has gone bad, and sums up at the end of a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from foreshare.policies.analyzer import Analyzer
from foreshare.policies.host import RESOURCES

from .loop import Observer, Tick

EVERY = 10
"""Ticks from one look to the next."""


class ForecastWatch:
    """Tells ``observers`` of ``forecast-bad`` and ``forecast-good``; sums up for ``foreshare run --json``."""

    def __init__(self, analyzer: Analyzer, names: Sequence[str], observers: Sequence[Observer]) -> None:
        self._analyzer, self._names, self._observers = analyzer, names, observers
        self._bad = np.zeros((len(names), len(RESOURCES)), bool)
        self._looks, self._bad_looks = 0, np.zeros(self._bad.shape, np.int64)

    def on_event(self, kind: str, vm: int, text: str) -> None:
        """See :class:`~.loop.Observer`."""

    def on_tick(self, tick: Tick) -> None:
        """See :class:`~.loop.Observer`."""
        if tick.number % EVERY:
            return
        bad = self._analyzer.bad
        self._looks += 1
        self._bad_looks += bad
        if (bad == self._bad).all():
            return
        for vm in np.flatnonzero(bad.any(axis=1) & (bad & ~self._bad).any(axis=1)).tolist():
            which = ", ".join(r for r, b in zip(RESOURCES, bad[vm].tolist(), strict=True) if b)
            self._tell("forecast-bad", vm, f"its forecast of {which} is worse than its last value, which stands in")
        for vm in np.flatnonzero(~bad.any(axis=1) & self._bad.any(axis=1)).tolist():
            self._tell("forecast-good", vm, "its forecast is heeded again")
        self._bad[:] = bad

    def _tell(self, kind: str, vm: int, text: str) -> None:
        for observer in self._observers:
            observer.on_event(kind, vm, text)

    def summary(self) -> list[dict[str, Any]]:
        """Return for each VM and resource that was judged its scores 50 ms ahead, as JSON values."""
        scores, out = self._analyzer.scores, []
        for vm, name in enumerate(self._names):
            for r, resource in enumerate(RESOURCES):
                if not np.isfinite(scores["mase"][vm, r]):
                    continue
                out.append({
                    "vm": name, "resource": resource, "mase": round(float(scores["mase"][vm, r]), 4),
                    "pinball_q90": round(float(scores["pinball"][vm, r]), 5),
                    "coverage_q90": round(float(scores["coverage"][vm, r]), 4), "bad": bool(self._bad[vm, r]),
                    "bad_pct": round(100.0 * int(self._bad_looks[vm, r]) / max(self._looks, 1), 2),
                })  # fmt: skip
        return out
