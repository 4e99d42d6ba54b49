"""Heracles: best effort lives on what the latency-critical side can spare, and loses it when slack runs out.

Source: Lo, Cheng, Govindaraju, Ranganathan, Kozyrakis, "Heracles: Improving Resource Efficiency at Scale", ISCA 2015,
section 4 (algorithms 1 to 4).

Kept: a **top-level controller** looks at the latency slack and the load of the latency-critical side: without slack, or
with a load above ``high_load``, best effort is stopped (held to its floor) and stays so for ``cooldown_periods``; below
``low_load`` it may run; below ``grow_slack`` it may not grow; below ``shrink_slack`` it gives back cores at once. The
**subcontrollers** grow what best effort holds: cores and ways alternately, by one step, as in the paper's gradient
descent (a growth that left no slack is undone by the top level); memory bandwidth is capped by giving back cores when
the host's total passes ``memory_limit``; of the network best effort gets what is left of the link after the
latency-critical use and a reserve.

Adapted: the paper has one latency-critical service; here everybody above the lowest priority belongs to that side, and
where all have the same priority there is no best effort. Within each side units go to VMs max-min fairly by what they
ask (water-filling). Slack is ``1 - delay / target_ticks`` of the worst VM, with the queueing delay estimated from what
waits (estimate.py): latency itself cannot be measured on a host. IO bandwidth stands for the network; no power.
The paper's controllers run every 15 s and 2 s; ``period_ticks`` is the inner one, ``top_periods`` the outer in periods.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from foreshare.policies.host import CACHE, CPU, IO, MEMORY, BoolArray, FloatArray, Group, Host, IntArray, R
from foreshare.policies.knobs import knob
from foreshare.policies.rounding import fill_extras

from .base import Request, whole_units


@dataclass(frozen=True, kw_only=True, slots=True)
class HeraclesKnobs:
    """What can be tuned."""

    period_ticks: int = knob(200, 1, 400, log=True)
    """Ticks between two runs of the subcontrollers; 200 at 10 ms is the paper's 2 s, 1 is our tick."""
    top_periods: int = knob(7, 1, 20)
    """Periods between two runs of the top-level controller."""
    cooldown_periods: int = knob(20, 1, 100, log=True)
    """Periods for which best effort is stopped after the slack was used up."""
    target_ticks: float = knob(2.0, 0.5, 10.0, log=True)
    """Queueing delay that counts as no slack."""
    grow_slack: float = knob(0.1, 0.0, 0.6)
    shrink_slack: float = knob(0.05, 0.0, 0.5)
    high_load: float = knob(0.85, 0.5, 1.0)
    """Load of the latency-critical side, as a share of the host's CPU, from which best effort is stopped."""
    low_load: float = knob(0.8, 0.3, 1.0)
    memory_limit: float = knob(0.9, 0.5, 1.0)
    """Share of the memory bandwidth above which best effort gives back cores."""
    step_share: float = knob(0.05, 0.01, 0.3, log=True)
    """One growth of best effort, as a share of the pool."""
    reserve: float = knob(0.1, 0.0, 0.4)
    """Headroom left to the latency-critical side's IO, as a share of its use."""


