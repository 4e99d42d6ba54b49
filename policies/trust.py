"""The data safeguard (SOL, ASPLOS'22): readings that cannot be true are not believed, and what is not known is safe.

An entry of a reading (one VM, one resource) is **bad** where it is missing, negative, more than its whole pool can do,
frozen, or a lie:

- *frozen*: the very same rate, to the last bit, ``FROZEN_TICKS`` times although the time between the samples differed
  (a rate is a count over a time, so that the count would have had to follow the clock), or a value marked as stale that
  has not changed for ``LOST_TICKS``;
- a *lie*: the pool's users together claim more than it can do (``_SLACK``), and this one more than twice what it holds;
- everything, where the clock stood still or went back.

A bad value counts as missing: the forecaster goes on from what it knew. From the second bad tick on the VM is entitled
to its whole reservation of that resource, whatever is forecast; one whose values were impossible, or that has been
silent for ``LOST_TICKS``, gets exactly its reservation. So that is every VM's worst case, within ``DOUBT_TICKS`` ticks.

Other values may be true, and are believed, but are no ground for lending what is reserved either:

- *quiet*: a counter says exactly 0, had counted within the last ``LOST_TICKS``, and others of its VM count, so that it
  may stand still; or it said 0 and has counted again for no more than ``WAKING_TICKS``. Of a VM whose CPU or memory
  counter is quiet the whole reservation counts, of one that may just have no IO that of IO;
- *aged*: the memory bandwidth is that of an earlier tick (it is read in rounds). What is looked at seldom is not lent,
  and where it stood near the limit (``NEAR_LIMIT``) the VM may be throttled since: its whole reservation counts.

And nobody lends all that he does not use: of CPU, memory and IO a VM keeps ``LENDER_KEEPS`` times what it used, up to
its reservation. Loads come in bursts; one that finds its VM shrunk to what it used before is seen a tick later, and
answered one more after that.
"""

from __future__ import annotations

from types import ModuleType

import numpy as np

from . import kernel
from .allocators import Request
from .axes import any_of, total
from .forecast import carry
from .host import CACHE, CPU, IO, MEMORY, BoolArray, Host, IntArray, R
from .reading import Quality, Reading

DOUBT_TICKS = 2
FROZEN_TICKS = 3
LOST_TICKS = 100
WAKING_TICKS = 4
NEAR_LIMIT = 0.5
LENDER_KEEPS = 5.0
_PATIENCE = np.array([FROZEN_TICKS, LOST_TICKS, DOUBT_TICKS, WAKING_TICKS], np.int64)
_GATES = np.array([CPU, MEMORY, IO])
_SLACK = np.array([1.25, 1.25, 2.0, 2.0])
"""(R,) by how much use may seem to exceed a pool: counters are read one after the other, and what memory and devices
can do is what the configuration says."""


