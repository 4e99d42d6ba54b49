"""The mixture: every series weighs simple forecasts and a network by how well each did lately, quantile by quantile.

**Members.** The last value, means over 5 and 50 ticks, the long-run mean, an autoregression learnt online, and the
network where there are weights. Points become quantiles by offsets that track each member's own errors.

**Weights.** For each series, horizon and quantile, ``w_m <- w_m exp(-eta l_m / L)`` with the pinball loss ``l_m`` of
member m, ``L`` the usual loss of the mixture, then a fixed share: ``w <- (1 - share) w + share / M`` (Herbster and
Warmuth 1998, Machine Learning 32): no member is ever so far behind that a change of phase could not bring it back
within a few ticks.

**Truth of the quantiles.** The distance of the upper quantiles to the median, and the median itself, are scaled by
factors that grow when a quantile is exceeded more often than it should and shrink otherwise, so that coverage tends to
the level whatever the data do (Gibbs and Candès 2021, NeurIPS; Angelopoulos, Candès and Tibshirani 2023, NeurIPS).

What was censored is a lower bound: it is judged by the part of the pinball loss that it proves. One horizon learns in
a tick, in turns.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from foreshare.policies.host import IntArray

from .autoregression import Autoregression
from .features import FeatureMaker
from .history import FLOOR, HORIZONS, LEVELS, MOST, Float32Array, History, K, Q, carry_series
from .network import QuantileNetwork

LEVEL = np.array(LEVELS, np.float32)[:, None]
POINTS = ("last", "recent", "window", "usual", "ar")
MOST_FACTOR = 5.0
_TINY = np.float32(1e-6)
_MOST_LOSS = np.float32(20.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class MixtureOptions:
    """How fast the mixture learns."""

    eta: float = 0.1
    """How strongly a loss lowers a weight."""
    share: float = 0.01
    """What is shared out anew each time."""
    trust: float = 0.5
    """Weight that the network starts with; the others share the rest."""
    offset_rate: tuple[float, float, float] = (0.05, 0.1, 0.3)
    """Step of the members' offsets at each level, in usual errors."""
    factor_rate: tuple[float, float, float] = (0.02, 0.02, 0.05)
    """Step of the factors at each level."""
    error_gain: float = 0.02
    """Gain of the usual error and the usual loss."""


