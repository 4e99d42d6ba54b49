"""``foreshare/Partition-v0``: one host, one tick a step, over any HAL.

| | |
|---|---|
| Action | ``Box(-1, 1, (max_vms, 5))``, times 2.5: for each VM a log-multiplier on triage's answer, and a residual for each of cpu, cache, memory, io. Zero is triage |
| Observation | ``Dict(vms=(max_vms, F), mask=(max_vms,), host=(G,))`` of :mod:`foreshare.policies.features`; with ``flat=True`` one ``Box`` with these three end to end |
| Reward | minus the priority-weighted late requests of the tick over the mean weighted arrivals of a tick, minus ``move_cost`` for each write; hosts that know no requests count throttled VMs |
| Episode | ends by truncation after ``ticks`` steps; never terminates |
| Reset | a new simulated host, seeded; a given HAL is claimed once and put back by ``close`` |

What decides is :func:`foreshare.policies.decide.decide_tick`, in its two halves: what trains is what ships.
"""  # noqa: E501 - a table

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym  # noqa: TID253 - this module is the Gymnasium environment; nothing of the host imports it
import numpy as np
import numpy.typing as npt

from foreshare.envs.hal import Hal, Host, Receipt
from foreshare.envs.hal.plan import advance, build_plan
from foreshare.envs.hal.simulated import SimulatedHal
from foreshare.envs.simulator.lateness import weights_of
from foreshare.envs.simulator.scenario import load_scenario
from foreshare.policies.allocators.corrected import ACTIONS, LIMIT, Corrected
from foreshare.policies.decide import DecideOptions, Decision, Mind, conclude_tick, forecast_tick
from foreshare.policies.errors import InputError
from foreshare.policies.features import Encoder, F, bounds
from foreshare.policies.host import Placement
from foreshare.policies.reading import Quality, Reading
from foreshare.policies.registry import make_mind

ENV_ID = "foreshare/Partition-v0"
Observation = Any
_NO_BUDGET_NS = 1 << 62  # time spent in an agent is not the policy's


