"""A small network that answers quantiles, run in numpy: two hidden layers over :mod:`~.features`.

``h1 = relu(W1 x + b1)``, ``h2 = relu(W2 h1 + b2)``, ``z = W3 h2 + b3``; the quantiles of a horizon are running sums of
``squareplus(z) = (z + sqrt(z^2 + 4)) / 2`` times the scale of the series, so that they are above 0 and never cross; the
last step is wider by how far bursts of the series reach.
Fitted by training/forecast with the pinball loss (Koenker and Bassett 1978, Econometrica 46(1)).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from foreshare.policies.errors import InputError
from foreshare.policies.host import IntArray

from .features import ONE, REACH, F, FeatureMaker
from .history import Float32Array, History, K, Q

ONE_CORE = 1 << 18
WEIGHTS = ("w1", "b1", "w2", "b2", "w3", "b3")


class QuantileNetwork:
    """The network over all series at once; keeps nothing from tick to tick."""

    def __init__(self, weights: Mapping[str, npt.NDArray[np.generic]]) -> None:
        """``weights``: WEIGHTS by name, as fitted. Raises InputError where they do not fit together."""
        w1, b1, w2, b2, w3, b3 = (checked(weights, name) for name in WEIGHTS)
        hidden = len(b1)
        shapes = [(hidden, F), (hidden,), (len(b2), hidden), (len(b2),), (K * Q, len(b2)), (K * Q,)]
        if [x.shape for x in (w1, b1, w2, b2, w3, b3)] != shapes:
            raise InputError("the weights of a quantile network do not fit together, or were made for other features")
        first = w1.copy()
        first[:, ONE] += b1  # a feature is 1 already, and so is the last unit of a hidden layer
        self._layers = [first, np.concatenate([w2, b2[:, None]], axis=1), np.concatenate([w3, b3[:, None]], axis=1)]
        self._buffers: list[Float32Array] = []

    def _bind(self, size: int) -> None:
        self._buffers = [np.ones((len(w) + 1, size), np.float32) for w in self._layers]
        self._nothing = np.zeros((max(len(w) for w in self._layers), size), np.float32)

    def predict(self, features: Float32Array, history: History, out: Float32Array) -> None:
        """Fill ``out`` (K, Q, S) with units, from ``features`` (F, S)."""
        if not self._buffers or self._buffers[0].shape[1] != features.shape[1]:
            self._bind(features.shape[1])
        one, two, last = self._buffers
        w1, w2, w3 = self._layers
        multiply(w1, features, one[:-1])
        np.maximum(one[:-1], self._nothing[: len(w1)], out=one[:-1])
        multiply(w2, one, two[:-1])
        np.maximum(two[:-1], self._nothing[: len(w2)], out=two[:-1])
        multiply(w3, two, last[:-1])
        quantiles_of(last[:-1], history.scale, out, np.maximum(features[REACH], np.float32(1.0)))

    @property
    def layers(self) -> tuple[Float32Array, Float32Array, Float32Array]:
        """The weights as they are multiplied with, biases within."""
        first, second, last = self._layers
        return first, second, last


def multiply(w: Float32Array, x: Float32Array, out: Float32Array) -> None:
    """Fill ``out`` (A, S) with ``w`` (A, B) times ``x`` (B, S), on one core.

    OpenBLAS spreads products of more than ONE_CORE multiplications over threads, and waits for them in a loop: on a
    host whose CPUs are busy that costs milliseconds. Pieces below that stay where they are.
    """
    width = max(ONE_CORE // w.size, 1)
    for first in range(0, x.shape[1], width):
        piece = slice(first, first + width)
        np.matmul(w, x[:, piece], out=out[:, piece])


def quantiles_of(z: Float32Array, scale: Float32Array, out: Float32Array, reach: Float32Array | None = None) -> None:
    """Fill ``out`` (K, Q, S) with the quantiles that the outputs ``z`` (K * Q, S) stand for. Overwrites ``z``.

    ``reach`` (S,): what the last step is multiplied by.
    """
    flat = out.reshape(z.shape)
    np.multiply(z, z, out=flat)
    flat += np.float32(4.0)
    np.sqrt(flat, out=flat)
    flat += z
    np.multiply(scale, np.float32(0.5), out=z[0])
    flat *= z[0]
    if reach is not None:
        out[:, Q - 1] *= reach
    for q in range(1, Q):
        out[:, q] += out[:, q - 1]


def checked(weights: Mapping[str, npt.NDArray[np.generic]], name: str) -> Float32Array:
    """Return one array of a weights file as float32. Raises InputError where it is missing or not all finite."""
    if name not in weights or weights[name].dtype.kind != "f" or not np.isfinite(weights[name]).all():
        raise InputError(f"a forecaster's weights: {name!r} is missing, or does not hold finite numbers")
    return np.ascontiguousarray(weights[name], np.float32)


class NetworkModel:
    """A :class:`~.models.SeriesModel` of the network alone."""

    def __init__(self, network: QuantileNetwork, size: int) -> None:
        self._network, self._features = network, FeatureMaker(size)

    def step(self, history: History, out: Float32Array) -> None:
        """Fill ``out`` (K, Q, S)."""
        self._network.predict(self._features.make(history), history, out)

    def rebind(self, rows: IntArray, batch: tuple[int, ...], size: int) -> NetworkModel:
        """Return the model of another set of VMs: it keeps nothing of any."""
        return NetworkModel(self._network, size)