class Mixture:
    """A :class:`~.models.SeriesModel`. Arrays are (members, K, Q, S)."""

    def __init__(
        self, size: int, capacity: Float32Array, vms: int, network: QuantileNetwork | None,
        options: MixtureOptions | None = None,
    ) -> None:  # fmt: skip
        self.options = o = options or MixtureOptions()
        self._size, self._vms, self._network = size, vms, network
        self._features = FeatureMaker(size, capacity) if network is not None else None
        self._ar = Autoregression(size)
        self.members = (*POINTS, "network") if network is not None else POINTS
        m, points = len(self.members), len(POINTS)
        prior = np.full(m, (1.0 - o.trust) / points if network is not None else 1.0 / points, np.float32)
        if network is not None:
            prior[-1] = o.trust
        self._prior = prior[:, None, None]
        self.weights: Float32Array = np.broadcast_to(prior[:, None, None, None], (m, K, Q, size)).copy()
        """(M, K, Q, S), sums over members are 1."""
        self._offset: Float32Array = np.zeros((points, K, Q, size), np.float32)
        self.factor: Float32Array = np.ones((K, Q, size), np.float32)
        """(K, Q, S) what keeps each quantile true."""
        self._error: Float32Array = np.zeros((K, size), np.float32)
        self._loss: Float32Array = np.zeros((K, Q, size), np.float32)
        self._point: Float32Array = np.zeros((points, K, size), np.float32)
        self._each: Float32Array = np.zeros((m, K, Q, size), np.float32)
        self._truth: Float32Array = np.zeros((K, size), np.float32)
        self._past = [np.full((h.ahead // K + 2, m, Q, size), np.nan, np.float32) for h in HORIZONS]
        self._said = [np.full((h.ahead // K + 2, Q, size), np.nan, np.float32) for h in HORIZONS]
        self._count = 0
        self._offset_rate = np.array(o.offset_rate, np.float32)[:, None]
        self._factor_rate = np.array(o.factor_rate, np.float32)[:, None]

    def step(self, history: History, out: Float32Array) -> None:
        """Learn from the newest tick and fill ``out`` (K, Q, S) with units."""
        self._count += 1
        history.truth(self._truth)
        self._learn(history, self._count % K)
        self._ar.learn(history)
        self._predict(history)
        np.einsum("mkqs,mkqs->kqs", self.weights, self._each, out=out)
        self._correct(out)
        self._keep(out)

    def _predict(self, history: History) -> None:
        point, points = self._point, len(POINTS)
        point[0] = history.newest
        point[1] = self._truth[1]
        point[2] = history.mean(0, 50)
        point[3] = history.slow
        self._ar.predict(history, point[4])
        each = self._each[:points]
        np.add(point[:, :, None], self._offset, out=each)
        np.clip(each, 0.0, MOST, out=each)
        if self._network is not None and self._features is not None:
            self._network.predict(self._features.make(history, self._vms), history, self._each[points])

    def _correct(self, out: Float32Array) -> None:
        """Scale the median and the distances above it, so that quantiles neither cross nor lie below 0."""
        for q in range(Q - 1, 0, -1):
            out[:, q] -= out[:, 0]
        np.maximum(out, 0.0, out=out)
        out *= self.factor
        out[:, 1:] += out[:, :1]
        for q in range(1, Q):
            np.maximum(out[:, q], out[:, q - 1], out=out[:, q])

    def _keep(self, out: Float32Array) -> None:
        for k, h in enumerate(HORIZONS):
            due = self._count + h.ahead
            if due % K == k:
                slot = due // K % len(self._past[k])
                self._past[k][slot] = self._each[:, k]
                self._said[k][slot] = out[k]

    def _learn(self, history: History, k: int) -> None:
        o, points = self.options, len(POINTS)
        horizon = HORIZONS[k]
        slot = self._count // K % len(self._past[k])
        past, said = self._past[k][slot], self._said[k][slot]
        judged = history.judged(horizon) & np.isfinite(said[0])
        if not judged.any():
            return
        bound = history.lower_bound(horizon)
        truth = self._truth[k]
        loss, above = _pinball(truth, past, bound)
        own, exceeded = _pinball(truth, said, bound)
        mask = judged.astype(np.float32)
        self._loss[k] += (np.nan_to_num(own) - self._loss[k]) * (mask * o.error_gain)
        loss /= self._loss[k] + _TINY
        np.minimum(loss, _MOST_LOSS, out=loss)
        loss *= -o.eta * mask
        w = self.weights[:, k]
        np.exp(loss, out=loss)
        np.copyto(loss, 1.0, where=~judged)
        w *= loss
        w *= (1.0 - o.share) / w.sum(axis=0)
        w += o.share * self._prior
        error = self._error[k]
        error += (np.abs(np.nan_to_num(truth - said[0])) - error) * (mask * o.error_gain)
        # Down only from above 0, and not by what is known only from below.
        sure = judged & ~bound
        idle = (truth < FLOOR) & (said < FLOOR)
        move = np.where(above[:points], LEVEL, (LEVEL - 1.0) * ((past[:points] > 0.0) & sure))
        move *= self._offset_rate
        move *= error * judged
        self._offset[:, k] += move
        change = np.where(exceeded, LEVEL, (LEVEL - 1.0) * (sure & ~idle))
        change *= self._factor_rate
        change *= judged
        factor = self.factor[k]
        factor *= 1.0 + change
        np.clip(factor, 1.0 / MOST_FACTOR, MOST_FACTOR, out=factor)

    def rebind(self, rows: IntArray, batch: tuple[int, ...], capacity: Float32Array) -> Mixture:
        """Return the mixture of another set of VMs; ``rows`` (N,) is each one's former row, or -1."""
        fresh = Mixture(len(capacity), capacity, len(rows), self._network, self.options)
        fresh._count = self._count
        for name in ("weights", "_offset", "factor", "_error", "_loss"):
            setattr(fresh, name, carry_series(getattr(self, name), rows, getattr(fresh, name), batch))
        for name in ("_past", "_said"):
            pairs = zip(getattr(self, name), getattr(fresh, name), strict=True)
            setattr(fresh, name, [carry_series(old, rows, new, batch) for old, new in pairs])
        fresh._ar = self._ar.rebind(rows, batch, len(capacity))
        return fresh


def _pinball(
    truth: Float32Array, forecast: Float32Array, bound: npt.NDArray[np.bool_]
) -> tuple[Float32Array, npt.NDArray[np.bool_]]:
    """Return the pinball loss (..., Q, S), where ``bound`` only what a lower bound proves, and what was exceeded."""
    miss = truth - forecast
    exceeded = miss > 0.0
    loss = np.maximum(miss * LEVEL, miss * (LEVEL - 1.0))
    if bound.any():
        loss *= exceeded | ~bound
    return loss, exceeded
