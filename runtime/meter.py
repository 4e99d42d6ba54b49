"""What a run amounts to: contention events, how long they last, and figures for hosts that do not know requests.

On a real host nobody counts requests. There a VM is *late* in a tick in which it demanded more of some resource than
it could use (:data:`Quality.CENSORED` and demand above usage); the share of such VM-ticks, weighted by priority, stands
in for the share of late requests. Simulated hosts know the requests and report the real figure.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from foreshare.policies.decide import Decision
from foreshare.policies.host import RESOURCES, FloatArray, Host, Placement
from foreshare.policies.reading import Quality, Reading

LASTING_TICKS = 3
"""Contention is an event once it has lasted so long."""
CALM_TICKS = 20
"""It is over after so many ticks without."""


class Meter:
    """Accumulates over a run, in arrays; yields events when something begins or ends."""

    def __init__(self, host: Host, migrate_after_ns: int = 5_000_000_000) -> None:
        n = len(host)
        self.contentions = 0
        self.migrate_after_ns = migrate_after_ns
        self._since = np.zeros(n, np.int64)
        self._streak = np.zeros(n, np.int64)
        self._calm = np.zeros(n, np.int64)
        self._open = np.zeros(n, bool)
        self._advised = np.zeros(n, bool)
        self._late = self._weight = 0.0
        self._used = np.zeros(len(RESOURCES))
        self._ticks = np.zeros(len(RESOURCES))
        self.rebind(host)

    def rebind(self, host: Host) -> None:
        """Go on with the same rows after VMs came or went."""
        self.host = host
        lowest = min(0, int(host.vms.priority.min(initial=0)))
        self._priority_weight: FloatArray = (host.vms.priority - lowest + 1).astype(np.float64)
        capacity = np.zeros(len(RESOURCES))
        for pool in host.topology.pools:
            capacity[pool.resource] += pool.units
        self._capacity = capacity

    def update(
        self, t_ns: int, reading: Reading, decision: Decision, held: Placement
    ) -> Iterator[tuple[str, int, str]]:
        """Take in one tick; yield (kind, row, text) for each event."""
        self._figures(reading)
        contended = decision.contended.any(axis=1) & self.host.active
        self._streak[contended] += 1
        self._streak[~contended] = 0
        self._calm[contended] = 0
        self._calm[~contended] += 1
        begin = contended & ~self._open & (self._streak >= LASTING_TICKS)
        end = self._open & (self._calm >= CALM_TICKS)
        self._since[begin] = t_ns
        self._open |= begin
        self._open &= ~end
        self._advised &= self._open
        self.contentions += int(begin.sum())
        if begin.any():
            for row in np.flatnonzero(begin):
                kind = "throttled" if decision.throttled[row] else "contention"
                yield kind, int(row), self._explain(int(row), decision)
        lasting = self._open & ~self._advised & (t_ns - self._since >= self.migrate_after_ns)
        if lasting.any():
            self._advised |= lasting
            for row in np.flatnonzero(lasting):
                seconds = (t_ns - int(self._since[row])) * 1e-9
                yield "migrate", int(row), f"contended for {seconds:.1f} s: better off on another host"

    def _explain(self, row: int, decision: Decision) -> str:
        parts = []
        for j in np.flatnonzero(decision.contended[row]):
            need, got = decision.request.need[row, j], decision.placement.units[row, j]
            parts.append(f"{RESOURCES[j]} needs {need:.1f} units, has {got}")
        return "; ".join(parts)

    def _figures(self, reading: Reading) -> None:
        if reading.dt_ns <= 0:
            return
        censored = (reading.quality & Quality.CENSORED) != 0
        with np.errstate(invalid="ignore"):
            late = (censored & (reading.demand_low > 1.05 * reading.usage)).any(axis=1) & reading.present
        self._late += float(self._priority_weight[late].sum())
        self._weight += float(self._priority_weight[reading.present].sum())
        known = np.isfinite(reading.usage)
        self._used += np.where(known, reading.usage, 0.0).sum(axis=0)
        self._ticks += known.any(axis=0)

    @property
    def late_pct(self) -> float:
        """Priority-weighted share of VM-ticks in which a VM wanted more than it had, in percent."""
        return 100.0 * self._late / self._weight if self._weight else 0.0

    @property
    def utilisation_pct(self) -> float:
        """Use over capacity, the mean over the resources that can be moved and measured, in percent."""
        known = (self._ticks > 0) & (self._capacity > 0)
        if not known.any():
            return 0.0
        return float(100.0 * np.mean(self._used[known] / self._ticks[known] / self._capacity[known]))
