"""The mixture: every series weighs simple forecasts and a network by how well each did lately, quantile by quantile.

**Members.** The newest tick and the mean of five, with offsets that track their errors; the climate of the series; a
quantile regression learnt online; the network where there are weights.

**Weights.** For each series, horizon and quantile, ``w_m <- w_m / (1 + eta l_m / L)`` with the pinball loss ``l_m`` of
member m and ``L`` the usual loss of the mixture (to first order the exponential update), then a fixed share:
``w <- (1 - share) w + share w_0`` (Herbster and Warmuth 1998, Machine Learning 32): no member is ever so far behind
that a change of phase could not bring it back within a few ticks.

**Truth of the quantiles.** The distances of the upper quantiles to the median are scaled by factors that grow when a
quantile is exceeded more often than it should and shrink otherwise, so that coverage tends to the level whatever the
data do (Gibbs and Candès 2021, NeurIPS; Angelopoulos, Candès and Tibshirani 2023, NeurIPS).

**Steps.** Where three ticks in a row lie beyond anything that the last 200 had (STEP_DEVIATIONS), what was learnt is of
another phase: the newest ticks get all the weight, and the others earn theirs anew.

What was censored is a lower bound: it is judged by the part of the pinball loss that it proves. One horizon learns in
a tick, in turns: the cost of a tick is bounded, and at 10 ms each learns 33 times a second.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from foreshare.policies import kernel
from foreshare.policies.host import IntArray

from .climate import AT_LEVELS
from .features import FeatureMaker
from .history import FLOOR, HORIZONS, LEVELS, WINDOW, Float32Array, History, K, Q, carry_series
from .network import QuantileNetwork
from .regression import RATE, QuantileRegression

POINTS = ("recent", "last")
STEP_DEVIATIONS = 4.0
STEP_SHARE = 0.1
"""A step is also at least this share of the level before it."""
_STEP = (3, 203)
_PER_STEP = 1.0 / (_STEP[1] - _STEP[0])
MOST_FACTOR = 5.0
MOST_MEMBERS, MOST_COMPILED = 5, 128
"""Of compiled/forecast.h: members, and units in a hidden layer of a network that it runs."""
_LEVEL = np.array(LEVELS, np.float32)[:, None]
_TINY = np.float32(1e-6)
_ONE = np.float32(1.0)
_MOST_LOSS = np.float32(20.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class MixtureOptions:
    """How fast the mixture learns."""

    eta: tuple[float, float, float] = (0.15, 0.1, 0.01)
    """How strongly a loss lowers a weight, at each level."""
    share: float = 0.005
    """What is shared out anew each time."""
    points: float = 0.1
    """Weight that the newest ticks start with; the others have the rest in equal parts."""
    offset_rate: tuple[float, float, float] = (0.05, 0.1, 0.3)
    """Step of the members' offsets at each level, in usual errors."""
    factor_rate: tuple[float, float, float] = (0.0, 0.004, 0.01)
    """Step of the factors at each level."""
    error_gain: float = 0.02
    """Gain of the usual error and the usual loss."""


