"""Many networks of one shape side by side, each on a host of its own, and how late their requests are.

The members of a population meet the same arrivals: hosts of one block with the same seed (common random numbers), so
that what differs between two of them is their weights' doing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from foreshare.envs.simulator.lateness import violation_pct
from foreshare.envs.simulator.scenario import Scenario
from foreshare.envs.world import SimulatedWorld
from foreshare.policies.errors import InputError
from foreshare.policies.host import FloatArray
from foreshare.policies.learned import Network
from foreshare.policies.learned.weights import NAMES
from foreshare.training.tune_baseline import SCORE_POINTS

from .liars import Pair
from .scenes import open_agents

Float32Array = npt.NDArray[np.float32]
Arrays = Mapping[str, Float32Array]
MARGIN = 0.1
"""Liars are to be late more often, by this share of how often the honest are."""


class Members:
    """P networks; ``changed`` (P, ...) arrays by name are their own, all others those of ``network``."""

    def __init__(self, network: Network, changed: Arrays) -> None:
        sizes = {len(a) for a in changed.values()}
        if len(sizes) > 1:
            raise InputError("members must all have the same arrays of their own")
        self.count = sizes.pop() if sizes else 1
        self.widths = network.widths
        self._arrays = {name: changed.get(name, network.arrays[name][None]) for name in NAMES}
        self.actions = len(network.arrays["out_b"])
        """A, how many numbers an action of a VM has."""
        self._outputs = bool(self._arrays["out_w"].any())

    def forward(self, vms: Float32Array, mask: Float32Array, host: Float32Array) -> Float32Array:
        """Return actions (P, N, A), 0 under a mask of 0; ``vms`` (P, N, F), ``mask`` (P, N), ``host`` (P, G)."""
        a, (e, c, _) = self._arrays, self.widths
        x = (vms - a["vm_mean"][:, None]) * a["vm_scale"][:, None]
        out = x @ a["lin_w"] + a["out_b"][:, None]
        there = (mask > 0)[..., None]
        if self._outputs:
            h = np.tanh(x @ a["enc_w"] + a["enc_b"][:, None])
            seen = (host - a["host_mean"]) * a["host_scale"]
            if e:
                count = there.sum(axis=-2)
                mean = np.where(there, h, 0.0).sum(axis=-2) / np.maximum(count, 1)
                most = np.where(count > 0, np.where(there, h, -1.0).max(axis=-2, initial=-1.0), 0.0)
                seen = np.concatenate([mean, most, seen], axis=-1)
            z = h @ a["head_w"][:, :e] + a["head_b"][:, None]
            if c:
                context = np.tanh((seen[:, None] @ a["ctx_w"]) + a["ctx_b"][:, None])
                z = z + context @ a["head_w"][:, e:]
            out = out + np.tanh(z) @ a["out_w"]
        return np.asarray(np.where(there, np.tanh(out), 0.0), np.float32)


@dataclass(frozen=True, kw_only=True, slots=True)
class Match:
    """What members meet: one scenario, one seed."""

    scenario: Scenario
    seed: int
    ticks: int
    warm_ticks: int
    base: str
    pair: Pair | None = None
    """Played instead, both halves of it."""
    honesty: float = 0.0
    """Points that are added to V for each point that liars gain."""

    @property
    def env_steps(self) -> int:
        """Ticks of a host that one member meets."""
        return (self.ticks + self.warm_ticks) * (2 if self.pair else 1)

    @property
    def steps(self) -> int:
        """Simulator steps of one member."""
        return self.env_steps * len(self.scenario.vm)


def late_of_members(match: Match, members: Members) -> FloatArray:
    """Return V in percent, (P + 1,): of the base policy, uncorrected, then of each member, on the same arrivals.

    Of a pair it is the base policy's for all, the mean of both halves, and for members ``honesty`` times what liars
    gain besides, if they do: MARGIN is asked of them.
    """
    if match.pair is None:
        return violation_pct(*_lateness(match, match.scenario, members))
    runs = [_lateness(match, scenario, members) for scenario in (match.pair.honest, match.pair.lying)]
    liars = list(match.pair.liars)
    honest, lying = (
        100.0 * (late[:, liars] / np.maximum(came[:, liars], 1e-9)).mean(axis=-1) for late, came, _ in runs
    )
    gained = np.maximum((1.0 + MARGIN) * honest - lying, 0.0)
    gained[0] = 0.0
    base = np.mean([violation_pct(*run)[0] for run in runs])
    return np.asarray(base + match.honesty * gained)


def _lateness(match: Match, scenario: Scenario, members: Members) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return (P + 1, N) the requests that were late and those that came, and (N,) the weights."""
    p = members.count
    agent = open_agents(scenario, [match.seed] * (p + 1), p + 1, match.base)
    world = agent.world
    if not isinstance(world, SimulatedWorld):
        raise InputError("members meet on simulated hosts")
    meter = world.simulator.lateness
    parts = agent.begin()
    action = np.zeros((p + 1, len(scenario.vm), members.actions), np.float32)
    late, arrived = meter.late_total.copy(), meter.arrived_total.copy()
    for t in range(match.warm_ticks + match.ticks):
        if t == match.warm_ticks:
            late, arrived = meter.late_total.copy(), meter.arrived_total.copy()
        action[1:] = members.forward(parts["vms"][1:], parts["mask"][1:], parts["host"][1:])
        parts = agent.step(action)[0]
    return meter.late_total - late, meter.arrived_total - arrived, world.simulator.weight


def relative(late: Sequence[FloatArray]) -> FloatArray:
    """Return the (P,) mean scores of what :func:`late_of_members` returned for each match; 1 is the base's.

    As training/tune_baseline.py has it: SCORE_POINTS on both, so that mild load does not outweigh overload.
    """
    return np.asarray(np.mean([(v[1:] + SCORE_POINTS) / (v[0] + SCORE_POINTS) for v in late], axis=0))
