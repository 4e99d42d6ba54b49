"""Turns counts into CPUs and ways with the fewest moves.

CPU units are laid out on a line: zone by zone, core by core, CPU by CPU, ``units_per_cpu`` units each, and every unit
has at most one owner. Isolated VMs own whole physical cores; shared VMs own slices and may run on every CPU on which
they own one. A VM that shrinks gives up units, a VM that grows takes free ones; nothing else moves, except slices on a
core that an isolated VM needs, which move to where there is room.
"""

from __future__ import annotations

import numpy as np

from . import kernel
from .host import CACHE, CPU, BoolArray, Host, IntArray, Isolation, Placement
from .ways import WayLine

NOBODY = -1
_MOST_LINES = 10
"""Zones with ways of their own that one compiled call takes."""


def way_lines(host: Host) -> list[WayLine]:
    """Return a line for each zone's ways; none where ways cannot move."""
    return [WayLine(host, z) for z in range(max(host.topology.zones, 1))] if host.movable[CACHE] else []


class BatchPlacer:
    """Places a batch of hosts, as far as anything that is simulated depends on it: who fills which ways.

    Which CPUs a VM runs on changes nothing there: whoever owns cores keeps those that he can, and slices have no place.
    """

    def __init__(self, host: Host) -> None:
        self._lines = way_lines(host)

    def rebind(self, host: Host, rows: IntArray) -> None:
        """Carry on with another set of VMs; ``rows`` (N,) is each one's former row, or -1."""
        for line in self._lines:
            line.rebind(host, rows)

    def place(self, units: IntArray, into: Placement) -> None:
        """Fill units and ways of ``into`` with a placement of ``units`` (H, N, R)."""
        np.copyto(into.units, units)
        for line in self._lines:
            line.place(units[..., CACHE], into.ways)

    def adopt(self, placement: Placement) -> None:
        """Start from hosts as they are found: everybody in the shared class."""


