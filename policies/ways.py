"""Contiguous cache ways on a line: who fills which, with the fewest moves; for one host or a batch of them.

The owners keep their order along the line, and their place where they can: an owner grows into free ways beside it,
those on its right first, before it pushes a neighbour. Who gives up its last way leaves a mark where it was, and comes
back there. Pinned owners sit at the low end and move only when another pinned one comes or goes. Bits below ``shared``
always belong to the shared class.

With the VMs in the order of their places, lengths ``l_i`` with sums ``L_i = l_0 + .. + l_i``, and ``d_i`` where each
would like to start, nobody overlaps on the left if each starts at ``s_i = max(d_i, s_{i-1} + l_{i-1})``, which is
``max_{k<=i} (d_k + l_k - L_k) + L_i - l_i``: a running maximum. The same from the right end, with minima, moves those
back who have passed it. So there is no loop over VMs.
"""

from __future__ import annotations

import numpy as np

from . import kernel
from .axes import flat_rows
from .forecast import carry
from .host import BoolArray, Host, IntArray, Isolation


class WayLine:
    """The ways of one zone's L3 domains. Arrays are (..., N) over all VMs; those of other zones have no ways here."""

    def __init__(self, host: Host, zone: int) -> None:
        t = host.topology
        self._ways, self._shared, self._zone = t.ways, t.shared_ways, zone
        size = host.shape[:-1]
        self._start: IntArray = np.full(size, self._ways, np.int64)
        """Where each VM's ways begin, or would begin."""
        self._count: IntArray = np.zeros(size, np.int64)
        self._bind(host)

    def _bind(self, host: Host) -> None:
        v = host.vms
        self._here: BoolArray | None = v.zone == self._zone if host.topology.zones > 1 else None
        size = host.shape[:-1]
        pinned = v.isolation == Isolation.SECURITY
        self._low_end: BoolArray = np.broadcast_to(pinned, size)
        self._first = pinned
        self._pinned = bool(pinned.any())
        # Beside the place on the line, times N: who comes first at the same place; the pinned ones before all places.
        self._order: IntArray = v.rank + np.where(pinned, 0, (self._ways + 1) * max(len(v), 1))
        self._masks: IntArray = _masks(self._start + self._shared, self._count)
        self._head = np.array([kernel.hosts_in(host), len(v), self._ways, self._shared], np.int64)

    def rebind(self, host: Host, rows: IntArray) -> None:
        """Carry on with another set of VMs; ``rows`` (N,) is each one's former row, or -1 for a new one."""
        size = host.shape[:-1]
        self._start = carry(self._start, rows, np.full(size, self._ways, np.int64), axis=-1)
        self._count = carry(self._count, rows, np.zeros(size, np.int64), axis=-1)
        self._bind(host)

    def adopt(self, masks: IntArray) -> None:
        """Take over the owners found in ``masks`` (N,) of one host, as far as they do not overlap."""
        self._count[:], end = 0, 0
        here = masks != 0 if self._here is None else self._here & (masks != 0)
        found = np.flatnonzero(here).tolist()
        for (start, stop), _, row in sorted((_span(int(masks[r]) >> self._shared), self._order[r], r) for r in found):
            if start >= end and stop <= self._ways:
                self._start[row], self._count[row] = start, stop - start
                end = stop
        np.copyto(self._masks, _masks(self._start + self._shared, self._count))

    @property
    def arrays(self) -> tuple[object, ...]:
        """What settle() of compiled/placing.c takes of each line."""
        return self._head, self._order, self._first, self._here, self._start, self._count, self._masks

    def place(self, count: IntArray, into: IntArray) -> None:
        """Write masks for ``count`` (..., N) ways to ``into`` (..., N); VMs of other zones are passed over."""
        here = self._here
        if kernel.compiled is not None and into.flags.c_contiguous:
            kernel.compiled.place_ways(
                self._head, self._order, self._first, here, np.ascontiguousarray(count), self._start, self._count,
                self._masks, into,
            )  # fmt: skip
            return
        want = count if here is None else count * here
        if not np.array_equal(want, self._count):
            np.copyto(self._start, self._layout(want))
            np.copyto(self._count, want)
            np.copyto(self._masks, _masks(self._start + self._shared, want))
        if here is None:
            into[:] = self._masks
        else:
            np.copyto(into, self._masks, where=here)

    def _layout(self, want: IntArray) -> IntArray:
        """Return where ``want`` (..., N) ways of each VM start."""
        ways = self._ways
        order = flat_rows((self._start * self._start.shape[-1] + self._order).argsort(axis=-1))
        start, had, has = self._start.take(order), self._count.take(order), want.take(order)
        stays = (had > 0) & (has > 0)
        # Free ways on either side, as they were: between those who stay.
        right = np.full((*start.shape[:-1], start.shape[-1] + 1), ways, np.int64)
        np.copyto(right[..., :-1], start, where=stays)
        right = np.minimum.accumulate(right[..., ::-1], axis=-1)[..., ::-1][..., 1:] - (start + had)
        left = np.zeros((*start.shape[:-1], start.shape[-1] + 1), np.int64)
        np.copyto(left[..., 1:], start + had, where=stays)
        left = start - np.maximum.accumulate(left, axis=-1)[..., :-1]
        back = np.minimum(np.maximum(has - had - np.maximum(right, 0), 0), np.maximum(left, 0))
        if self._pinned:
            start = np.where(self._low_end.take(order) & (has > 0), 0, start - back * stays)
        else:
            start = start - back * stays
        total = has.cumsum(axis=-1)
        start = np.maximum.accumulate(start + has - total, axis=-1) + total - has
        rest = total[..., -1:] - total + has  # this one's and all behind it
        start = np.minimum(np.minimum.accumulate((start + rest)[..., ::-1], axis=-1)[..., ::-1], ways) - rest
        out = np.empty_like(start)
        out.reshape(-1)[order] = start
        return np.asarray(out)


def _masks(start: IntArray, count: IntArray) -> IntArray:
    """Return runs of ``count`` ones that begin at bit ``start``; 0 where there is none."""
    ones = np.left_shift(np.int64(1), count) - 1
    return np.asarray(np.left_shift(ones, np.where(count > 0, start, 0)))


def _span(mask: int) -> tuple[int, int]:
    """Return [start, end) of the lowest run of ones in ``mask``."""
    if mask <= 0:
        return 0, 0
    start = (mask & -mask).bit_length() - 1
    run = mask >> start
    return start, start + ((run + 1) & -(run + 1)).bit_length() - 1
