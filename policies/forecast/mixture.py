"""The mixture: every series weighs simple forecasts and a network by how well each did lately, quantile by quantile.

**Members.** The mean of five ticks with an offset that tracks its errors; what followed in the same situation, seen in
four ways (:mod:`~.situations`); the network where there are weights.

**Weights.** For each series, horizon and quantile, ``w_m <- w_m (1 - eta g (q_m - q) / L)`` with g the slope of the
pinball loss at what the mixture had said, q, and L its usual loss: a step of Prod on the linearised loss, by which the
mixture comes close to the best weighting of its members, not only to the best member (Cesa-Bianchi, Mansour and Stoltz
2007, Machine Learning 66; Gaillard, Stoltz and van Erven 2014, COLT), then a fixed share, ``w <- (1 - share) w + share
w_0`` (Herbster and Warmuth 1998, Machine Learning 32). The 0.99 quantile learns slowly: one tick in a hundred tells
something of it, and what happens seldom is told best by the situations, which w_0 says.

**Truth of the quantiles.** The distances of the upper quantiles to the median are scaled by factors that grow when a
quantile is exceeded more often than it should and shrink otherwise, so that coverage tends to the level whatever the
data do (Gibbs and Candès 2021, NeurIPS; Angelopoulos, Candès and Tibshirani 2023, NeurIPS).

**Steps.** Where three ticks in a row lie beyond anything that the last 200 had (STEP_DEVIATIONS), what was learnt may
be of another phase: the newest ticks answer for as long as that is so, and hand back within some ticks.

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
from .history import FLOOR, HORIZONS, LEVELS, WINDOW, Float32Array, History, K, Q, aligned_zeros, carry_series, spread
from .network import QuantileNetwork
from .situations import TABLES, Situations

STEP_DEVIATIONS = 4.0
STEP_SHARE = 0.1
"""A step is also at least this share of the level before it."""
_STEP = (3, 203)
_PER_STEP = 1.0 / (_STEP[1] - _STEP[0])
MOST_FACTOR = 5.0
MOST_MEMBERS, MOST_COMPILED = 6, 128
"""Of compiled/forecast.h: members, and units in a hidden layer of a network that it runs."""
_LEVEL = np.array(LEVELS, np.float32)[:, None]
_TINY = np.float32(1e-6)
_ONE = np.float32(1.0)
MOST_GAIN, MOST_SETBACK = 3.0, 0.5
"""What a weight is multiplied by at once lies between 1 - MOST_SETBACK and 1 + MOST_GAIN."""
VIEWS = ("weights", "factor", "error", "_offset", "_loss", "_past")
AFTER_STEP, FADING = 0.95, 0.8
"""Share that the newest ticks have in the answer after a step, and what is left of it a tick later."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MixtureOptions:
    """How fast the mixture learns."""

    eta: tuple[float, float, float] = (0.06, 0.03, 0.01)
    """How strongly a loss moves the weights, at each level."""
    share: float = 0.0003
    """What is shared out anew each time."""
    prior: tuple[tuple[float, float, float], ...] = (
        (0.1, 0.1, 0.05), (0.2, 0.25, 0.08), (0.1, 0.3, 0.05), (0.1, 0.1, 0.8), (0.1, 0.1, 0.1), (0.5, 0.25, 0.02),
    )  # fmt: skip
    """By member the weight that it starts with at each level, in parts of their sum."""
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
        self._features, self._situations = FeatureMaker(size), Situations(size)
        self.members = ("recent", *TABLES, *(("network",) if network is not None else ()))
        m = len(self.members)
        prior = np.array(o.prior[:m], np.float32)
        prior /= prior.sum(axis=0)
        row = spread(size)
        rows = {"weights": (m, K, Q), "_offset": (K, Q), "factor": (K, Q), "_loss": (K, Q), "error": (K,)}
        rows |= {f"_past{k}": (h.ahead // K + 2, m + 1, Q) for k, h in enumerate(HORIZONS)}
        self._rows: dict[str, Float32Array] = {
            name: aligned_zeros((*lead, row), np.float32) for name, lead in rows.items()
        }
        self._rows["weights"][:] = prior[:, None, :, None]
        self._rows["factor"][:] = 1.0
        self._look()
        self._shared = np.broadcast_to(np.float32(o.share) * prior[:, :, None], (m, Q, size)).copy()
        self._stepped: Float32Array = np.zeros(size, np.float32)
        """(S,) the share that the newest ticks have because of a step."""
        self._each: Float32Array = np.zeros((m, K, Q, size), np.float32)
        self._truth: Float32Array = np.zeros((K, size), np.float32)
        self._count = 0
        self._held: object | None = None
        self._eta = np.array(o.eta, np.float32)[:, None]
        self._offset_rate, self._factor_rate = (
            np.array(rate, np.float32)[:, None] for rate in (o.offset_rate, o.factor_rate)
        )
        self._nothing = np.zeros((K, Q, size), np.float32)
        self._fits = network is None or max(len(w) for w in network.layers[:2]) <= MOST_COMPILED
        self._constants = np.zeros(11 + MOST_MEMBERS * Q, np.float32)
        self._constants[:11] = (*o.eta, o.share, *o.offset_rate, *o.factor_rate, o.error_gain)
        self._constants[11:][: m * Q] = prior.ravel()
        """mixture_options_t of compiled/forecast.h."""

    def _look(self) -> None:
        here = {name: rows[..., : self._size] for name, rows in self._rows.items()}
        self.weights: Float32Array = here["weights"]
        """(M, K, Q, S), sums over members are 1."""
        self.factor: Float32Array = here["factor"]
        """(K, Q, S) what keeps each quantile true."""
        self.error: Float32Array = here["error"]
        """(K, S) the usual absolute error of the median, units."""
        self._offset, self._loss = here["_offset"], here["_loss"]
        self._past = [here[f"_past{k}"] for k in range(K)]  # last: the mixture

    def step(self, history: History, out: Float32Array) -> None:
        """Learn from the newest tick and fill ``out`` (K, Q, S) with units."""
        self._count += 1
        if kernel.compiled is not None and self._fits:
            kernel.compiled.mix(history.held, history.newest_row, self._hold(), self._count, self._constants, out)
            return
        history.truth(self._truth)
        self._learn(history, self._count % K)
        self._stepped *= np.float32(FADING)
        if self._count % 2:
            self._notice_steps(history)
        self._predict(history)
        np.einsum("mkqs,mkqs->kqs", self.weights, self._each, out=out)
        out += (self._each[0] - out) * self._stepped
        self._correct(out)
        self._keep(out)

    def touch(self, history: History) -> None:
        """Read what the next tick's push and step will: it is in the caches then."""
        if kernel.compiled is not None and self._fits:
            kernel.compiled.expect(history.held, history.newest_row, self._hold(), self._count)

    def _hold(self) -> object:
        """Return the arrays as compiled/forecast_module.c holds them."""
        if self._held is None and kernel.compiled is not None:
            layers = self._network.layers if self._network is not None else (None, None, None)
            r = self._situations
            arrays = (*self._rows.values(), r.padded, r.now, r.rows, self._stepped)
            self._held = kernel.compiled.hold_mixture(
                (*arrays, *layers, len(self.members)), self._size, spread(self._size)
            )
        return self._held

    def __getstate__(self) -> dict[str, object]:
        """Return what a copy is made of: its arrays are others."""
        return {**{k: v for k, v in self.__dict__.items() if k not in VIEWS}, "_held": None}

    def __setstate__(self, state: dict[str, object]) -> None:
        """Take over what a copy is made of."""
        self.__dict__.update(state)
        self._look()

    def _predict(self, history: History) -> None:
        each, tables = self._each, len(TABLES)
        np.add(self._truth[1], self._offset, out=each[0])
        np.maximum(each[0], self._nothing, out=each[0])
        self._situations.look(history, self._count)
        climate = history.climate[AT_LEVELS]
        self._situations.answer(history, self._count, self.error, each[0], climate, each[1 : 1 + tables])
        if self._network is not None:
            self._network.predict(self._features.make(history), history, each[1 + tables])

    def _notice_steps(self, history: History) -> None:
        """Find the series that have just stepped to a level they were not at before."""
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
        self._stepped[stepped] = AFTER_STEP

    def _correct(self, out: Float32Array) -> None:
        """Scale the median and the distances above it, so that quantiles neither cross nor lie below 0."""
        median = out[:, :1]
        out[:, 1:] -= median
        np.maximum(out, self._nothing, out=out)
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
        o, m = self.options, len(self.members)
        horizon = HORIZONS[k]
        if self._count <= horizon.ahead + K:
            return
        past = self._past[k][self._count // K % len(self._past[k])]
        truth, f = self._truth[k], np.float32
        judged, bound = history.judged(horizon).astype(f), history.lower_bound(horizon).astype(f)
        miss = truth - past[[0, m]]
        below = (miss <= 0.0).astype(f)
        # The level where exceeded, else the level less 1; what is known from below only says nothing against what lies
        # above it.
        recent, slope = (_LEVEL - below) * judged * (_ONE - below * bound)
        error = self.error[k]
        error += (np.abs(miss[1, 0]) - error) * f(o.error_gain) * judged
        self._blame(past, slope, miss[1] * slope, judged, k)
        # Down only from above 0: what is cut off there must not wind up.
        over = (past[0] > 0.0) | (miss[0] > 0.0)
        self._offset[k] += recent * over * self._offset_rate * error
        self._situations.learn(k, self._count, truth, judged, bound)
        factor = self.factor[k]
        factor *= slope * self._factor_rate * (past[m] >= f(FLOOR)) + _ONE  # an idle VM says nothing
        np.minimum(factor, f(MOST_FACTOR), out=factor)
        np.maximum(factor, f(1.0 / MOST_FACTOR), out=factor)

    def _blame(self, past: Float32Array, slope: Float32Array, cost: Float32Array, judged: Float32Array, k: int) -> None:
        """Move the weights towards members that lie on the side of what was said on which the truth was."""
        o, m, usual, f = self.options, len(self.members), self._loss[k], np.float32
        usual += (cost - usual) * f(o.error_gain) * judged
        step = (past[:m] - past[m]) * (slope * self._eta / (usual + _TINY))
        np.minimum(np.maximum(step, f(-MOST_SETBACK)), f(MOST_GAIN), out=step)
        weights = self.weights[:, k]
        weights *= step + _ONE
        weights *= f(1.0 - o.share) / weights.sum(axis=0)
        weights += self._shared

    def rebind(self, rows: IntArray, batch: tuple[int, ...], size: int) -> Mixture:
        """Return the mixture of another set of VMs; ``rows`` (N,) is each one's former row, or -1."""
        fresh = Mixture(size, self._network, self.options)
        fresh._count = self._count
        for name in ("weights", "_offset", "factor", "error", "_loss", "_stepped"):
            getattr(fresh, name)[:] = carry_series(getattr(self, name), rows, getattr(fresh, name), batch)
        for old, new in zip(self._past, fresh._past, strict=True):
            new[:] = carry_series(old, rows, new, batch)
        fresh._situations = self._situations.rebind(rows, batch, size)
        return fresh
