"""Linear state-space models of all series in one recursion: EWMA, Holt, ETS and ARIMA differ only in their matrices.

With the state ``x`` expected for the newest tick and its covariance ``C``, a tick ``y`` gives (Harvey, Forecasting,
Structural Time Series Models and the Kalman Filter, 1989, section 3.2)

    ``e = y - offset - slope t - Z x``, ``g = C Z' / (Z C Z')``, ``x <- T (x + g e)``,
    ``C <- T (C - g Z C) T' + V``,

and the forecast of a horizon is the mean of ``Z T^(j-1) x`` over its ticks j. Models in innovations form (exponential
smoothing: Hyndman, Koehler, Ord, Snyder 2008) have a constant gain from the start; those with a covariance keep
theirs until it no longer changes, and from then on the gain is constant as well. A missing tick moves the state on,
and a tick without change of the covariance.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from foreshare.policies.errors import InputError
from foreshare.policies.host import FloatArray, IntArray

from .history import HORIZONS, Float32Array, History, K, carry_series

SETTLED = 1e-12
"""Relative change of a covariance below which it counts as constant."""


class LinearStateSpace:
    """S models with states of length D, padded with zeros."""

    def __init__(
        self,
        *,
        transition: FloatArray,
        design: FloatArray,
        state: FloatArray,
        gain: FloatArray | None = None,
        covariance: FloatArray | None = None,
        noise: FloatArray | None = None,
        offset: FloatArray | None = None,
        slope: FloatArray | None = None,
    ) -> None:
        """``transition`` (S, D, D), ``design`` (S, D), ``state`` (S, D) expected for the first tick.

        Either ``gain`` (S, D), in innovations form ``x <- T x + gain e``, or ``covariance`` and ``noise`` (S, D, D).
        ``offset`` and ``slope`` (S,) are the line around which the series moves; its tick 0 is the first one taken in.
        """
        self._t, self._z, self.state = transition, design, state.copy()
        size = len(state)
        self._offset = np.zeros(size) if offset is None else offset
        self._slope = np.zeros(size) if slope is None else slope
        if gain is None and (covariance is None or noise is None):
            raise InputError("a state-space model needs a gain, or a covariance and its noise")
        self._gain = np.zeros(state.shape) if gain is None else gain
        self._covariance = None if gain is not None or covariance is None else covariance.copy()
        self._noise = noise
        self.ticks = 0
        rows = np.zeros((K, *design.shape))
        row = design.copy()
        for j in range(1, max(h.ahead for h in HORIZONS) + 1):
            for k, h in enumerate(HORIZONS):
                if h.ahead - h.width < j <= h.ahead:
                    rows[k] += row / h.width
            row = np.einsum("sd,sde->se", row, transition)
        self._rows = rows
        self._centre = np.array([h.ahead - (h.width - 1) / 2 for h in HORIZONS])[:, None] - 1.0

    @property
    def settled(self) -> bool:
        """Whether every gain is constant."""
        return self._covariance is None

    def update(self, y: FloatArray | Float32Array) -> None:
        """Take in one tick (S,), NaN where missing."""
        error = y - self._offset - self._slope * self.ticks - np.einsum("sd,sd->s", self._z, self.state)
        missing = np.isnan(error)
        error[missing] = 0.0
        if self._covariance is not None:
            self._filter(self._covariance, missing)
        moved = np.einsum("sde,se->sd", self._t, self.state)
        moved += self._gain * error[:, None]
        self.state = moved
        self.ticks += 1

    def _filter(self, c: FloatArray, missing: npt.NDArray[np.bool_]) -> None:
        """Work out this tick's gain and move the covariance on."""
        cz = np.einsum("sde,se->sd", c, self._z)
        f = np.einsum("sd,sd->s", self._z, cz)
        tcz = np.einsum("sde,se->sd", self._t, cz)
        np.divide(tcz, f[:, None], out=self._gain, where=f[:, None] > 0.0)
        after = np.einsum("sde,sef,sgf->sdg", self._t, c, self._t, optimize=True) + self._noise
        after -= np.where(missing[:, None, None], 0.0, tcz[:, :, None] * self._gain[:, None, :])
        change = np.abs(after - c).max(initial=0.0) if not missing.any() else np.inf
        self._covariance = None if change <= SETTLED * max(np.abs(after).max(initial=0.0), 1.0) else after

    def forecast(self, out: FloatArray | Float32Array) -> None:
        """Fill ``out`` (K, S) with the expectations for the horizons after the newest tick."""
        np.einsum("ksd,sd->ks", self._rows, self.state, out=out, casting="unsafe")
        out += self._offset + self._slope * (self.ticks + self._centre)

    def step(self, history: History, out: Float32Array) -> None:
        """See :class:`~.models.PointModel`."""
        self.update(np.where(history.age > 0.0, np.nan, history.newest.astype(np.float64)))
        self.forecast(out)

    def rebind(self, rows: IntArray, batch: tuple[int, ...], size: int) -> LinearStateSpace:
        """Return the models of another set of VMs; ``rows`` (N,) is each one's former row; new ones: the last value."""
        depth = self.state.shape[1]
        fresh = copy.copy(self)
        first = np.zeros((size, depth))
        first[:, 0] = 1.0
        unit = np.zeros((size, depth, depth))
        unit[:, 0, 0] = 1.0

        def carry(old: FloatArray, new: FloatArray) -> FloatArray:
            old, new = np.moveaxis(old, 0, -1), np.moveaxis(new, 0, -1)
            return np.ascontiguousarray(np.moveaxis(carry_series(old, rows, new, batch), -1, 0))

        fresh._t, fresh._z = carry(self._t, unit), carry(self._z, first)
        fresh.state, fresh._gain = carry(self.state, np.zeros((size, depth))), carry(self._gain, first)
        fresh._offset, fresh._slope = carry(self._offset, np.zeros(size)), carry(self._slope, np.zeros(size))
        if self._covariance is not None:
            fresh._covariance = carry(self._covariance, unit)
        if self._noise is not None:
            fresh._noise = carry(self._noise, unit)
        rows_of = np.broadcast_to(first[None], (K, size, depth)).copy()
        fresh._rows = np.stack([carry(old, new) for old, new in zip(self._rows, rows_of, strict=True)])
        return fresh


