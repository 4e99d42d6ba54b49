"""Triage: where not everybody can have what he asks, serve those whole whom it helps most, and water-fill the rest.

Under overload water-filling spreads misery: everybody gets a little too little, every queue grows, and everybody is
late. Triage takes what VMs ask beyond their low ends, what they are entitled to (``min(ask, reservation)`` in whole
units), the extras ``E`` (N, R), and

1. prices each resource by its scarcity, ``price_r = max(sum_i E_ir / room_r - 1, 0) ** price_power`` with ``room`` what
   is left above the low ends;
2. orders VMs by ``weight_i / cost_i ** cost_power`` with ``cost_i = sum_r price_r L_ir / room_r``, the scarcity-priced
   share that serving the VM takes for a while (``L``: mean demand and ``backlog / horizon_ticks`` beyond the low end),
   and ``weight_i = (1 + priority) ** priority_power * (1 + o_i) ** -thrift``, where ``o_i`` is what the VM held beyond
   its reservation lately, in equal shares of what reservations leave. A host cannot tell a VM that needs much from one
   that pretends to; who takes much for long has to stand back for those who seldom do. (Greedy by density: Dantzig,
   Operations Research 5(2), 1957, for one resource; the priced sum of several: Toyoda, Management Science 21(12),
   1975);
3. admits in that order every VM of which all that it needs fits into what is left (mean demand, and ``margin_share``
   of what is asked beyond it): one that is too large does not block those behind it;
4. water-fills what is left between the rest of the margins of who is admitted, then between the VMs that are not.

Cache ways never decide who is admitted (best effort): their column is water-filled. Where all extras fit the answer is
that of backlog-aware water-filling.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

import numpy as np

from foreshare.policies import kernel
from foreshare.policies.axes import all_of, flat_rows, largest, total
from foreshare.policies.backlog_forecast import BacklogKnobs
from foreshare.policies.forecast import carry
from foreshare.policies.host import CACHE, BoolArray, FloatArray, Group, Host, IntArray, R, entitled_units
from foreshare.policies.knobs import knob
from foreshare.policies.rounding import apportion, fill_extras

from .base import Request, former_rows

_ROUNDING = 1e-9


@dataclass(frozen=True, kw_only=True, slots=True)
class TriageKnobs(BacklogKnobs):
    """What can be tuned about triage, on top of its forecast."""

    priority_power: float = knob(1.5, 0.3, 4, log=True)
    """How much a priority counts against the cost of serving it."""
    price_power: float = knob(0.5, 0.1, 2, log=True)
    """How steeply the price of a resource rises with its scarcity."""
    cost_power: float = knob(0.5, 0.1, 2, log=True)
    """How much the cost of serving a VM counts."""
    stick: float = knob(5.0, 1, 16, log=True)
    """A VM admitted in the tick before counts so much more: turns cost moves, and half-served serves nobody."""
    margin_share: float = knob(0.2, 0.0, 1.0)
    """Share of what is asked above the mean forecast that admission takes; the rest comes out of what is left."""
    thrift: float = knob(0.5, 0.0, 2.0)
    """How much it counts against a VM that it has held more than its reservation lately."""
    thrift_ticks: float = knob(100.0, 10.0, 1000.0, log=True)
    """Over so many ticks that is averaged."""
    horizon_ticks: float = knob(40.0, 1.0, 300.0, log=True)
    """A backlog counts into the cost of serving a VM as if spread over so many ticks."""


class Triage:
    """See the module. ``admitted`` (..., N) says who was served whole by the latest call."""

    name = "triage"
    batched = True

    def __init__(self, knobs: TriageKnobs | None = None) -> None:
        self.knobs = knobs or TriageKnobs()
        self.admitted: BoolArray = np.zeros(0, bool)
        self.favour: FloatArray | None = None
        """(..., N) what the weights are multiplied with; a correction sets it before each call."""
        self._host: Host | None = None
        self._weight: FloatArray = np.zeros(0)
        self._over: FloatArray = np.zeros(0)
        self.arrays: tuple[FloatArray | BoolArray, ...] = ()
        """Weights, knobs and state, as the compiled forms take them; see :meth:`bind`."""
        self.memo = kernel.Memo()

    def allocate(self, request: Request, host: Host, tick: int) -> IntArray:
        """See :class:`~.base.Allocator`."""
        self.bind(host)
        if kernel.compiled is not None:
            return self._allocate_compiled(kernel.compiled, request, host)
        weight = self._weight * (1.0 + self._over) ** -self.knobs.thrift
        if self.favour is not None:
            weight = weight * self.favour
        out = self._allocate(request, host, weight)
        over = np.maximum(out - host.reservation, 0) * self._per_share
        self._over += (largest(over) - self._over) / self.knobs.thrift_ticks
        return out

    def _allocate(self, request: Request, host: Host, weight: FloatArray) -> IntArray:
        ask, k = request.ask, self.knobs
        low = entitled_units(ask, host).astype(np.float64)
        extra = np.maximum(ask, low)
        extra -= low
        groups = [(g, extra[..., g.rows, g.cols], low[..., g.rows, g.cols]) for g in host.groups]
        rooms = [np.maximum(g.capacity - total(base), 0.0) for g, _, base in groups]
        wanted = [total(block) for _, block, _ in groups]
        scarce = [(w > r + _ROUNDING) & gates for w, r, gates in zip(wanted, rooms, self._gates, strict=True)]
        first: FloatArray | None = None
        if any(s.any() for s in scarce):
            first = ask - request.need
            np.maximum(first, 0.0, out=first)
            first *= k.margin_share
            first += request.need
            np.minimum(first, ask, out=first)
            first -= low
            np.maximum(first, 0.0, out=first)
            first[..., CACHE] = 0.0
            self._admit(request, weight, low, first, rooms, wanted, scarce)
            first *= self.admitted[..., None]
        else:
            self.admitted[:] = True
        out = np.zeros(ask.shape, np.int64)
        for (g, block, base), room in zip(groups, rooms, strict=True):
            if first is None:
                x = base + fill_extras(block, room)
            else:
                x = self._fill_rest(block, first[..., g.rows, g.cols], room, self.admitted[..., g.rows, None])
                x += base
            out[..., g.rows, g.cols] = apportion(x, host.granule[g.rows, g.cols], g.capacity, host.vms.rank[g.rows])
        return out

    def _allocate_compiled(self, compiled: ModuleType, request: Request, host: Host) -> IntArray:
        out = np.empty(host.shape, np.int64)
        ask, need, backlog = (np.ascontiguousarray(x) for x in (request.ask, request.need, request.backlog))
        if self.favour is None and not host.batch:
            compiled.serve(self.memo.held, self._kept, ask, need, backlog, out)
            return out
        compiled.triage(
            self._tables, self._hosts, ask, need, backlog, self._weight, self.favour, self._constants,
            self._per_share, self._over, self.admitted, out,
        )  # fmt: skip
        return out

    @staticmethod
    def _fill_rest(block: FloatArray, x: FloatArray, room: FloatArray, admitted: BoolArray) -> FloatArray:
        """Share what ``x`` leaves of ``room``: column by column the margins of who is admitted, then the others."""
        whole = block * admitted
        margin = whole - x
        left = np.maximum(room - total(x), 0.0)
        need = total(margin)
        ample = need <= left + _ROUNDING
        served = ample[..., None, :]
        x = np.where(served, whole, x)
        return x + fill_extras(np.where(served, block - x, margin), np.maximum(left - need * ample, 0.0))

    def bind(self, host: Host) -> None:
        """Work for the VMs of ``host``; who was admitted before is taken over by UUID."""
        if host is self._host:
            return
        fresh = np.zeros(host.shape[:-1], bool)
        rows = former_rows(self._host, host)
        self.admitted = carry(self.admitted, rows, fresh, axis=-1) if self._host is not None else fresh
        self._over = carry(self._over, rows, np.zeros(fresh.shape), axis=-1) if self._host is not None else fresh * 0.0
        self._host, self._groups = host, host.groups
        self._per_share = np.zeros(host.reservation.shape)
        for g in host.groups:
            held = host.reservation[g.rows, g.cols]
            self._per_share[g.rows, g.cols] = len(held) / np.maximum(g.capacity - held.sum(axis=0), 1.0)
        self._per_share[:, CACHE] = 0.0  # best effort: owning ways keeps nobody from anything he is owed
        self._weight = (1.0 + np.maximum(host.vms.priority, 0)) ** self.knobs.priority_power
        self._gates = [_gates(g) for g in host.groups]
        k = self.knobs
        self._constants = np.array(
            [k.margin_share, k.horizon_ticks, k.price_power, k.cost_power, k.stick, k.thrift, k.thrift_ticks],
            np.float64,
        )  # triage_knobs_t of compiled/kernel.h
        self._tables, self._hosts = kernel.tables(host), kernel.hosts_in(host)
        self._by_rank = np.argsort(host.vms.rank)
        self.arrays = self._weight, self._constants, self._per_share, self._over, self.admitted
        self._kept = (self._tables, *self.arrays)

    def _admit(
        self, request: Request, weight: FloatArray, low: FloatArray, first: FloatArray, rooms: list[FloatArray],
        wanted: list[FloatArray], scarce: list[BoolArray],
    ) -> None:  # fmt: skip
        """Fill ``admitted`` for this tick; ``first`` (..., N, R) is what admission takes beyond ``low``."""
        k, n = self.knobs, low.shape[-2]
        cost = np.zeros(low.shape[:-1])
        lasting = request.backlog / k.horizon_ticks
        lasting += request.need
        lasting -= low
        np.maximum(lasting, 0.0, out=lasting)
        columns: list[FloatArray] = []
        free: list[FloatArray] = []
        for g, room, want, short in zip(self._groups, rooms, wanted, scarce, strict=True):
            least = np.maximum(room, 1e-9)
            price = want / least
            price -= 1.0
            np.maximum(price, 0.0, out=price)
            price = price**k.price_power * short / least
            cost[..., g.rows] += np.vecdot(lasting[..., g.rows, g.cols], price[..., None, :])
            columns.append(_of_all(first, g, n))
            free.append(np.where(short, room + _ROUNDING, np.inf))
        np.maximum(cost, 1e-9, out=cost)
        score = weight / cost**k.cost_power
        score[self.admitted] *= k.stick
        score = -score.take(self._by_rank, axis=-1)  # ties go by rank
        order = flat_rows(self._by_rank[score.argsort(axis=-1, kind="stable")])
        whole = columns[0] if len(columns) == 1 else np.concatenate(columns, axis=-1)
        asked = whole.reshape(-1, whole.shape[-1]).take(order, axis=0)
        left = free[0] if len(free) == 1 else np.concatenate(free, axis=-1)
        # One after the other, whole runs at a time: who fits behind all that were not refused is in.
        idle = asked <= 0.0  # who wants nothing of a pool need not care how full it is
        fits = np.zeros(asked.shape[:-1], bool)
        while True:
            now = all_of(idle | (asked <= left[..., None, :]))
            now &= ~fits
            if not now.any():
                break
            ahead = (asked * now[..., None]).cumsum(axis=-2)
            now &= all_of(idle | (ahead <= left[..., None, :]))
            fits |= now
            left = left - total(asked * now[..., None])
        self.admitted.reshape(-1)[order] = fits


def _of_all(x: FloatArray, group: Group, n: int) -> FloatArray:
    """Return (..., n, columns) the columns of ``group``, nothing for VMs that are not in it."""
    if isinstance(group.rows, slice):
        return x[..., group.cols]
    out = np.zeros((*x.shape[:-2], n, len(group.capacity)))
    out[..., group.rows, :] = x[..., group.rows, group.cols]
    return out


def _gates(group: Group) -> BoolArray:
    """Return (columns,) which resources of a group decide who is admitted: all but the cache."""
    out: BoolArray = np.arange(R)[group.cols] != CACHE
    return out
