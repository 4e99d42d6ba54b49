"""Quarantine: a way that leaves an isolated VM rests with nobody for a while before another VM may fill it.

The same rules as those of a real host (hal/linux/resctrl/state.py): who is promised a way that rests after somebody
else may fill only the longest run of its ways that do not; the shared class gets neither ways that rest nor ways that
are promised; a VM may take its own ways back at once. Who has fewer than a mask's least ways left to fill shares the
shared class's meanwhile.

Arrays are (H hosts, N VMs) or (H, K VMs that are kept apart, W ways); masks are int64.
"""

from __future__ import annotations

import math

import numpy as np

from foreshare.policies.errors import InputError
from foreshare.policies.host import CACHE, BoolArray, FloatArray, IntArray

from .model import HostModel
from .scenario import Scenario

_NEVER = np.iinfo(np.int64).max


class RestingWays:
    """Who was promised which ways, who may fill which, and which rest."""

    def __init__(
        self, zone: IntArray, apart: BoolArray, *, hosts: int, zones: int, ways: int, min_ways: int, ticks: int,
        delay: int = 1,
    ) -> None:  # fmt: skip
        """``zone`` and ``apart`` (N,); a way that one of ``apart`` gives up rests for ``ticks``.

        ``delay``: ticks from a command to its effect, at least 1.
        """
        self._rows = np.flatnonzero(apart)
        self._zone, self._zones, self._ticks, self._least = zone, zones, ticks, min_ways
        self._bit: IntArray = np.arange(ways, dtype=np.int64)
        self._until: IntArray = np.zeros((hosts, len(self._rows), ways), np.int64)
        self._next = _NEVER
        self.promised: IntArray = np.zeros((hosts, len(zone)), np.int64)
        """(H, N) masks that VMs were promised; 0: the shared class."""
        self.fills: IntArray = np.zeros((hosts, len(zone)), np.int64)
        """(H, N) masks that VMs may fill now."""
        self.withheld: FloatArray = np.zeros((hosts, zones))
        """(H, Z) ways that neither an owner nor the shared class may fill now."""
        self._ways, self._delay = ways, delay
        self._in_flight: FloatArray = np.zeros((delay, hosts, zones))

    def promise(self, alive: BoolArray, ways: IntArray | None, t: int) -> None:
        """Promise ``ways`` (H, N) to those who are ``alive`` (H, N) from tick ``t`` on."""
        if ways is None:
            raise InputError("this host's ways rest: a command has to say which ways it means")
        masks = np.where(alive, ways, 0)
        if not (masks != self.promised).any():
            return
        self._left(self.promised[:, self._rows] & ~masks[:, self._rows], slice(None), slice(None), t)
        np.copyto(self.promised, masks)
        self._next = t

    def forget(self, hosts: slice, vm: int, t: int) -> None:
        """Take back what was promised to a VM that is gone."""
        k = int(np.searchsorted(self._rows, vm))
        if k < len(self._rows) and self._rows[k] == vm:
            self._left(self.promised[hosts, vm, None], hosts, slice(k, k + 1), t)
        self.promised[hosts, vm] = 0
        self._next = t

    def take_effect(self, t: int, units: FloatArray, gained: FloatArray) -> FloatArray:
        """Correct the cache columns of (H, N, R) ``units``, to be in force after the delay, and ``gained``.

        Returns the (H, N) ways of each VM's zone that anybody may fill in tick ``t``.
        """
        fresh = self.settle(t)
        gained[..., CACHE] = 0.0 if fresh is None else fresh
        units[..., CACHE] = np.bitwise_count(self.fills)
        self._in_flight[t % self._delay] = self.withheld
        return np.asarray(self._ways - self._in_flight[(t + 1) % self._delay].take(self._zone, axis=1))

    def _left(self, masks: IntArray, hosts: slice, rows: slice, t: int) -> None:
        until = self._until[hosts, rows]
        until[(masks[..., None] >> self._bit & 1) != 0] = t + self._ticks

    def settle(self, t: int) -> IntArray | None:
        """Bring everything up to tick ``t``; return (H, N) ways that are new to who fills them, None if none are."""
        if t < self._next:
            return None
        rests = self._until > t
        self._next = int(self._until[rests].min()) if rests.any() else _NEVER
        home = self._zone[self._rows]
        count = np.stack([rests[:, home == z].sum(axis=1) for z in range(self._zones)], axis=1)  # (H, Z, W)
        others = count[:, self._zone]
        others[:, self._rows] -= rests
        ones = np.int64(1) << self._bit
        before = self.fills
        run = longest_runs(self.promised & ~((others > 0) * ones).sum(axis=-1))
        self.fills = np.where(np.bitwise_count(run) >= self._least, run, 0)
        taken = ((count > 0) * ones).sum(axis=-1)
        for z in range(self._zones):
            here = self._zone == z
            taken[:, z] |= np.bitwise_or.reduce(self.promised[:, here], axis=1, initial=0)
            own = np.bitwise_count(self.fills[:, here]).sum(axis=1, dtype=np.int64)
            self.withheld[:, z] = np.bitwise_count(taken[:, z]) - own
        fresh = np.bitwise_count(self.fills & ~before).astype(np.int64)
        return fresh if fresh.any() else None


def resting_ways(scenario: Scenario, model: HostModel, hosts: int, tick_ms: float) -> RestingWays | None:
    """Return the quarantine of a scenario's hosts, or None where there is none."""
    h = scenario.host
    if not h.quarantine_ms or not model.isolated.any():
        return None
    return RestingWays(
        model.vms.zone, model.isolated > 0, hosts=hosts, zones=h.zones, ways=h.ways, min_ways=h.min_ways,
        ticks=math.ceil(h.quarantine_ms / tick_ms), delay=max(h.delay_ticks.cache, 1),
    )  # fmt: skip


def longest_runs(masks: IntArray) -> IntArray:
    """Return the longest run of ones in each of ``masks``, the lowest of equals; 0 where there is none."""
    begin, length = masks.copy(), np.ones_like(masks)
    left = masks & masks >> 1
    size = 1
    while left.any():
        size += 1
        np.copyto(begin, left, where=left != 0)
        np.copyto(length, size, where=left != 0)
        left = left & masks >> size
    start = begin & -begin
    return np.asarray(np.where(masks != 0, (start << length) - start, 0))
