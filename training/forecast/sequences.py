"""What an LSTM is fitted to: stretches of recordings, and the gradients of its loss on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from foreshare.policies.forecast.history import Float32Array, K, Q
from foreshare.policies.forecast.lstm import INPUTS, STRIDE, inputs_of
from foreshare.policies.host import BoolArray

from .dataset import Session, active_series, truths
from .fit import MOST_WEIGHT, VALIDATION, Arrays, quantiles, weighted_loss

if TYPE_CHECKING:
    import torch

CHUNK, BURN = 96, 24
"""Steps of a training sequence, and those at its start that are not scored."""
Rows = npt.NDArray[np.int64]
State = Sequence[Float32Array]
"""The parameters of the torch module, in its order."""


class Part:
    """The sequences of some recordings. Sums, not means, so that those of several parts add up."""

    def __init__(self, sessions: Sequence[Session], split: float, without: tuple[str, ...], hidden: int) -> None:
        import torch

        found = [_sequences(s, split, without) for s in sessions]
        x, y, ok, bound, weight = (torch.from_numpy(np.concatenate([p[i] for p in found])) for i in range(5))
        self._x, self._y, self._bound, self._weight = x, y, bound, weight * ok
        self._late: BoolArray = np.concatenate([p[5] for p in found])
        self._net: Any = LstmModule(hidden)

    def late(self) -> BoolArray:
        """Return which sequences (M,) are for validation."""
        return self._late

    def loss(self, state: State, rows: Rows) -> tuple[float, float]:
        """Return the sum of the weighted losses of the sequences ``rows``, and of their weights."""
        import torch

        with torch.no_grad():
            total, over = self._losses(state, rows)
        return float(total), float(over)

    def gradient(self, state: State, rows: Rows) -> tuple[list[Float32Array], float, float]:
        """Return the gradients of that sum, the sum, and the weights'."""
        self._net.zero_grad()
        total, over = self._losses(state, rows)
        total.backward()  # type: ignore[no-untyped-call] # torch has no types for it
        return [p.grad.numpy().copy() for p in self._net.parameters()], float(total.detach()), float(over)

    def _losses(self, state: State, rows: Rows) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        with torch.no_grad():
            for own, value in zip(self._net.parameters(), state, strict=True):
                own.copy_(torch.from_numpy(np.array(value)))
        i = torch.from_numpy(rows)
        said = self._net(self._x[i])[:, BURN:]
        return weighted_loss(said, self._y[i][:, BURN:], self._bound[i][:, BURN:], self._weight[i][:, BURN:])


def _sequences(session: Session, split: float, without: tuple[str, ...]) -> tuple[npt.NDArray[Any], ...]:
    """Return x (M, CHUNK, INPUTS), y (M, CHUNK, K), known, bound, weight and which chunks are for validation."""
    truth, size = truths(session), session.demand.shape[1]
    end = int(session.ticks * split)
    steps = end // STRIDE
    x: Float32Array = np.empty((steps, INPUTS, size), np.float32)
    scale: Float32Array = np.empty((steps, size), np.float32)
    for t, history in enumerate(session.replay(end=steps * STRIDE)):
        if history.count % STRIDE == 0:
            inputs_of(history, x[t // STRIDE])
            scale[t // STRIDE] = history.scale
    at = np.arange(steps) * STRIDE + STRIDE - 1
    keep = np.flatnonzero(active_series(session, without))
    ok = truth.known[at].all(axis=1) & (at < end - 10)[:, None]
    y = np.where(ok[:, None], truth.value[at] / scale[:, None], 0.0).astype(np.float32)
    usual = np.maximum(scale.mean(axis=0), 1e-6)
    weight = np.minimum(scale / usual, MOST_WEIGHT)
    chunks = steps // CHUNK

    def cut(a: npt.NDArray[Any]) -> npt.NDArray[Any]:
        a = np.moveaxis(a[: chunks * CHUNK][..., keep], -1, 0)
        return np.ascontiguousarray(a.reshape(len(keep) * chunks, CHUNK, *a.shape[2:]))

    late = np.tile(np.arange(chunks) >= chunks * (1.0 - VALIDATION), len(keep))
    return cut(x), cut(y), cut(ok).astype(np.float32), cut(truth.bound[at]), cut(weight.astype(np.float32)), late


def LstmModule(hidden: int) -> Any:  # noqa: N802 - a class that torch must be imported for
    """Return the LSTM as a torch module: (M, steps, INPUTS) to (M, steps, K, Q)."""
    from torch import nn

    class Module(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.LSTM(INPUTS, hidden, batch_first=True)
            self.head = nn.Linear(hidden, K * Q)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            hidden: torch.Tensor = self.cell(x)[0]
            return quantiles(self.head(hidden))

        def arrays(self) -> Arrays:
            state = {name: value.detach().numpy() for name, value in self.state_dict().items()}
            return {
                "w": state["cell.weight_ih_l0"], "u": state["cell.weight_hh_l0"],
                "b": state["cell.bias_ih_l0"] + state["cell.bias_hh_l0"], "v": state["head.weight"],
                "d": state["head.bias"],
            }  # fmt: skip

    return Module()
