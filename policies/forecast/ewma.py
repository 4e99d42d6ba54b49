"""An exponentially weighted level with a margin from its own errors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from foreshare.policies.axes import any_of
from foreshare.policies.host import BoolArray, FloatArray, Host, IntArray
from foreshare.policies.knobs import knob
from foreshare.policies.reading import Reading

from .base import Forecast, at_reservation, carry, observed_demand

MISSING_WIDEN = 1.05
"""A value that is missing widens its margin by this factor each tick."""


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
