"""Fits the networks: pinball loss over every horizon and level, on the earlier part of each session, in torch.

Samples never look ahead: features come from replaying the session through the same code that hosts run, targets are
what came after. The later part of the fitting span is kept for choosing among epochs. Where a target is only known
from below, the loss is that of its certain part (a censored likelihood of the quantiles; Powell 1986, Journal of
Econometrics 32(1)).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from foreshare.policies.errors import InputError
from foreshare.policies.forecast.features import REACH, F, FeatureMaker
from foreshare.policies.forecast.history import LEVELS, Float32Array, K, Q
from foreshare.policies.forecast.lstm import INPUTS, STRIDE, inputs_of
from foreshare.policies.host import BoolArray

from .dataset import Session, active_series, truths

if TYPE_CHECKING:
    import torch

WARM_TICKS = 250
VALIDATION = 0.15
"""Share of the fitting span, its end, by which epochs are chosen."""
LEVEL_WEIGHT = (1.0, 2.0, 6.0)
"""Losses of high levels are small numbers; these bring them to one size."""
MOST_WEIGHT = 5.0
Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class FitOptions:
    """How networks are fitted."""

    split: float = 0.6
    """Share of each session, its beginning, that is fitted to."""
    hidden: int = 32
    epochs: int = 12
    batch: int = 1024
    rate: float = 4e-3
    seed: int = 0
    most_samples: int = 400_000
    """Drawn at random from what there is, where there is more."""
    without: tuple[str, ...] = ()
    """Beginnings of the UUIDs of VMs that nothing is learnt from."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Samples:
    """M samples in multiples of their series' scale at the time."""

    x: Float32Array
    """(M, F)."""
    y: Float32Array
    """(M, K)."""
    bound: BoolArray
    """(M, K) the target is known from below only."""
    weight: Float32Array
    """(M,) the scale at the time over the series' usual one: losses then count in the series' own units."""
    late: BoolArray
    """(M,) of the validation part."""


def collect(session: Session, split: float, without: tuple[str, ...] = ()) -> Samples:
    """Return the samples of a session's fitting part."""
    truth, size = truths(session), session.demand.shape[1]
    end = int(session.ticks * split)
    maker = FeatureMaker(size)
    x: Float32Array = np.empty((end, F, size), np.float32)
    scale: Float32Array = np.empty((end, size), np.float32)
    for t, history in enumerate(session.replay(end=end)):
        x[t] = maker.make(history)
        scale[t] = history.scale
    good = truth.known[:end].all(axis=1) & active_series(session, without)
    good[:WARM_TICKS] = False
    good[end - 10 :] = False  # their targets lie beyond the split
    at, s = np.nonzero(good)
    usual = np.where(good, scale, 0.0).sum(axis=0) / np.maximum(good.sum(axis=0), 1)
    return Samples(
        x=x[at, :, s], y=truth.value[at, :, s] / scale[at, s][:, None], bound=truth.bound[at, :, s],
        weight=np.minimum(scale[at, s] / np.maximum(usual[s], 1e-6), MOST_WEIGHT).astype(np.float32),
        late=at >= end * (1.0 - VALIDATION),
    )  # fmt: skip


