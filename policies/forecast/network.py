"""A small network that answers quantiles, run in numpy: two hidden layers over :mod:`~.features`.

``h1 = relu(W1 x + b1)``, ``h2 = relu(W2 h1 + b2)``, ``z = W3 h2 + b3``; the quantiles of a horizon are running sums of
``squareplus(z) = (z + sqrt(z^2 + 4)) / 2`` times the scale of the series, so that they are above 0 and never cross.
Fitted by training/forecast with the pinball loss (Koenker and Bassett 1978, Econometrica 46(1)).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from foreshare.policies.errors import InputError

from .features import F, FeatureMaker
from .history import Float32Array, History, K, Q

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
        self._layers = [(w1, b1[:, None]), (w2, b2[:, None]), (w3, b3[:, None])]
        self._buffers: list[Float32Array] = []

    def predict(self, features: Float32Array, history: History, out: Float32Array) -> None:
        """Fill ``out`` (K, Q, S) with units, from ``features`` (F, S)."""
        if not self._buffers or self._buffers[0].shape[1] != features.shape[1]:
            self._buffers = [np.empty((len(w), features.shape[1]), np.float32) for w, _ in self._layers]
        x = features
        for (w, b), into in zip(self._layers, self._buffers, strict=True):
            np.matmul(w, x, out=into)
            into += b
            if into is not self._buffers[-1]:
                np.maximum(into, 0.0, out=into)
            x = into
        quantiles_of(x, history.scale, out)


def quantiles_of(z: Float32Array, scale: Float32Array, out: Float32Array) -> None:
    """Fill ``out`` (K, Q, S) with the quantiles that the outputs ``z`` (K * Q, S) stand for. Overwrites ``z``."""
    flat = out.reshape(z.shape)
    np.square(z, out=flat)
    flat += 4.0
    np.sqrt(flat, out=flat)
    flat += z
    np.multiply(scale, 0.5, out=z[0])
    flat *= z[0]
    for q in range(1, Q):
        out[:, q] += out[:, q - 1]


def checked(weights: Mapping[str, npt.NDArray[np.generic]], name: str) -> Float32Array:
    """Return one array of a weights file as float32. Raises InputError where it is missing or not all finite."""
    if name not in weights or weights[name].dtype.kind != "f" or not np.isfinite(weights[name]).all():
        raise InputError(f"a forecaster's weights: {name!r} is missing, or does not hold finite numbers")
    return np.ascontiguousarray(weights[name], np.float32)


class NetworkModel:
    """A :class:`~.models.SeriesModel` of the network alone."""

    def __init__(self, network: QuantileNetwork, capacity: Float32Array, vms: int) -> None:
        self._network, self._vms = network, vms
        self._features = FeatureMaker(len(capacity), capacity)

    def step(self, history: History, out: Float32Array) -> None:
        """Fill ``out`` (K, Q, S)."""
        self._network.predict(self._features.make(history, self._vms), history, out)
