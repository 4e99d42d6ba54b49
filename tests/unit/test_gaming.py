"""What a VM gains by the way in which it asks, against an honest one with the same true need: nothing.

An inflator shows more than it needs: its twin shows what it needs. An oscillator, and one that is silent and then asks
for all at once, need the same work over time as a steady VM in their place. All under overload, when there is something
to gain, and by the share of their requests that are late. How late two VMs of a host are is mostly chance: what seems
to save them a tenth over three runs costs them a tenth over SEEDS.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from foreshare.envs.simulator.scenario import Scenario, WorkloadShape
from foreshare.envs.simulator.suites import load_suite
from foreshare.policies.host import FloatArray
from foreshare.policies.registry import tuned_knobs
from foreshare.training.drive import open_world, simulator_of
from foreshare.training.learning.config import load_config
from foreshare.training.learning.liars import pairs, playing

SCENARIOS = ["train-12x8", "train-24x24", "train-48x24"]
WARM, TICKS = 50, 300
SEEDS, FEW_SEEDS = range(24), range(3)
"""Of the hosts that are named, and of each of those that are drawn."""
STEADY = WorkloadShape(kind="steady", noise=0.1)
ADVERSARIES = {
    "oscillates every tick": WorkloadShape(kind="oscillator", peak=1.8, on_ms=10, off_ms=10, noise=0.1),
    "oscillates every other tick": WorkloadShape(kind="oscillator", peak=1.8, on_ms=20, off_ms=20, noise=0.1),
    "oscillates": WorkloadShape(kind="oscillator", peak=1.8, on_ms=50, off_ms=50, noise=0.1),
    "bursts": WorkloadShape(kind="oscillator", peak=3.0, on_ms=50, off_ms=150, noise=0.1),
    "is silent": WorkloadShape(kind="silent", on_ms=300, off_ms=300, noise=0.1),
    "is silent for long": WorkloadShape(kind="silent", on_ms=300, off_ms=900, noise=0.1),
    "inflates a little": WorkloadShape(kind="inflator", inflate=1.5, noise=0.1),
    "inflates": WorkloadShape(kind="inflator", inflate=3.0, noise=0.1),
}


def scenario_of(name: str, load: float) -> Scenario:
    (found,) = (s for s in load_suite("train").scenarios if s.name == name)
    return replace(found, load=load)


def every_fourth(scenario: Scenario) -> list[int]:
    return list(range(len(scenario.vm)))[::4]


def played(scenario: Scenario, workload: WorkloadShape) -> Scenario:
    """Every fourth VM runs ``workload``, at its usual mean."""
    return playing(scenario, workload, every_fourth(scenario))


def late_share(
    scenario: Scenario, policy: str = "triage", *, defended: bool = True, seeds: Sequence[int] = SEEDS
) -> FloatArray:
    """Return (N,) the share of each VM's requests that are late under a policy, or under triage without its defence."""
    knobs = None if defended else replace(tuned_knobs("triage"), thrift=0.0)
    world = open_world(scenario, policy, seeds, knobs=knobs)
    meter = simulator_of(world).lateness
    for tick in range(WARM + TICKS):
        if tick == WARM:
            late, arrived = meter.late_total.copy(), meter.arrived_total.copy()
        world.sense()
        world.act()
    return np.asarray(
        (meter.late_total - late).sum(axis=0) / np.maximum((meter.arrived_total - arrived).sum(axis=0), 1e-9)
    )


@pytest.mark.parametrize("policy", ["triage", "champion"])
@pytest.mark.parametrize("name", SCENARIOS)
def test_who_oscillates_is_silent_or_lies_is_not_served_better_than_who_is_steady(name: str, policy: str) -> None:
    scenario = scenario_of(name, 0.9)
    rows = every_fourth(scenario)
    honest = late_share(played(scenario, STEADY), policy)[rows].mean()
    for how, workload in ADVERSARIES.items():
        assert late_share(played(scenario, workload), policy)[rows].mean() >= honest - 0.005, how


@pytest.mark.parametrize("policy", ["triage", "champion"])
def test_on_hosts_drawn_anew_no_way_to_lie_pays(policy: str) -> None:
    """Over pairs of hosts from the same source that trainings draw theirs from, with a seed that none has."""
    gained: dict[str, list[float]] = {}
    for pair in pairs(load_config("champion").scenes, 24, 2026):
        rows = list(pair.liars)
        honest, lying = (
            late_share(scenario, policy, seeds=FEW_SEEDS)[rows].mean() for scenario in (pair.honest, pair.lying)
        )
        gained.setdefault(pair.lying.vm[rows[0]].workload.kind, []).append(honest - lying)
    assert set(gained) == {"oscillator", "inflator", "silent"}
    assert all(np.mean(gains) <= 0.005 for gains in gained.values()), gained


def test_the_defences_cost_the_honest_next_to_nothing() -> None:
    """That who took much lately has to stand back (thrift), on hosts whose VMs are all honest, at a usual load."""
    lost = []
    for name in SCENARIOS:
        scenario = scenario_of(name, 0.65)
        honest = tuple(
            replace(vm, workload=STEADY) if vm.workload.kind in ("inflator", "oscillator", "silent") else vm
            for vm in scenario.vm
        )
        fair = replace(scenario, vm=honest)
        lost.append((late_share(fair) - late_share(fair, defended=False)).mean())
    assert np.mean(lost) <= 0.01, lost
