"""A quantile regression for each series, learnt online: what a VM nobody has met before needs.

For each horizon and level, ``q = scale * theta' x`` on the summary features ``x``, with a step on the pinball loss
for every truth: ``theta += rate (1{y > q} - (1 - level)) x / x'x`` (stochastic subgradient; Koenker and Bassett
1978, Econometrica 46(1), for the loss, and the normalised step of Nagumo and Noda 1967, IEEE TAC 12(3)).
"""

from __future__ import annotations

import numpy as np

from foreshare.policies.host import IntArray

from .features import SUMMARY, P
from .history import AHEAD, HORIZONS, Float32Array, K, Q, carry_series

RATE = (0.04, 0.08, 0.1)
"""Step at each level."""
_SLOTS = AHEAD + 1


class QuantileRegression:
    """Coefficients of all series, and the features of the latest ticks."""

    def __init__(self, size: int) -> None:
        self.theta: Float32Array = np.zeros((K, Q, P, size), np.float32)
        self.theta[:, :, P - 2] = 1.0  # of the mean of five ticks: something to start from
        self.x: Float32Array = np.zeros((_SLOTS, P, size), np.float32)
        self.x[:, -1] = 1.0  # as in every tick
        self._nothing = np.zeros((K, Q, size), np.float32)
        self._move = np.zeros((Q, P, size), np.float32)
        self._rate = np.array(RATE, np.float32)[:, None]

    def predict(self, features: Float32Array, scale: Float32Array, tick: int, out: Float32Array) -> None:
        """Fill ``out`` (K, Q, S) with units, at least 0; they may cross. Keeps the features for ``learn``."""
        x = self.x[tick % _SLOTS]
        x[:] = features[SUMMARY]
        np.einsum("kqps,ps->kqs", self.theta, x, out=out)
        np.maximum(out, self._nothing, out=out)
        out *= scale

    def learn(self, k: int, tick: int, slope: Float32Array) -> None:
        """Take in what the newest tick tells of horizon ``k``.

        ``slope`` (Q, S): the level where the truth exceeded what this model had said, the level less 1 where it did
        not, 0 where neither is known. Overwritten.
        """
        x = self.x[(tick - HORIZONS[k].ahead) % _SLOTS]
        slope *= self._rate
        slope /= np.einsum("ps,ps->s", x, x)  # at least 1: the last feature is
        np.multiply(slope[:, None], x, out=self._move)
        self.theta[k] += self._move

    def rebind(self, rows: IntArray, batch: tuple[int, ...], size: int) -> QuantileRegression:
        """Return the models of another set of VMs; ``rows`` (N,) is each one's former row, or -1."""
        fresh = QuantileRegression(size)
        for name in ("theta", "x"):
            setattr(fresh, name, carry_series(getattr(self, name), rows, getattr(fresh, name), batch))
        return fresh
