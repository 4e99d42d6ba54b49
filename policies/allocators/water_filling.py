"""Forecast-driven water-filling: everybody gets what it asks for, under contention equal extras above reservations."""

from __future__ import annotations

import numpy as np

from foreshare.policies.host import Host, IntArray, R
from foreshare.policies.rounding import apportion, fill_extras

from .base import Request


class WaterFilling:
    """Max-min fair shares of what VMs ask for, never below what they need of their reservation.

    The low end for each VM is ``min(ask, reservation)``, the high end ``ask``; what is left above the low ends is
    shared max-min fairly between the extras.
    """

    name = "water-filling"

    def allocate(self, request: Request, host: Host, tick: int) -> IntArray:
        """See :class:`~.base.Allocator`."""
        out = np.zeros((len(host), R), np.int64)
        for g in host.groups:
            ask = request.ask[g.rows, g.cols]
            low = np.minimum(ask, host.reservation[g.rows, g.cols])
            x = low + fill_extras(ask - low, np.maximum(g.capacity - low.sum(axis=0), 0.0))
            out[g.rows, g.cols] = apportion(x, host.granule[g.rows, g.cols], g.capacity, host.vms.rank[g.rows])
        return out