class PartitionEnv(gym.Env[Observation, npt.NDArray[np.float32]]):
    """See the module."""

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 - Gymnasium's own declaration

    def __init__(
        self, *, scenario: str = "mixed", vms: int | None = None, ticks: int = 1000, max_vms: int | None = None,
        flat: bool = False, move_cost: float = 0.0, base: str = "triage", tick_ms: float = 10.0,
        hal: Callable[[], Hal] | None = None, render_mode: str | None = None,
    ) -> None:  # fmt: skip
        if ticks < 1:
            raise InputError(f"ticks must be at least 1, not {ticks}")
        self.render_mode = render_mode
        self._scenario, self._vms, self._ticks, self._flat = scenario, vms, ticks, flat
        self._move_cost, self._base, self._tick_ns = move_cost, base, round(tick_ms * 1e6)
        self._make_hal, self._hal = hal, None if hal is None else hal()
        count = len(self._hal.vms) if self._hal is not None else len(load_scenario(scenario, vms=vms).vm)
        self.max_vms = max(max_vms or count, count, 1)
        m = self.max_vms
        (vm_low, vm_high), (host_low, host_high) = bounds()
        self.action_space = gym.spaces.Box(
            -1.0, 1.0, (m * ACTIONS,) if flat else (m, ACTIONS), np.float32
        )  # fmt: skip
        low = {"vms": np.tile(vm_low, (m, 1)), "mask": np.zeros(m, np.float32), "host": host_low}
        high = {"vms": np.tile(vm_high, (m, 1)), "mask": np.ones(m, np.float32), "host": host_high}
        if flat:
            self.observation_space = gym.spaces.Box(_flatten(low), _flatten(high), dtype=np.float32)
        else:
            self.observation_space = gym.spaces.Dict(
                {k: gym.spaces.Box(low[k], high[k], dtype=np.float32) for k in low}
            )  # fmt: skip
        self._claimed = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode: one tick passes, so that there is something to see."""
        super().reset(seed=seed)
        if self._make_hal is None:
            self.close()
            scenario = load_scenario(self._scenario, vms=self._vms)
            self._hal = SimulatedHal(scenario, seed=int(self.np_random.integers(2**62)), tick_ms=self._tick_ns * 1e-6)
        elif self._hal is None:
            self._hal = self._make_hal()
        hal = self._hal
        if not self._claimed:
            hal.claim(lambda originals: None)
            self._claimed = True
        host = Host(hal.topology, hal.vms)
        base = make_mind(self._base, host)
        self._corrected = Corrected(base.policy)
        options_ = DecideOptions(
            headroom=base.options.headroom, policy_budget_ns=_NO_BUDGET_NS, guard=base.options.guard
        )
        self._mind = Mind(host, base.forecaster, self._corrected, options_)
        self._encoder = Encoder(self._mind)
        self._held = Placement.empty(len(host), host.topology.cpus)
        hal.read_back(self._held)
        self._mind.adopt(self._held)
        self._reading, self._receipt = Reading.empty(len(host)), Receipt()
        self._weight = weights_of(host.vms.priority)
        self._done = 0
        hal.sample(self._reading)  # rates start from here
        self._next_ns = hal.clock.now_ns() + self._tick_ns
        hal.clock.sleep_until(self._next_ns)
        hal.sample(self._reading)
        forecast_tick(self._mind, self._reading)
        return self._observe(), {}

    def step(self, action: npt.NDArray[np.float32]) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Apply a correction, let one tick pass."""
        hal, mind = self._hal, self._mind
        if hal is None:
            raise InputError("step after close: reset first")
        n = len(mind.host)
        self._corrected.action = LIMIT * np.clip(
            np.asarray(action, float).reshape(self.max_vms, ACTIONS)[:n], -1.0, 1.0
        )
        decision = conclude_tick(mind)
        plan = build_plan(mind.host, self._held, decision.placement)
        self._receipt.clear()
        if len(plan):
            hal.apply(plan, 0, self._receipt)
            advance(self._held, plan, self._receipt, decision.placement, mind.host)
        self._next_ns += self._tick_ns
        hal.clock.sleep_until(self._next_ns)
        hal.sample(self._reading)
        forecast_tick(mind, self._reading)
        late = self._late()
        moves = self._move_cost * len(plan)
        self._done += 1
        info = {"late": late, "moves": moves, "writes": len(plan), "by_policy": decision.by_policy}
        return self._observe(), -(late + moves), False, self._done >= self._ticks, info

    @property
    def decision(self) -> Decision:
        """What the newest step decided; changes with the next one."""
        return self._mind.decision

    def close(self) -> None:
        """Put the host back as it was found."""
        if self._hal is not None:
            self._hal.close()
        self._hal, self._claimed = None, False

    def _late(self) -> float:
        """Return the newly late requests of the tick, priority-weighted, in mean arrivals of a tick.

        Hosts that know no requests: the share of VMs that stood at a limit.
        """
        if not isinstance(self._hal, SimulatedHal):
            censored = (self._reading.quality & Quality.CENSORED) != 0
            return float(censored.any(axis=1).mean()) if len(censored) else 0.0
        meter, ticks = self._hal.simulator.lateness, max(self._hal.simulator.t, 1)
        usual = float((self._weight * meter.arrived_total[0]).sum()) / ticks
        return float((self._weight * meter.late[0]).sum()) / usual if usual > 0 else 0.0

    def _observe(self) -> Observation:
        vms, host = self._encoder.encode()
        padded = np.zeros((self.max_vms, F), np.float32)
        padded[: len(vms)] = vms
        mask = np.zeros(self.max_vms, np.float32)
        mask[: len(vms)] = self._mind.host.active
        parts = {"vms": padded, "mask": mask, "host": host}
        return _flatten(parts) if self._flat else parts


def _flatten(parts: dict[str, npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
    return np.concatenate([parts[k].ravel() for k in ("vms", "mask", "host")]).astype(np.float32)


def register() -> None:
    """Make ``gymnasium.make("foreshare/Partition-v0")`` work."""
    if ENV_ID not in gym.registry:
        gym.register(ENV_ID, entry_point="foreshare.envs.partition:PartitionEnv")
