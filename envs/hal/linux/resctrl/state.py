"""What every group should hold and what it is known to hold, as arrays; which writes lead from one to the other.

S groups, D L3 domains. Safe after every single write: first every group gives up what it must not keep (a group that
keeps nothing goes to the ways that nobody ever owns), that is read back, and only then do groups grow, each only into
ways that no group holds by then that should not.
"""

from __future__ import annotations

import numpy as np

from foreshare.policies.host import BoolArray, IntArray, VmTable

from .bandwidth import Bandwidth
from .masks import is_run, longest_run
from .offer import Offer

UNKNOWN = -1
GROW_NS = 50_000_000
"""The shared ways grow at most so often: each time, all groups without ways of their own are written."""


class State:
    """Promises to VMs, and the groups behind them."""

    def __init__(self, offer: Offer, table: VmTable, groups: int, quarantine_ns: int) -> None:
        n, d = len(table), len(offer.domain_id)
        self.zone, self.groups = table.zone, groups
        self._apart = table.isolation != 0
        self._quarantine_ns = quarantine_ns
        cache = offer.info.cache
        self.min_bits = cache.min_bits if cache is not None else 1
        self._line(offer)
        self.ways: IntArray = np.zeros(n, np.int64)
        """(N,) mask that each VM was promised; 0: the shared ways."""
        self.memory: IntArray = np.zeros(n, np.int64)
        """(N,) units that each VM was promised; 0: no limit was ever set."""
        self.bandwidth = Bandwidth(offer, table.zone)
        self.here: BoolArray = np.ones(n, bool)
        """(N,) VMs that are there."""
        self.group: IntArray = np.zeros(n, np.int64)
        """(N,) group that the VM's threads are in."""
        self.held_mask: IntArray = np.full((groups, d), UNKNOWN, np.int64)
        self.held_mb: IntArray = np.full((groups, d), UNKNOWN, np.int64)
        self.live: BoolArray = np.ones(d, bool)
        """(D,) domains that are online."""
        zones = max(int(table.zone.max(initial=0)), int(offer.domain_zone.max(initial=0))) + 1
        self.shared = [self.base] * zones
        """Mask of those without ways of their own, zone by zone."""
        self._grow_at = [0] * len(self.shared)
        self.resting: list[tuple[int, int, int, int]] = []
        """(zone, row, ways, until when in ns) of ways that left an isolated VM."""

    def _line(self, offer: Offer) -> None:
        self.offer = offer
        self.full = (1 << offer.bits) - 1
        self.base = (1 << max(offer.shared_ways, self.min_bits)) - 1 if offer.ways else self.full
        """Ways that nobody ever owns: always a legal mask."""

    def lay_out(self, offer: Offer, now_ns: int) -> None:
        """Count masks on the line of another offer; what groups hold is unknown until it has been read.

        Promises, rests and shared ways stay on the ways that they are on, as far as those are still there and what is
        left of them is legal.
        """
        before, self.bandwidth.offer = self.offer, offer
        self._line(offer)
        owned = ((1 << offer.ways) - 1) << offer.shared_ways
        resting = [(z, row, before.moved(ways, offer) & owned, until) for z, row, ways, until in self.resting]
        for row in np.flatnonzero(self.ways).tolist():
            there = before.moved(int(self.ways[row]), offer) & owned
            kept = longest_run(there)
            self.ways[row] = kept if kept.bit_count() >= self.min_bits else 0
            if self._apart[row] and self._quarantine_ns:
                left = there & ~int(self.ways[row])
                resting.append((int(self.zone[row]), row, left, now_ns + self._quarantine_ns))
        self.resting = [rest for rest in resting if rest[2]]
        self.shared = [before.moved(mask, offer) for mask in self.shared]
        self.held_mask[:] = UNKNOWN

    def promise_ways(self, row: int, mask: int, now_ns: int) -> bool:
        """Promise ``mask`` to a VM; return False where it is no legal one or somebody else was promised some of it."""
        offer = self.offer
        owned = ((1 << offer.ways) - 1) << offer.shared_ways
        if mask and (not is_run(mask) or mask & ~owned or mask.bit_count() < self.min_bits):
            return False
        others = (self.zone == self.zone[row]) & (np.arange(len(self.zone)) != row)
        if mask & int(np.bitwise_or.reduce(self.ways[others], initial=0)):
            return False
        left = int(self.ways[row]) & ~mask
        if left and self._apart[row] and self._quarantine_ns:
            self.resting.append((int(self.zone[row]), row, left, now_ns + self._quarantine_ns))
        self.ways[row] = mask
        return True

    def forget(self, row: int, now_ns: int) -> None:
        """Take back what was promised to a VM that is gone."""
        self.here[row] = False
        self.promise_ways(row, 0, now_ns)
        self.memory[row] = 0

    def adopt(self, s: int, row: int, now_ns: int) -> None:
        """Start from what group ``s`` of an earlier run holds for the VM whose own it is, where that is legal."""
        offer = self.offer
        home = np.flatnonzero((offer.domain_zone == self.zone[row]) & self.live)
        masks, values = set(self.held_mask[s, home].tolist()), self.held_mb[s, home]
        if len(masks) == 1 and offer.ways:
            mask = masks.pop()
            if mask & self.base == 0:
                self.promise_ways(row, mask, now_ns)
        if len(values) and offer.memory_units and (values != offer.kernel_value(0)).all():
            self.memory[row] = self.bandwidth.units_of(row, self.held_mb[s], self.live)

    def exclusive(self) -> IntArray:
        """Return (S,) the VM that owns ways and is alone in the group, or -1."""
        out = np.full(self.groups, -1, np.int64)
        count = np.bincount(self.group[self.here], minlength=self.groups)
        rows = np.flatnonzero((self.ways != 0) & self.here)
        rows = rows[count[self.group[rows]] == 1]
        out[self.group[rows]] = rows
        return out

    def expire(self, now_ns: int) -> bool:
        """Return whether a rest is over or the shared ways may grow."""
        over = [r for r in self.resting if r[3] <= now_ns]
        if over:
            self.resting = [r for r in self.resting if r[3] > now_ns]
        return bool(over)

    def want(self, now_ns: int) -> tuple[IntArray, IntArray, IntArray]:
        """Return ((S, D) masks, (S, D) bandwidth values, (S,) owner or -1) as they should be now."""
        zones = self.offer.domain_zone
        alone = self.exclusive()
        for z in range(len(self.shared)):
            self.shared[z] = self._shared_mask(z, now_ns)
        by_domain = np.array([self.shared[z] if z >= 0 else self.base for z in zones], np.int64)
        masks = np.tile(by_domain, (self.groups, 1))
        masks[self.group[self._apart]] = self.base  # without ways of its own yet, an isolated VM shares no others
        for s in np.flatnonzero(alone >= 0).tolist():
            row = int(alone[s])
            masks[s] = self.base
            masks[s, zones == self.zone[row]] = self._own_mask(row)
        values = self.bandwidth.values(self.memory, self.group, self.here, self.groups, self.live)
        return masks, values, alone

    def fillable(self) -> IntArray:
        """Return (N,) masks of what owners may fill of their ways now; 0: they have none of their own."""
        if not self.resting:
            return self.ways
        return np.array([self._own_mask(row) if mine else 0 for row, mine in enumerate(self.ways.tolist())], np.int64)

    def _own_mask(self, row: int) -> int:
        """Return what an owner may fill now: its ways without those that rest after somebody else."""
        zone, mine = int(self.zone[row]), int(self.ways[row])
        rest = 0
        for z, other, ways, _ in self.resting:
            if z == zone and other != row:
                rest |= ways
        free = longest_run(mine & ~rest)
        return free if free.bit_count() >= self.min_bits else self.base

    def _shared_mask(self, zone: int, now_ns: int) -> int:
        taken = int(np.bitwise_or.reduce(self.ways[self.zone == zone], initial=0))
        for z, _, ways, _ in self.resting:
            taken |= ways if z == zone else 0
        free = self.full & ~taken
        kept, best = longest_run(self.shared[zone] & free), longest_run(free)
        if best.bit_count() > kept.bit_count() and (now_ns >= self._grow_at[zone] or kept.bit_count() < self.min_bits):
            self._grow_at[zone] = now_ns + GROW_NS
            return best
        return kept if kept.bit_count() >= self.min_bits else self.base

    def shrink(self, want_mask: IntArray, want_mb: IntArray) -> tuple[IntArray, IntArray]:
        """Return masks and bandwidths of the first phase: nobody has more than before, or than it should."""
        first = self.held_mask.copy()
        for s, d in zip(*np.nonzero(self.held_mask != want_mask), strict=True):
            held, want = int(self.held_mask[s, d]), int(want_mask[s, d])
            kept = longest_run(held & want) if held != UNKNOWN else 0
            first[s, d] = kept if kept.bit_count() >= self.min_bits else self.base
        mb = np.where(self.held_mb == UNKNOWN, want_mb, np.minimum(self.held_mb, want_mb))
        return first, mb

    def clear_of_others(self, s: int, d: int, mask: int, alone: IntArray) -> bool:
        """Return whether group ``s`` may hold ``mask`` in domain ``d``, seeing what all others hold now."""
        for other in range(self.groups):
            held = int(self.held_mask[other, d])
            if other == s or held == UNKNOWN or not held & mask & ~self.base:
                continue
            if alone[s] >= 0 or alone[other] >= 0:
                return False
        return True
