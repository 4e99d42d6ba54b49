"""What every VM will want in the tick in which the decision lands: last value and EWMA, all VMs in one call.

Usage at the limit is censored: demand was at least that. Where the HAL tells nothing better than usage, a censored
value is raised by ``PROBE`` so that a throttled VM is found out in a few ticks rather than never.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from .axes import any_of
from .host import BoolArray, FloatArray, Host, IntArray, R
from .knobs import knob
from .reading import Quality, Reading

PROBE = 1.25
MISSING_WIDEN = 1.05
"""A value that is missing widens its margin by this factor each tick."""


@dataclass(slots=True, eq=False)
class Forecast:
    """Demand in units, (N, R), in a batch (H, N, R).

    ``mean`` is the expectation, ``upper`` what demand stays below nine times out of ten.
    """

    mean: FloatArray
    upper: FloatArray
    clearing: FloatArray = field(default_factory=lambda: np.zeros((0, R)))
    """(N, R) units on top of demand that clear the backlog in time; 0 from forecasters that do not look at it."""
    usage: FloatArray = field(default_factory=lambda: np.zeros((0, R)))
    """(N, R) units used in the tick just done, the last known where missing; 0 from forecasters that do not tell."""
    backlog: FloatArray = field(default_factory=lambda: np.zeros((0, R)))
    """(N, R) unit-ticks of work queued now; 0 from forecasters that do not look at it."""
    delay_ticks: FloatArray = field(default_factory=lambda: np.zeros(0))
    """(N,) queueing delay now, ticks; 0 from forecasters that do not look at it."""
    unsure: BoolArray = field(default_factory=lambda: np.zeros(0, bool))
    """(N,) more may be wanted than can be seen: an upper end is none then. False from forecasters that do not tell."""

    def __post_init__(self) -> None:
        size = self.mean.shape
        for name in ("clearing", "usage", "backlog"):
            if getattr(self, name).shape != size:
                setattr(self, name, np.zeros(size))
        if self.delay_ticks.shape != size[:-1]:
            self.delay_ticks = np.zeros(size[:-1])
        if self.unsure.shape != size[:-1]:
            self.unsure = np.zeros(size[:-1], bool)

    @classmethod
    def empty(cls, n: int, batch: tuple[int, ...] = ()) -> Forecast:
        """Return a forecast of nothing."""
        return cls(np.zeros((*batch, n, R)), np.zeros((*batch, n, R)))


class Forecaster(Protocol):
    """Sees every tick's reading, answers for all VMs at once."""

    def update(self, reading: Reading, into: Forecast) -> None:
        """Take in one reading and fill ``into``. A VM never seen is forecast at its reservation."""
        ...

    def rebind(self, host: Host, rows: IntArray) -> None:
        """Carry on with another set of VMs; ``rows`` (N,) is each one's former row, or -1 for a new one."""
        ...


def observed_demand(reading: Reading, out: FloatArray) -> FloatArray:
    """Fill ``out`` (N, R) with the demand that a reading speaks of, NaN where it says nothing."""
    np.fmax(reading.demand_low, reading.usage, out=out)
    censored = (reading.quality & Quality.CENSORED) != 0
    blind = censored & ~(reading.demand_low > reading.usage * 1.02)
    np.multiply(out, PROBE, out=out, where=blind)
    return out


class LastValue:
    """Tomorrow is as today: mean and upper are the last observed demand."""

    def __init__(self, host: Host) -> None:
        self._last = at_reservation(host)
        self._seen = np.empty_like(self._last)

    def update(self, reading: Reading, into: Forecast) -> None:
        """See :class:`Forecaster`."""
        seen = observed_demand(reading, self._seen)
        np.copyto(self._last, seen, where=np.isfinite(seen))
        into.mean[:] = self._last
        into.upper[:] = self._last

    def rebind(self, host: Host, rows: IntArray) -> None:
        """See :class:`Forecaster`."""
        self._last = carry(self._last, rows, at_reservation(host))
        self._seen = np.empty_like(self._last)