class Placer:
    """Keeps the map of who owns which unit and moves as little as it can from call to call."""

    def __init__(self, host: Host) -> None:
        t = host.topology
        self._line = np.lexsort((t.cpu_id, t.core, t.zone))  # CPU index at each place of the line
        self._unit_cpu = np.repeat(self._line, t.units_per_cpu)
        self._unit_core = t.core[self._unit_cpu]
        self._unit_zone = t.zone[self._unit_cpu]
        cores = int(t.core.max()) + 1 if t.cpus else 0
        size = np.bincount(t.core, minlength=cores)
        self._core_zone = np.zeros(cores, np.int64)
        self._core_zone[t.core] = t.zone
        self._whole = size == t.threads_per_core  # a core with an offline sibling serves shared VMs only
        self._owner = np.full(len(self._unit_cpu), NOBODY, np.int64)
        self._core_owner = np.full(cores, NOBODY, np.int64)
        self._lines = way_lines(host)
        self.memo = kernel.Memo()
        self._into: Placement | None = None
        self._arrays: tuple[object, ...] = ()
        """What the compiled form works with to fill ``_into``."""
        self._bind(host)

    def _bind(self, host: Host) -> None:
        self.host = host
        self._moves = bool(host.movable[CPU]) and len(self._lines) <= _MOST_LINES
        v = host.vms
        apart = v.isolation != Isolation.SHARED
        self._zone_rows = [
            (z, np.flatnonzero(apart & (v.zone == z)), np.flatnonzero(~apart & (v.zone == z)))
            for z in range(max(host.topology.zones, 1))
        ]
        self._apart = apart
        self._evicted: IntArray | None = None
        self._recount()
        self._by_rank = np.argsort(v.rank)  # ties must not follow the order of the rows
        t = host.topology
        head = (
            len(v), t.cpus, len(self._core_owner), len(self._zone_rows), t.units_per_cpu,
            max(t.units_per_cpu * t.threads_per_core, 1),
        )  # fmt: skip
        self._layout: IntArray = np.concatenate(
            [
                np.array(head), self._line, t.core[self._line], t.zone[self._line], self._core_zone, self._whole,
                apart, v.zone, self._by_rank,
            ],
            dtype=np.int64,
        )  # fmt: skip
        """layout_t of compiled/kernel.h."""

    def rebind(self, host: Host, rows: IntArray) -> None:
        """Carry on with another set of VMs; ``rows`` (N,) is each one's former row, or -1."""
        new_row = np.full(len(self.host) + 1, NOBODY, np.int64)
        known = rows >= 0
        new_row[rows[known]] = np.flatnonzero(known)
        new_row[-1] = NOBODY
        self._owner = new_row[self._owner]
        self._core_owner = new_row[self._core_owner]
        for line in self._lines:
            line.rebind(host, rows)
        self._bind(host)

    def adopt(self, placement: Placement) -> None:
        """Start from what the VMs hold now: each keeps its reservation of it where the layout allows; the rest is free.

        More than that need not be kept: with no telemetry yet, reservations are what the first tick grants.
        """
        host, t = self.host, self.host.topology
        self._owner[:] = NOBODY
        self._core_owner[:] = NOBODY
        by_rank = np.argsort(host.vms.rank)
        keep = host.reservation[:, CPU]
        for row in by_rank[self._apart[by_rank]]:
            cores = np.unique(t.core[placement.cpus[row]])
            cores = cores[
                (self._core_owner[cores] == NOBODY)
                & self._whole[cores]
                & (self._core_zone[cores] == host.vms.zone[row])
            ]
            self._core_owner[cores[: keep[row] // (t.units_per_cpu * t.threads_per_core)]] = row
        self._owner[:] = self._core_owner[self._unit_core]
        for row in by_rank[~self._apart[by_rank]]:
            free = (
                placement.cpus[row][self._unit_cpu] & (self._owner == NOBODY) & (self._unit_zone == host.vms.zone[row])
            )
            self._owner[np.flatnonzero(free)[: keep[row]]] = row
        self._recount()
        for line in self._lines:
            line.adopt(placement.ways)

    @property
    def owner(self) -> IntArray:
        """(U,) row of each CPU unit's owner along the line, or NOBODY; a copy."""
        return self._owner.copy()

    def place(self, units: IntArray, into: Placement) -> None:
        """Fill ``into`` with a placement of ``units`` (N, R); what cannot be placed is cut from ``into.units``.

        Who goes on with the same ``into`` leaves its CPUs as they are: only what changes is written.
        """
        if kernel.compiled is not None and self._moves and into.ways.flags.c_contiguous:
            if into is not self._into:
                self._into, self._arrays = into, self._gather(into)
            kernel.compiled.settle(self.memo.held, self._arrays, np.ascontiguousarray(units))
            return
        np.copyto(into.units, units)
        if self.host.movable[CPU]:
            want = units[:, CPU]
            self._evicted = None
            if (want != self._held).any():
                before = self._owner.copy()
                for zone, apart, shared in self._zone_rows:
                    if len(apart):
                        self._place_cores(zone, apart, want)
                    if len(shared):
                        self._place_slices(zone, shared, want)
                self._note_changes(before)
                np.minimum(want, self._held, out=into.units[:, CPU])
            np.copyto(into.cpus, self._cpus)
        for line in self._lines:
            line.place(units[:, CACHE], into.ways)

    def _gather(self, into: Placement) -> tuple[object, ...]:
        return (
            self._layout, self._owner, self._core_owner, self._held, self._cpus, into.units, into.cpus, into.ways,
            *(array for line in self._lines for array in line.arrays),
        )  # fmt: skip

    def _note_changes(self, before: IntArray) -> None:
        """Bring counts and CPU sets up to date with the units that changed hands since ``before``."""
        n = len(self.host)
        moved = self._owner != before
        touched = np.zeros(n + 1, bool)  # the last entry stands for NOBODY
        touched[before[moved]] = True
        touched[self._owner[moved]] = True
        touched[NOBODY] = False
        self._cpus[touched[:n]] = False
        theirs = touched[self._owner].nonzero()[0]
        owners = self._owner[theirs]
        self._cpus[owners, self._unit_cpu[theirs]] = True
        self._held[touched[:n]] = np.bincount(owners, minlength=n)[touched[:n]]

    def _recount(self) -> None:
        self._into = None
        owned = self._owner >= 0
        self._held = np.bincount(self._owner[owned], minlength=len(self.host))
        self._cpus = np.zeros((len(self.host), self.host.topology.cpus), bool)
        self._cpus[self._owner[owned], self._unit_cpu[owned]] = True

    def _place_cores(self, zone: int, apart: IntArray, cpu: IntArray) -> None:
        """Give isolated VMs whole cores."""
        if (cpu[apart] == self._held[apart]).all():
            return
        t = self.host.topology
        per_core = t.units_per_cpu * t.threads_per_core
        want = np.zeros(len(self.host), np.int64)
        want[apart] = cpu[apart] // per_core
        here = np.flatnonzero((self._core_zone == zone) & (self._core_owner != NOBODY))
        have = np.bincount(self._core_owner[here], minlength=len(self.host))
        surplus = here[_beyond(self._core_owner[here], have, want)]
        self._core_owner[surplus] = NOBODY
        mine = self._apart_units(surplus)
        self._owner[mine] = NOBODY
        rows = np.repeat(self._by_rank, np.maximum(want - have, 0)[self._by_rank])
        if not len(rows):
            return
        free = np.flatnonzero((self._core_zone == zone) & (self._core_owner == NOBODY) & self._whole)
        used = np.bincount(self._unit_core[self._owner != NOBODY], minlength=len(self._core_owner))
        free = free[np.argsort(used[free], kind="stable")][: len(rows)]
        rows = rows[: len(free)]
        free.sort()
        self._core_owner[free] = rows
        taken = self._apart_units(free)
        losers = self._owner[taken]
        if (losers != NOBODY).any():
            evicted = np.bincount(losers[losers != NOBODY], minlength=len(self.host))
            self._evicted = evicted if self._evicted is None else self._evicted + evicted
        self._owner[taken] = self._core_owner[self._unit_core[taken]]

    def _apart_units(self, cores: IntArray) -> IntArray:
        chosen = np.zeros(len(self._core_owner), bool)
        chosen[cores] = True
        return np.flatnonzero(chosen[self._unit_core])

    def _place_slices(self, zone: int, shared: IntArray, cpu: IntArray) -> None:
        """Give shared VMs slices of the CPUs that no isolated VM owns."""
        n, owner = len(self.host), self._owner
        have = self._held.copy()
        if self._evicted is not None:  # slices that had to leave a core
            have -= self._evicted
            self._evicted = None
        change = np.zeros(n + 1, np.int64)  # the last entry stands for NOBODY
        change[shared] = cpu[shared] - have[shared]
        if not change.any():
            return
        shrinking = (change < 0)[owner].nonzero()[0]
        if len(shrinking):
            owner[shrinking[_beyond(owner[shrinking], have * (change[:n] < 0), cpu)]] = NOBODY
        receivers = (change > 0).nonzero()[0]
        if not len(receivers):
            return
        free = (owner == NOBODY).nonzero()[0]
        if len(self._zone_rows) > 1:
            free = free[self._unit_zone[free] == zone]
        # Receivers in the order of where they stand, free units in the order of the line: neighbours stay neighbours.
        theirs = (change > 0)[owner].nonzero()[0]
        middle = np.full(n, len(owner) / 2)
        where = np.bincount(owner[theirs], weights=theirs, minlength=n)
        np.divide(where, have, out=middle, where=(have > 0) & (change[:n] > 0))
        receivers = receivers[np.lexsort((self.host.vms.rank[receivers], middle[receivers]))]
        rows = np.repeat(receivers, change[receivers])[: len(free)]
        owner[free[: len(rows)]] = rows


def _beyond(owner: IntArray, have: IntArray, want: IntArray) -> BoolArray:
    """Return which entries of ``owner`` (rows, in line order) lie beyond the first ``want`` of each row."""
    order = np.argsort(owner, kind="stable")
    start = np.cumsum(have) - have
    position = np.empty(len(owner), np.int64)
    position[order] = np.arange(len(owner)) - start[owner[order]]
    return position >= want[owner]
