"""Makes any decision safe: whatever comes in, a feasible allocation in whole units goes out.

Feasible means, for every VM and resource: a multiple of its granule, at least its floor, at most its cap, pool sums
within capacity, no more ways' owners than cache classes, and at least ``min(reservation, what it needs now)``: a VM
gets its reservation back in the very tick in which it is forecast to want it; one of which nothing is known holds it.

For a policy whose answers nothing else bounds there is a **trust region** around the answer of triage, the anchor: with
radius ``rho`` every VM is also entitled to ``1 - rho`` of the CPU, memory and IO that triage would give it, in
whole granules. The anchor fits, so all of that fits; what is left is the policy's to hand out, and whatever it says, a
VM's worst case is that share. Ways stay best effort, and the priority sort, the last resort, is not held to anything.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from . import kernel
from .axes import flat_positions, flat_rows, total
from .errors import InputError
from .host import CACHE, CPU, BoolArray, FloatArray, Host, IntArray, entitled_units
from .rounding import apportion


@dataclass(frozen=True, kw_only=True, slots=True)
class GuardOptions:
    """How the guard behaves."""

    hysteresis: bool = True
    """Keep units where they are until somebody else wants them: fewer moves, same guarantees."""
    radius: float = 1.0
    """Of the trust region, between 0 (triage's answer is the least that everybody gets) and 1 (there is none)."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.radius <= 1.0:
            raise InputError(f"the trust region's radius is {self.radius}, not between 0 and 1")


class Guard:
    """Projects proposals onto the feasible set. Holds no state but scratch; ``changed`` counts entries it altered."""

    def __init__(self, host: Host, options: GuardOptions | None = None) -> None:
        self.options = options or GuardOptions()
        self.rebind(host)

    def rebind(self, host: Host) -> None:
        """Work for another set of VMs."""
        self.host = host
        self._coarse = host.coarse
        self._granule = host.granule[self._coarse, CPU]
        self._importance = np.empty(len(host), np.int64)
        self._importance[np.lexsort((-host.vms.rank, host.vms.priority))] = np.arange(len(host))
        self._tables, self._hosts = kernel.tables(host), kernel.hosts_in(host)
        self.broken = False
        """The latest proposal was unusable as a whole (wrong shape or type) or had entries that are no numbers."""
        self.changed = 0
        """Entries of the latest proposal that were altered before hysteresis."""
        self.raised = 0
        """Entries of the latest proposal that lay beyond the trust region."""

    def admit(
        self, proposal: npt.ArrayLike, ask: FloatArray, previous: IntArray, *, frozen: BoolArray | None = None,
        anchor: IntArray | None = None,
    ) -> IntArray:  # fmt: skip
        """Return feasible units (N, R), in a batch (H, N, R), near ``proposal``.

        ``ask`` (..., N, R) float: what each VM wants now; NaN counts as its reservation. ``previous`` (..., N, R): what
        it holds. ``frozen`` (..., N): VMs that must not keep more than they are granted (throttled ones). ``anchor``
        (..., N, R): feasible units around which the trust region lies; None: there is none.
        """
        host = self.host
        wanted = self._numbers(proposal)
        if kernel.compiled is not None:
            out = np.empty(host.shape, np.int64)
            self.changed, self.raised = kernel.compiled.admit(
                self._tables, self._hosts, np.ascontiguousarray(wanted), np.ascontiguousarray(ask),
                np.ascontiguousarray(previous), frozen, self.options.hysteresis, anchor, 1.0 - self.options.radius, out,
            )  # fmt: skip
            return out
        entitled = entitled_units(ask, host)
        self.raised = 0
        if anchor is not None:
            self._oblige(entitled, wanted, anchor)
        x = np.minimum(np.maximum(wanted, entitled), host.cap)
        self._to_granules(x)
        self._classes(x, entitled)
        for g in host.groups:
            self._fit(x, entitled, g.rows, g.cols, g.capacity)
        self.changed = int(np.count_nonzero(x != wanted))
        if self.options.hysteresis and len(host):
            keep = np.minimum(previous, host.cap) - x
            np.maximum(keep, 0, out=keep)
            if len(self._coarse):
                keep[..., self._coarse, CPU] -= keep[..., self._coarse, CPU] % self._granule
            if frozen is not None and frozen.any():
                keep[frozen] = 0
            if keep.any():
                keep[..., CACHE] *= x[..., CACHE] > 0  # never makes an owner of ways out of a non-owner
                for g in host.groups:
                    self._keep(x, keep, g.rows, g.cols, g.capacity)
        return x

    def _oblige(self, entitled: IntArray, wanted: IntArray, anchor: IntArray) -> None:
        """Raise entitlements in place to their share of the anchor."""
        least = np.ceil(anchor * (1.0 - self.options.radius) - 1e-9).astype(np.int64)
        self._to_granules(least)
        np.minimum(least, anchor, out=least)
        least[..., CACHE] = 0  # best effort
        self.raised = int(np.count_nonzero((least > entitled) & (wanted < least)))
        np.maximum(entitled, least, out=entitled)

    def _numbers(self, proposal: npt.ArrayLike) -> IntArray:
        """Return ``proposal`` as integers; what is no number becomes the reservation."""
        host = self.host
        self.broken = False
        if isinstance(proposal, np.ndarray) and proposal.dtype == np.int64 and proposal.shape == host.shape:
            return proposal
        try:
            value = np.asarray(proposal, dtype=np.float64)
        except (TypeError, ValueError, OverflowError):
            value = np.empty(0)
        if value.shape != host.shape:
            self.broken = True
            return np.broadcast_to(host.reservation, host.shape).copy()
        bad = np.isnan(value)
        self.broken = bool(bad.any())
        value = np.where(bad, host.reservation, np.clip(value, 0.0, host.cap.astype(float)))
        return np.ceil(value - 1e-9).astype(np.int64)

    def _to_granules(self, x: IntArray) -> None:
        """Round up in place to what can change hands."""
        if len(self._coarse):
            x[..., self._coarse, CPU] = -(-x[..., self._coarse, CPU] // self._granule) * self._granule

    def _classes(self, x: IntArray, entitled: IntArray) -> None:
        """Send the smallest claims on ways to the shared class until owners fit into the hardware's classes."""
        t, vms = self.host.topology, self.host.vms
        ways = x[..., CACHE]
        if t.min_ways > 1:
            ways[(ways > 0) & (ways < t.min_ways)] = t.min_ways
        if not t.max_classes:
            return
        spare = np.count_nonzero(ways, axis=-1) - (t.max_classes - 1)
        if np.any(spare > 0):
            bound = (ways <= 0) | (entitled[..., CACHE] > 0)
            n = len(vms)
            # The free claims first, small before large, unimportant before important: one number, no two alike.
            key = (ways + bound * (t.ways + 1)) * n + self._importance
            order = flat_rows(key.argsort(axis=-1))
            first = np.arange(n) < np.asarray(spare)[..., None]
            drop = np.zeros(ways.shape, bool)
            drop.reshape(-1)[order] = first & ~bound.take(order)
            ways[drop] = 0

    def _fit(self, x: IntArray, entitled: IntArray, rows: slice | IntArray, cols: slice, capacity: IntArray) -> None:
        """Shrink what stands above entitlement, in proportion, until the group's columns fit."""
        over = total(x[..., rows, cols]) > capacity
        if not over.any():
            return
        low = entitled[..., rows, cols]
        high = x[..., rows, cols]
        extra = (high - low).astype(float)
        room = np.maximum(capacity - total(low), 0)
        extra *= np.where(over, room / np.maximum(total(extra), 1.0), 1.0)[..., None, :]
        fitted = low + apportion(extra, self.host.granule[rows, cols], room, self.host.vms.rank[rows])
        fitted = np.where(over[..., None, :], fitted, high)
        if cols.start <= CACHE < cols.stop and self.host.topology.min_ways > 1:
            own = fitted[..., CACHE - cols.start]
            mine = low[..., CACHE - cols.start]
            own[:] = np.where((own > 0) & (own < self.host.topology.min_ways), mine, own)
        x[..., rows, cols] = fitted

    def _keep(self, x: IntArray, keep: IntArray, rows: slice | IntArray, cols: slice, capacity: IntArray) -> None:
        """Let VMs keep what nobody else wants, smallest surplus first, ties by rank."""
        extra = keep[..., rows, cols]
        spare = capacity - total(x[..., rows, cols])
        if (total(extra) > spare).any():
            order = (extra * (len(self.host) + 1) + self.host.vms.rank[rows, None]).argsort(axis=-2)  # no two are equal
            at = flat_positions(order)
            ranked = extra.take(at) if extra.flags.c_contiguous else extra.ravel()[at]
            kept = np.zeros(extra.shape, extra.dtype)
            kept.ravel()[at] = ranked * (ranked.cumsum(axis=-2) <= spare[..., None, :])
            extra = kept
        x[..., rows, cols] += extra