def fit_network(
    sessions: Sequence[Session], options: FitOptions, progress: Callable[[str], None] = lambda text: None
) -> tuple[Arrays, dict[str, float]]:
    """Return the weights of a quantile network and its scores. Raises InputError without anything to learn from."""
    import torch
    from torch import nn

    parts = [collect(s, options.split, options.without) for s in sessions]
    joined = {n: np.concatenate([getattr(p, n) for p in parts]) for n in ("x", "y", "bound", "weight", "late")}
    rng = np.random.default_rng(options.seed)
    early, late = np.flatnonzero(~joined["late"]), np.flatnonzero(joined["late"])
    early = rng.permutation(early)[: options.most_samples]
    late = rng.permutation(late)[: options.most_samples // 4]
    if len(early) < options.batch or not len(late):
        raise InputError(f"{len(early)} samples are too few to fit a network to")
    torch.manual_seed(options.seed)
    net = nn.Sequential(
        nn.Linear(F, options.hidden), nn.ReLU(), nn.Linear(options.hidden, options.hidden), nn.ReLU(),
        nn.Linear(options.hidden, K * Q),
    )  # fmt: skip
    x, y, bound, weight = (torch.from_numpy(joined[n]) for n in ("x", "y", "bound", "weight"))

    def loss_of(rows: npt.NDArray[np.int64]) -> torch.Tensor:
        i = torch.from_numpy(rows)
        return _loss(quantiles(net(x[i]), x[i]), y[i], bound[i], weight[i])

    def batches() -> list[npt.NDArray[np.int64]]:
        order = rng.permutation(early)
        return [order[k : k + options.batch] for k in range(0, len(order) - options.batch + 1, options.batch)]

    scores = _train(net, loss_of, batches, lambda: loss_of(late), options, progress)
    weights: Arrays = {}
    state = {name: value.detach().numpy() for name, value in net.state_dict().items()}
    for i, layer in enumerate((0, 2, 4), start=1):
        weights[f"w{i}"], weights[f"b{i}"] = state[f"{layer}.weight"], state[f"{layer}.bias"]
    return weights, {**scores, "samples": float(len(early))}


CHUNK, BURN = 96, 24
"""Steps of a training sequence of the LSTM, and those at its start that are not scored."""


def fit_lstm(
    sessions: Sequence[Session], options: FitOptions, progress: Callable[[str], None] = lambda text: None
) -> tuple[Arrays, dict[str, float]]:
    """Return the weights of an LSTM and its scores. Raises InputError without anything to learn from."""
    import torch

    parts = [_sequences(s, options.split, options.without) for s in sessions]
    x, y, ok, bound, weight = (np.concatenate([p[i] for p in parts]) for i in range(5))
    late = np.concatenate([p[5] for p in parts])
    rng = np.random.default_rng(options.seed)
    early, held = np.flatnonzero(~late), np.flatnonzero(late)
    per_batch = max(options.batch // CHUNK * 4, 8)
    if len(early) < per_batch or not len(held):
        raise InputError(f"{len(early)} sequences of {CHUNK * STRIDE} ticks are too few to fit an LSTM to")
    torch.manual_seed(options.seed)
    cell: Any = LstmModule(options.hidden)
    tx, ty, tok, tbound, tweight = (torch.from_numpy(a) for a in (x, y, ok, bound, weight))

    def loss_of(rows: npt.NDArray[np.int64]) -> torch.Tensor:
        i = torch.from_numpy(rows)
        return _loss(cell(tx[i])[:, BURN:], ty[i][:, BURN:], tbound[i][:, BURN:], (tweight * tok)[i][:, BURN:])

    def batches() -> list[npt.NDArray[np.int64]]:
        order = rng.permutation(early)
        return [order[k : k + per_batch] for k in range(0, len(order) - per_batch + 1, per_batch)]

    scores = _train(cell, loss_of, batches, lambda: loss_of(held), options, progress)
    return cell.arrays(), {**scores, "samples": float(len(early) * CHUNK)}


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


def quantiles(z: torch.Tensor, x: torch.Tensor | None = None) -> torch.Tensor:
    """Return (..., K, Q) rising quantiles, in multiples of the scale, from outputs (..., K * Q).

    ``x`` (..., F): the features, for a network that is told how far bursts reach.
    """
    import torch

    z = z.reshape(*z.shape[:-1], K, Q)
    steps = (z + (z * z + 4.0).sqrt()) * 0.5
    if x is not None:
        reach = x[..., REACH].clamp(min=1.0)[..., None]
        steps = torch.cat([steps[..., :-1], steps[..., -1:] * reach[..., None]], dim=-1)
    return steps.cumsum(dim=-1)


def _loss(q: torch.Tensor, y: torch.Tensor, bound: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return the mean weighted pinball loss of ``q`` (..., K, Q) given ``y`` and ``bound`` (..., K)."""
    import torch

    level = torch.tensor(LEVELS)
    miss = y[..., None] - q
    loss = torch.maximum(level * miss, (level - 1.0) * miss)
    loss = torch.where(bound[..., None] & (miss <= 0.0), torch.zeros(()), loss)
    each = (loss * torch.tensor(LEVEL_WEIGHT)).mean(dim=(-1, -2))
    return (each * weight).sum() / weight.sum()


def _train(
    net: Any, loss_of: Callable[[npt.NDArray[np.int64]], torch.Tensor],
    batches: Callable[[], list[npt.NDArray[np.int64]]], judge: Callable[[], torch.Tensor], options: FitOptions,
    progress: Callable[[str], None],
) -> dict[str, float]:  # fmt: skip
    """Fit in place; keep the epoch with the least validation loss. Return its scores."""
    import torch

    optimiser = torch.optim.AdamW(net.parameters(), options.rate, weight_decay=1e-4)
    steps = options.epochs * len(batches())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, options.rate, total_steps=steps)
    best, kept, done = float("inf"), {k: v.clone() for k, v in net.state_dict().items()}, 0
    for epoch in range(options.epochs):
        total = 0.0
        rows = batches()
        for chosen in rows:
            loss = loss_of(chosen)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call] # torch has no types for it
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            total += float(loss.detach())
        with torch.no_grad():
            now = float(judge())
        progress(f"epoch {epoch + 1} of {options.epochs}: loss {total / len(rows):.4f}, held apart {now:.4f}")
        if now < best:
            best, kept, done = now, {k: v.clone() for k, v in net.state_dict().items()}, epoch + 1
    net.load_state_dict(kept)
    return {"validation_loss": best, "epochs": float(done)}


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
