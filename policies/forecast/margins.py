"""Quantiles around a point forecast: each level's distance to it is learnt online, as the errors come in."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from foreshare.policies.host import IntArray

from .history import AHEAD, HORIZONS, LEVELS, Float32Array, History, K, Q, carry_series
from .models import PointModel

RATE = (0.05, 0.1, 0.3)
"""Step at each level, in usual errors."""
ERROR_GAIN = 0.02
_LEVEL = np.array(LEVELS, np.float32)[:, None]
_RATE = np.array(RATE, np.float32)[:, None]
_SLOTS = AHEAD + 1


class _Movable(PointModel, Protocol):
    def rebind(self, rows: IntArray, batch: tuple[int, ...], size: int) -> _Movable: ...


class WithMargins:
    """A :class:`~.models.SeriesModel` of a point model: ``q = point + m``, ``m += rate error (level - 1{y <= q})``."""

    def __init__(self, model: _Movable, size: int) -> None:
        self._model = model
        self._point: Float32Array = np.zeros((_SLOTS, K, size), np.float32)
        self._margin: Float32Array = np.zeros((K, Q, size), np.float32)
        self._error: Float32Array = np.zeros((K, size), np.float32)
        self._truth: Float32Array = np.zeros((K, size), np.float32)

    def step(self, history: History, out: Float32Array) -> None:
        """See :class:`~.models.SeriesModel`."""
        history.truth(self._truth)
        for k, h in enumerate(HORIZONS):
            judged = history.judged(h) & ~history.lower_bound(h) & (history.count > h.ahead)
            if judged.any():
                said = self._point[(history.count - h.ahead) % _SLOTS, k]
                self._error[k] += (np.abs(self._truth[k] - said) - self._error[k]) * judged * np.float32(ERROR_GAIN)
                over = _LEVEL - (self._truth[k] <= said + self._margin[k])
                self._margin[k] += _RATE * over * self._error[k] * judged
        now = self._point[history.count % _SLOTS]
        self._model.step(history, now)
        np.add(now[:, None], self._margin, out=out)
        np.maximum(out, 0.0, out=out)
        np.maximum.accumulate(out, axis=1, out=out)

    def rebind(self, rows: IntArray, batch: tuple[int, ...], size: int) -> WithMargins:
        """Return the model of another set of VMs; ``rows`` (N,) is each one's former row, or -1."""
        fresh = WithMargins(self._model.rebind(rows, batch, size), size)
        for name in ("_point", "_margin", "_error"):
            setattr(fresh, name, carry_series(getattr(self, name), rows, getattr(fresh, name), batch))
        return fresh
