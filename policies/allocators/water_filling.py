"""Forecast-driven water-filling: everybody gets what it asks for, under contention equal extras above reservations."""

from __future__ import annotations

import numpy as np

from foreshare.policies import kernel
from foreshare.policies.axes import total
from foreshare.policies.host import Host, IntArray, entitled_units
from foreshare.policies.rounding import apportion, fill_extras

from .base import Request


class WaterFilling:
    """Max-min fair shares of what VMs ask for, never below what they need of their reservation.

    The low end for each VM is what it is entitled to, ``min(ask, reservation)`` in whole units, the high end ``ask``;
    what is left above the low ends is shared max-min fairly between the extras.
    """

    name = "water-filling"
    batched = True
    _host: Host | None = None

    def allocate(self, request: Request, host: Host, tick: int) -> IntArray:
        """See :class:`~.base.Allocator`."""
        out = np.zeros(request.ask.shape, np.int64)
        if kernel.compiled is not None:
            if host is not self._host:
                self._host, self._tables, self._hosts = host, kernel.tables(host), kernel.hosts_in(host)
            kernel.compiled.water_fill(self._tables, self._hosts, np.ascontiguousarray(request.ask), out)
            return out
        entitled = entitled_units(request.ask, host).astype(np.float64)
        for g in host.groups:
            ask, low = request.ask[..., g.rows, g.cols], entitled[..., g.rows, g.cols]
            x = low + fill_extras(np.maximum(ask - low, 0.0), np.maximum(g.capacity - total(low), 0.0))
            out[..., g.rows, g.cols] = apportion(x, host.granule[g.rows, g.cols], g.capacity, host.vms.rank[g.rows])
        return out
