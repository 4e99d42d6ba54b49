"""PARTIES: one unit of one resource of one service at a time, by the slack of its latency.

Source: Chen, Delimitrou, Martinez, "PARTIES: QoS-Aware Resource Partitioning for Multiple Interactive Services",
ASPLOS 2019, sections 4.2 to 4.4.

Kept: every ``period_ticks`` (500 ms in the paper) the slack of each service is looked at. If the worst is below
``low_slack``, that service is **upsized** by one step of the resource at which its wheel stands, out of what is free,
else from the service with the most slack. If all have more than ``high_slack``, the service with the most is
**downsized** by one step. After a period the move is judged: an upsizing that did not lessen the delay turns the wheel
to the next resource, a downsizing that cost the slack is taken back and turns it too.

Adapted: a host cannot measure its guests' tail latency, so slack is ``1 - delay / target_ticks`` with the queueing
delay estimated from what waits (estimate.py). The wheel is CPU, cache, memory bandwidth, IO bandwidth (the paper also
has frequency); a step is ``step_share`` of the pool, at least one unit. One service of each zone moves per period.
Priorities are not in the paper and are not looked at. Where
nobody queues all slack is the same, so that it says nothing of who can spare: of several with the most slack the one
with the most unused units gives.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from foreshare.policies.host import BoolArray, FloatArray, Host, IntArray, R
from foreshare.policies.knobs import knob

from .base import Request, former_rows
from .fixed import Static

_NOBODY = -1


@dataclass(frozen=True, kw_only=True, slots=True)
class PartiesKnobs:
    """What can be tuned."""

    period_ticks: int = knob(50, 1, 100, log=True)
    """Ticks between two moves; 50 at 10 ms is the paper's 500 ms, 1 is our tick."""
    target_ticks: float = knob(2.0, 0.5, 10.0, log=True)
    """Queueing delay that counts as no slack."""
    low_slack: float = knob(0.05, 0.0, 0.5)
    """Below it a service is upsized."""
    high_slack: float = knob(0.2, 0.05, 0.95)
    """Above it a service is downsized."""
    step_share: float = knob(0.03, 0.01, 0.2, log=True)
    """One step, as a share of the pool."""
    better: float = knob(0.95, 0.5, 1.0)
    """A delay at most this multiple of the one before is an improvement."""


