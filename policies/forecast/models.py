"""What every forecaster of series answers, and how points become quantiles."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from .history import MOST, Float32Array, History, K


class SeriesModel(Protocol):
    """Answers quantiles of every horizon for all series at once."""

    def step(self, history: History, out: Float32Array) -> None:
        """Fill ``out`` (K, Q, S), units, at least 0, rising with the level. Called once after every push."""
        ...


class PointModel(Protocol):
    """Answers one number for every horizon and series."""

    def step(self, history: History, out: Float32Array) -> None:
        """Fill ``out`` (K, S), units. Called once after every push."""
        ...


class WithOffsets:
    """A :class:`SeriesModel` of points plus fixed quantiles of their errors, at least 0."""

    def __init__(self, model: PointModel, offsets: Float32Array) -> None:
        """``offsets`` (K, Q, S): the quantiles of what came less what was forecast, where the model was fitted."""
        self._model, self._offsets = model, offsets
        self._point: Float32Array = np.zeros((K, offsets.shape[-1]), np.float32)

    def step(self, history: History, out: Float32Array) -> None:
        """See :class:`SeriesModel`."""
        self._model.step(history, self._point)
        np.add(self._point[:, None], self._offsets, out=out)
        np.clip(out, 0.0, MOST, out=out)
