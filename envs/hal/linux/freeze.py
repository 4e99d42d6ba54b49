"""VMs that migrate are left as they are: what they hold is their reservation and their cap until that is over.

Giving to or taking from a VM while its memory is copied changes how fast it dirties it, and so whether the migration
ends at all; and what it gave back would be gone with it in a moment anyway.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from foreshare.policies.errors import CapacityError
from foreshare.policies.host import WHOLE_HOST, Host, IntArray, Placement, Resource, Topology, VmTable


class Still:
    """Which VMs are left as they are, and what they held when that began."""

    def __init__(self) -> None:
        self._held: dict[int, IntArray] = {}
        self._fresh = False

    def follow(
        self, moving: frozenset[int], table: VmTable, topology: Topology,
        read_back: Callable[[Placement, IntArray], None],
    ) -> bool:  # fmt: skip
        """Leave the VMs in the rows ``moving`` as they are from now on, and no others; return whether that is news."""
        if moving == self._held.keys():
            return False
        now = Placement.empty(len(table), topology.cpus)
        read_back(now, np.array(sorted(moving - self._held.keys()), np.int64))
        self._held = {row: self._held.get(row, now.units[row]) for row in moving}
        self._fresh = True
        return True

    def contract(self, topology: Topology, vms: VmTable) -> tuple[Topology, VmTable]:
        """Return both as they are meanwhile; another topology, if an equal one, tells everybody to plan anew."""
        fresh, self._fresh = self._fresh, False
        return dataclasses.replace(topology) if fresh else topology, held_still(topology, vms, self._held)


def held_still(topology: Topology, vms: VmTable, held: Mapping[int, IntArray]) -> VmTable:
    """Return the contracts while the VMs in the rows of ``held`` are to keep (R,) units each.

    As far as the others' reservations leave room for that; their own reservation they keep in any case.
    """
    if not held:
        return vms
    try:
        host = Host(topology, vms)
    except CapacityError:
        return vms
    promised, cap, still = host.reservation.copy(), vms.cap.copy(), vms.still.copy()
    for row, units in sorted(held.items()):
        for r in Resource:
            pool = topology.pool(r, int(vms.zone[row]))
            here = vms.zone == pool.zone if pool.zone != WHOLE_HOST else vms.zone >= 0
            left = pool.units - int(promised[here, r].sum()) + int(promised[row, r])
            granule = int(host.granule[row, r])
            kept = min(int(units[r]), left) // granule * granule
            promised[row, r] = max(kept, int(promised[row, r]))
        cap[row] = promised[row]
        still[row] = True
    reservation = vms.reservation.copy()
    rows = sorted(held)
    reservation[rows] = promised[rows]
    return dataclasses.replace(vms, reservation=reservation, cap=cap, still=still)
