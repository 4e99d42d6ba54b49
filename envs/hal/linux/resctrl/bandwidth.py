"""What the kernel is told for units of memory bandwidth, domain by domain.

Intel's throttle is a percentage that each core obeys, the same wherever a VM runs. AMD's limit is an amount in each L3
domain, and a NUMA node may have many: a VM's units are divided over its node's domains as its CPUs are, at least one
unit in each, so that what they add up to is what it was given wherever its threads run.
"""

from __future__ import annotations

import numpy as np

from foreshare.policies.host import BoolArray, FloatArray, IntArray

from .offer import Offer


class Bandwidth:
    """Values for groups, and what values found stand for."""

    def __init__(self, offer: Offer, zone: IntArray) -> None:
        self.offer, self._zone = offer, zone
        self._home: BoolArray = offer.domain_zone == zone[:, None]
        """(N, D) domains of each VM's zone."""
        self.divides = offer.divides
        """Whether limits depend on where VMs run."""
        self._cpus: BoolArray | None = None
        self.spread: FloatArray = _shares(self._home.astype(float), self._home)
        """(N, D) share of each VM's CPUs in each domain."""

    def follow(self, cpus: BoolArray) -> bool:
        """Take note of the CPUs ``cpus`` (N, C) that the VMs may use now; return whether that changes any limit."""
        if not self.divides or (self._cpus is not None and np.array_equal(cpus, self._cpus)):
            return False
        self._cpus = cpus.copy()
        count = np.zeros(self.spread.shape)
        known = self.offer.domain_of_cpu >= 0
        np.add.at(count.T, self.offer.domain_of_cpu[known], cpus[:, known].T)
        self.spread = _shares(count, self._home)
        return True

    def divide(self, units: IntArray, live: BoolArray) -> IntArray:
        """Return (N, D) units of each VM in each live domain of its zone; sums are ``units`` (N,) where they can be.

        Every domain gets a unit: a thread that is there would stand still otherwise.
        """
        home = self._home & live
        exact = units[:, None] * _shares(self.spread * live, home)
        out: IntArray = np.where(home, np.maximum(np.floor(exact + 1e-9), 1), 0).astype(np.int64)
        over = units - out.sum(axis=1)
        order = np.argsort(np.where(home, out - exact, np.inf), axis=1, kind="stable")
        first = np.arange(out.shape[1]) < np.minimum(over, home.sum(axis=1))[:, None]
        np.put_along_axis(out, order, np.take_along_axis(out, order, 1) + first, 1)
        for row in np.flatnonzero(over < 0).tolist():  # the units that were raised to one come from the largest
            for _ in range(int(-over[row])):
                out[row, int(np.argmax(out[row]))] -= 1 if out[row].max() > 1 else 0
        return out

    def values(self, units: IntArray, group: IntArray, here: BoolArray, groups: int, live: BoolArray) -> IntArray:
        """Return (groups, D) kernel values: each group may use the sum of its members' ``units`` (N,), 0: no limit.

        ``group`` (N,) is each VM's, ``here`` (N,) whether it is there.
        """
        offer = self.offer
        out = np.full((groups, len(offer.domain_id)), offer.kernel_value(0), np.int64)
        if not offer.memory_units:
            return out
        parts = self.divide(units, live) if self.divides else np.where(self._home, units[:, None], 0)
        total = np.zeros(out.shape, np.int64)
        free = np.zeros(out.shape, bool)
        np.add.at(total, group[here], parts[here])
        unlimited = here & (units == 0)
        np.logical_or.at(free, group[unlimited], self._home[unlimited])
        for s, d in zip(*np.nonzero((total > 0) & ~free), strict=True):
            out[s, d] = offer.kernel_value(int(total[s, d]))
        return out

    def units_of(self, row: int, values: IntArray, live: BoolArray) -> int:
        """Return the units of a VM that is alone in its group, which reads ``values`` (D,)."""
        here = values[self._home[row] & live]
        if not self.divides:
            return self.offer.units_of(int(here[0])) if len(here) else self.offer.memory_units
        return min(sum(self.offer.units_of(int(v)) for v in here), self.offer.memory_units)


def _shares(count: FloatArray, home: BoolArray) -> FloatArray:
    """Return ``count`` (N, D) as shares of each row's sum within ``home``; even where it has nothing there."""
    weight = np.where(home, count, 0.0)
    total = weight.sum(axis=1, keepdims=True)
    weight = np.where(total > 0, weight, home)
    total = weight.sum(axis=1, keepdims=True)
    out: FloatArray = np.divide(weight, total, out=np.zeros(weight.shape), where=total > 0)
    return out
