"""The environment that PPO learns on: fresh hosts in every episode, and a reward for each VM.

A :class:`~foreshare.envs.vector.PartitionVectorEnv` whose hosts are drawn anew with each reset (:mod:`.scenes`), with
``warm_ticks`` of the uncorrected base policy before the first observation. The base policy meets the same arrivals
beside it, and what is paid is the difference in the same tick: arrivals are nobody's doing, so what they alone bring
only adds noise (an input-dependent baseline; Mao et al. 2019, ICLR). With ``v_i`` the requests of VM i found late,
``u_i`` those of the base policy, ``a_i`` its mean arrivals, ``p_i`` its weight and N VMs::

    paid_i = (p_i (u_i - v_i) / a_i / sum p - move_cost moves / (4 N) / N) / scale,    reward = sum_i paid_i

with ``scale`` the base policy's mean late share over the episode plus SCORE_FLOOR (tune_baseline's SCORE_POINTS):
the mean reward is then by how much the score of the episode is better than the base policy's.

``paid`` (M,) of the newest tick stands in the observation, where learners find it without help of the runner's; the
network does not look at it.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym  # noqa: TID253 - a Gymnasium environment; nothing of the host imports it
import numpy as np
import numpy.typing as npt
from gymnasium.vector.utils import batch_space  # noqa: TID253 - see above

from foreshare.envs.agent import Agent, Parts
from foreshare.envs.simulator.lateness import weights_of
from foreshare.envs.simulator.scenario import Scenario
from foreshare.envs.vector import PartitionVectorEnv, episode_seed
from foreshare.policies.allocators.corrected import ACTIONS
from foreshare.policies.errors import InputError
from foreshare.policies.host import FloatArray, R
from foreshare.training.tune_baseline import SCORE_POINTS

from .config import ScenesConfig
from .scenes import open_agents, scenes

SCORE_FLOOR = SCORE_POINTS / 100.0
PAID_BOUND = 1e6
ENV_NAME = "foreshare-episodes"


class EpisodesEnv(PartitionVectorEnv):
    """See the module. ``blocks``: so many scenarios at once, as evenly dealt out as can be; None: one a host."""

    def __init__(
        self, *, num_envs: int, config: ScenesConfig, base: str = "triage", blocks: int | None = None
    ) -> None:  # fmt: skip
        if blocks is not None and not 0 < blocks <= num_envs:
            raise InputError(f"{blocks} scenarios on {num_envs} hosts: at least one, and at most one a host")
        self._config, self._count = config, blocks or num_envs
        super().__init__(
            num_envs=num_envs, scenarios=scenes(config, self._count, 0), ticks=config.ticks,
            max_vms=config.most_vms, move_cost=config.move_cost, base=base,
        )  # fmt: skip
        box = gym.spaces.Box(-PAID_BOUND, PAID_BOUND, (self.max_vms,), np.float32)
        self.single_observation_space = gym.spaces.Dict({**self.single_observation_space.spaces, "paid": box})  # type: ignore[attr-defined] # not flat: a Dict
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self._base_late: list[FloatArray] = []
        self._scales: list[FloatArray] = []
        self._paid: npt.NDArray[np.float32] = np.zeros((num_envs, self.max_vms), np.float32)
        self.simulator_steps = 0
        """Ticks of one VM simulated so far, the base policy's included."""

    def step(self, actions: npt.NDArray[np.floating]) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """See :meth:`PartitionVectorEnv.step`; the reward is the module's."""
        self._paid = np.zeros_like(self._paid)
        seen, _, terminated, truncated, infos = super().step(actions)
        return seen, self._paid.sum(axis=-1, dtype=np.float64), terminated, truncated, infos

    def _start(self) -> Parts:
        self._episode += 1
        self._done = 0
        seed = episode_seed(self._seed, self._episode)
        drawn = scenes(self._config, self._count, seed)
        edges = np.linspace(0, self.num_envs, len(drawn) + 1).round().astype(int).tolist()
        self._blocks = [(s, slice(a, b)) for s, a, b in zip(drawn, edges, edges[1:], strict=False)]
        self.agents, self._base_late, self._scales = [], [], []
        parts = []
        for scenario, at in self._blocks:
            self._base_late.append(self._late_of_base(scenario, at, seed))
            self._scales.append(self._base_late[-1].sum(axis=-1).mean(axis=0) + SCORE_FLOOR)
            agent = self._agent(scenario, at, seed)
            seen = agent.begin()
            for _ in range(self._config.warm_ticks):
                seen = agent.step(_nothing(agent))[0]
            self.agents.append(agent)
            parts.append(seen)
            self.simulator_steps += 2 * (at.stop - at.start) * self._config.warm_ticks * len(scenario.vm)
        self._paid = np.zeros_like(self._paid)
        return {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}

    def _agent(self, scenario: Scenario, at: slice, seed: int) -> Agent:
        return open_agents(scenario, seed, at.stop - at.start, self._base, first_host=at.start, max_vms=self.max_vms)

    def _late_of_base(self, scenario: Scenario, at: slice, seed: int) -> FloatArray:
        """Return (T, H, N) each VM's part of the late share of every tick of the episode, if nothing is corrected."""
        agent = self._agent(scenario, at, seed)
        agent.begin()
        out = np.zeros((self._ticks, at.stop - at.start, len(scenario.vm)))
        for t in range(-self._config.warm_ticks, self._ticks):
            agent.step(_nothing(agent))
            if t >= 0:
                out[t] = late_parts(agent)
        return out

    def _shown(self, parts: Parts) -> Any:
        if self._done:
            for agent, late, scale, (_, at) in zip(
                self.agents, self._base_late, self._scales, self._blocks, strict=True
            ):
                n = late.shape[-1]
                paid = late[self._done - 1] - late_parts(agent)
                if self._move_cost:
                    paid -= (self._move_cost * agent.world.moves / max(R * n, 1) / max(n, 1))[:, None]
                self._paid[at, :n] = paid / scale[:, None]
                self.simulator_steps += 2 * paid.size
        return {**parts, "paid": self._paid}


def late_parts(agent: Agent) -> FloatArray:
    """Return (H, N) each VM's part of the late share of the newest tick: its sum is :class:`Agent`'s ``late``."""
    weight = weights_of(agent.world.mind.host.vms.priority)
    return agent.world.late() * (weight / max(float(weight.sum()), 1.0))


def _nothing(agent: Agent) -> npt.NDArray[np.float64]:
    return np.zeros((1, len(agent.world.mind.host), ACTIONS))
