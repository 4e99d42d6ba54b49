"""``bench simulator``: how many VM-ticks a second one core simulates, judges and describes.

The figures are nested: the step alone, with the workload that it meets, with all that a policy needs (counters,
estimation, triage, features), and a whole step of the vectorised environment, whose guard, ways and reward come on top.
A figure is the best of several rounds in CPU time: what else the machine does would only be added.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from foreshare.envs.agent import Agent, corrected_mind
from foreshare.envs.simulator.scenario import load_scenario
from foreshare.envs.world import SimulatedWorld
from foreshare.policies.allocators.corrected import ACTIONS
from foreshare.policies.features import Encoder

from .bench import machine_facts

LOAD_SCENARIO = "mixed"
ROUNDS, ROUND_TICKS, WARM_TICKS = 8, 30, 60
FEW, MANY = 16, 256


@dataclass(frozen=True, kw_only=True, slots=True)
class SimulatorBench:
    """What to measure."""

    hosts: int = 64
    vms: int = 16


def bench_simulator(bench: SimulatorBench) -> dict[str, Any]:
    """Measure; return the keys of ``foreshare bench simulator --json``."""
    figures = _figures(bench.hosts, bench.vms)
    # As many VMs in all, on hosts of two sizes.
    few, many = (_figures(MANY * 4 // n, n)["all"] for n in (FEW, MANY))
    return {
        "hosts": bench.hosts,
        "vms": bench.vms,
        "vm_ticks_per_s": {name: round(value) for name, value in figures.items()},
        f"cost_ratio_{MANY}_to_{FEW}": round(few / many, 3),
        "machine": machine_facts(),
    }


def _figures(hosts: int, vms: int) -> Mapping[str, float]:
    """Return VM-ticks per second of CPU time, by name."""
    world = SimulatedWorld(
        load_scenario(LOAD_SCENARIO, vms=vms), lambda host: corrected_mind(host, "triage"), hosts=hosts
    )
    mind, simulator = world.mind, world.simulator
    encoder, agent = Encoder(mind), Agent(world, vms)
    nothing = np.zeros((hosts, vms, ACTIONS))

    def judged() -> None:
        world.sense()
        encoder.encode()
        mind.policy.allocate(mind.request, mind.host, mind.tick)

    agent.begin()
    for _ in range(WARM_TICKS):
        agent.step(nothing)
    parts: dict[str, Callable[[], object]] = {
        "environment": lambda: agent.step(nothing),
        "all": judged,
        "step_and_workload": simulator.step,
        "step": simulator.serve,
    }
    best = dict.fromkeys(parts, float("inf"))
    for _ in range(ROUNDS):  # turn about, so that all meet the same machine; the agent brings the hosts back to usual
        for name, part in parts.items():
            start = time.process_time()
            for _ in range(ROUND_TICKS):
                part()
            best[name] = min(best[name], (time.process_time() - start) / ROUND_TICKS)
    return {name: hosts * vms / best[name] for name in ("step", "step_and_workload", "all", "environment")}
