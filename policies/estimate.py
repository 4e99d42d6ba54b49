"""True demand and the backlog now, for all VMs at once, from nothing but readings.

A throttled VM shows its limit, not its demand. What it queues behind the limit is its **backlog**: requests that have
arrived and are not done. With ``u`` (N, R) the usage of the tick, ``w`` (N, R) the work seen waiting (threads that
waited for a CPU, requests held back in the block layer: ``demand_low - usage`` and ``wait_ns``), every equation is
about one number for a VM, its work measured as ``Y(x) = sum_r x_r / capacity_r`` over CPU, memory and IO:

- **Direction.** Requests in the queue are taken to need what the requests served in this tick needed, so a backlog
  seen at one resource ``k`` stands in the same proportion at all: ``b_r = h u_r`` with ``h = w_k / u_k``, the backlog
  in ticks of the present service. By Little's law (Operations Research 9(3), 1961) ``h`` is also the **queueing delay**
  that the newest request will have, if service goes on as now.
- **Exact.** Where ``w`` is below what can be seen of it (a VM has only so many threads that can wait, the block layer
  holds back only so much), ``h`` is the whole backlog; a VM that neither waits nor stands at its limit has none.
- **Ledger.** Where it is not (``w`` at its most, memory bandwidth at its limit: no queue to look at; a missing value),
  work is conserved: ``Y(b) = max(Y(b') + Y(d) - Y(u), 0)``, ``b'`` the backlog before and ``d`` the last known demand,
  at least ``probe`` times the usage where the limit hides everything. What is seen bounds it from below.
- **Demand** is what arrived: ``Y(d) = Y(u) + Y(b) - Y(b')``, in the direction of ``u``; of a ledger no further from
  what is usual than the usage is. But what waits, where all that waited a tick ago could be seen, has arrived, be it
  much more than usual: a VM that wakes is seen as it is.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass
from types import ModuleType

import numpy as np

from . import kernel
from .axes import all_of, largest
from .forecast import at_reservation, carry
from .host import CACHE, CPU, IO, MEMORY, BoolArray, FloatArray, Host, IntArray, R
from .reading import Quality, Reading

_CENSORED = np.uint8(Quality.CENSORED)
_MISSING = np.uint8(Quality.MISSING)
_TINY = 1e-9
IMPOSSIBLE = 100.0
"""A reading of more than this many times the whole pool is a broken counter, and missing."""
STILL_TICKS = 8
"""A counter that says exactly 0 after it had counted may stand still: so long its value is missing, then it is 0."""
OVER_LIMIT = 1.25
"""Nobody uses more than this multiple of his limit: what a counter that stood still then shows at once is no rate."""
IDLE_SHARE = 0.02
"""A VM that uses less than this share of its demand says nothing of what its requests need: the demand does."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EstimateOptions:
    """How demand and backlog are told from readings."""

    probe: float = 1.15
    """A VM whose queue is hidden is taken to demand at least this multiple of what it uses."""
    gain: float = 0.3
    """How fast the level of demand that the ledger goes on with follows what is seen, per tick."""
    hold: float = 1.0
    """While a queue is hidden its VM is taken to demand at least this multiple of what it uses: nothing is seen to
    shrink. A queue that does is known the moment it is empty."""
    usual_gain: float = 0.02
    """How fast a VM's usual demand follows what is seen, per tick."""
    revert: float = 0.005
    """How fast the level goes back to the usual demand while nothing is seen, per tick: no burst lasts for ever."""
    seen_share: float = 0.95
    """Waiting work from this share of the most that can be seen on is a lower bound."""
    noise_share: float = 0.01
    """Waiting work below this share of the usage is rounding."""
    most_ticks: float = 200.0
    """A backlog is never taken to be more than so many ticks of demand, unless more is seen: what is not known must not
    grow for ever."""


