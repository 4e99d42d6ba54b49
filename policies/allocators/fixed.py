"""Partitions that do not look at demand: the yardsticks."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np

from foreshare.policies.host import FloatArray, Host, IntArray, R
from foreshare.policies.rounding import apportion, fill_level

from .base import Request


class Fixed(ABC):
    """A partition worked out once for each set of VMs."""

    name = ""
    batched = True

    def __init__(self) -> None:
        self._host: Host | None = None
        self._units = np.zeros((0, R), np.int64)

    def allocate(self, request: Request, host: Host, tick: int) -> IntArray:
        """See :class:`~.base.Allocator`."""
        if host is not self._host:
            self._host = host
            self._units = np.zeros((len(host), R), np.int64)
            for g in host.groups:
                low = host.reservation[g.rows, g.cols].astype(float)
                high = host.cap[g.rows, g.cols].astype(float)
                share = self._share(low, high, g.capacity.astype(float))
                self._units[g.rows, g.cols] = apportion(
                    share, host.granule[g.rows, g.cols], g.capacity, host.vms.rank[g.rows]
                )
        return np.broadcast_to(self._units, host.shape).copy()

    @abstractmethod
    def _share(self, low: FloatArray, high: FloatArray, capacity: FloatArray) -> FloatArray:
        """Return shares (n, c) between reservations and caps whose sums stay within capacity (c,)."""


class Static(Fixed):
    """The whole host in proportion to the reservations, for ever: what a host without re-partitioning does."""

    name = "static"

    def _share(self, low: FloatArray, high: FloatArray, capacity: FloatArray) -> FloatArray:
        scale = capacity / np.maximum(low.sum(axis=0), 1.0)
        share: FloatArray = np.clip(low * scale, low, high)
        return share


class Equal(Fixed):
    """Every pool in equal parts, between each VM's reservation and cap."""

    name = "equal"

    def _share(self, low: FloatArray, high: FloatArray, capacity: FloatArray) -> FloatArray:
        return fill_level(low, high, capacity)
