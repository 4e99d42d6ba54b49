"""Triage: where not everybody can have what he asks, serve those whole whom it helps most, and water-fill the rest.

Under overload water-filling spreads misery: everybody gets a little too little, every queue grows, and everybody is
late. Triage takes what VMs ask beyond their low ends ``min(ask, reservation)``, the extras ``E`` (N, R), and

1. prices each resource by its scarcity, ``price_r = max(sum_i E_ir / room_r - 1, 0) + floor_price`` with ``room`` what
   is left above the low ends;
2. orders VMs by ``weight_i / cost_i`` with ``cost_i = sum_r price_r E_ir / room_r``, the scarcity-priced share that
   serving the VM takes, and ``weight = (1 + priority) ** priority_power`` (greedy by density: Dantzig, Operations
   Research 5(2), 1957, for one resource; the priced sum of several: Toyoda, Management Science 21(12), 1975);
3. admits VMs in that order as long as the whole of their extras fits, for ``passes`` passes, so that a VM that is too
   large does not block those behind it;
4. water-fills what is left between the extras of the others.

Cache ways never decide who is admitted (best effort): their column is water-filled. Where all extras fit the answer is
that of backlog-aware water-filling.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from foreshare.policies.backlog_forecast import BacklogKnobs
from foreshare.policies.host import CACHE, BoolArray, FloatArray, Group, Host, IntArray, R
from foreshare.policies.knobs import knob
from foreshare.policies.rounding import apportion, fill_extras

from .base import Request


@dataclass(frozen=True, kw_only=True, slots=True)
class TriageKnobs(BacklogKnobs):
    """What can be tuned about triage, on top of its forecast."""

    priority_power: float = knob(1.0, 0.3, 3, log=True)
    """How much a priority counts against the cost of serving it."""
    price_power: float = knob(1.0, 0.25, 2, log=True)
    """How steeply the price of a resource rises with its scarcity."""
    cost_power: float = knob(1.0, 0.25, 2, log=True)
    """How much the cost of serving a VM counts."""
    stick: float = knob(3.0, 1, 16, log=True)
    """A VM admitted in the tick before counts so much more: turns cost moves, and half-served serves nobody."""
    passes: int = knob(3, 1, 6)
    """How often VMs behind one that does not fit are tried."""


class Triage:
    """See the module. ``admitted`` (N,) says who was served whole by the latest call."""

    name = "triage"

    def __init__(self, knobs: TriageKnobs | None = None) -> None:
        self.knobs = knobs or TriageKnobs()
        self.admitted: BoolArray = np.zeros(0, bool)
        self._host: Host | None = None
        self._weight: FloatArray = np.zeros(0)

    def allocate(self, request: Request, host: Host, tick: int) -> IntArray:
        """See :class:`~.base.Allocator`."""
        if host is not self._host:
            self._bind(host)
        ask, n = request.ask, len(host)
        low = np.minimum(ask, host.reservation)
        extra = ask - low
        out = np.zeros((n, R), np.int64)
        rooms = [np.maximum(g.capacity - low[g.rows, g.cols].sum(axis=0), 0.0) for g in host.groups]
        wanted = [extra[g.rows, g.cols].sum(axis=0) for g in host.groups]
        scarce = [(w > r + 1e-9) & gates for w, r, gates in zip(wanted, rooms, self._gates, strict=True)]
        if any(s.any() for s in scarce):
            self._admit(extra, rooms, wanted, scarce, host)
        else:
            self.admitted[:] = True
        for g, room, gates in zip(host.groups, rooms, self._gates, strict=True):
            whole = extra[g.rows, g.cols] * (self.admitted[g.rows, None] & gates)
            left = np.maximum(room - whole.sum(axis=0), 0.0)
            x = low[g.rows, g.cols] + whole + fill_extras(extra[g.rows, g.cols] - whole, left)
            out[g.rows, g.cols] = apportion(x, host.granule[g.rows, g.cols], g.capacity, host.vms.rank[g.rows])
        return out

    def _bind(self, host: Host) -> None:
        """Take over who was admitted before, by UUID."""
        known = {u: bool(a) for u, a in zip(self._host.vms.uuid, self.admitted, strict=True)} if self._host else {}
        self.admitted = np.array([known.get(u, False) for u in host.vms.uuid], bool)
        self._host = host
        self._weight = (1.0 + np.maximum(host.vms.priority, 0)) ** self.knobs.priority_power
        self._gates = [_gates(g) for g in host.groups]

    def _admit(
        self, extra: FloatArray, rooms: list[FloatArray], wanted: list[FloatArray], scarce: list[BoolArray], host: Host
    ) -> None:
        """Fill ``admitted`` for this tick."""
        k, n = self.knobs, len(host)
        columns: list[FloatArray] = []
        free: list[FloatArray] = []
        cost = np.zeros(n)
        for g, room, want, short in zip(host.groups, rooms, wanted, scarce, strict=True):
            if not short.any():
                continue
            share = extra[g.rows, g.cols] / np.maximum(room, 1e-9)
            price = np.maximum(want / np.maximum(room, 1e-9) - 1.0, 0.0) ** k.price_power * short
            cost[g.rows] += share @ price
            column = np.zeros((n, int(short.sum())))
            column[g.rows] = extra[g.rows, g.cols][:, short]
            columns.append(column)
            free.append(room[short])
        score = self._weight / np.maximum(cost, 1e-9) ** k.cost_power
        score *= np.where(self.admitted, k.stick, 1.0)
        order = np.lexsort((host.vms.rank, -score))
        asked, left = np.concatenate(columns, axis=1)[order], np.concatenate(free) + 1e-9
        fits = np.zeros(n, bool)
        waiting = np.ones(n, bool)
        for _ in range(k.passes):
            waiting &= (asked <= left).all(axis=1)
            if not waiting.any():
                break
            now = waiting & (np.cumsum(asked * waiting[:, None], axis=0) <= left).all(axis=1)
            fits |= now
            left = left - asked[now].sum(axis=0)
            waiting &= ~now
        self.admitted[order] = fits


def _gates(group: Group) -> BoolArray:
    """Return (columns,) which resources of a group decide who is admitted: all but the cache."""
    return np.arange(R)[group.cols] != CACHE
