"""What of the work that VMs have queued is due when: the queue is first in first out, and every VM has a target.

Work is measured as one number for a VM, ``Y(x) = sum_r x_r / capacity_r`` over CPU, memory and IO, as in estimate.py.
With ``D`` the work done so far, ``b`` the backlog at the end of this tick and ``C(t) = D + Y(b)`` the work that had
arrived by then, what arrived by tick ``t + k - S`` has to be done within the next ``k`` ticks (``S`` the target in
ticks): ``due_k = max(C(t + k - S) - D, 0)``. What is behind that may wait: a VM whose target is far away can queue
while others are served, and nobody is late (earliest deadline first: Liu, Layland, Journal of the ACM 20(1), 1973).
"""

from __future__ import annotations

import numpy as np

from . import kernel
from .allocators.base import Request, former_rows
from .forecast import carry
from .host import CACHE, FloatArray, Host, IntArray, R

MOST_TICKS = 63
"""Targets beyond this count as this: so many ticks of history are kept."""
STEPS = (1, 2, 4, 8)
"""Ticks from now at which is looked what is due by then; besides all that is queued, by the target itself."""
_TINY = 1e-9


def ticks_to_target(host: Host, tick_ms: float) -> IntArray:
    """Return (N,) the VMs' latency targets in ticks, from 1 to MOST_TICKS."""
    return np.clip(np.rint(host.vms.target_ms / tick_ms), 1, MOST_TICKS).astype(np.int64)


class Deadlines:
    """Follows requests tick by tick; arrays (..., N) change with every :meth:`update`: copy what you keep."""

    def __init__(self, tick_ms: float) -> None:
        self.tick_ms = tick_ms
        self._host: Host | None = None
        self._at = 0
        self._done: FloatArray = np.zeros(0)
        self._ring: FloatArray = np.zeros((MOST_TICKS + 1, 0))
        self.target: IntArray = np.zeros(0, np.int64)
        """(N,) S: targets in ticks, from 1 to MOST_TICKS."""
        self.overdue = np.zeros(0)
        """Work that is late already, in ticks of mean demand."""
        self.rates = np.zeros((len(STEPS) + 1, 0))
        """(steps, ..., N) rate at which to work in order to be in time: ``due_k / k``, relative to the mean demand."""
        self.rate = np.zeros(0)
        """(..., N) the largest of the rates."""

    def update(self, request: Request, host: Host) -> None:
        """Take in what is known at the end of a tick."""
        self.bind(host)
        self.turn()
        if kernel.compiled is not None:
            kernel.compiled.due(
                self._tables, self._hosts, self._at, self._per_capacity, self.target, self._lag, self._within,
                request.usage, request.need, request.backlog, self._done, self._ring, self.overdue, self.rates,
                self.rate,
            )  # fmt: skip
            return
        self._done += request.usage @ self._per_capacity
        backlog = request.backlog @ self._per_capacity
        usual = np.maximum(request.need @ self._per_capacity, _TINY)
        self._ring[self._at] = self._done + backlog
        # What came until each of the ticks that are looked back at: the indexed axes come first.
        slots = (self._at - self._lag) % len(self._ring)
        came = self._ring[slots, ..., self._rows]
        if came.ndim > 2:
            came = np.moveaxis(came, 1, -1)
        due = np.minimum(np.maximum(came - self._done, 0.0), backlog)
        np.divide(due[0], usual, out=self.overdue)
        within = self._within.reshape(len(STEPS), *(1,) * (backlog.ndim - 1), -1)
        np.divide(due[1:], within, out=self.rates[:-1])
        np.divide(backlog, self.target, out=self.rates[-1])
        self.rates /= usual
        self.rates.max(axis=0, out=self.rate)

    def turn(self) -> int:
        """Begin a tick; return its slot in the ring."""
        self._at = (self._at + 1) % len(self._ring)
        return self._at

    @property
    def arrays(self) -> tuple[object, ...]:
        """What the compiled form works with besides a request."""
        return (
            self._per_capacity, self.target, self._lag, self._within, self._done, self._ring, self.overdue, self.rates,
            self.rate,
        )  # fmt: skip

    def bind(self, host: Host) -> None:
        """Work for the VMs of ``host`` from now on."""
        if host is self._host:
            return
        capacity = np.zeros(R)
        for pool in host.topology.pools:
            capacity[pool.resource] += pool.units
        self._per_capacity = np.where(capacity > 0, 1.0 / np.maximum(capacity, 1.0), 0.0)
        self._per_capacity[CACHE] = 0.0
        n, before = len(host), host.shape[:-1]
        self._rows = np.arange(n)
        self.target = ticks_to_target(host, self.tick_ms)
        looks = np.array([0, *STEPS])[:, None]
        self._lag = np.maximum(self.target - looks, 0)
        self._within = np.minimum(looks[1:], self.target)
        fresh: FloatArray = np.zeros(before)
        self.overdue, self.rate, self.rates = np.zeros(before), np.zeros(before), np.zeros((len(looks), *before))
        ring: FloatArray = np.zeros((len(self._ring), *before))
        if self._host is None:
            self._done, self._ring = fresh, ring
        else:
            rows = former_rows(self._host, host)
            self._done = carry(self._done, rows, fresh, axis=-1)
            self._ring = carry(self._ring, rows, ring, axis=-1)
        self._tables, self._hosts = kernel.tables(host), kernel.hosts_in(host)
        self._host = host