class Parties:
    """See the module. Starts from the static partition."""

    name = "parties"
    batched = False

    def __init__(self, knobs: PartiesKnobs | None = None) -> None:
        self.knobs = knobs or PartiesKnobs()
        self._host: Host | None = None
        self._units: IntArray = np.zeros((0, R), np.int64)
        self._wheel: IntArray = np.zeros(0, np.int64)
        self._delay: FloatArray = np.zeros(0)
        self._peak: FloatArray = np.zeros((0, R))
        """(N, R) largest usage in this period."""
        self._pending: list[tuple[int, int, int, bool, float]] = []
        """Moves to be judged: row, resource, units, up or down, delay before."""
        self._ticks = 0

    def allocate(self, request: Request, host: Host, tick: int) -> IntArray:
        """See :class:`~.base.Allocator`."""
        if host is not self._host:
            self._bind(host)
        if not len(host):
            return self._units.copy()
        # The tail of a period is what counts: its largest delay.
        np.maximum(self._delay, request.delay_ticks, out=self._delay)
        np.maximum(self._peak, request.usage, out=self._peak)
        self._ticks += 1
        if self._ticks >= self.knobs.period_ticks:
            self._ticks = 0
            self._judge(host)
            slack = 1.0 - self._delay / self.knobs.target_ticks
            for zone in np.unique(host.vms.zone[host.active]).tolist():
                self._move(slack, host, host.active & (host.vms.zone == zone))
            self._delay[:] = 0.0
            self._peak[:] = 0.0
        return self._units.copy()

    def _bind(self, host: Host) -> None:
        rows = former_rows(self._host, host)
        known = rows >= 0
        fresh = Static().allocate(Request.empty(len(host)), host, 0)
        if known.all() and len(rows) == len(self._units) and self._host is not None and self._host.active.all():
            fresh = np.clip(self._units[rows], host.floor, host.cap)
        self._peak = np.zeros((len(host), R))
        wheel, delay = np.zeros(len(host), np.int64), np.zeros(len(host))
        wheel[known], delay[known] = self._wheel[rows[known]], self._delay[rows[known]]
        self._host, self._units, self._wheel, self._delay, self._pending = host, fresh, wheel, delay, []

    def _judge(self, host: Host) -> None:
        """See what the moves of the period before have done."""
        for row, resource, units, up, before in self._pending:
            delay = float(self._delay[row])
            if up and delay > self.knobs.better * before:
                self._wheel[row] += 1
            elif not up and delay > (1.0 - self.knobs.low_slack) * self.knobs.target_ticks:
                self._grow(row, resource, units, host, np.full(len(host), -np.inf))
                self._wheel[row] += 1
        self._pending.clear()

    def _move(self, slack: FloatArray, host: Host, here: BoolArray) -> None:
        """Upsize the service with the least slack of those ``here`` (N,), or downsize the one with the most."""
        k, rank = self.knobs, host.vms.rank
        worst = int(np.lexsort((rank, np.where(here, slack, np.inf)))[0])
        if slack[worst] < k.low_slack:
            for _ in range(R):  # a resource that has nothing to give is passed over
                resource = int(self._wheel[worst]) % R
                units = self._grow(worst, resource, self._step(worst, resource, host), host, slack)
                if units:
                    self._pending.append((worst, resource, units, True, float(self._delay[worst])))
                    return
                self._wheel[worst] += 1
        elif slack[worst] > k.high_slack:
            for _ in range(R):
                resource = int(self._wheel[worst]) % R
                spare = here & (self._units[:, resource] > host.floor[:, resource])
                if spare.any():
                    row = int(np.lexsort((rank, -self._unused(resource), np.where(spare, -slack, np.inf)))[0])
                    resource = int(self._wheel[row]) % R
                    units = min(
                        self._step(row, resource, host),
                        int(self._units[row, resource] - host.floor[row, resource]),
                    )
                    if units > 0:
                        self._units[row, resource] -= units
                        self._pending.append((row, resource, units, False, float(self._delay[row])))
                        return
                    self._wheel[row] += 1
                self._wheel[worst] += 1

    def _unused(self, resource: int) -> FloatArray:
        out: FloatArray = self._units[:, resource] - self._peak[:, resource]
        return out

    def _step(self, row: int, resource: int, host: Host) -> int:
        granule = int(host.granule[row, resource])
        size = int(host.cap[:, resource].max(initial=0))
        return max(round(self.knobs.step_share * size / granule), 1) * granule

    def _grow(self, row: int, resource: int, units: int, host: Host, slack: FloatArray) -> int:
        """Give up to ``units`` to a service, from what is free, then from those with more slack; return how many."""
        units = min(units, int(host.cap[row, resource] - self._units[row, resource]))
        granule = int(host.granule[row, resource])
        for g in host.groups:
            if not g.cols.start <= resource < g.cols.stop:
                continue
            mine = np.zeros(len(host), bool)
            mine[g.rows] = True
            if not mine[row]:
                continue
            column = self._units[:, resource]
            free = int(g.capacity[resource - g.cols.start] - column[mine].sum())
            mine[row] = False
            donors = mine & (slack > slack[row]) & (column > host.floor[:, resource])
            if free < units and donors.any():
                donor = int(np.lexsort((host.vms.rank, -self._unused(resource), np.where(donors, -slack, np.inf)))[0])
                step = int(host.granule[donor, resource])
                take = min(-(-(units - free) // step) * step, int(column[donor] - host.floor[donor, resource]))
                take = max(take // step * step, 0)
                column[donor] -= take
                free += take
            given = max(min(units, free) // granule * granule, 0)
            column[row] += given
            return given
        return 0
