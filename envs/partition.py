"""``foreshare/Partition-v0``: one host, one tick a step, over any HAL.

| | |
|---|---|
| Action | ``Box(-1, 1, (max_vms, 5))``, times 2.5: for each VM a log-multiplier on triage's answer, and a residual for each of cpu, cache, memory, io. Zero is triage |
| Observation | ``Dict(vms=(max_vms, F), mask=(max_vms,), host=(G,))`` of :mod:`foreshare.policies.features`; with ``flat=True`` one ``Box`` with these three end to end, and a flat action |
| Reward | minus the priority-weighted share of requests that turned late in the tick, minus ``move_cost`` for what moved (:mod:`.agent`); hosts that know no requests count throttled VMs. ``info`` has the terms apart |
| Episode | ends by truncation after ``ticks`` steps; never terminates |
| Reset | a new simulated host, seeded; a given HAL is claimed once and put back by ``close`` |

Without ``hal`` this is the vector environment (:mod:`.vector`) with one host: the same equations, the same streams.
What decides is :func:`foreshare.policies.decide.decide_tick`, in its two halves: what trains is what ships.
"""  # noqa: E501 - a table

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym  # noqa: TID253 - this module is the Gymnasium environment; nothing of the host imports it
import numpy as np
import numpy.typing as npt

from foreshare.envs.hal import Hal
from foreshare.policies.allocators.corrected import ACTIONS
from foreshare.policies.decide import Decision
from foreshare.policies.errors import InputError

from .agent import Agent, corrected_mind, flatten
from .vector import PartitionVectorEnv, action_space, observation_space
from .world import HalWorld

ENV_ID = "foreshare/Partition-v0"
Observation = Any


class PartitionEnv(gym.Env[Observation, npt.NDArray[np.float32]]):
    """See the module."""

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 - Gymnasium's own declaration

    def __init__(
        self, *, scenario: str = "mixed", load: float | None = None, vms: int | None = None, ticks: int = 1000,
        max_vms: int | None = None, flat: bool = False, move_cost: float = 0.0, normalise: bool = False,
        base: str = "triage", tick_ms: float = 10.0, first_host: int = 0, hal: Callable[[], Hal] | None = None,
        render_mode: str | None = None,
    ) -> None:  # fmt: skip
        """``scenario``: a shipped one, a file, or ``draw:SEED``. ``first_host``: which of a batch's hosts this one is.

        ``hal`` makes the backend to work on in place of a simulated host. Raises InputError for what cannot be.
        """
        if ticks < 1:
            raise InputError(f"ticks must be at least 1, not {ticks}")
        self.render_mode = render_mode
        self._ticks, self._flat, self._move_cost, self._base = ticks, flat, move_cost, base
        self._tick_ns = round(tick_ms * 1e6)
        self._make_hal = hal
        self._world: HalWorld | None = None
        self._simulated: PartitionVectorEnv | None = None
        if hal is None:
            self._simulated = PartitionVectorEnv(
                num_envs=1, scenarios=(scenario,), load=load, vms=vms, ticks=ticks, max_vms=max_vms,
                move_cost=move_cost, normalise=normalise, base=base, tick_ms=tick_ms, first_host=first_host,
            )  # fmt: skip
            self.max_vms = self._simulated.max_vms
        else:
            if normalise:
                raise InputError("normalise needs a simulated host: a real one meets the same demand only once")
            self._world = self._open()
            self.max_vms = max(max_vms or 0, len(self._world.hal.vms), 1)
        self.action_space = action_space(self.max_vms, flat=flat)
        self.observation_space = observation_space(self.max_vms, flat=flat)
        self._agent: Agent | None = None
        self._done = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode: one tick passes, so that there is something to see."""
        super().reset(seed=seed)
        self._done = 0
        if self._simulated is not None:
            parts, _ = self._simulated.reset(seed=seed)
        else:
            if self._world is None:
                self._world = self._open()
            else:
                self._world.restart()
            self._agent = Agent(self._world, self.max_vms, move_cost=self._move_cost)
            parts = self._agent.begin()
        return self._shown(parts), {}

    def step(self, action: npt.NDArray[np.float32]) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Apply a correction, let one tick pass."""
        agent = self._seat()
        if agent is None:
            raise InputError("step after close: reset first")
        parts, reward, terms = agent.step(np.asarray(action, np.float64).reshape(1, self.max_vms, ACTIONS))
        self._done += 1
        info = {"late": float(terms.late[0]), "moves": float(terms.moves[0]), "by_policy": self.decision.by_policy}
        return self._shown(parts), float(reward[0]), False, self._done >= self._ticks, info

    @property
    def decision(self) -> Decision:
        """What the newest step decided; changes with the next one."""
        agent = self._seat()
        if agent is None or agent.decision is None:
            raise InputError("nothing has been decided yet")
        return agent.decision

    def close(self) -> None:
        """Put the host back as it was found."""
        if self._world is not None:
            self._world.close()
        if self._simulated is not None:
            self._simulated.close()
        self._world = self._agent = None

    def _seat(self) -> Agent | None:
        if self._simulated is None:
            return self._agent
        return self._simulated.agents[0] if self._simulated.agents else None

    def _open(self) -> HalWorld:
        if self._make_hal is None:
            raise InputError("no HAL to open")
        return HalWorld(self._make_hal(), lambda host: corrected_mind(host, self._base), self._tick_ns)

    def _shown(self, parts: dict[str, npt.NDArray[np.float32]]) -> Observation:
        return flatten(parts) if self._flat else {k: v[0] for k, v in parts.items()}


def register() -> None:
    """Make ``gymnasium.make("foreshare/Partition-v0")`` and ``gymnasium.make_vec`` of it work."""
    if ENV_ID not in gym.registry:
        gym.register(
            ENV_ID, entry_point="foreshare.envs.partition:PartitionEnv",
            vector_entry_point="foreshare.envs.vector:PartitionVectorEnv",
        )  # fmt: skip
