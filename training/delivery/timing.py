"""What a learned policy's say costs a tick on a simulated host of 64 VMs: triage, features and network together.

In CPU time: what else runs on the machine that judges is no fault of the policy.
"""

from __future__ import annotations

import time

import numpy as np

from foreshare.envs.hal.simulated import SimulatedHal
from foreshare.envs.simulator.scenario import load_scenario
from foreshare.envs.world import HalWorld
from foreshare.policies.decide import STAGES, UNHURRIED, DecideOptions, Mind
from foreshare.policies.host import Host
from foreshare.policies.learned.network import Network
from foreshare.policies.learned.policy import learned_mind
from foreshare.policies.registry import LEARNED_BASE, make_mind

VMS, TICKS, WARM_TICKS, ROUNDS = 64, 200, 30, 12
BUDGET_US = DecideOptions().policy_budget_ns / 1000
_DECIDE = STAGES.index("decide")


def decide_us(network: Network) -> dict[str, float]:
    """Return ``p50`` and ``p99`` of the decide stage, in us of CPU time; of the best of ROUNDS."""
    hal = SimulatedHal(load_scenario("mixed", vms=VMS), seed=0)

    def mind(host: Host) -> Mind:
        return learned_mind(network, make_mind(LEARNED_BASE, host, UNHURRIED), UNHURRIED)

    world = HalWorld(hal, mind, hal.simulator.tick_ns)
    world.mind.clock_ns = time.thread_time_ns
    rounds = []
    for _ in range(ROUNDS):
        taken = []
        for _ in range(TICKS):
            world.sense()
            world.act()
            taken.append(int(world.mind.stage_ns[_DECIDE]))
        rounds.append(np.percentile(taken[WARM_TICKS:], (50, 99)) / 1000)
    world.close()
    best = min(rounds, key=lambda x: float(x[0]))  # what disturbs a machine only adds
    return {"p50": round(float(best[0]), 1), "p99": round(float(best[1]), 1)}


def too_slow(found: dict[str, float]) -> list[str]:
    """Return why a policy that took so long cannot run on a host; none if it can."""
    if found["p50"] <= BUDGET_US:  # the tail says as much about the machine as about the policy
        return []
    return [f"it takes {found['p50']:.0f} us with {VMS} VMs, at most {BUDGET_US:.0f}"]