class Heracles:
    """See the module. Best effort starts with its part of the static partition."""

    name = "heracles"
    batched = False

    def __init__(self, knobs: HeraclesKnobs | None = None) -> None:
        self.knobs = knobs or HeraclesKnobs()
        self._host: Host | None = None
        self._best_effort: BoolArray = np.zeros(0, bool)
        self._share: list[FloatArray] = []
        """By group: share of each column that best effort may hold."""
        self._delay = 0.0
        self._ticks = self._periods = self._stopped = 0
        self._may_grow, self._turn = True, 0

    def allocate(self, request: Request, host: Host, tick: int) -> IntArray:
        """See :class:`~.base.Allocator`."""
        if host is not self._host:
            self._bind(host)
        critical = ~self._best_effort & host.active
        self._delay = max(self._delay, float(request.delay_ticks[critical].max(initial=0.0)))
        self._ticks += 1
        if self._ticks >= self.knobs.period_ticks:
            self._ticks = 0
            self._periods += 1
            if self._periods >= self.knobs.top_periods:
                self._periods = 0
                self._top(request, host, critical)
                self._delay = 0.0
            self._stopped = max(self._stopped - 1, 0)
            self._subcontrollers(request, host, critical)
        low = np.minimum(request.ask, host.reservation).astype(float)
        x = low.copy()
        for g, share in zip(host.groups, self._share, strict=True):
            self._fill(x, low, request.ask, g, share)
        return whole_units(x, host)

    def _bind(self, host: Host) -> None:
        priority = host.vms.priority
        lowest = int(priority[host.active].min(initial=np.iinfo(np.int64).max)) if host.active.any() else 0
        best = (priority <= lowest) & host.active
        self._best_effort = best if (priority[host.active] > lowest).any() else np.zeros(len(host), bool)
        same = self._host is not None and len(self._host.groups) == len(host.groups)
        self._host = host
        if not same:
            self._share = []
            for g in host.groups:
                reserved = host.reservation[g.rows, g.cols].astype(float)
                mine = reserved[self._best_effort[g.rows]].sum(axis=0)
                self._share.append(mine / np.maximum(reserved.sum(axis=0), 1.0))

    def _top(self, request: Request, host: Host, critical: BoolArray) -> None:
        """Algorithm 1: may best effort run, may it grow."""
        k = self.knobs
        slack = 1.0 - self._delay / k.target_ticks
        capacity = sum(int(p.units) for p in host.topology.pools if p.resource == CPU)
        load = float(request.usage[critical, CPU].sum()) / max(capacity, 1)
        if slack < 0.0 or load > k.high_load:
            self._stopped = k.cooldown_periods
        elif load < k.low_load and self._stopped and slack > k.grow_slack:
            self._stopped = 0
        self._may_grow = slack >= k.grow_slack
        if slack < k.shrink_slack:
            self._scale(CPU, 0.5)

    def _subcontrollers(self, request: Request, host: Host, critical: BoolArray) -> None:
        """Algorithms 2 to 4: cores and cache in turns, memory bandwidth, network."""
        k = self.knobs
        if self._stopped:
            for share in self._share:
                share[:] = 0.0
            return
        for g, share in zip(host.groups, self._share, strict=True):
            columns = list(range(R))[g.cols]
            here = np.zeros(len(host), bool)
            here[g.rows] = True
            capacity = np.maximum(g.capacity, 1)
            if MEMORY in columns:
                j = columns.index(MEMORY)
                total = float(request.usage[here, MEMORY].sum()) / float(capacity[j])
                if total > k.memory_limit:
                    share[columns.index(CPU)] *= k.memory_limit / total
                elif self._may_grow:
                    for r in (CPU, MEMORY) if self._turn % 2 == 0 else (CACHE, MEMORY):
                        share[columns.index(r)] += k.step_share
            if IO in columns:
                j = columns.index(IO)
                used = float(request.usage[here & critical, IO].sum()) / float(capacity[j])
                share[j] = 1.0 - used - max(0.05, k.reserve * used)
            np.clip(share, 0.0, 1.0, out=share)
        self._turn += 1

    def _scale(self, resource: int, factor: float) -> None:
        if self._host is None:
            return
        for g, share in zip(self._host.groups, self._share, strict=True):
            if g.cols.start <= resource < g.cols.stop:
                share[resource - g.cols.start] *= factor

    def _fill(self, x: FloatArray, low: FloatArray, ask: FloatArray, g: Group, share: FloatArray) -> None:
        """Fill one group: best effort within its share, then the latency-critical side with all the rest."""
        extra = ask[g.rows, g.cols] - low[g.rows, g.cols]
        best = self._best_effort[g.rows][:, None]
        base = low[g.rows, g.cols]
        room = np.maximum(g.capacity - base.sum(axis=0), 0.0)
        theirs = np.maximum(share * g.capacity - (base * best).sum(axis=0), 0.0)
        lent = fill_extras(extra * best, np.minimum(theirs, room))
        kept = fill_extras(extra * ~best, np.maximum(room - lent.sum(axis=0), 0.0))
        x[g.rows, g.cols] += lent + kept
