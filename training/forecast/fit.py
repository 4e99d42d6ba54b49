"""Fits the networks: pinball loss over every horizon and level, on the earlier part of each session, in torch.

Samples never look ahead: features come from replaying the session through the same code that hosts run, targets are
what came after. The later part of the fitting span is kept for choosing among epochs. Where a target is only known
from below, the loss is that of its certain part (a censored likelihood of the quantiles; Powell 1986, Journal of
Econometrics 32(1)).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from foreshare.policies.errors import InputError
from foreshare.policies.forecast.features import REACH, F, FeatureMaker
from foreshare.policies.forecast.history import LEVELS, Float32Array, K, Q
from foreshare.policies.host import BoolArray, R

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
    workers: int = 0
    """Ray actors that an LSTM's recordings and gradients are spread over; 0: all here."""
    ray_address: str = "local"


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
    vm: npt.NDArray[np.int64]
    """(M,) whose they are, as a row of its session."""


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
        late=at >= end * (1.0 - VALIDATION), vm=s // R,
    )  # fmt: skip


def _of_others(samples: Samples, session: Session, without: tuple[str, ...]) -> Samples:
    """Return the samples of VMs whose UUIDs begin with none of ``without``."""
    kept = np.array([not (without and u.startswith(without)) for u in session.uuid])[samples.vm]
    return Samples(**{f.name: getattr(samples, f.name)[kept] for f in fields(Samples)})


def fit_network(
    sessions: Sequence[Session], options: FitOptions, progress: Callable[[str], None] = lambda text: None,
    collected: Mapping[Session, Samples] | None = None,
) -> tuple[Arrays, dict[str, float]]:  # fmt: skip
    """Return the weights of a quantile network and its scores. Raises InputError without anything to learn from.

    ``collected``: by session what :func:`collect` returned of it for all its VMs.
    """
    import torch
    from torch import nn

    if collected is None:
        parts = [collect(s, options.split, options.without) for s in sessions]
    else:
        parts = [_of_others(collected[s], s, options.without) for s in sessions]
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
        total, over = weighted_loss(quantiles(net(x[i]), x[i]), y[i], bound[i], weight[i])
        return total / over

    def learn(rows: npt.NDArray[np.int64]) -> float:
        loss = loss_of(rows)
        net.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call] # torch has no types for it
        return float(loss.detach())

    def judge() -> float:
        with torch.no_grad():
            return float(loss_of(late))

    def batches() -> list[npt.NDArray[np.int64]]:
        order = rng.permutation(early)
        return [order[k : k + options.batch] for k in range(0, len(order) - options.batch + 1, options.batch)]

    scores = _train(net, learn, batches, judge, options, progress)
    weights: Arrays = {}
    state = {name: value.detach().numpy() for name, value in net.state_dict().items()}
    for i, layer in enumerate((0, 2, 4), start=1):
        weights[f"w{i}"], weights[f"b{i}"] = state[f"{layer}.weight"], state[f"{layer}.bias"]
    return weights, {**scores, "samples": float(len(early))}


def fit_lstm(
    sessions: Sequence[Session], options: FitOptions, progress: Callable[[str], None] = lambda text: None
) -> tuple[Arrays, dict[str, float]]:
    """Return the weights of an LSTM and its scores. Raises InputError without anything to learn from."""
    import torch

    from .crew import crew
    from .sequences import CHUNK, LstmModule

    torch.manual_seed(options.seed)
    net: Any = LstmModule(options.hidden)
    with crew(sessions, options, progress) as parts:
        rng = np.random.default_rng(options.seed)
        early, held = np.flatnonzero(~parts.late), np.flatnonzero(parts.late)
        per_batch = max(options.batch // CHUNK * 4, 8)
        if len(early) < per_batch or not len(held):
            raise InputError(f"{len(early)} sequences of {CHUNK} steps are too few to fit an LSTM to")

        def learn(rows: npt.NDArray[np.int64]) -> float:
            gradients, loss = parts.gradient(_state(net), rows)
            for value, gradient in zip(net.parameters(), gradients, strict=True):
                value.grad = torch.from_numpy(gradient)
            return loss

        def batches() -> list[npt.NDArray[np.int64]]:
            order = rng.permutation(early)
            return [order[k : k + per_batch] for k in range(0, len(order) - per_batch + 1, per_batch)]

        scores = _train(net, learn, batches, lambda: parts.loss(_state(net), held), options, progress)
    return net.arrays(), {**scores, "samples": float(len(early) * CHUNK)}


def _state(net: Any) -> list[Float32Array]:
    return [value.detach().numpy() for value in net.parameters()]


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


def weighted_loss(
    q: torch.Tensor, y: torch.Tensor, bound: torch.Tensor, weight: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the sum of the pinball losses of ``q`` (..., K, Q), times ``weight`` (...), and the sum of the weights.

    ``y`` and ``bound`` (..., K): what came, and where that is only known from below.
    """
    import torch

    level = torch.tensor(LEVELS)
    miss = y[..., None] - q
    loss = torch.maximum(level * miss, (level - 1.0) * miss)
    loss = torch.where(bound[..., None] & (miss <= 0.0), torch.zeros(()), loss)
    each = (loss * torch.tensor(LEVEL_WEIGHT)).mean(dim=(-1, -2))
    return (each * weight).sum(), weight.sum()


def _train(
    net: Any, learn: Callable[[npt.NDArray[np.int64]], float], batches: Callable[[], list[npt.NDArray[np.int64]]],
    judge: Callable[[], float], options: FitOptions, progress: Callable[[str], None],
) -> dict[str, float]:  # fmt: skip
    """Fit in place; keep the epoch with the least validation loss. Return its scores.

    ``learn`` fills the gradients and returns the loss of a batch, ``judge`` returns the validation loss.
    """
    import torch

    optimiser = torch.optim.AdamW(net.parameters(), options.rate, weight_decay=1e-4)
    steps = options.epochs * len(batches())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, options.rate, total_steps=steps)
    best, kept, done = float("inf"), {k: v.clone() for k, v in net.state_dict().items()}, 0
    for epoch in range(options.epochs):
        total = 0.0
        rows = batches()
        for chosen in rows:
            total += learn(chosen)
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimiser.step()
            schedule.step()
        now = judge()
        progress(f"epoch {epoch + 1} of {options.epochs}: loss {total / len(rows):.4f}, held apart {now:.4f}")
        if now < best:
            best, kept, done = now, {k: v.clone() for k, v in net.state_dict().items()}, epoch + 1
    net.load_state_dict(kept)
    return {"validation_loss": best, "epochs": float(done)}
