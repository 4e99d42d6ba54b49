"""Zones (sockets, NUMA nodes): who lives where, and sums over those who share one.

Cores, L3 ways and memory bandwidth belong to a zone, IO bandwidth to the whole host. A VM runs in its home zone only.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from foreshare.policies.axes import total
from foreshare.policies.errors import CapacityError
from foreshare.policies.host import FloatArray, IntArray, R, Resource

from .scenario import HostShape, VmShape


def homes(host: HostShape, shapes: Sequence[VmShape]) -> IntArray:
    """Return the home zone of each VM, (N,).

    VMs that name none go, biggest first, to the zone with least CPU use so far in which their own ways fit. Raises
    CapacityError where they fit into none, or where a VM names a zone that is not there.
    """
    out = np.zeros(len(shapes), np.int64)
    if host.zones == 1:
        for v in shapes:
            if v.zone > 0:
                raise CapacityError(f"VM {v.name!r}: zone {v.zone} does not exist, this host has zone 0")
        return out
    cpus = [0.0] * host.zones
    ways = [host.ways - host.shared_ways] * host.zones
    for i in sorted(range(len(shapes)), key=lambda i: (shapes[i].zone < 0, -shapes[i].cpus)):
        v = shapes[i]
        own = v.ways_of_its_own(host)
        if v.zone >= host.zones:
            raise CapacityError(f"VM {v.name!r}: zone {v.zone} does not exist, this host has {host.zones}")
        fits = [v.zone] if v.zone >= 0 else [z for z in range(host.zones) if ways[z] >= own]
        if not fits:
            raise CapacityError(f"VM {v.name!r}: no zone has {own} ways left for it")
        z = min(fits, key=lambda z: cpus[z])
        out[i] = z
        cpus[z] += v.cpus
        ways[z] -= own
    return out


class ZoneSums:
    """Sums over the VMs of a zone, handed back to each of its VMs; with one zone, as one row for all of them."""

    def __init__(self, zone: IntArray, zones: int) -> None:
        self._zone = zone
        self._member: FloatArray | None = (
            (zone == np.arange(zones)[:, None]).astype(np.float64) if zones > 1 else None
        )  # (Z, N)

    def total(self, amounts: FloatArray) -> FloatArray:
        """Return (H, 1) or (H, N) sums of (H, N) amounts."""
        if self._member is None:
            return np.asarray(amounts.sum(axis=1, keepdims=True))
        # Not a matrix product: its rounding would depend on how many hosts there are.
        return np.asarray((amounts[:, None, :] * self._member).sum(axis=-1)[:, self._zone])

    def totals(self, amounts: FloatArray) -> FloatArray:
        """Return (H, 1, R) or (H, N, R) sums of (H, N, R) amounts; those of IO are the whole host's."""
        if self._member is None:
            return total(amounts)[:, None, :]
        out = np.empty(amounts.shape)
        for r in range(R):
            column = amounts[..., r]
            out[..., r] = column.sum(axis=1, keepdims=True) if r == Resource.IO else self.total(column)
        return out
