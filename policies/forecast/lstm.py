"""A recurrent network that answers quantiles, run in numpy: one LSTM cell that takes in a few ticks at a time.

With the newest STRIDE ticks of demand and of what waits as ``x`` and gates ``i, f, g, o`` in this order (Hochreiter and
Schmidhuber 1997, Neural Computation 9(8); torch.nn.LSTM): ``a = W x + U h + b``, ``c = sigm(f) c + sigm(i) tanh(g)``,
``h = sigm(o) tanh(c)``, and from ``h`` the quantiles as :func:`~.network.quantiles_of` does.

``refresh`` is the costly part: it may run off the tick, and is due every STRIDE ticks. Between two refreshes the
answers of the latest one stand.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from foreshare.policies import kernel
from foreshare.policies.errors import InputError
from foreshare.policies.host import IntArray

from .history import Float32Array, History, K, Q, carry_series
from .network import checked, multiply, quantiles_of

STRIDE = 2
"""Ticks from one refresh to the next."""
INPUTS = 2 * STRIDE + 2
WEIGHTS = ("w", "u", "b", "v", "d")
MOST_COMPILED = 128
"""Units of an LSTM that compiled/lstm.c runs."""


class Lstm:
    """The weights."""

    def __init__(self, weights: Mapping[str, npt.NDArray[np.generic]]) -> None:
        """``weights``: WEIGHTS by name, as fitted. Raises InputError where they do not fit together."""
        w, u, b, v, d = (checked(weights, name) for name in WEIGHTS)
        hidden = u.shape[-1]
        if [x.shape for x in (w, u, b, v, d)] != [
            (4 * hidden, INPUTS), (4 * hidden, hidden), (4 * hidden,), (K * Q, hidden), (K * Q,)
        ]:  # fmt: skip
            raise InputError("the weights of an LSTM do not fit together")
        # sigm(z) = (1 + tanh(z / 2)) / 2: one tanh for all gates.
        half = np.full((4 * hidden, 1), 0.5, np.float32)
        half[2 * hidden : 3 * hidden] = 1.0
        self.hidden = hidden
        self._w: Float32Array = np.concatenate([w, u], axis=1) * half
        self._b: Float32Array = b[:, None] * half
        self._v, self._d = v, d[:, None]
        self.layers = tuple(np.concatenate(pair, axis=1) for pair in ((self._w, self._b), (self._v, self._d)))
        """Gates (4 hidden, INPUTS + hidden + 1) and head (K * Q, hidden + 1), biases last."""

    def refresh(
        self, x: Float32Array, h: Float32Array, c: Float32Array, scale: Float32Array, out: Float32Array
    ) -> None:
        """Move the state ``h`` and ``c`` (hidden, S) on by the inputs ``x`` (INPUTS, S), and fill ``out`` (K, Q, S)."""
        n = self.hidden
        a = np.empty((4 * n, x.shape[1]), np.float32)
        multiply(self._w, np.concatenate([x, h]), a)
        a += self._b
        np.tanh(a, out=a)
        for gate in (slice(0, 2 * n), slice(3 * n, 4 * n)):
            a[gate] += 1.0
            a[gate] *= 0.5
        c *= a[n : 2 * n]
        c += a[:n] * a[2 * n : 3 * n]
        np.tanh(c, out=h)
        h *= a[3 * n :]
        z = np.empty((K * Q, x.shape[1]), np.float32)
        multiply(self._v, h, z)
        z += self._d
        quantiles_of(z, scale, out)


def inputs_of(history: History, out: Float32Array) -> Float32Array:
    """Fill ``out`` (INPUTS, S): roots of the newest ticks in multiples of the scale, the scale itself, the age."""
    out[:STRIDE] = history.demand(STRIDE)
    out[STRIDE : 2 * STRIDE] = history.waiting(STRIDE)
    out[: 2 * STRIDE] /= history.scale
    np.sqrt(out[: 2 * STRIDE], out=out[: 2 * STRIDE])
    np.minimum(out[: 2 * STRIDE], 8.0, out=out[: 2 * STRIDE])
    np.divide(history.slow, history.scale, out=out[2 * STRIDE])
    np.minimum(history.age, 16.0, out=out[-1])
    out[-1] *= 1.0 / 16.0
    return out


class LstmModel:
    """A :class:`~.models.SeriesModel` with the state of every series."""

    def __init__(self, lstm: Lstm, size: int) -> None:
        self._lstm = lstm
        self._h: Float32Array = np.zeros((lstm.hidden, size), np.float32)
        self._c: Float32Array = np.zeros((lstm.hidden, size), np.float32)
        self._x: Float32Array = np.zeros((INPUTS, size), np.float32)
        self.latest: Float32Array = np.zeros((K, Q, size), np.float32)
        """(K, Q, S) of the latest refresh."""
        self._held: object | None = None

    def refresh(self, history: History) -> None:
        """Take in the newest STRIDE ticks."""
        if kernel.compiled is not None and self._lstm.hidden <= MOST_COMPILED:
            if self._held is None:
                arrays = (*self._lstm.layers, self._h, self._c)
                self._held = kernel.compiled.hold_lstm(arrays, self._h.shape[1])
            kernel.compiled.lstm(history.held, history.newest_row, self._held, self.latest)
            return
        self._lstm.refresh(inputs_of(history, self._x), self._h, self._c, history.scale, self.latest)

    def __getstate__(self) -> dict[str, object]:
        """Return what a copy is made of: its arrays are others."""
        return {**self.__dict__, "_held": None}

    def step(self, history: History, out: Float32Array) -> None:
        """See :class:`~.models.SeriesModel`."""
        if history.count % STRIDE == 0:
            self.refresh(history)
        out[:] = self.latest

    def rebind(self, rows: IntArray, batch: tuple[int, ...], size: int) -> LstmModel:
        """Return the model of another set of VMs; ``rows`` (N,) is each one's former row, or -1."""
        fresh = LstmModel(self._lstm, size)
        for name in ("_h", "_c", "latest"):
            setattr(fresh, name, carry_series(getattr(self, name), rows, getattr(fresh, name), batch))
        return fresh
