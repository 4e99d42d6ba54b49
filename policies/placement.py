"""Turns counts into CPUs and ways with the fewest moves.

CPU units are laid out on a line: zone by zone, core by core, CPU by CPU, ``units_per_cpu`` units each, and every unit
has at most one owner. Isolated VMs own whole physical cores; shared VMs own slices and may run on every CPU on which
they own one. A VM that shrinks gives up units, a VM that grows takes free ones; nothing else moves, except slices on a
core that an isolated VM needs, which move to where there is room.
"""

from __future__ import annotations

import numpy as np

from .host import CACHE, CPU, BoolArray, Host, IntArray, Isolation, Placement
from .ways import WayLine

NOBODY = -1


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
        self._lines = [WayLine(t.ways, t.shared_ways, t.min_ways) for _ in range(max(t.zones, 1))]
        self._bind(host)

    def _bind(self, host: Host) -> None:
        self.host = host
        v = host.vms
        apart = v.isolation != Isolation.SHARED
        self._zone_rows = [
            (z, np.flatnonzero(apart & (v.zone == z)), np.flatnonzero(~apart & (v.zone == z)))
            for z in range(max(host.topology.zones, 1))
        ]
        self._apart = apart
        for z, line in enumerate(self._lines):
            line.pin(np.flatnonzero((v.isolation == Isolation.SECURITY) & (v.zone == z)))
        self._row_index = np.arange(len(host))

    def rebind(self, host: Host, rows: IntArray) -> None:
        """Carry on with another set of VMs; ``rows`` (N,) is each one's former row, or -1."""
        new_row = np.full(len(self.host) + 1, NOBODY, np.int64)
        known = rows >= 0
        new_row[rows[known]] = np.flatnonzero(known)
        new_row[-1] = NOBODY
        self._owner = new_row[self._owner]
        self._core_owner = new_row[self._core_owner]
        for line in self._lines:
            line.rename(new_row)
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
        for zone, line in enumerate(self._lines):
            line.adopt(placement.ways, self.host.vms.zone == zone)

    @property
    def owner(self) -> IntArray:
        """(U,) row of each CPU unit's owner along the line, or NOBODY; a copy."""
        return self._owner.copy()

    def place(self, units: IntArray, into: Placement) -> None:
        """Fill ``into`` with a placement of ``units`` (N, R); what cannot be placed is cut from ``into.units``."""
        into.units[:] = units
        cpu = units[:, CPU]
        if self.host.movable[CPU]:
            for zone, apart, shared in self._zone_rows:
                if len(apart):
                    self._place_cores(zone, apart, cpu)
                if len(shared):
                    self._place_slices(zone, shared, cpu)
            held = np.bincount(self._owner[self._owner >= 0], minlength=len(self.host))
            into.units[:, CPU] = np.minimum(cpu, held)
            into.cpus[:] = False
            owned = self._owner >= 0
            into.cpus[self._owner[owned], self._unit_cpu[owned]] = True
        if self.host.movable[CACHE]:
            ways = units[:, CACHE]
            for zone, line in enumerate(self._lines):
                rows = self.host.vms.zone == zone if len(self._lines) > 1 else None
                line.place(ways, rows, into.ways)

    def _place_cores(self, zone: int, apart: IntArray, cpu: IntArray) -> None:
        """Give isolated VMs whole cores."""
        t = self.host.topology
        per_core = t.units_per_cpu * t.threads_per_core
        want = np.zeros(len(self.host), np.int64)
        want[apart] = cpu[apart] // per_core
        here = np.flatnonzero((self._core_zone == zone) & (self._core_owner != NOBODY))
        have = np.bincount(self._core_owner[here], minlength=len(self.host))
        if (have == want).all():
            return
        surplus = here[_beyond(self._core_owner[here], have, want)]
        self._core_owner[surplus] = NOBODY
        mine = self._apart_units(surplus)
        self._owner[mine] = NOBODY
        rows = np.repeat(self._row_index, np.maximum(want - have, 0))
        if not len(rows):
            return
        free = np.flatnonzero((self._core_zone == zone) & (self._core_owner == NOBODY) & self._whole)
        used = np.bincount(self._unit_core[self._owner != NOBODY], minlength=len(self._core_owner))
        free = free[np.argsort(used[free], kind="stable")][: len(rows)]
        rows = rows[: len(free)]
        free.sort()
        self._core_owner[free] = rows
        taken = self._apart_units(free)
        self._owner[taken] = self._core_owner[self._unit_core[taken]]

    def _apart_units(self, cores: IntArray) -> IntArray:
        chosen = np.zeros(len(self._core_owner), bool)
        chosen[cores] = True
        return np.flatnonzero(chosen[self._unit_core])

    def _place_slices(self, zone: int, shared: IntArray, cpu: IntArray) -> None:
        """Give shared VMs slices of the CPUs that no isolated VM owns."""
        want = np.zeros(len(self.host), np.int64)
        want[shared] = cpu[shared]
        mine = self._shared_units(zone)
        have = np.bincount(self._owner[mine], minlength=len(self.host))
        if (have == want).all():
            return
        surplus = mine[_beyond(self._owner[mine], have, want)]
        self._owner[surplus] = NOBODY
        need = np.maximum(want - have, 0)
        if not need.any():
            return
        free = np.flatnonzero((self._unit_zone == zone) & (self._owner == NOBODY))
        # Receivers in the order of where they stand, free units in the order of the line: neighbours stay neighbours.
        middle = np.full(len(self.host), len(self._owner) / 2)
        kept = mine[self._owner[mine] != NOBODY]
        count = np.bincount(self._owner[kept], minlength=len(self.host))
        where = np.bincount(self._owner[kept], weights=kept, minlength=len(self.host))
        np.divide(where, count, out=middle, where=count > 0)
        receivers = np.flatnonzero(need)
        receivers = receivers[np.lexsort((self.host.vms.rank[receivers], middle[receivers]))]
        rows = np.repeat(receivers, need[receivers])[: len(free)]
        self._owner[free[: len(rows)]] = rows

    def _shared_units(self, zone: int) -> IntArray:
        owned = (self._owner != NOBODY) & (self._core_owner[self._unit_core] == NOBODY)
        if len(self._zone_rows) > 1:
            owned &= self._unit_zone == zone
        return np.flatnonzero(owned)


def _beyond(owner: IntArray, have: IntArray, want: IntArray) -> BoolArray:
    """Return which entries of ``owner`` (rows, in line order) lie beyond the first ``want`` of each row."""
    order = np.argsort(owner, kind="stable")
    start = np.cumsum(have) - have
    position = np.empty(len(owner), np.int64)
    position[order] = np.arange(len(owner)) - start[owner[order]]
    return position >= want[owner]
