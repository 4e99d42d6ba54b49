"""What the host's counters tell about a simulated host: rates since the last look, noisy, with gaps, censored.

The truth about demand never appears here. A VM at its limit shows its limit; that it wanted more shows only in what the
kernel shows: threads waiting for a CPU, requests held back in the block layer. Memory bandwidth has no queue to look
at, so a VM throttled there is merely marked as censored.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from foreshare.policies.host import FloatArray, R, Resource
from foreshare.policies.reading import Quality, Reading

from .faults import FROZEN, GAP, RESET, STALE, CounterFaults
from .scenario import TelemetryShape
from .streams import TELEMETRY, HostStreams, Seed

AT_LIMIT = 0.98
"""Usage from this share of the limit on counts as censored."""


def inflated(
    used: FloatArray,
    limit: FloatArray,
    waiting: FloatArray,
    held_back: FloatArray,
    factor: FloatArray,
    cpu_per_unit: float,
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return usage, waiting threads and IO held back as VMs show them that pretend to need ``factor`` (N,) times more.

    Such a VM spins and reads for nothing whenever nobody else would run: what it is given shows as used, what it is not
    given shows as threads and requests that wait. Arguments and results as of :meth:`Counters.update`.
    """
    shown = used * factor[:, None]
    shown[..., Resource.CACHE] = used[..., Resource.CACHE]
    capped = np.minimum(shown, np.maximum(limit, used))
    spinning = factor > 1.0
    more = np.where(spinning, shown[..., Resource.CPU] - capped[..., Resource.CPU], 0.0)
    return (
        capped,
        waiting * factor + more * cpu_per_unit,
        held_back * factor + np.where(spinning, shown[..., Resource.IO] - capped[..., Resource.IO], 0.0),
    )