class Trust:
    """Looks at every reading before anybody else does. Shapes (..., N, R)."""

    def __init__(self, host: Host) -> None:
        self._bad: IntArray = np.zeros(host.shape, np.int64)
        self._same: IntArray = np.zeros(host.shape, np.int64)
        self._quiet: IntArray = np.zeros(host.shape, np.int64)
        """Ticks since the counter last counted, at most LOST_TICKS; below 0 while it has just begun to. Values that are
        missing do not count."""
        self._aged: BoolArray = np.zeros(host.shape[:-1], bool)
        """Whether the memory bandwidth of the tick before was older than that."""
        self._liar: BoolArray = np.zeros(host.shape, bool)
        self._last = np.full(host.shape, np.nan)
        self._dt_ns = 0
        self._known: BoolArray = np.zeros(host.shape, bool)
        self._any = False
        self._bind(host)

    def _bind(self, host: Host) -> None:
        self.host = host
        self._tables, self._hosts = kernel.tables(host), kernel.hosts_in(host)
        self._lies: BoolArray = np.zeros(host.shape, bool)
        # The compiled form takes what is known, who lies and what is good in one piece; the first two are views of it.
        flags = np.zeros((3, *host.shape), bool)
        flags[0], flags[1] = self._known, self._liar
        self._flags, self._known, self._liar = flags, flags[0], flags[1]
        self._top = np.zeros((len(host), R))
        self._most = []
        for g in host.groups:
            capacity = g.capacity.astype(np.float64)
            if g.cols.start <= CACHE < g.cols.stop:  # the shared class's ways are filled too
                capacity[CACHE - g.cols.start] = host.topology.way_bits
            most = np.where(capacity > 0, _SLACK[g.cols] * capacity + 1.0, np.inf)
            self._top[g.rows, g.cols] = most
            self._most.append(most)
        self._top[:, ~host.movable] = np.inf
        self._most_by_pool = np.concatenate([*self._most, np.zeros(0)])
        self._cleaned: Reading | None = None
        self.arrays = (
            self._top, self._most_by_pool, _PATIENCE, host.movable, self._last, self._same, self._bad, self._quiet,
            self._flags, self._lies, self._aged,
        )  # fmt: skip
        """Bounds and state, for :mod:`~.foresight`."""

    def rebind(self, host: Host, rows: IntArray) -> None:
        """Carry on with other VMs; ``rows`` (N,) is each one's former row, or -1."""
        self._bad = carry(self._bad, rows, np.zeros(host.shape, np.int64))
        self._same = carry(self._same, rows, np.zeros(host.shape, np.int64))
        self._liar = carry(self._liar, rows, np.zeros(host.shape, bool))
        self._known = carry(self._known, rows, np.zeros(host.shape, bool))
        self._quiet = carry(self._quiet, rows, np.zeros(host.shape, np.int64))
        self._aged = carry(self._aged, rows, np.zeros(host.shape[:-1], bool), axis=-1)
        self._last = carry(self._last, rows, np.full(host.shape, np.nan))
        self._bind(host)

    def doubted_vms(self, present: BoolArray) -> BoolArray:
        """Return (..., N) who is there and has something that was known once and has been bad for DOUBT_TICKS."""
        if not self._any:
            return np.zeros(self._bad.shape[:-1], bool)
        return any_of((self._bad >= DOUBT_TICKS) & self._known & self.host.movable) & present

    def check(self, reading: Reading, held: IntArray) -> Reading:
        """Return ``reading``, or a copy without what cannot be true; ``held`` (..., N, R): units decided last."""
        usage = reading.usage
        if kernel.compiled is not None:
            return self._check_compiled(kernel.compiled, reading, held)
        zero, quiet = usage == 0.0, self._quiet
        counts = ~zero & ~np.isnan(usage)
        quiet[counts] = np.where(quiet[counts] > 0, -WAKING_TICKS, np.minimum(quiet[counts] + 1, 0))
        quiet[zero] = np.minimum(np.maximum(quiet[zero], 0) + 1, LOST_TICKS)
        good = usage >= 0.0  # NaN is not
        good &= usage <= self._top
        frozen = self._frozen(reading)
        if frozen is not None:
            good &= ~frozen
        if reading.dt_ns <= 0:
            good[:] = False
        for g, most in zip(self.host.groups, self._most, strict=True):
            block = usage[..., g.rows, g.cols]
            over = total(block) > most
            if over.any():
                good[..., g.rows, g.cols] &= ~(over[..., None, :] & (block > 2 * held[..., g.rows, g.cols] + 1))
        self._known |= good
        if good.all():
            if self._any:
                self._bad[:] = 0
                self._liar[:] = False
                self._any = False
            return reading
        self._any = True
        self._bad += 1
        self._bad[good] = 0
        lies = ~good & ~np.isnan(usage)
        self._liar &= ~good
        if reading.dt_ns > 0:
            self._liar |= lies
        return _without(reading, lies)

    def _check_compiled(self, compiled: ModuleType, reading: Reading, held: IntArray) -> Reading:
        bad = compiled.check(
            self._tables, self._hosts, _PATIENCE, self.moved(reading), reading.dt_ns > 0, self._top, self._most_by_pool,
            reading.usage, reading.quality, np.ascontiguousarray(held), self._last, self._same, self._bad, self._quiet,
            self._flags, self._lies,
        )  # fmt: skip
        return _without(reading, self._lies) if self.found(bad) else reading

    def moved(self, reading: Reading) -> bool:
        """Take note of the time between two samples; return whether it is another than before."""
        moved, self._dt_ns = reading.dt_ns != self._dt_ns, reading.dt_ns
        return moved

    def found(self, bad: int) -> bool:
        """Take note of how many entries were found to be bad; return whether any was."""
        self._any = bad > 0
        return self._any

    def cleaned(self, reading: Reading) -> Reading:
        """Return ``reading`` without the lies that a compiled check has found in it; valid until the next call."""
        if self._cleaned is None:
            self._cleaned = reading.copy()
        into = self._cleaned
        into.t_ns, into.dt_ns = reading.t_ns, reading.dt_ns
        for name in ("usage", "demand_low", "limit", "wait_ns", "quality", "present"):
            np.copyto(getattr(into, name), getattr(reading, name))
        _blank(into, self._lies)
        return into

    def _frozen(self, reading: Reading) -> BoolArray | None:
        """Return which entries stand still though they cannot; None where none does."""
        usage, out = reading.usage, None
        stale = (reading.quality & np.uint8(Quality.STALE)) != 0
        moved = self.moved(reading)
        any_stale = bool(stale.any())
        if moved or any_stale:
            same = usage == self._last
            same &= usage > 0.0
            same &= (reading.quality & np.uint8(Quality.CENSORED)) == 0  # at its limit it may well stand still
            if not moved:
                same &= stale
            if same.any():
                self._same += 1
                self._same[~same] = 0
                out = np.where(stale, self._same >= LOST_TICKS, self._same >= FROZEN_TICKS)
            else:
                self._same[:] = 0
        np.copyto(self._last, usage)
        return out

    def entitle(self, request: Request, reading: Reading) -> None:
        """Raise or set in place what VMs ask for of whom ``reading``, checked before, is no ground to take from."""
        host = self.host
        if kernel.compiled is not None:
            kernel.compiled.keep_back(
                self._tables, self._hosts, _PATIENCE, NEAR_LIMIT, host.movable, reading.present, reading.usage,
                reading.limit, reading.quality, self._bad, self._quiet, self._flags, self._aged, request.ask,
                request.need,
            )  # fmt: skip
            return
        here = reading.present[:, None]
        reserved = (self._bad >= DOUBT_TICKS) if self._any else np.zeros(host.shape, bool)
        exact = reserved & (self._liar | (self._bad >= LOST_TICKS)) & host.movable & here
        quiet = (self._quiet > 0) & (self._quiet < LOST_TICKS)
        quiet &= any_of(reading.usage[..., _GATES] > 0.0)[..., None]
        quiet |= self._quiet < 0
        aged = (reading.quality[..., MEMORY] & np.uint8(Quality.STALE)) != 0
        limit = reading.limit[..., MEMORY]
        near = aged & (limit > 0.0) & (reading.usage[..., MEMORY] >= NEAR_LIMIT * limit)
        whole = quiet[..., CPU] | quiet[..., MEMORY] | near
        reserved[..., MEMORY] |= aged | self._aged
        reserved[..., IO] |= quiet[..., IO]
        reserved[..., _GATES] |= whole[..., None]
        np.copyto(self._aged, aged)
        kept = np.minimum(LENDER_KEEPS * reading.usage, host.reservation)
        kept[..., CACHE] = 0.0
        np.copyto(kept, host.reservation, where=reserved)
        np.copyto(request.ask, np.fmax(request.ask, kept), where=here)
        np.copyto(request.ask, host.reservation, where=exact)
        np.copyto(request.need, np.minimum(request.need, host.reservation), where=exact)


def _without(reading: Reading, lies: BoolArray) -> Reading:
    """Return ``reading``, or where anything in it lies a copy in which that is missing."""
    if not lies.any():
        return reading
    cleaned = reading.copy()
    _blank(cleaned, lies)
    return cleaned


def _blank(reading: Reading, lies: BoolArray) -> None:
    reading.usage[lies] = reading.demand_low[lies] = np.nan
    reading.quality[lies] = Quality.MISSING
    reading.wait_ns[any_of(lies)] = np.nan
