"""What the mixture has to beat: smoothing with the best constants of a grid, and statsforecast's automatic models.

Everything is fitted to the training part of a session, series by series, and then rolls on from its end.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from itertools import product

import numpy as np

from foreshare.policies.errors import HostError
from foreshare.policies.forecast.fitted import last_value_matrices
from foreshare.policies.forecast.history import HORIZONS, Float32Array, History, K
from foreshare.policies.forecast.models import PointModel
from foreshare.policies.forecast.points import Last
from foreshare.policies.forecast.statespace import LinearStateSpace, exponential_smoothing, state_space_of
from foreshare.policies.host import FloatArray, IntArray

from .dataset import Session, Truth

ALPHAS = (0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 1.0)
HOLT = tuple(product((0.05, 0.1, 0.2, 0.35, 0.5, 0.8), (0.005, 0.02, 0.1), (0.8, 0.95, 1.0)))
"""Gains of level and trend (a share of the level's), and the damping."""
AUTO_TICKS = 1000
"""The newest ticks of the training part that the automatic models are fitted to."""


def last_value(session: Session, cut: int, truth: Truth) -> PointModel:
    """Return the last value; nothing to fit."""
    return Last()


def ewma(session: Session, cut: int, truth: Truth) -> PointModel:
    """Return smoothing with the gain of ALPHAS that had the least absolute error 50 ms ahead, for each series."""
    alphas = np.array(ALPHAS)
    best = _best(session, cut, truth, len(alphas), lambda level, g: exponential_smoothing(level, alphas[g]))
    return exponential_smoothing(_first(session), alphas[best])


def holt(session: Session, cut: int, truth: Truth) -> PointModel:
    """Return Holt's method with the constants of HOLT that had the least absolute error 50 ms ahead."""
    grid = np.array(HOLT)
    alpha, beta, phi = grid[:, 0], grid[:, 0] * grid[:, 1], grid[:, 2]
    best = _best(
        session, cut, truth, len(grid), lambda level, g: exponential_smoothing(level, alpha[g], beta[g], phi[g])
    )
    return exponential_smoothing(_first(session), alpha[best], beta[best], phi[best])


def _first(session: Session) -> FloatArray:
    """Return (S,) the first known value of each series."""
    known = np.isfinite(session.demand)
    first = session.demand[known.argmax(axis=0), np.arange(session.demand.shape[1])]
    return np.where(known.any(axis=0), first, 0.0).astype(np.float64)


def _best(
    session: Session, cut: int, truth: Truth, candidates: int,
    make: Callable[[FloatArray, IntArray], LinearStateSpace],
) -> IntArray:  # fmt: skip
    """Return (S,) the candidate with the least absolute error 50 ms ahead over the training part."""
    size = session.demand.shape[1]
    which = np.repeat(np.arange(candidates), size)
    model = make(np.tile(_first(session), candidates), which)
    point: Float32Array = np.zeros((K, candidates * size), np.float32)
    loss = np.zeros((candidates, size))
    for t in range(cut - HORIZONS[1].ahead):
        model.update(np.tile(session.demand[t], candidates))
        model.forecast(point)
        error = np.abs(truth.value[t, 1] - point[1].reshape(candidates, size))
        loss += np.where(truth.known[t, 1], error, 0.0)
    return np.asarray(loss.argmin(axis=0))


def auto_arima(session: Session, cut: int, truth: Truth) -> PointModel:
    """Return statsforecast's AutoARIMA (orders by AICc), its Kalman filter run in numpy over the same ticks and on."""
    return _Late(state_space_of(fit_arima(session, cut)), cut)


def auto_ets(session: Session, cut: int, truth: Truth) -> PointModel:
    """Return statsforecast's AutoETS, its recursion run on in numpy over the same ticks and on."""
    _needed()
    from statsforecast.models import AutoETS

    size = session.demand.shape[1]
    level, alpha, beta, trend = np.zeros(size), np.ones(size), np.zeros(size), np.zeros(size)
    damping = np.zeros(size)
    for s, y in _windows(session, cut):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its optimiser, about single steps
            model = AutoETS(season_length=1).fit(y).model_
        par, states = model["par"], model["states"]
        level[s], alpha[s] = states[0, 0], par[0]
        if model["components"][1] != "N":
            beta[s], trend[s] = par[1], states[0, 1]
            damping[s] = par[3] if model["components"][3] == "D" else 1.0
    return _Late(exponential_smoothing(level, alpha, beta, damping, trend), cut)


def fit_arima(session: Session, cut: int) -> dict[str, FloatArray]:
    """Return the state-space matrices of an ARIMA model for each series, fitted to the ticks before ``cut``.

    The keys are :data:`~foreshare.policies.forecast.statespace.STATE_SPACE`; a series that stands still is forecast at
    its last value. Tick 0 of the models is the first of the AUTO_TICKS that they were fitted to.
    """
    found = [(s, *arima_matrices(y)) for s, y in _windows(session, cut)]
    depth = max((len(z) for _, z, *_ in found), default=1)
    size = session.demand.shape[1]
    out = last_value_matrices(size, depth)
    for s, design, transition, noise, state, covariance, offset, slope in found:
        d = len(design)
        for name, value in (("transition", transition), ("noise", noise), ("covariance", covariance)):
            out[name][s] = 0.0
            out[name][s, :d, :d] = value
        for name, value in (("design", design), ("state", state)):
            out[name][s] = 0.0
            out[name][s, :d] = value
        out["offset"][s], out["slope"][s] = offset, slope
    return out


def arima_matrices(y: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray, FloatArray, float, float]:
    """Return ``Z, T, V``, the state and covariance expected for the tick after ``y``, offset and slope (from ``y[0]``).

    The library's state after its last tick, moved on by one: ``x = T a``, ``C = T P T' + V``.
    """
    _needed()
    from statsforecast.models import AutoARIMA

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its optimiser, about single candidates
        fitted = AutoARIMA(season_length=1, ic="aicc").fit(y).model_
    model, coefficients = fitted["model"], fitted["coef"]
    z, t, v = (np.asarray(model[k], np.float64) for k in ("Z", "T", "V"))
    state = t @ np.asarray(model["a"], np.float64)
    covariance = t @ np.asarray(model["P"], np.float64) @ t.T + v
    slope = float(coefficients.get("drift", 0.0))
    return z, t, v, state, covariance, float(coefficients.get("intercept", 0.0)) + slope, slope


def _needed() -> None:
    if find_spec("statsforecast") is None:
        raise HostError("the automatic models need statsforecast: pip install 'foreshare[train]'")


def _windows(session: Session, cut: int) -> Iterator[tuple[int, FloatArray]]:
    """Yield the series that moved in the AUTO_TICKS before ``cut``, holes filled."""
    values = session.demand[max(cut - AUTO_TICKS, 0) : cut].astype(np.float64)
    for s in range(values.shape[1]):
        known = np.isfinite(values[:, s])
        if known.sum() > AUTO_TICKS // 10 and np.ptp(values[known, s]) > 0:
            yield s, np.interp(np.arange(len(values)), np.flatnonzero(known), values[known, s])


class _Late:
    """A model whose first tick is the first of those that it was fitted to; the last value before."""

    def __init__(self, model: LinearStateSpace, cut: int) -> None:
        self._model, self._wait = model, max(cut - AUTO_TICKS, 0)

    def step(self, history: History, out: Float32Array) -> None:
        """See :class:`~foreshare.policies.forecast.models.PointModel`."""
        if self._wait:
            self._wait -= 1
            out[:] = history.newest
        else:
            self._model.step(history, out)