class Mixture:
    """A :class:`~.models.SeriesModel`. Arrays are (members, K, Q, S)."""

    def __init__(self, size: int, network: QuantileNetwork | None, options: MixtureOptions | None = None) -> None:
        self.options = o = options or MixtureOptions()
        self._size, self._network = size, network
        self._features, self._regression = FeatureMaker(size), QuantileRegression(size)
        self.members = (*POINTS, "climate", "regression", *(("network",) if network is not None else ()))
        m, points = len(self.members), len(POINTS)
        prior = np.full(m, (1.0 - o.points) / (m - points), np.float32)
        prior[:points] = o.points / points
        self.weights: Float32Array = np.broadcast_to(prior[:, None, None, None], (m, K, Q, size)).copy()
        """(M, K, Q, S), sums over members are 1."""
        self._shared = np.broadcast_to(np.float32(o.share) * prior[:, None, None], (m, Q, size)).copy()
        self._after_step = np.full((m, 1, 1, 1), o.share, np.float32)
        self._after_step[0] = 1.0 - o.share * (m - 1)
        self._offset: Float32Array = np.zeros((points, K, Q, size), np.float32)
        self.factor: Float32Array = np.ones((K, Q, size), np.float32)
        """(K, Q, S) what keeps each quantile true."""
        self.error: Float32Array = np.zeros((K, size), np.float32)
        """(K, S) the usual absolute error of the median, units."""
        self._loss: Float32Array = np.zeros((K, Q, size), np.float32)
        self._point: Float32Array = np.zeros((points, size), np.float32)
        self._each: Float32Array = np.zeros((m, K, Q, size), np.float32)
        self._truth: Float32Array = np.zeros((K, size), np.float32)
        self._past = [np.zeros((h.ahead // K + 2, m + 1, Q, size), np.float32) for h in HORIZONS]  # last: the mixture
        self._count = 0
        self._held: object | None = None
        self._eta = np.array(o.eta, np.float32)[:, None]
        self._offset_rate, self._factor_rate = (
            np.array(rate, np.float32)[:, None] for rate in (o.offset_rate, o.factor_rate)
        )
        self._nothing = np.zeros((points, K, Q, size), np.float32)
        self._below, self._over = np.zeros((m + 1, Q, size), bool), np.zeros((points, Q, size), bool)
        self._miss, self._slope, self._cost = (np.zeros((m + 1, Q, size), np.float32) for _ in range(3))
        self._move = np.zeros((points, Q, size), np.float32)
        self._fits = network is None or max(len(w) for w in network.layers[:2]) <= MOST_COMPILED
        self._constants = np.zeros(11 + len(RATE) + MOST_MEMBERS, np.float32)
        self._constants[: 11 + len(RATE)] = (*o.eta, o.share, *o.offset_rate, *o.factor_rate, o.error_gain, *RATE)
        self._constants[11 + len(RATE) :][:m] = prior
        """mixture_options_t of compiled/forecast.h."""

    def step(self, history: History, out: Float32Array) -> None:
        """Learn from the newest tick and fill ``out`` (K, Q, S) with units."""
        self._count += 1
        if kernel.compiled is not None and self._fits:
            kernel.compiled.mix(history.held, history.newest_row, self._hold(), self._count, self._constants, out)
            return
        history.truth(self._truth)
        self._learn(history, self._count % K)
        if self._count % 2:
            self._notice_steps(history)
        self._predict(history)
        np.einsum("mkqs,mkqs->kqs", self.weights, self._each, out=out)
        self._correct(out)
        self._keep(out)

    def _hold(self) -> object:
        """Return the arrays as compiled/forecast_module.c holds them."""
        if self._held is None and kernel.compiled is not None:
            layers = self._network.layers if self._network is not None else (None, None, None)
            r = self._regression
            arrays = (self.weights, self._offset, self.factor, self._loss, self.error, *self._past, r.theta, r.x)
            self._held = kernel.compiled.hold_mixture((*arrays, *layers, len(self.members)), self._size)
        return self._held

    def __getstate__(self) -> dict[str, object]:
        """Return what a copy is made of: its arrays are others."""
        return {**self.__dict__, "_held": None}

    def _predict(self, history: History) -> None:
        point, each, points = self._point, self._each, len(POINTS)
        point[0], point[1] = self._truth[1], history.newest
        np.add(point[:, None, None], self._offset, out=each[:points])
        np.maximum(each[:points], self._nothing, out=each[:points])
        features = self._features.make(history)
        each[points] = history.climate[AT_LEVELS]
        self._regression.predict(features, history.scale, self._count, each[points + 1])
        if self._network is not None:
            self._network.predict(features, history, each[points + 2])

    def _notice_steps(self, history: History) -> None:
        """Forget the weights of series that have just stepped to a level they were not at before."""
        newest = history.demand(3)
        now = history.newest_row + WINDOW
        sums = history.running[:2, now - _STEP[0]] - history.running[:2, now - _STEP[1]]
        sums *= _PER_STEP
        mean, square = sums
        square -= mean * mean
        np.maximum(square, 0.0, out=square)
        np.sqrt(square, out=square)
        square *= STEP_DEVIATIONS
        square += STEP_SHARE * mean
        square += FLOOR
        stepped = newest.min(axis=0) > mean + square
        # Down only where nothing was censored: there demand may be as high as before.
        stepped |= (newest.max(axis=0) < mean - square) & (history.loose >= len(newest))
        if stepped.any():
            self.weights[:, :, :, stepped] = self._after_step
            self.factor[:, :, stepped] = 1.0

    def _correct(self, out: Float32Array) -> None:
        """Scale the median and the distances above it, so that quantiles neither cross nor lie below 0."""
        median = out[:, :1]
        out[:, 1:] -= median
        np.maximum(out, self._nothing[0], out=out)
        out *= self.factor  # 1 for the median
        out[:, 1:] += median
        out *= out >= np.float32(FLOOR)  # next to nothing is nothing: an idle VM's quantiles are tied with its zeros
        for q in range(2, Q):
            np.maximum(out[:, q], out[:, q - 1], out=out[:, q])

    def _keep(self, out: Float32Array) -> None:
        for k, h in enumerate(HORIZONS):
            due = self._count + h.ahead
            if due % K == k:
                kept = self._past[k][due // K % len(self._past[k])]
                kept[:-1] = self._each[:, k]
                kept[-1] = out[k]

    def _learn(self, history: History, k: int) -> None:
        o, m, points = self.options, len(self.members), len(POINTS)
        horizon = HORIZONS[k]
        if self._count <= horizon.ahead + K:
            return
        past = self._past[k][self._count // K % len(self._past[k])]
        miss, slope, cost, truth = self._miss, self._slope, self._cost, self._truth[k]
        np.subtract(truth, past, out=miss)
        np.less_equal(miss, 0.0, out=self._below)
        np.subtract(_LEVEL, self._below, out=slope)  # the level where exceeded, else the level less 1
        judged = history.judged(horizon)
        if not judged.all():
            slope *= judged
        bound = history.lower_bound(horizon)
        if bound.any():  # known from below only: says nothing against what lies above it
            slope[self._below & bound] = 0.0
        np.multiply(miss, slope, out=cost)
        self._blame(cost, k, o)
        error = self.error[k]
        change = np.abs(miss[m, 0])
        change -= error
        change *= np.float32(o.error_gain)
        change *= judged
        error += change
        # Down only from above 0: what is cut off there must not wind up.
        np.greater(past[:points], 0.0, out=self._over)
        self._over |= ~self._below[:points]
        np.multiply(slope[:points], self._over, out=self._move)
        self._move *= self._offset_rate
        self._move *= error
        self._offset[:, k] += self._move
        self._regression.learn(k, self._count, slope[points + 1])
        change = slope[m]
        change *= self._factor_rate
        change *= past[m] >= np.float32(FLOOR)  # an idle VM says nothing
        change += _ONE
        factor = self.factor[k]
        factor *= change
        np.minimum(factor, np.float32(MOST_FACTOR), out=factor)
        np.maximum(factor, np.float32(1.0 / MOST_FACTOR), out=factor)

    def _blame(self, cost: Float32Array, k: int, o: MixtureOptions) -> None:
        """Lower the weights of members by what each lost; a loss of 0 leaves them as they are."""
        m, usual = len(self.members), self._loss[k]
        step = cost[m]
        step -= usual
        step *= np.float32(o.error_gain)
        usual += step
        each = cost[:m]
        np.add(usual, _TINY, out=step)
        each /= step
        np.minimum(each, _MOST_LOSS, out=each)
        each *= self._eta
        each += _ONE
        weights = self.weights[:, k]
        weights /= each
        np.add.reduce(weights, axis=0, out=step)
        np.divide(np.float32(1.0 - o.share), step, out=step)
        weights *= step
        weights += self._shared

    def rebind(self, rows: IntArray, batch: tuple[int, ...], size: int) -> Mixture:
        """Return the mixture of another set of VMs; ``rows`` (N,) is each one's former row, or -1."""
        fresh = Mixture(size, self._network, self.options)
        fresh._count = self._count
        for name in ("weights", "_offset", "factor", "error", "_loss"):
            setattr(fresh, name, carry_series(getattr(self, name), rows, getattr(fresh, name), batch))
        pairs = zip(self._past, fresh._past, strict=True)
        fresh._past = [carry_series(old, rows, new, batch) for old, new in pairs]
        fresh._regression = self._regression.rebind(rows, batch, size)
        return fresh
