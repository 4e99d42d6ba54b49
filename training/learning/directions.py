"""The directions in which an evolution strategy moves weights of the direct layer.

What a policy sees is correlated: of its inputs a few combinations vary most. A step along one input then changes next
to nothing, or all corrections at once, and one size of perturbation fits neither. **Whitened** directions are those of
the inputs ``W x`` with ``W = (C + c I)^(-1/2)``, ``C`` their covariance while nothing is corrected (ZCA: Kessy, Lewin,
Strimmer, The American Statistician 72(4), 2018): each changes corrections about as much. ``c`` keeps what hardly varies
from being blown up.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from foreshare.policies.host import CPU, IO, MEMORY, FloatArray
from foreshare.policies.learned import Network

TIED_COLUMNS = ((0,), (1 + CPU, 1 + MEMORY, 1 + IO))
"""Of an action: what moves together where layers are tied; the correction of ways stays as it is."""


def whitening(covariance: FloatArray, floor: float) -> FloatArray:
    """Return ``(C + floor I)^(-1/2)``, (F, F), for a covariance (F, F)."""
    values, vectors = np.linalg.eigh(covariance)
    return np.asarray((vectors / np.sqrt(np.maximum(values, 0.0) + floor)) @ vectors.T)


def direct_basis(network: Network, *, tied: bool, white: FloatArray | None = None) -> npt.NDArray[np.float64]:
    """Return (D, weights): what a unit along each of D directions adds to ``lin_w`` and ``out_b``, flat in this order.

    ``tied``: CPU, memory and IO move alike, and nothing moves the correction of ways; ``white`` (F, F): the inputs'
    own directions if None.
    """
    inputs, outputs = network.arrays["lin_w"].shape
    mix = np.eye(inputs) if white is None else white
    rows = []
    for columns in TIED_COLUMNS if tied else tuple((k,) for k in range(outputs)):
        into = np.zeros(outputs)
        into[list(columns)] = 1.0
        weights = np.einsum("if,o->ifo", mix, into).reshape(inputs, -1)
        rows.append(np.concatenate([weights, np.zeros((inputs, outputs))], axis=1))
        rows.append(np.concatenate([np.zeros((1, inputs * outputs)), into[None]], axis=1))
    return np.concatenate(rows)