class Estimator:
    """Demand and backlog from tick to tick. Buffers are reused: they change with the next :meth:`update`."""

    def __init__(self, host: Host, options: EstimateOptions | None = None) -> None:
        self.options = options or EstimateOptions()
        size = host.shape
        self._work = np.zeros(size[:-1])
        self._level, self._usual = np.zeros(size[:-1]), np.zeros(size[:-1])
        self.sure: BoolArray = np.ones(size[:-1], bool)
        """(N,) whether all that waited in the latest tick could be seen."""
        self.usage: FloatArray = np.zeros(size)
        """(N, R) units used in the tick; the last known where missing."""
        self.demand: FloatArray = at_reservation(host)
        """(N, R) units that the requests which arrived in this tick need; cache: ways wanted."""
        self.backlog: FloatArray = np.zeros(size)
        """(N, R) unit-ticks of work queued at the end of the tick; cache 0."""
        self.delay_ticks: FloatArray = np.zeros(size[:-1])
        """(N,) queueing delay of the newest request at the present rate of service, ticks."""
        self.known: BoolArray = np.zeros(size[:-1], bool)
        """(N,) whether anything was ever heard of the VM."""
        self._bind(host)

    def _bind(self, host: Host) -> None:
        n = len(host)
        capacity = np.zeros((n, R))
        for p in host.topology.pools:
            here = (host.vms.zone == p.zone) | (p.zone < 0)
            capacity[here, p.resource] = p.units
        capacity[:, CACHE] = 0.0
        self._scale = np.divide(1.0, capacity, out=np.zeros_like(capacity), where=capacity > 0)
        self.cpu_per_ns = float(host.topology.units_per_cpu)
        self._most = IMPOSSIBLE * (1.0 + capacity.max(axis=0, initial=0.0))
        self._most[CACHE] = IMPOSSIBLE * (1.0 + host.topology.way_bits)
        """(R,) a reading beyond this is no reading."""
        self._most_cpu = host.cap[:, CPU].astype(float)
        self._floor = np.maximum(host.floor, _TINY) * 0.01
        self._floor_units = np.maximum(host.floor, 1.0)
        self._still: IntArray = np.zeros(host.shape, np.int64)
        self._tables, self._hosts = kernel.tables(host), kernel.hosts_in(host)
        bounds = (IDLE_SHARE, OVER_LIMIT, STILL_TICKS, 0.0, *self._most)
        self._constants = np.array([*astuple(self.options), *bounds], np.float64)
        """estimate_options_t of compiled/kernel.h."""
        self._wait, self._ratio, self._base = np.zeros(host.shape), np.zeros(host.shape), np.zeros(host.shape)

    @property
    def arrays(self) -> tuple[object, ...]:
        """What the compiled form works with besides a reading; see take_estimator() of compiled/module.c."""
        return (
            self._scale, self._constants, self.usage, self.demand, self.backlog, self.delay_ticks, self._work,
            self._level, self._usual, self.sure, self.known, self._still,
        )  # fmt: skip

    def rebind(self, host: Host, rows: IntArray) -> None:
        """Carry on with another set of VMs; ``rows`` (N,) is each one's former row, or -1 for a new one."""
        fresh = Estimator(host, self.options)
        for name in ("usage", "demand", "backlog"):
            setattr(fresh, name, carry(getattr(self, name), rows, getattr(fresh, name)))
        for name in ("_work", "_level", "_usual", "sure", "delay_ticks", "known"):
            setattr(fresh, name, carry(getattr(self, name), rows, getattr(fresh, name), axis=-1))
        self.__dict__.update(fresh.__dict__)

    def update(self, reading: Reading) -> None:
        """Take in one reading. Where it says nothing, demand stays and the ledger goes on."""
        if kernel.compiled is not None:
            self._update_compiled(kernel.compiled, reading)
            return
        o, u, w, ratio = self.options, self.usage, self._wait, self._ratio
        missing, still = self._not_to_believe(reading)
        any_missing = bool(missing.any())
        np.copyto(u, reading.usage, where=~missing)
        # What waits is counted apart, and is there even where the counter of what is used stands still.
        self._see_waiting(reading, u, w, still, missing if any_missing else None)
        censored = (reading.quality & _CENSORED) != 0
        base = self._base
        np.multiply(self.demand, IDLE_SHARE, out=base)
        np.fmax(base, u, out=base)  # passes over the NaN of VMs never heard of
        np.maximum(base, self._floor, out=base)
        np.divide(w, base, out=ratio)
        seen = largest(ratio)
        seen[seen < o.noise_share] = 0.0
        hidden = censored[..., MEMORY] & (seen <= 0.0)
        blind = self._blind(reading, w, u, censored)
        unsure = hidden | blind
        sees = self.sure
        if any_missing:
            gap = missing[..., CPU] | missing[..., MEMORY] | missing[..., IO]
            unsure |= gap
            sees = sees & ~gap

        served = np.vecdot(u, self._scale)
        rate = np.vecdot(base, self._scale)
        np.maximum(rate, _TINY, out=rate)
        seen_work = seen * rate
        before = self._work
        # A backlog that is known of explains why the limit is reached; without one, demand must be above usage.
        arrived = np.maximum(self._level, served * np.where(hidden & (before <= 0.1 * served), o.probe, o.hold))
        ledger = np.minimum(before + arrived - served, o.most_ticks * np.maximum(self._level, _TINY))
        np.maximum(ledger, seen_work, out=ledger)
        work = np.where(unsure, ledger, seen_work)
        demand = np.maximum(served + work - before, 0.0)
        # After a ledger the difference holds its error: demand is then no further from its level than from the usage.
        # What waits, and is known not to have waited before, has arrived.
        loose = unsure | ~self.sure
        if loose.any():
            low = np.minimum(served, self._level)
            high = np.maximum(served * o.probe, self._level)
            np.maximum(high, served + seen_work - before, out=high, where=sees)
            np.copyto(demand, np.clip(demand, low, high), where=loose)
        new = ~self.known
        step = (demand - self._level) * o.gain
        np.copyto(step, np.maximum(arrived - self._level, 0.0) + o.revert * (self._usual - self._level), where=unsure)
        self._level += step
        np.copyto(step, (demand - self._usual) * o.usual_gain)
        step[unsure] = 0.0
        self._usual += step
        if new.any():
            new &= ~all_of(missing)
            self._level[new] = self._usual[new] = demand[new]
            self.known |= new
        np.copyto(self._work, work)
        np.logical_not(unsure, out=self.sure)

        np.divide(work, rate, out=self.delay_ticks)
        np.multiply(base, self.delay_ticks[..., None], out=self.backlog)
        self.backlog[..., CACHE] = 0.0
        cache = self.demand[..., CACHE]
        np.copyto(cache, reading.usage[..., CACHE], where=~missing[..., CACHE])
        np.multiply(cache, o.probe, out=cache, where=censored[..., CACHE] & ~missing[..., CACHE])
        kept = cache.copy()
        np.multiply(base, (demand / rate)[..., None], out=self.demand)
        self.demand[..., CACHE] = kept
        if not self.known.all():
            self.demand[~self.known] = np.nan

    def _update_compiled(self, compiled: ModuleType, reading: Reading) -> None:
        self._constants[-R - 1] = self.cpu_per_ns / reading.dt_ns if reading.dt_ns > 0 else 0.0
        compiled.estimate(
            self._tables, self._hosts,
            reading.usage, reading.demand_low, reading.limit, reading.wait_ns, reading.quality, *self.arrays,
        )  # fmt: skip

    def _not_to_believe(self, reading: Reading) -> tuple[BoolArray, BoolArray]:
        """Return (..., N, R) where usage is missing or cannot be, or (also the second) its counter may stand still."""
        believed = reading.usage >= 0.0  # not for NaN
        believed &= reading.usage <= self._most  # no counter counts to more
        np.maximum(reading.limit, self._floor_units, out=self._ratio)
        self._ratio *= OVER_LIMIT
        out: BoolArray = ~believed | (reading.usage > self._ratio)
        zero = (reading.usage == 0.0) & (self.usage > self._floor)
        zero[..., CACHE] = False
        if zero.any():
            self._still += 1
            self._still *= zero
            zero &= self._still <= STILL_TICKS
            out |= zero
        elif self._still.any():
            self._still[:] = 0
        return out, zero

    def _see_waiting(
        self, reading: Reading, u: FloatArray, w: FloatArray, still: BoolArray, missing: BoolArray | None
    ) -> None:
        """Fill ``w`` with the work seen waiting, unit-ticks. ``missing``: None where nothing is."""
        np.subtract(reading.demand_low, u, out=w)
        if missing is not None:
            np.copyto(w, reading.demand_low, where=still)  # their usage says 0
        if reading.dt_ns > 0:
            waited = reading.wait_ns * (self.cpu_per_ns / reading.dt_ns)
            np.minimum(waited, np.maximum(self._most_cpu - u[..., CPU], 0.0), out=waited)  # NaN stays, fmax drops it
            np.fmax(w[..., CPU], waited, out=w[..., CPU])
        np.fmax(w, 0.0, out=w)
        np.minimum(w, self._most, out=w)
        w[..., CACHE] = 0.0
        if missing is not None:
            w[missing & ~still] = 0.0

    def _blind(self, reading: Reading, w: FloatArray, u: FloatArray, censored: BoolArray) -> BoolArray:
        """Return (N,) whose waiting work is as much as can be seen, so that there may be more."""
        share = self.options.seen_share
        # Usage is noisy and may lie below its limit while caches are cold: their sum is what tells.
        cpu = (w[..., CPU] + u[..., CPU] >= share * self._most_cpu) & (censored[..., CPU] | (w[..., CPU] > 0.0))
        io = (w[..., IO] >= share * reading.limit[..., IO]) & (censored[..., IO] | (w[..., IO] > 0.0))
        out: BoolArray = cpu | io
        return out
