"""Point forecasts without weights: the last value, a season found by Fourier transform, an online autoregression."""

from __future__ import annotations

import numpy as np

from foreshare.policies.host import IntArray

from .autoregression import Autoregression
from .history import HORIZONS, WINDOW, Float32Array, History


class Last:
    """Tomorrow is as today."""

    def step(self, history: History, out: Float32Array) -> None:
        """See :class:`~.models.PointModel`."""
        out[:] = history.newest


class Autoregressive:
    """:class:`~.autoregression.Autoregression` as a point model."""

    def __init__(self, size: int) -> None:
        self._model = Autoregression(size)

    def step(self, history: History, out: Float32Array) -> None:
        """See :class:`~.models.PointModel`."""
        self._model.learn(history)
        self._model.predict(history, out)


class Seasonal:
    """As it was one period ago, where a series has a period; the long-run mean elsewhere.

    The period is that of the largest peak of the power spectrum of the newest WINDOW ticks, if this peak holds at least
    ``share`` of the power. A few series are looked at in a tick, all of them within ``every`` ticks.
    """

    def __init__(self, size: int, *, share: float = 0.2, every: int = 64) -> None:
        self.period: IntArray = np.zeros(size, np.int64)
        """(S,) ticks; 0: none."""
        self._share, self._every, self._ticks = share, every, 0
        self._columns = np.arange(size)

    def step(self, history: History, out: Float32Array) -> None:
        """See :class:`~.models.PointModel`."""
        self._look(history)
        values = history.demand(WINDOW)
        seasonal = self.period > 0
        for k, h in enumerate(HORIZONS):
            out[k] = history.slow
            if seasonal.any():
                columns, period = self._columns[seasonal], self.period[seasonal]
                ahead = np.arange(h.ahead - h.width + 1, h.ahead + 1)[:, None]
                back = -ahead % period  # ticks before the newest; it is at the same place in its period
                out[k, seasonal] = values[WINDOW - 1 - back, columns].mean(axis=0)

    def _look(self, history: History) -> None:
        group = slice(self._ticks % self._every, None, self._every)
        self._ticks += 1
        values = history.demand(WINDOW)[:, group]
        power = np.abs(np.fft.rfft(values - values.mean(axis=0), axis=0)) ** 2
        low, high = 4, WINDOW // 4  # at least four periods are seen, each of at least four ticks
        peak = power[low:high].argmax(axis=0) + low
        near = np.take_along_axis(power, np.stack([peak - 1, peak, peak + 1]), axis=0).sum(axis=0)
        whole = power.sum(axis=0)
        found = (near > self._share * whole) & (history.seen[group] >= WINDOW)
        self.period[group] = np.where(found, np.rint(WINDOW / peak), 0)
