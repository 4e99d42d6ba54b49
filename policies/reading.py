"""One tick's telemetry of all VMs, as arrays. A missing value is missing (NaN), never 0."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntFlag

import numpy as np
import numpy.typing as npt

from .host import BoolArray, FloatArray, R


class Quality(IntFlag):
    """What is known about one value of a reading."""

    OK = 0
    MISSING = 1
    """No value: the counter is not there, could not be read, or said so."""
    STALE = 2
    """The value is older than one tick, or an earlier reading had it already: nothing new was observed."""
    CENSORED = 4
    """Usage stood at its limit: demand was at least this."""
    RESET = 8
    """The counter went back or jumped; the difference was thrown away."""


@dataclass(slots=True, eq=False)
class Reading:
    """Filled in place by a HAL's ``sample``. Rates are mean rates since the previous sample, in the pools' units.

    In a batch of hosts every array but ``present`` has (H, ...) in front.
    """

    t_ns: int
    """Monotonic time of the sample."""
    dt_ns: int
    """Time since the sample before; 0 for the first."""
    usage: FloatArray
    """(N, R) units in use; NaN if missing. Cache: ways filled (occupancy), where it can be measured."""
    demand_low: FloatArray
    """(N, R) units known to be demanded at least; NaN if missing. Equals usage where nothing tells more."""
    limit: FloatArray
    """(N, R) units that the VM could have used; NaN if unknown, inf if unlimited."""
    wait_ns: FloatArray
    """(N,) time that runnable threads waited for a CPU since the previous sample, all threads; NaN if missing."""
    quality: npt.NDArray[np.uint8]
    """(N, R) of :class:`Quality`."""
    present: BoolArray
    """(N,) whether the VM is there at all."""

    @classmethod
    def empty(cls, n: int, batch: tuple[int, ...] = ()) -> Reading:
        """Return a reading in which every value is missing."""
        size = (*batch, n, R)
        return cls(
            0, 0, np.full(size, np.nan), np.full(size, np.nan), np.full(size, np.nan), np.full(size[:-1], np.nan),
            np.full(size, Quality.MISSING, np.uint8), np.ones(n, bool),
        )  # fmt: skip

    def copy(self) -> Reading:
        """Return an independent copy."""
        return Reading(
            self.t_ns, self.dt_ns, self.usage.copy(), self.demand_low.copy(), self.limit.copy(), self.wait_ns.copy(),
            self.quality.copy(), self.present.copy(),
        )  # fmt: skip
