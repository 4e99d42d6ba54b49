"""Many hosts side by side as one vectorised environment: no loop over hosts or VMs in a step.

Hosts of one scenario make a *block* that is stepped as arrays; several scenarios make several blocks, padded to the
most VMs. Host ``i`` draws from its own streams, a function of seed, ``first_host + i`` and the number of its episode
alone: the same trajectories come out whether eight hosts run side by side or one after another.

Autoreset is Gymnasium's ``NEXT_STEP``, the only one that RLlib's runner handles rightly: the step after the last one of
an episode passes over its action and returns the first observation of the next. All hosts of a block end together.
Every array that is returned is fresh, because RLlib keeps references.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym  # noqa: TID253 - a Gymnasium environment; nothing of the host imports it
import numpy as np
import numpy.typing as npt
from gymnasium.vector.utils import batch_space  # noqa: TID253 - see above

from foreshare.policies.allocators.corrected import ACTIONS
from foreshare.policies.errors import InputError

from .agent import NORMALISE_FLOOR, Agent, Parts, Terms, corrected_mind, flatten, late_of_zero, observation_bounds
from .simulator.scenario import Scenario
from .simulator.suites import load_suite, scenario_named
from .world import SimulatedWorld

EPISODE_STREAM = 0xE9
"""Sets episodes apart from every other use of the same seed."""


class PartitionVectorEnv(gym.vector.VectorEnv[Any, Any, npt.NDArray[np.floating]]):
    """``num_envs`` simulated hosts; spaces, reward and episodes as :mod:`.partition` describes them for one."""

    metadata: dict[str, Any] = {  # noqa: RUF012 - Gymnasium's own declaration
        "render_modes": [], "autoreset_mode": gym.vector.AutoresetMode.NEXT_STEP,
    }  # fmt: skip

    def __init__(
        self, *, num_envs: int = 64, scenarios: Sequence[str | Scenario] = ("mixed",), suite: str | None = None,
        load: float | None = None, vms: int | None = None, ticks: int = 1000, max_vms: int | None = None,
        flat: bool = False, move_cost: float = 0.0, normalise: bool = False, base: str = "triage",
        tick_ms: float = 10.0, first_host: int = 0,
    ) -> None:  # fmt: skip
        """``suite``: every scenario of it at every load, in place of ``scenarios``; dealt out as evenly as can be.

        ``first_host``: index of the first host in the seed tree; workers that train together each have a range of their
        own. Raises InputError for what cannot be.
        """
        if ticks < 1 or num_envs < 1 or first_host < 0:
            raise InputError(f"{num_envs} hosts from {first_host} for {ticks} ticks cannot be run")
        if suite is not None:
            chosen = load_suite(suite)
            worlds = [chosen.at(s, x) for s in chosen.scenarios for x, _ in chosen.loads]
        else:
            worlds = [s if isinstance(s, Scenario) else scenario_named(s, vms=vms, load=load) for s in scenarios]
        if not 0 < len(worlds) <= num_envs:
            raise InputError(f"{len(worlds)} scenarios on {num_envs} hosts: at least one, and at most one a host")
        bounds = np.linspace(0, num_envs, len(worlds) + 1).round().astype(int).tolist()
        self._blocks = [(s, slice(a, b)) for s, a, b in zip(worlds, bounds, bounds[1:], strict=False)]
        self.num_envs = num_envs
        self._ticks, self._flat, self._move_cost, self._normalise = ticks, flat, move_cost, normalise
        self._base, self._tick_ms, self._first_host = base, tick_ms, first_host
        most = max(len(s.vm) for s, _ in self._blocks)
        if max_vms is not None and max_vms < most:
            raise InputError(f"{most} VMs do not fit into an observation of {max_vms}")
        self.max_vms = max(max_vms or 0, most, 1)
        self.single_action_space = action_space(self.max_vms, flat=flat)
        self.single_observation_space = observation_space(self.max_vms, flat=flat)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.agents: list[Agent] = []
        """One for each block, in order; empty before the first reset and after close."""
        self._seed, self._episode = 0, -1
        self._done = 0

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode on every host. ``seed``: one number; without one the next episode of the old seed starts."""
        if isinstance(seed, list):
            raise InputError("one seed, please: host i draws from streams of its own under it")
        if seed is not None:
            self._seed, self._episode = seed, -1
        elif self._episode < 0:
            self._seed = int(np.random.SeedSequence().generate_state(1, np.uint64)[0] >> 1)
        return self._shown(self._start()), {}

    def step(self, actions: npt.NDArray[np.floating]) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step every host; after the end of an episode, start the next one instead.

        Returns observations, rewards (H,) float64, terminated and truncated (H,) bool, and the reward's terms.
        """
        if not self.agents:
            raise InputError("step before reset")
        n = self.num_envs
        never = np.zeros(n, bool)
        if self._done >= self._ticks:
            return self._shown(self._start()), np.zeros(n), never, never.copy(), _infos(n, None)
        wanted = np.asarray(actions, np.float64).reshape(n, self.max_vms, ACTIONS)
        results = [agent.step(wanted[at]) for agent, (_, at) in zip(self.agents, self._blocks, strict=True)]
        self._done += 1
        ended = np.full(n, self._done >= self._ticks)
        terms = Terms(*(np.concatenate([r[2][i] for r in results]) for i in range(len(Terms._fields))))
        reward = np.concatenate([r[1] for r in results])
        return self._shown(_joined([r[0] for r in results])), reward, never, ended, _infos(n, terms)

    def close_extras(self, **kwargs: Any) -> None:
        """Let go of the hosts."""
        self.agents = []

    def _start(self) -> Parts:
        """Begin the next episode of all hosts; return what is to be seen."""
        self._episode += 1
        self._done = 0
        seed = episode_seed(self._seed, self._episode)
        self.agents = [self._agent(scenario, at, seed) for scenario, at in self._blocks]
        return _joined([agent.begin() for agent in self.agents])

    def _agent(self, scenario: Scenario, at: slice, seed: int) -> Agent:
        def world() -> SimulatedWorld:
            return SimulatedWorld(
                scenario, lambda host: corrected_mind(host, self._base), hosts=at.stop - at.start, seed=seed,
                first_host=self._first_host + at.start, tick_ms=self._tick_ms,
            )  # fmt: skip

        scale = NORMALISE_FLOOR + late_of_zero(world, self._ticks) if self._normalise else 1.0
        return Agent(world(), self.max_vms, move_cost=self._move_cost, scale=scale)

    def _shown(self, parts: Parts) -> Any:
        return flatten(parts, self.num_envs) if self._flat else parts


def episode_seed(seed: int, episode: int) -> int:
    """Return the simulator's seed in an episode (from 0 on) of an environment that was reset with ``seed``."""
    key = np.random.SeedSequence(seed, spawn_key=(EPISODE_STREAM, episode))
    return int(key.generate_state(1, np.uint64)[0] >> 1)


def _joined(parts: list[Parts]) -> Parts:
    return parts[0] if len(parts) == 1 else {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}


def _infos(n: int, terms: Terms | None) -> dict[str, Any]:
    """Return the reward's terms in Gymnasium's form: arrays, and beside each who has one."""
    if terms is None:
        return {}
    out: dict[str, Any] = {}
    for name, value in zip(Terms._fields, terms, strict=True):
        out[name], out[f"_{name}"] = value, np.ones(n, bool)
    return out


def action_space(max_vms: int, *, flat: bool) -> gym.spaces.Box:
    """Return the actions of one host."""
    return gym.spaces.Box(-1.0, 1.0, (max_vms * ACTIONS,) if flat else (max_vms, ACTIONS), np.float32)


def observation_space(max_vms: int, *, flat: bool) -> gym.spaces.Space[Any]:
    """Return the observations of one host."""
    low, high = observation_bounds(max_vms)
    if flat:
        return gym.spaces.Box(flatten(low), flatten(high), dtype=np.float32)
    return gym.spaces.Dict({k: gym.spaces.Box(low[k], high[k], dtype=np.float32) for k in low})
