"""Partitions that do not look at demand: the yardsticks."""

from __future__ import annotations

import numpy as np

from foreshare.policies.host import Host, IntArray, R
from foreshare.policies.rounding import apportion, fill_level

from .base import Request


class Static:
    """Every VM holds its reservation, for ever: what a host without re-partitioning does."""

    name = "static"

    def allocate(self, request: Request, host: Host, tick: int) -> IntArray:
        """See :class:`~.base.Allocator`."""
        return host.reservation.copy()


class Equal:
    """Every pool in equal parts, between each VM's reservation and cap."""

    name = "equal"

    def __init__(self) -> None:
        self._host: Host | None = None
        self._units = np.zeros((0, R), np.int64)

    def allocate(self, request: Request, host: Host, tick: int) -> IntArray:
        """See :class:`~.base.Allocator`."""
        if host is not self._host:
            self._host = host
            self._units = np.zeros((len(host), R), np.int64)
            for g in host.groups:
                x = fill_level(
                    g.block(host.reservation).astype(float), g.block(host.cap).astype(float), g.capacity.astype(float)
                )
                self._units[g.rows, g.cols] = apportion(
                    x, g.block(host.granule).astype(np.int64), g.capacity, host.vms.rank[g.rows]
                )
        return self._units.copy()
