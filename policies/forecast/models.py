"""What every forecaster of series answers."""

from __future__ import annotations

from typing import Protocol

from foreshare.policies.host import IntArray

from .history import Float32Array, History


class SeriesModel(Protocol):
    """Answers quantiles of every horizon for all series at once."""

    def step(self, history: History, out: Float32Array) -> None:
        """Fill ``out`` (K, Q, S), units, at least 0, rising with the level. Called once after every push."""
        ...

    def rebind(self, rows: IntArray, batch: tuple[int, ...], size: int) -> SeriesModel:
        """Return the model of another set of VMs; ``rows`` (N,) is each one's former row, or -1."""
        ...


class PointModel(Protocol):
    """Answers one number for every horizon and series."""

    def step(self, history: History, out: Float32Array) -> None:
        """Fill ``out`` (K, S), units. Called once after every push."""
        ...
