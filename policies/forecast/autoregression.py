"""An autoregression for each series, learnt online by recursive least squares.

Regressors are a constant, the two newest values and means over growing windows (a heterogeneous autoregression, Corsi
2009, Journal of Financial Econometrics 7(2)); each horizon has coefficients of its own. With regressors ``x`` (P,) at
the origin and ``y`` what came after it, ``k = C x / (forget + x' C x)``, ``b += k (y - b' x)``,
``C = (C - k x' C) / forget`` (Ljung, System Identification, 1999, section 11.2). All in multiples of the series' scale.
One group of series in GROUPS learns in a tick, so that the cost of a tick stays small and each series learns often.
"""

from __future__ import annotations

import numpy as np

from foreshare.policies.host import FloatArray, IntArray

from .history import AHEAD, HORIZONS, Float32Array, History, K, carry_series

_EDGES = np.array([2, 5, 10, 20, 100])
_PER_BLOCK = 1.0 / np.diff(_EDGES)[:, None]
P = 3 + len(_PER_BLOCK)
_TARGETS = np.array([edge for h in HORIZONS for edge in (AHEAD - h.ahead, AHEAD - h.ahead + h.width)])
_PER_WIDTH = np.array([[1.0 / h.width] for h in HORIZONS])
FORGET = 0.998
GROUPS = 8
_PRIOR = 1.0
_MOST_COVARIANCE = 1e3
_MOST = 30.0
"""Multiples of the scale beyond which a value counts as this: one spike must not rewrite the coefficients."""


class Autoregression:
    """Coefficients and covariances of all series."""

    def __init__(self, size: int) -> None:
        self.coefficients: FloatArray = np.zeros((K, P, size))
        self.coefficients[:, 3, :] = 0.5
        self.coefficients[:, 5, :] = 0.5
        self._covariance: FloatArray = np.zeros((P, P, size))
        self._covariance[np.arange(P), np.arange(P)] = _PRIOR
        self._x = np.zeros((P, size))
        self._size = size
        self._ticks = 0

    def predict(self, history: History, out: Float32Array) -> None:
        """Fill ``out`` (K, S) with expectations, units, at least 0."""
        x = self._regressors(history, 0, slice(None), self._x)
        np.einsum("kps,ps->ks", self.coefficients, x, out=out, casting="unsafe")
        np.clip(out, 0.0, _MOST, out=out)
        out *= history.scale

    def learn(self, history: History) -> None:
        """Take in what the newest tick tells of the forecasts made AHEAD ticks ago, for the group whose turn it is."""
        self._ticks += 1
        group = slice(self._ticks % GROUPS, None, GROUPS)
        ready = (history.clean[group] > AHEAD) & (history.loose[group] > AHEAD)
        x = self._regressors(history, AHEAD, group, np.empty((P, len(ready))))
        y = np.empty((K, x.shape[1]))
        sums = history.sums(0, _TARGETS)[:, group]
        np.subtract(sums[0::2], sums[1::2], out=y)
        y *= _PER_WIDTH
        y /= history.scale[group]
        np.minimum(y, _MOST, out=y)
        c = self._covariance[:, :, group]
        cx = np.einsum("pqs,qs->ps", c, x)
        k = cx / (FORGET + np.einsum("ps,ps->s", x, cx))
        k *= ready
        error = y - np.einsum("kps,ps->ks", self.coefficients[:, :, group], x)
        self.coefficients[:, :, group] += error[:, None] * k
        c -= k[:, None] * cx
        room = c[np.arange(P), np.arange(P)].max(axis=0) < _MOST_COVARIANCE
        c *= np.where(ready & room, 1.0 / FORGET, 1.0)  # unexcited directions would grow for ever

    def _regressors(self, history: History, lag: int, group: slice, out: FloatArray) -> FloatArray:
        """Fill ``out`` (P, series of the group) with what was known ``lag`` ticks ago."""
        newest = history.demand(lag + 2)
        out[0] = 1.0
        out[1], out[2] = newest[1, group], newest[0, group]
        sums = history.sums(0, _EDGES + lag)[:, group]
        np.subtract(sums[:-1], sums[1:], out=out[3:])
        out[3:] *= _PER_BLOCK
        out[1:] /= history.scale[group]
        np.minimum(out, _MOST, out=out)
        return out

    def rebind(self, rows: IntArray, batch: tuple[int, ...], size: int) -> Autoregression:
        """Return the models of another set of VMs; ``rows`` (N,) is each one's former row, or -1."""
        fresh = Autoregression(size)
        fresh._ticks = self._ticks
        for name in ("coefficients", "_covariance"):
            setattr(fresh, name, carry_series(getattr(self, name), rows, getattr(fresh, name), batch))
        return fresh
