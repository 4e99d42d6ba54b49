"""A batch of hosts for allocators that decide about one at a time: one of them for each host, asked in turn."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from foreshare.policies.host import Host, IntArray

from .base import Allocator, Request


class SideBySide:
    """``count`` allocators that know nothing of each other; what surrounds them still runs for all hosts at once."""

    batched = True

    def __init__(self, make: Callable[[], Allocator], count: int) -> None:
        self.each = [make() for _ in range(count)]
        self.name = self.each[0].name if self.each else "nobody"
        self._host: Host | None = None
        self._one: Host | None = None

    def allocate(self, request: Request, host: Host, tick: int) -> IntArray:
        """See :class:`~.base.Allocator`."""
        if host is not self._host or self._one is None:
            self._host, self._one = host, Host(host.topology, host.vms, host.active)
        q, out = request, np.empty(host.shape, np.int64)
        for h, allocator in enumerate(self.each):
            alone = Request(q.ask[h], q.need[h], q.usage[h], q.backlog[h], q.delay_ticks[h])
            out[h] = allocator.allocate(alone, self._one, tick)
        return out