@dataclass(frozen=True, kw_only=True, slots=True)
class EwmaKnobs:
    """What can be tuned about :class:`Ewma`."""

    rise: float = knob(0.7, 0.3, 1.0)
    """Gain when demand is above its level."""
    fall: float = knob(0.5, 0.1, 0.9)
    """Gain when it is below."""
    error_gain: float = knob(0.1, 0.03, 0.3, log=True)
    """Gain of the mean absolute error."""
    margin: float = knob(1.6, 0.0, 4.0)
    """Mean absolute errors asked for on top of the level."""


class Ewma:
    """Exponentially weighted level, rising faster than it falls, plus a margin from the mean absolute error.

    ``level += gain * (x - level)`` with ``rise`` above the level and ``fall`` below it; the margin is ``margin`` mean
    absolute errors (Roberts 1959, Technometrics 1(3), for the EWMA; 1.25 mean absolute deviations are one standard
    deviation of a normal error, so that 1.6 of them are near its 0.9 quantile).
    """

    def __init__(
        self, host: Host, *, rise: float = 0.7, fall: float = 0.5, error_gain: float = 0.1, margin: float = 1.6
    ) -> None:
        self.rise, self.fall, self.error_gain, self.margin = rise, fall, error_gain, margin
        self.level = at_reservation(host)
        self.error = np.zeros_like(self.level)
        self.fresh: BoolArray = np.ones(host.shape[:-1], bool)
        """(..., N) of whom nothing was heard yet."""
        self._most = _widest(host)
        self._scratch()

    def _scratch(self) -> None:
        self._seen, self._gap, self._gain = (np.empty_like(self.level) for _ in range(3))

    def update(self, reading: Reading, into: Forecast) -> None:
        """See :class:`Forecaster`."""
        self.learn(observed_demand(reading, self._seen), into)

    def learn(self, seen: FloatArray, into: Forecast) -> None:
        """Take in demand (N, R), NaN where unknown, and fill mean and upper of ``into``. Fills the gaps of ``seen``."""
        gap, gain = self._gap, self._gain
        missing = ~np.isfinite(seen)  # no counter counts to infinity
        any_missing = bool(missing.any())
        if any_missing:
            np.copyto(seen, self.level, where=missing)
        if self.fresh.any():
            first = self.fresh & ~any_of(missing)
            self.level[first] = seen[first]
            self.fresh &= ~first
        np.subtract(seen, self.level, out=gap)
        np.copyto(gain, self.fall)
        np.copyto(gain, self.rise, where=gap > 0)
        gain *= gap
        self.level += gain
        np.abs(gap, out=gap)
        gap -= self.error
        gap *= self.error_gain
        if any_missing:
            np.copyto(gap, self.error * (MISSING_WIDEN - 1.0), where=missing)
        self.error += gap
        if any_missing:  # growing for ever, it would overflow, and be no number once values come back
            np.minimum(self.error, self._most, out=self.error, where=missing)
        into.mean[:] = self.level
        np.multiply(self.error, self.margin, out=into.upper)
        into.upper += self.level

    def rebind(self, host: Host, rows: IntArray) -> None:
        """See :class:`Forecaster`."""
        self.level = carry(self.level, rows, at_reservation(host))
        self.error = carry(self.error, rows, np.zeros_like(self.level))
        self.fresh = carry(self.fresh, rows, np.ones(host.shape[:-1], bool), axis=-1)
        self._most = _widest(host)
        self._scratch()


def _widest(host: Host) -> FloatArray:
    """Return (N, R) an error beyond which nothing is to learn: it forecasts all that the VM may ever hold."""
    return np.maximum(host.cap, 1).astype(float)


def at_reservation(host: Host) -> FloatArray:
    """Return every VM's reservation, (N, R) or (H, N, R): what is forecast of a VM of which nothing is known."""
    return np.array(np.broadcast_to(host.reservation, host.shape), np.float64, order="C")


Kind = TypeVar("Kind", bound=np.generic)


def carry(old: npt.NDArray[Kind], rows: IntArray, fresh: npt.NDArray[Kind], axis: int = -2) -> npt.NDArray[Kind]:
    """Return ``fresh`` with the rows of ``old`` that ``rows`` (former row or -1) names taken over.

    ``axis``: where the VMs are, -2 for (..., N, R) and -1 for (..., N).
    """
    out = fresh.copy()
    known = rows >= 0
    np.moveaxis(out, axis, 0)[known] = np.moveaxis(old, axis, 0)[rows[known]]
    return out
