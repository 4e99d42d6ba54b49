"""What networks see of a series: lags, means over growing windows, root mean squares, how much waits.

Amounts are divided by the scale of their series and their square root is taken, so that one network serves series of
any size and a burst does not drown the rest. In order: LAGS newest ticks, oldest first; means over growing windows;
root mean squares; what waits; the newest tick and the mean of five as they are, without a root; a one; how old the
value is; which resource it is; the climate (:mod:`~.climate`) and the scale itself; its runs; then the runs of its
**partner** and some of what is seen of it: the CPUs of the same VM, and for these its IO. Layout (F, S): a feature a
row, which is what the first matrix product wants.
"""

from __future__ import annotations

import numpy as np

from foreshare.policies import kernel
from foreshare.policies.host import CPU, IO, IntArray, R

from .climate import MEAN, PEAK, QUANTILES, RHYTHM, RUNS, rhythm
from .history import WINDOW, Float32Array, History

LAGS = 20
"""Newest ticks that are seen one by one."""
_MEANS = ((20, 30), (30, 50), (50, 100), (100, 200))
_SPREADS = (10, 100)
_WAITS = ((0, 1), (1, 10))
_BLOCKS = len(_MEANS) + len(_SPREADS) + len(_WAITS)
_SPREAD = slice(len(_MEANS), len(_MEANS) + len(_SPREADS))
_ROOTS = LAGS + _BLOCKS
_PLAIN = slice(_ROOTS, _ROOTS + 2)
_ONE = _PLAIN.stop
_AGE = _ONE + 1
_KIND = _AGE + 1
_CLIMATE = slice(_KIND + R, _KIND + R + 7)
"""Roots of the long-run mean, the mean over minutes, the largest, and four quantiles."""
_RHYTHM = slice(_CLIMATE.stop, _CLIMATE.stop + RHYTHM)
_SCALE = _RHYTHM.stop
REACH = _CLIMATE.start + 2
"""The root of the largest mean of five ticks in multiples of the scale: how far a burst may reach."""
_RUNS = slice(_SCALE + 1, _SCALE + 5)
_PARTNER = slice(_RUNS.stop, _RUNS.stop + 8)
_SHOWN = [LAGS - 1, _PLAIN.start + 1, LAGS, LAGS + 2]
"""What is shown of the partner: the root of the newest tick, the mean of five, roots of means over 20 .. 100 ticks."""
F = _PARTNER.stop
"""Number of features."""
ONE = _ONE
"""The feature that is always 1."""
MOST_ROOT = 8.0
MOST_CLIMATE = 20.0
RUN_UNIT = 0.1
_PER = np.array([1.0 / n for n in (*(b - a for a, b in _MEANS), *_SPREADS, *(b - a for a, b in _WAITS))])[:, None]


def partners(size: int) -> IntArray:
    """Return (S,) the series that each is seen with."""
    series = np.arange(size)
    kind = series % R
    return np.asarray(series - kind + np.where(kind == CPU, IO, CPU))


class FeatureMaker:
    """Fills one preallocated array each tick."""

    def __init__(self, size: int) -> None:
        self.out: Float32Array = np.zeros((F, size), np.float32)
        """(F, S), overwritten each tick."""
        self.out[_ONE] = 1.0
        self.out[_KIND : _KIND + R] = np.tile(np.eye(R, dtype=np.float32), size // R)
        self._per_scale = np.ones(size, np.float32)
        self._means = np.zeros((_BLOCKS, size))
        self._nothing, self._per = np.zeros((_BLOCKS, size)), np.broadcast_to(_PER, (_BLOCKS, size)).copy()
        self._most = np.full((_ROOTS, size), MOST_ROOT, np.float32)
        self._most_plain = np.full((2, size), MOST_ROOT**2, np.float32)
        self._aged = False
        self._partner = partners(size)

    def make(self, history: History) -> Float32Array:
        """Return (F, S) for the newest tick."""
        if kernel.compiled is not None:
            kernel.compiled.show(history.held, history.newest_row, self.out)
            return self.out
        out, means, sums = self.out, self._means, history.running
        now = history.newest_row + WINDOW
        i = 0
        for first, past in _MEANS:
            np.subtract(sums[0, now - first], sums[0, now - past], out=means[i])
            i += 1
        for past in _SPREADS:
            np.subtract(sums[1, now], sums[1, now - past], out=means[i])
            i += 1
        for first, past in _WAITS:
            np.subtract(sums[2, now - first], sums[2, now - past], out=means[i])
            i += 1
        means *= self._per
        np.maximum(means, self._nothing, out=means)  # differences of running sums may be a hair below 0
        np.sqrt(means[_SPREAD], out=means[_SPREAD])
        out[LAGS:_ROOTS] = means
        np.divide(1.0, history.scale, out=self._per_scale)
        np.multiply(history.demand(LAGS), self._per_scale, out=out[:LAGS])
        out[LAGS:_ROOTS] *= self._per_scale
        roots = out[:_ROOTS]
        np.sqrt(roots, out=roots)
        np.minimum(roots, self._most, out=roots)
        plain = out[_PLAIN]
        plain[0], plain[1] = history.newest, history.five
        plain *= self._per_scale
        np.minimum(plain, self._most_plain, out=plain)
        climate = out[_CLIMATE]
        climate[0] = history.slow
        climate[1], climate[2] = history.climate[MEAN], history.climate[PEAK]
        climate[3:] = history.climate[QUANTILES]
        climate *= self._per_scale
        np.sqrt(climate, out=climate)
        rhythm(history.climate, self._per_scale, out[_RHYTHM])
        np.sqrt(history.scale, out=out[_SCALE])
        np.sqrt(out[_SCALE], out=out[_SCALE])
        np.minimum(out[_CLIMATE.start : _RUNS.start], np.float32(MOST_CLIMATE), out=out[_CLIMATE.start : _RUNS.start])
        if self._aged or not history.whole:
            np.multiply(history.age, 1.0 / 16.0, out=out[_AGE])
            np.minimum(out[_AGE], 1.0, out=out[_AGE])
            self._aged = not history.whole
        runs = out[_RUNS]
        np.sqrt(history.climate[RUNS], out=runs)
        runs *= np.float32(RUN_UNIT)
        out[_PARTNER][:4] = runs[:, self._partner]
        out[_PARTNER][4:] = out[_SHOWN][:, self._partner]
        return out