def exponential_smoothing(
    level: FloatArray, alpha: FloatArray, beta: FloatArray | None = None, damping: FloatArray | None = None,
    trend: FloatArray | None = None,
) -> LinearStateSpace:  # fmt: skip
    """Return Holt's method, with damping, or plain smoothing where ``beta`` is None; all arguments (S,).

    ``l' = l + phi b + alpha e``, ``b' = phi b + beta e``, with ``e = y - l - phi b`` (Hyndman et al. 2008, chapter 2).
    """
    size = len(level)
    phi = np.zeros(size) if beta is None else np.ones(size) if damping is None else damping
    t = np.zeros((size, 2, 2))
    t[:, 0, 0], t[:, 0, 1], t[:, 1, 1] = 1.0, phi, phi
    z = np.stack([np.ones(size), phi], axis=-1)
    gain = np.stack([alpha, np.zeros(size) if beta is None else beta], axis=-1)
    state = np.stack([level, np.zeros(size) if trend is None else trend], axis=-1)
    return LinearStateSpace(transition=t, design=z, state=state, gain=gain)


STATE_SPACE = ("transition", "design", "state", "covariance", "noise", "offset", "slope")


def state_space_of(weights: Mapping[str, npt.NDArray[np.generic]]) -> LinearStateSpace:
    """Return the models in a weights file (:data:`STATE_SPACE` by name). Raises InputError where they do not fit."""
    missing = [name for name in STATE_SPACE if name not in weights]
    if missing:
        raise InputError(f"a state-space file has no {', '.join(missing)}")
    arrays = {name: np.asarray(weights[name], np.float64) for name in STATE_SPACE}
    size, depth = arrays["state"].shape if arrays["state"].ndim == 2 else (0, 0)
    shapes = {"transition": (size, depth, depth), "design": (size, depth), "covariance": (size, depth, depth),
              "noise": (size, depth, depth), "offset": (size,), "slope": (size,)}  # fmt: skip
    if not size or any(arrays[name].shape != shape for name, shape in shapes.items()):
        raise InputError("the arrays of a state-space file do not fit together")
    if not all(np.isfinite(x).all() for x in arrays.values()):
        raise InputError("a state-space file holds values that are not finite")
    return LinearStateSpace(**arrays)
