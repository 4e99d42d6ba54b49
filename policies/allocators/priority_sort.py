"""The specification's allocator: requests by priority, each granted whole or not at all; the last resort."""

from __future__ import annotations

from types import ModuleType

import numpy as np

from foreshare.policies import kernel
from foreshare.policies.host import CACHE, BoolArray, Host, IntArray, Resource

from .base import Request

ROTATE_TICKS = 10
"""Equal priorities change places every so many ticks, so that nobody starves and nothing flaps every tick."""


class PrioritySort:
    """Highest priority first; each VM gets all of CPU, memory and IO bandwidth that it asks for, or its reservation.

    Available to a VM is capacity - grants so far - reservations of the VMs not yet served. In terms of what a VM asks
    *beyond* its reservation this is one pool, ``capacity - sum(reservations)``: extras are taken from it, and a VM that
    asks for less than its reservation gives to it. Cache follows best effort in the same order. Ties rotate by UUID
    rank. ``refused`` (N,) says who was throttled to its reservation by the latest call.
    """

    name = "priority-sort"
    batched = True

    def __init__(self) -> None:
        self.refused: BoolArray = np.zeros(0, bool)
        self._host: Host | None = None
        self._turn = -1

    def allocate(self, request: Request, host: Host, tick: int) -> IntArray:
        """See :class:`~.base.Allocator`."""
        if kernel.compiled is not None:
            return self._allocate_compiled(kernel.compiled, request, host, tick)
        if host.batch:  # one by one: the reference need not be fast for many
            return self._allocate_each(request, host, tick)
        n = len(host)
        granule, reservation = host.granule, host.reservation
        ask = (np.ceil(request.ask / granule - 1e-9) * granule).astype(np.int64)
        np.minimum(ask, host.cap, out=ask)
        if n == 0:
            self.refused = np.zeros(0, bool)
            return ask
        order = _order(host, tick)
        extra, free = self._by_pool(ask - reservation, host)
        refused = _serve(extra[order], free)
        self.refused = np.zeros(n, bool)
        self.refused[order] = refused
        out = np.where(self.refused[:, None], reservation, ask)
        out[:, CACHE] = self._cache(ask[:, CACHE], host, order)
        return out

    def _allocate_compiled(self, compiled: ModuleType, request: Request, host: Host, tick: int) -> IntArray:
        turn = tick // ROTATE_TICKS
        if host is not self._host:
            self._host, self._turn = host, -1
            self._tables, self._hosts = kernel.tables(host), kernel.hosts_in(host)
        if turn != self._turn:
            self._turn, self._order = turn, _order(host, tick)
        out, self.refused = np.empty(host.shape, np.int64), np.empty(host.shape[:-1], bool)
        ask = np.ascontiguousarray(request.ask)
        compiled.priority_sort(self._tables, self._hosts, ask, self._order, self.refused, out)
        return out

    def _allocate_each(self, request: Request, host: Host, tick: int) -> IntArray:
        one = Host(host.topology, host.vms, host.active)
        units, refused = np.zeros(host.shape, np.int64), np.zeros(host.shape[:-1], bool)
        for at in np.ndindex(host.batch):
            units[at] = self.allocate(Request(request.ask[at], request.need[at]), one, tick)
            refused[at] = self.refused
        self.refused = refused
        return units

    @staticmethod
    def _by_pool(extra: IntArray, host: Host) -> tuple[IntArray, list[int]]:
        """Return extras (N, P) against each pool that decides a grant, and what each pool has beyond reservations."""
        columns: list[IntArray] = []
        free: list[int] = []
        for g in host.groups:
            for j, r in enumerate(list(Resource)[g.cols]):
                if r == CACHE or not host.movable[r]:
                    continue
                column = np.zeros(len(host), np.int64)
                column[g.rows] = extra[g.rows, r]
                columns.append(column)
                free.append(int(g.capacity[j] - host.reservation[g.rows, r].sum()))
        return (np.stack(columns, axis=1) if columns else np.zeros((len(host), 0), np.int64)), free

    @staticmethod
    def _cache(ask: IntArray, host: Host, order: IntArray) -> IntArray:
        reservation = host.reservation[:, CACHE]
        out = np.minimum(ask, reservation)
        for g in host.groups:
            if not g.cols.start <= CACHE < g.cols.stop:
                continue
            mine = np.zeros(len(host), bool)
            mine[g.rows] = True
            rows = order[mine[order]]
            left = int(g.capacity[CACHE - g.cols.start]) - int(out[rows].sum())
            more = np.maximum(ask[rows] - reservation[rows], 0)
            out[rows] += np.clip(left - (np.cumsum(more) - more), 0, more)
        return out


def _order(host: Host, tick: int) -> IntArray:
    """Return the rows, first served first; equal priorities take turns."""
    turn = (host.vms.rank - tick // ROTATE_TICKS) % max(len(host), 1)
    return np.lexsort((turn, -host.vms.priority))


def _serve(extra: IntArray, free: list[int]) -> BoolArray:
    """Walk ``extra`` (n, P) in order; return (n,) who did not fit into ``free`` (P,) and was refused.

    Everything up to the first refusal is one cumulative sum; behind it each answer depends on the ones before.
    """
    n = len(extra)
    refused = np.zeros(n, bool)
    after = np.cumsum(extra, axis=0)
    short = (after > np.asarray(free, np.int64)) & (extra > 0)
    bad = short.any(axis=1)
    if not bad.any():
        return refused
    first = int(np.argmax(bad))
    left = [f - int(a) for f, a in zip(free, after[first] - extra[first], strict=True)]
    for i, row in enumerate(extra[first:].tolist(), start=first):
        if all(e <= 0 or e <= f for e, f in zip(row, left, strict=True)):
            left = [f - e for e, f in zip(row, left, strict=True)]
        else:
            refused[i] = True
    return refused
