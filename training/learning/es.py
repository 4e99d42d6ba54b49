"""An evolution strategy on the weights: perturb, meet the same hosts, move towards what served better.

Members come in pairs, a perturbation and its opposite (antithetic sampling, Salimans et al. 2017, arXiv:1703.03864);
all of a generation meet the same scenarios with the same seeds. A member's fitness is minus its mean score
(:func:`~.members.relative`); Adam (Kingma, Ba 2015) takes the estimated gradient

``g = sum_k (f_k+ - f_k-) eps_k / (2 K sigma)``

What comes out is a running mean of the weights (Polyak, Juditsky, SIAM J. Control and Optimization 30(4), 1992): each
generation meets other hosts, and its step has more of their noise than of what holds for all. Nothing is remembered but
weights, their mean and Adam's two moments, and every draw follows from seed and generation: a training that was killed
goes on as if it had not been.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from foreshare.policies.learned import Network

from .config import Layers, Shaping, TrainConfig
from .directions import direct_basis, whitening
from .judge import Play, play_on_ray
from .liars import pairs
from .members import Match, Members, relative
from .scenes import EPISODES, LIARS, SCENES, STATISTICS, observed, scenes, sequence_seed

LAYERS = {
    Layers.TIED: ("lin_w", "out_b"),
    Layers.LINEAR: ("lin_w", "out_b"),
    Layers.OUTPUTS: ("out_w", "out_b", "lin_w"),
    Layers.ALL: ("enc_w", "enc_b", "ctx_w", "ctx_b", "head_w", "head_b", "out_w", "out_b", "lin_w"),
}
"""The arrays that move."""
ES_STREAM = 0xE5
BETA_1, BETA_2, EPSILON = 0.9, 0.99, 1e-8
Arrays = dict[str, npt.NDArray[Any]]


class EvolutionStrategy:
    """A learner; see :class:`~.train.Learning`."""

    def __init__(self, config: TrainConfig, network: Network, seed: int, play: Play = play_on_ray) -> None:
        self._config, self._seed, self._play = config, seed, play
        self._network = network
        self._names = LAYERS[config.es.layers]
        self._basis = _basis(config, network, seed)
        start = np.concatenate([network.arrays[name].ravel() for name in self._names]).astype(np.float64)
        self._start = start
        self._theta = np.zeros(len(self._basis)) if self._basis is not None else start
        self._first, self._second = np.zeros_like(self._theta), np.zeros_like(self._theta)
        self._mean = self._theta.copy()
        self.iteration = 0

    @property
    def network(self) -> Network:
        """The network with the mean of the weights so far."""
        changed = {name: value[0] for name, value in self._split(self._mean[None]).items()}
        return Network({**self._network.arrays, **changed})

    def iterate(self) -> dict[str, float]:
        """Do one generation; return its figures: ``env_steps`` and ``simulator_steps`` are what it took."""
        c, e, k = self._config, self._config.es, self.iteration
        rng = np.random.default_rng(np.random.SeedSequence(self._seed, spawn_key=(ES_STREAM, k)))
        noise = rng.standard_normal((e.pairs, self._theta.size))
        # The weights as they are now come along: what the learning curve shows.
        around = np.concatenate([self._theta[None], self._theta + e.sigma * noise, self._theta - e.sigma * noise])
        members = Members(self._network, self._split(around))
        hosts = scenes(c.scenes, e.scenarios, sequence_seed(self._seed, SCENES, k))
        matches = [
            Match(scenario=s, seed=sequence_seed(self._seed, EPISODES, k, i), ticks=c.scenes.ticks,
                  warm_ticks=c.scenes.warm_ticks, base=c.base)
            for i, s in enumerate(hosts)
        ]  # fmt: skip
        matches += [
            Match(scenario=p.honest, seed=sequence_seed(self._seed, LIARS, k, i), ticks=c.scenes.ticks,
                  warm_ticks=c.scenes.warm_ticks, base=c.base, pair=p, honesty=e.honesty)
            for i, p in enumerate(pairs(c.scenes, e.liars, sequence_seed(self._seed, LIARS, k)))
        ]  # fmt: skip
        scores = relative(list(self._play(matches, members)))
        fitness = _shaped(-scores[1:], e.shaping)
        gradient = (fitness[: e.pairs] - fitness[e.pairs :]) @ noise / (2.0 * e.pairs)
        step = self._adam(gradient)
        self._theta = self._theta * (1.0 - e.decay) + e.rate * step
        self._mean = self._mean + e.average * (self._theta - self._mean)
        self.iteration += 1
        count = members.count + 1
        return {
            "train_score": float(scores[0]), "members_score": float(scores[1:].mean()),
            "members_best": float(scores[1:].min()), "weights_norm": float(np.linalg.norm(self._theta)),
            "env_steps": float(sum(m.env_steps for m in matches) * count),
            "simulator_steps": float(sum(m.steps for m in matches) * count),
        }  # fmt: skip

    def state(self) -> Arrays:
        """Return everything that the next iteration depends on."""
        return {"theta": self._theta, "mean": self._mean, "start": self._start, "first": self._first,
                "second": self._second, "iteration": np.array(self.iteration),
                **_named("net.", self._network)}  # fmt: skip

    def restore(self, state: Arrays) -> None:
        """Go on from what :meth:`state` returned."""
        self._network = Network({name.removeprefix("net."): a for name, a in state.items() if name.startswith("net.")})
        self._basis = _basis(self._config, self._network, self._seed)
        self._theta, self._mean, self._start = state["theta"], state["mean"], state["start"]
        self._first, self._second = state["first"], state["second"]
        self.iteration = int(state["iteration"])

    def close(self) -> None:
        """Nothing is held."""

    def _split(self, rows: npt.NDArray[np.float64]) -> dict[str, npt.NDArray[np.float32]]:
        out, at = {}, 0
        if self._basis is not None:
            rows = self._start + rows @ self._basis
        for name in self._names:
            shape = self._network.arrays[name].shape
            size = int(np.prod(shape))
            out[name] = rows[:, at : at + size].reshape(len(rows), *shape).astype(np.float32)
            at += size
        return out

    def _adam(self, gradient: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        t = self.iteration + 1
        self._first = BETA_1 * self._first + (1.0 - BETA_1) * gradient
        self._second = BETA_2 * self._second + (1.0 - BETA_2) * np.square(gradient)
        mean, square = self._first / (1.0 - BETA_1**t), self._second / (1.0 - BETA_2**t)
        return np.asarray(mean / (np.sqrt(square) + EPSILON))


def _basis(config: TrainConfig, network: Network, seed: int) -> npt.NDArray[np.float64] | None:
    """Return (D, weights) the directions in which the direct layer moves, or None where each weight moves alone."""
    e, tied = config.es, config.es.layers is Layers.TIED
    if not e.whiten:
        return direct_basis(network, tied=True) if tied else None
    vms = observed(config.scenes, config.base, sequence_seed(seed, STATISTICS))[0]
    scale = network.arrays["vm_scale"].astype(np.float64)
    return direct_basis(network, tied=tied, white=whitening(vms.covariance * np.outer(scale, scale), e.whiten))


def _named(prefix: str, network: Network) -> Arrays:
    return {f"{prefix}{name}": array for name, array in network.arrays.items()}


def _shaped(fitness: npt.NDArray[np.float64], shaping: Shaping) -> npt.NDArray[np.float64]:
    """Return fitness made comparable from generation to generation."""
    if shaping is Shaping.RANK:
        rank = np.argsort(np.argsort(fitness, kind="stable"), kind="stable")
        return rank / max(len(fitness) - 1, 1) - 0.5
    return np.asarray((fitness - fitness.mean()) / max(float(fitness.std()), 1e-9))
