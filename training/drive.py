"""Policies on simulated hosts, headless: the control loop's ticks without clocks, journal or observers, recorded.

Time is virtual and no deadline is enforced, so that a busy machine changes nothing: the same scenario, policy and seed
give the same figures. All seeds of a policy run side by side (:class:`~foreshare.envs.world.SimulatedWorld`); oracles,
which look into their simulator, one after another behind the simulated HAL. A test holds that it makes no difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from foreshare.envs.hal.simulated import SimulatedHal
from foreshare.envs.simulator.host import Simulator
from foreshare.envs.simulator.lateness import violation_pct
from foreshare.envs.simulator.scenario import Scenario
from foreshare.envs.world import HalWorld, SimulatedWorld
from foreshare.policies.decide import UNHURRIED, Decision, Mind
from foreshare.policies.errors import InputError
from foreshare.policies.host import CACHE, FloatArray, Host, R
from foreshare.policies.learned.source import is_learned
from foreshare.policies.registry import POLICIES, make_mind

TICK_MS = 10.0
ORACLE_PREFIX = "oracle-"
"""What the names of policies begin with that look into the simulator (oracles)."""
SimulatedKind = HalWorld | SimulatedWorld


def can_run_together(policy: str) -> bool:
    """Return whether seeds of this policy can run side by side. Raises InputError for a name that does not exist."""
    if policy.startswith(ORACLE_PREFIX):
        return False
    if policy not in POLICIES and not is_learned(policy):
        raise InputError(f"no policy named {policy!r}; there are {', '.join(POLICIES)}")
    return True


def open_world(
    scenario: Scenario, policy: str, seeds: Sequence[int], *, knobs: Any = None, behind_hal: bool = False
) -> SimulatedKind:
    """Return a world with a host for each of ``seeds``, which is one unless the policy's seeds can run together.

    ``behind_hal``: one host as the control loop has it, with plans and writes, even so. Raises InputError for a policy
    that does not exist.
    """

    def mind(host: Host) -> Mind:
        return make_mind(policy, host, UNHURRIED, knobs=knobs)

    if can_run_together(policy) and not behind_hal:
        return SimulatedWorld(scenario, mind, hosts=len(seeds), seed=seeds, tick_ms=TICK_MS)
    (seed,) = seeds
    if policy.startswith(ORACLE_PREFIX):
        from .oracles import INFORMED, informed_mind, oracle_mind, world_of

        if policy in INFORMED:
            hal = SimulatedHal(scenario, seed, tick_ms=TICK_MS)
            return HalWorld(hal, lambda host: informed_mind(policy, hal, host, seed), hal.simulator.tick_ns)
        hal = SimulatedHal(world_of(policy, scenario), seed, tick_ms=TICK_MS)
        return HalWorld(hal, lambda host: oracle_mind(policy, hal, host, seed), hal.simulator.tick_ns)
    hal = SimulatedHal(scenario, seed, tick_ms=TICK_MS)
    return HalWorld(hal, mind, hal.simulator.tick_ns)


def simulator_of(world: SimulatedKind) -> Simulator:
    """Return the simulator behind ``world``. Raises InputError for a host that is not simulated."""
    if isinstance(world, SimulatedWorld):
        return world.simulator
    if isinstance(world.hal, SimulatedHal):
        return world.hal.simulator
    raise InputError(f"{world.hal.name} is no simulated host")


class Recording:
    """Simulated hosts tick by tick: T ticks, H hosts, N VMs."""

    def __init__(self, ticks: int, hosts: int, vms: int) -> None:
        size = (ticks, hosts, vms)
        self.arrivals: FloatArray = np.zeros(size)
        self.backlog: FloatArray = np.zeros(size)
        self.mix: FloatArray = np.zeros((*size, R))
        self.threads: FloatArray = np.zeros((ticks, vms))
        self.granted: FloatArray = np.zeros((*size, R))
        """Units commanded before the tick; that the hardware takes its time is not the policy's doing."""
        self.demand: FloatArray = np.zeros((*size, R))
        """What the arrivals of the tick would use if nothing limited the VM: less than the simulator's ``demand`` where
        it holds more ways than it needs, and so misses less."""
        self.decision_us: FloatArray = np.zeros(ticks)
        """Of one host behind a HAL; zeros where hosts run together."""
        self.fallbacks = self.t = 0
        self.simulator: Simulator | None = None

    def take(self, simulator: Simulator) -> None:
        """Copy the tick just done, before anything is decided about it."""
        s, t = simulator, self.t
        self.arrivals[t], self.backlog[t], self.mix[t] = s.arrivals, s.backlog, s.workloads.mix
        self.granted[t], self.threads[t] = s.commanded, s.threads
        np.multiply(s.arrivals[..., None], s.need, out=self.demand[t])
        np.minimum(self.demand[t], s.demand, out=self.demand[t])
        self.demand[t, ..., CACHE] = s.demand[..., CACHE]
        self.simulator = s

    def decided(self, mind: Mind, decision: Decision) -> None:
        """Note what the decision about it took."""
        if not mind.host.batch:
            self.decision_us[self.t] = mind.stage_ns.sum() * 1e-3
        self.fallbacks += not decision.by_policy
        self.t += 1

    @property
    def served(self) -> FloatArray:
        """(T, H, N) requests that left the queue in each tick; those that left with their VM are among them."""
        return self.arrivals - np.diff(self.backlog, axis=0, prepend=0.0)


def record(scenario: Scenario, policy: str, seeds: Sequence[int], ticks: int, *, behind_hal: bool = False) -> Recording:
    """Run ``policy`` for ``ticks`` ticks on a host for each of ``seeds``; see :func:`open_world`."""
    world = open_world(scenario, policy, seeds, behind_hal=behind_hal)
    simulator, recording = simulator_of(world), Recording(ticks, len(seeds), len(scenario.vm))
    for _ in range(ticks):
        world.sense()
        recording.take(simulator)
        recording.decided(world.mind, world.act())
    return recording


def violations(
    scenario: Scenario, policy: str, seeds: Sequence[int], ticks: int, *, warm_ticks: int = 50, knobs: Any = None
) -> FloatArray:
    """Return V (percent) for each of ``seeds`` over the ``ticks`` ticks after ``warm_ticks``; nothing else is kept.

    Raises InputError for a policy that does not exist, or without a tick to judge.
    """
    if ticks < 1 or warm_ticks < 0 or not seeds:
        raise InputError(f"{len(seeds)} runs of {ticks} ticks after {warm_ticks} have nothing to judge")
    groups = [list(seeds)] if can_run_together(policy) else [[seed] for seed in seeds]
    out: list[FloatArray] = []
    for group in groups:
        world = open_world(scenario, policy, group, knobs=knobs)
        simulator = simulator_of(world)
        meter = simulator.lateness
        late, arrived = meter.late_total.copy(), meter.arrived_total.copy()
        for t in range(warm_ticks + ticks):
            if t == warm_ticks:
                late, arrived = meter.late_total.copy(), meter.arrived_total.copy()
            world.sense()
            world.act()
        out.append(violation_pct(meter.late_total - late, meter.arrived_total - arrived, simulator.weight))
    return np.concatenate(out)
