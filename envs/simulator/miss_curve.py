"""Fit the simulator's family of miss-ratio curves (cache.py) to measured miss ratios.

``m(w) = all + (none - all) g(w)``, ``g(w) = 1 / (1 + (w / half) ** k)``, is linear in its end points once ``half`` and
``k`` are chosen: they are searched on a grid, the end points follow by weighted least squares (variable projection:
Golub & Pereyra, SIAM J. Numer. Anal. 10, 1973). What counts is the error relative to the measured ratio; weights
``1 / |error|``, renewed a few times, make it the least sum of absolute errors rather than of squares (iteratively
re-weighted least squares: Holland & Welsch, Commun. Stat. A6, 1977), which a few odd points do not drag along.
"""

from __future__ import annotations

import numpy as np

from foreshare.policies.errors import InputError
from foreshare.policies.host import FloatArray

from .cache import miss_ratio
from .scenario import MissCurve

LEAST_RATIO = 1e-3
"""Measured ratios below this one weigh as if they were this: below, what is counted is noise."""
_HALF_STEPS, _STEEPNESS_STEPS, _ROUNDS = 80, 50, 8


def fit_miss_curve(ways: FloatArray, ratio: FloatArray) -> MissCurve:
    """Return the curve nearest to miss ``ratio`` (W,), 0..1, measured with ``ways`` (W,) > 0; at least 3 points.

    Raises InputError for what cannot be a measurement.
    """
    w, m = np.asarray(ways, np.float64), np.asarray(ratio, np.float64)
    if w.ndim != 1 or w.shape != m.shape or len(w) < 3:
        raise InputError("a miss-ratio curve is fitted to at least 3 points, ways and ratios of the same number")
    if not (np.isfinite(w).all() and np.isfinite(m).all() and (w > 0).all() and (m >= 0).all() and (m <= 1).all()):
        raise InputError("a miss-ratio curve needs ways above 0 and miss ratios from 0 to 1")
    halves = np.geomspace(w.min() / 30.0, w.max() * 6.0, _HALF_STEPS)
    steepness = np.geomspace(0.3, 10.0, _STEEPNESS_STEPS)
    half, k = (g.reshape(-1, 1) for g in np.meshgrid(halves, steepness, indexing="ij"))
    g = miss_ratio(w, np.ones(1), np.zeros(1), half, k)  # (G, W)
    relative = 1.0 / np.maximum(m, LEAST_RATIO)
    weight = np.broadcast_to(relative * relative, g.shape)
    for _ in range(_ROUNDS):
        all_, rise = _end_points(g, m, weight)
        error = np.abs(all_ + rise * g - m) * relative
        weight = relative * relative / np.maximum(error, 1e-3)
    best = int(error.mean(axis=1).argmin())
    return MissCurve(
        none=float(all_[best, 0] + rise[best, 0]), all=float(all_[best, 0]),
        half_ways=float(half[best, 0]), steepness=float(k[best, 0]),
    )  # fmt: skip


def curve_error(curve: MissCurve, ways: FloatArray, ratio: FloatArray) -> FloatArray:
    """Return the (W,) errors of a curve relative to the measured ratios (LEAST_RATIO at least)."""
    fitted = miss_ratio(
        ways, np.array(curve.none), np.array(curve.all), np.array(curve.half_ways), np.array(curve.steepness)
    )
    return np.asarray(np.abs(fitted - ratio) / np.maximum(ratio, LEAST_RATIO))


def _end_points(g: FloatArray, m: FloatArray, weight: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return (G, 1) ``all`` and ``none - all`` of least weighted squares, within 0 <= all <= none <= 1."""
    s0 = weight.sum(axis=1, keepdims=True)
    s1, s2 = (weight * g).sum(axis=1, keepdims=True), (weight * g * g).sum(axis=1, keepdims=True)
    t0, t1 = (weight * m).sum(axis=1, keepdims=True), (weight * g * m).sum(axis=1, keepdims=True)
    det = np.maximum(s0 * s2 - s1 * s1, 1e-12 * s0 * s2)
    all_ = (t0 * s2 - t1 * s1) / det
    rise = (s0 * t1 - s1 * t0) / det
    rise = np.where(all_ < 0.0, t1 / np.maximum(s2, 1e-300), rise)
    all_ = np.clip(np.where(rise < 0.0, t0 / s0, all_), 0.0, 1.0)
    return all_, np.clip(rise, 0.0, 1.0 - all_)