class Counters:
    """Accumulates ticks of (H, N) VMs and hands out mean rates since the previous collection."""

    def __init__(
        self, shape: TelemetryShape, *, hosts: int, vms: int, seed: Seed, tick_ns: int, first_host: int = 0
    ) -> None:
        size = (hosts, vms, R)
        self._noise, self._gap_share = shape.noise, 0.0 if shape.gap_ms else shape.gap_share
        self._faults = CounterFaults(
            shape, hosts=hosts, vms=vms, seed=seed, tick_ms=tick_ns / 1e6, first_host=first_host
        )  # fmt: skip
        self._missed: FloatArray = np.zeros(size)  # unit-ticks that a counter which stood still has not shown yet
        self._streams = HostStreams(
            seed,
            hosts=hosts,
            first_host=first_host,
            stream=TELEMETRY,
            vms=vms,
            uniforms=R if self._gap_share else 0,
            normals=R,
        )
        self._tick_ns = tick_ns
        self._used: FloatArray = np.zeros(size)
        self._low: FloatArray = np.zeros(size)
        self._limit: FloatArray = np.zeros(size)
        self._wait_ns: FloatArray = np.zeros(size[:2])
        self._censored = np.zeros(size, bool)
        self.ticks = 0
        """Ticks since the previous collection."""
        self.usage: FloatArray = np.full(size, np.nan)
        self.demand_low: FloatArray = np.full(size, np.nan)
        self.limit: FloatArray = np.full(size, np.nan)
        self.wait_ns: FloatArray = np.full(size[:2], np.nan)
        self.quality = np.full(size, Quality.MISSING, np.uint8)

    def update(
        self, used: FloatArray, limit: FloatArray, waiting: FloatArray, held_back: FloatArray, cpu_per_unit: float
    ) -> None:
        """Take one tick.

        ``used`` and ``limit``: (H, N, R) units; ``waiting``: (H, N) mean number of threads that waited for a CPU;
        ``held_back``: (H, N) IO units that waited in the block layer; ``cpu_per_unit``: CPUs in one CPU unit.
        """
        self._used += used
        self._low += used
        self._low[..., Resource.CPU] += waiting / cpu_per_unit
        self._low[..., Resource.IO] += held_back
        self._wait_ns += waiting * self._tick_ns
        np.copyto(self._limit, limit)
        self._censored |= used >= AT_LIMIT * limit
        self.ticks += 1

    def sums(self) -> tuple[npt.NDArray[np.generic], ...]:
        """Return what :meth:`update` adds to, for who does it in its place: (H, N, R) but the fourth, (H, N).

        Unit-ticks used, unit-ticks known to be demanded, the limit, time waited, whether a limit was reached.
        """
        return self._used, self._low, self._limit, self._wait_ns, self._censored

    def collect(self) -> bool:
        """Bring the public arrays up to date with everything since the last call.

        Returns whether there was a tick in between; without one there are no rates and the arrays stay as they are.
        """
        if not self.ticks:
            return False
        u, z = self._streams.draw()
        scale = 1.0 / self.ticks
        if self._faults:
            self._faults.step()
            before = self.usage.copy(), self.demand_low.copy(), self.wait_ns.copy(), self.quality.copy()
        shown = (self._low - self._used) * scale  # the part that only queues show is exact, the rates are noisy
        np.multiply(self._used, scale, out=self.usage)
        self.usage *= np.maximum(1.0 + self._noise * z.transpose(0, 2, 1), 0.0)
        np.minimum(self.usage, self._limit, out=self.usage)
        np.add(self.usage, shown, out=self.demand_low)
        if self._faults:
            self._stand_still()
        np.copyto(self.limit, self._limit)
        np.copyto(self.wait_ns, self._wait_ns)
        self.quality[:] = np.where(self._censored, np.uint8(Quality.CENSORED), np.uint8(Quality.OK))
        if self._gap_share:
            gap = u.transpose(0, 2, 1) < self._gap_share
            self.usage[gap] = np.nan
            self.demand_low[gap] = np.nan
            self.wait_ns[gap[..., Resource.CPU]] = np.nan
            self.quality[gap] = Quality.MISSING
        if self._faults:
            self._spoil(*before)
        self._used[:] = self._low[:] = 0.0
        self._wait_ns[:] = 0.0
        self._censored[:] = False
        self.ticks = 0
        return True

    def _stand_still(self) -> None:
        """Hold back what frozen counters count, and show it all at once where they go on: nobody can tell."""
        frozen = self._faults.holds(FROZEN)
        shown = np.where(frozen, 0.0, self.usage + self._missed / self.ticks)
        self._missed = np.where(frozen, self._missed + self.usage * self.ticks, 0.0)
        self._censored &= ~frozen
        self.demand_low += shown - self.usage
        np.copyto(self.usage, shown)

    def _spoil(
        self, usage: FloatArray, demand_low: FloatArray, wait_ns: FloatArray, quality: npt.NDArray[np.uint8]
    ) -> None:
        """Put stale values (those of the reading before, given) in place and throw away what gaps and resets take.

        A reset is marked as on a real host: the value is missing, and why is known.
        """
        stale = self._faults.holds(STALE) & ~np.isnan(usage)
        np.copyto(self.usage, usage, where=stale)
        np.copyto(self.demand_low, demand_low, where=stale)
        np.copyto(self.wait_ns, wait_ns, where=stale[..., Resource.CPU])
        np.copyto(self.quality, quality | np.uint8(Quality.STALE), where=stale)
        reset = self._faults.holds(RESET)
        gone = reset | self._faults.holds(GAP)
        self.usage[gone] = np.nan
        self.demand_low[gone] = np.nan
        self.wait_ns[gone[..., Resource.CPU]] = np.nan
        self.quality[gone] = Quality.MISSING
        self.quality[reset] |= np.uint8(Quality.RESET)

    def copy_to(self, reading: Reading, host: int) -> None:
        """Copy what one host's counters told at the last collection into ``reading``; the caller sets the times."""
        reading.usage[:] = self.usage[host]
        reading.demand_low[:] = self.demand_low[host]
        reading.limit[:] = self.limit[host]
        reading.wait_ns[:] = self.wait_ns[host]
        reading.quality[:] = self.quality[host]
