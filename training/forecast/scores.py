"""How forecasts are scored: pinball loss, MASE, coverage; all relative to how much each series moves.

- **Scale** of a series: its mean absolute step from tick to tick over the training part (Hyndman and Koehler 2006,
  International Journal of Forecasting 22(4)). MASE is the mean absolute error of the median over it; the pinball loss
  of a level is divided by it as well, so that series of any size count alike (the scaled pinball loss of the M5
  competition).
- **Censored**: where the truth is a lower bound, the pinball loss is that of its certain part: ``level (y - q)`` where
  ``y > q``, else 0.
- **Coverage** of a level: the share of ticks with ``y`` below the quantile; where they are tied (an idle VM's 0), the
  randomised rule of Czado, Gneiting, Held (2009, Biometrics 65(4)): covered with probability
  ``(level - F(y-)) / (F(y) - F(y-))``, the mass at ``y`` told from the quantiles that lie on it: it ends half-way to
  the levels next to them, and begins at 0 where the lowest quantile lies on it. Censored ticks do not count.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from foreshare.policies.forecast.history import LEVELS, Float32Array, Q
from foreshare.policies.host import BoolArray, FloatArray, IntArray

_LEVEL = np.array(LEVELS)
TIE = 1e-3
"""Units within which a truth lies on a quantile."""


def pinball(truth: Float32Array, quantiles: Float32Array, bound: BoolArray) -> FloatArray:
    """Return (..., Q) the losses of ``quantiles`` (..., Q) given ``truth`` (...), a lower bound where ``bound``."""
    miss = (truth[..., None] - quantiles).astype(np.float64)
    loss = np.maximum(_LEVEL * miss, (_LEVEL - 1.0) * miss)
    return np.where(bound[..., None] & (miss <= 0.0), 0.0, loss)


def coverage(truth: Float32Array, quantiles: Float32Array) -> FloatArray:
    """Return (..., Q) with what probability each tick counts as covered, see above."""
    miss = truth[..., None] - quantiles
    tied = np.abs(miss) <= TIE
    out = (miss < 0.0).astype(np.float64)
    if tied.any():
        last = tied.shape[-1] - 1 - tied[..., ::-1].argmax(axis=-1)
        first = tied.argmax(axis=-1)
        edges = np.concatenate([_LEVEL, [1.0]])
        above = (edges[last] + edges[last + 1]) / 2
        below = np.where(first == 0, 0.0, (edges[np.maximum(first, 1) - 1] + edges[first]) / 2)
        share = (_LEVEL - below[..., None]) / (above - below)[..., None]
        out = np.where(tied, np.clip(share, 0.0, 1.0), out)
    for q, level in enumerate(LEVELS):
        nothing = quantiles[..., q] <= TIE
        if nothing.any():
            out[nothing, q] = min(level, float((truth[nothing] <= TIE).mean()))
    return out


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SeriesScore:
    """One model on one series and horizon."""

    mase: float
    pinball: FloatArray
    """(Q,) scaled."""
    covered: FloatArray
    """(Q,)."""
    ticks: int
    """That could be judged."""
    uncensored: int


def score(
    truth: Float32Array, known: BoolArray, bound: BoolArray, quantiles: Float32Array, scale: float
) -> SeriesScore:
    """Return the scores of ``quantiles`` (T, Q) against ``truth`` (T,) where ``known``."""
    y, q, b = truth[known], quantiles[known], bound[known]
    sure = ~b
    if not len(y):
        nothing = np.full(Q, np.nan)
        return SeriesScore(mase=np.nan, pinball=nothing, covered=nothing, ticks=0, uncensored=0)
    cover = coverage(y[sure], q[sure]).mean(axis=0) if sure.any() else np.full(Q, np.nan)
    error = np.abs(y - q[:, 0]).astype(np.float64)
    error[b & (y <= q[:, 0])] = 0.0
    return SeriesScore(
        mase=float(error.mean() / scale), pinball=pinball(y, q, b).mean(axis=0) / scale, covered=cover,
        ticks=len(y), uncensored=int(sure.sum()),
    )  # fmt: skip


def gain(
    ours: FloatArray, theirs: FloatArray, program: IntArray, *, draws: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """Return by how much (share) the mean of ``ours`` (S,) lies below that of ``theirs``, and its 95 % interval.

    ``program`` (S,) numbers what was running: whole programs are drawn anew, with all their series and sessions.
    """
    count = int(program.max()) + 1
    a, b = np.bincount(program, ours, count), np.bincount(program, theirs, count)
    drawn = np.random.default_rng(seed).integers(count, size=(draws, count))
    ratios = 1.0 - a[drawn].sum(axis=1) / np.maximum(b[drawn].sum(axis=1), 1e-300)
    low, high = np.quantile(ratios, (0.025, 0.975))
    return float(1.0 - a.sum() / max(b.sum(), 1e-300)), float(low), float(high)
