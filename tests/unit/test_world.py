"""The batched world holds what the control loop holds, and a host does not know how many stand beside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from foreshare.envs.hal import Host
from foreshare.envs.hal.simulated import SimulatedHal
from foreshare.envs.simulator.host import Simulator
from foreshare.envs.simulator.scenario import PhaseChange, Scenario, load_scenario
from foreshare.envs.simulator.scenario_draw import draw
from foreshare.envs.world import HalWorld, SimulatedWorld
from foreshare.policies.allocators import Parties, PrioritySort, Static, Triage, WaterFilling
from foreshare.policies.decide import UNHURRIED, Mind
from foreshare.policies.errors import InputError
from foreshare.policies.forecast import LastValue
from foreshare.policies.presence import GONE_TICKS
from foreshare.policies.registry import make_mind
from foreshare.runtime.loop import ControlLoop, Tick


def mind_of(policy: str) -> Callable[[Host], Mind]:
    return lambda host: make_mind(policy, host, UNHURRIED)


def worn(name: str) -> Scenario:
    """Return a scenario where VMs come, go, change, and counters have every fault."""
    return replace(draw(31, cpus=24, vms=14, zones=2, telemetry="all-faults", load=0.8, name=name))


HARD = [
    load_scenario("mixed"),
    load_scenario("channels"),
    draw(8, load=0.8),  # masks of two ways at least
    draw(9, load=0.9),
    worn("worn"),
]


@pytest.mark.parametrize("scenario", HARD, ids=lambda s: s.name)
@pytest.mark.parametrize("policy", ["triage", "forecast", "priority", "heracles"])
def test_the_batch_holds_what_a_host_behind_a_hal_holds(scenario: Scenario, policy: str) -> None:
    one = HalWorld(SimulatedHal(scenario, seed=3), mind_of(policy), 10_000_000)
    many = SimulatedWorld(scenario, mind_of(policy), hosts=2, seed=3)
    simulator = one.hal.simulator  # type: ignore[attr-defined]  # it is a SimulatedHal
    for t in range(300):
        one.sense()
        many.sense()
        mine, theirs = one.act().placement, many.act().placement
        assert (mine.units == theirs.units[0]).all(), f"tick {t}"
        assert (mine.ways == theirs.ways[0]).all(), f"tick {t}"
        assert (simulator.commanded[0] == many.simulator.commanded[0]).all(), f"tick {t}"
        assert (simulator.gained[0] == many.simulator.gained[0]).all(), f"tick {t}"
    assert (one.late()[0] == many.late()[0]).all()


class Allocations:
    """Notes what a control loop decides."""

    def __init__(self) -> None:
        self.seen: list[np.ndarray] = []

    def on_tick(self, tick: Tick) -> None:
        self.seen.append(tick.decision.placement.units.copy())

    def on_event(self, kind: str, vm: int, text: str) -> None:
        """Nothing to note."""


def test_the_batch_holds_what_the_control_loop_holds() -> None:
    scenario, ticks = worn("worn"), 1500
    hal = SimulatedHal(scenario, seed=7)
    hal.claim(lambda originals: None)
    notes = Allocations()
    ControlLoop(hal, make_mind("triage", Host(hal.topology, hal.vms), UNHURRIED), observers=[notes]).run(ticks)
    assert not hal.simulator.alive.all() or len(hal.simulator._life)  # something happened to its VMs
    many = SimulatedWorld(scenario, mind_of("triage"), seed=7)
    for t in range(ticks):
        many.sense()
        assert (many.act().placement.units[0] == notes.seen[t]).all(), f"tick {t}"


def test_a_host_does_not_know_who_stands_beside_it() -> None:
    scenario = worn("worn")
    together = SimulatedWorld(scenario, mind_of("triage"), hosts=8, seed=5, first_host=10)
    apart = [SimulatedWorld(scenario, mind_of("triage"), seed=5, first_host=10 + h) for h in range(8)]
    for t in range(120):
        together.sense()
        together.act()
        for h, world in enumerate(apart):
            world.sense()
            world.act()
            assert (world.simulator.commanded[0] == together.simulator.commanded[h]).all(), f"tick {t}, host {h}"
            assert (world.simulator.backlog[0] == together.simulator.backlog[h]).all(), f"tick {t}, host {h}"
    assert len({tuple(row) for row in together.simulator.backlog.tolist()}) > 1


def test_hosts_in_any_state_go_on_alike() -> None:
    """States nobody reaches by himself, put into the batch and into single hosts."""
    scenario = replace(load_scenario("mixed"), load=0.8)
    together = SimulatedWorld(scenario, mind_of("triage"), hosts=4, seed=5)
    apart = [SimulatedWorld(scenario, mind_of("triage"), seed=5, first_host=h) for h in range(4)]
    rng = np.random.default_rng(0)
    s = together.simulator
    for h, world in enumerate(apart):
        backlog = rng.uniform(0, 50, s.backlog[h].shape)
        cold = rng.uniform(0, 3, s.cold[h].shape)
        for simulator, at in ((s, h), (world.simulator, 0)):
            simulator.backlog[at] = backlog
            simulator.cold[at] = np.minimum(cold, simulator.holding[at])
    for _ in range(60):
        together.sense()
        together.act()
        for h, world in enumerate(apart):
            world.sense()
            world.act()
            assert (world.simulator.used[0] == s.used[h]).all()
            assert (world.simulator.commanded[0] == s.commanded[h]).all()


def test_who_is_gone_gives_up_what_it_held_and_who_comes_is_taken_in() -> None:
    base = load_scenario("mixed")
    vms = [replace(v, phase_change=PhaseChange()) for v in base.vm]
    vms[0], vms[1] = replace(vms[0], leave_ms=300.0), replace(vms[1], arrive_ms=500.0)
    world = SimulatedWorld(replace(base, vm=tuple(vms)), mind_of("triage"), hosts=3, seed=1)
    held = []
    for _ in range(80):
        world.sense()
        held.append(world.act().placement.units.copy())
    gone = 30 + GONE_TICKS
    assert held[28][:, 0].any()
    assert not np.array(held[gone:])[:, :, 0].any()
    assert not np.array(held[GONE_TICKS:50])[:, :, 1].any()
    assert np.array(held[55:])[:, :, 1, (0, 2, 3)].all()


@pytest.mark.parametrize("policy", ["parties", "smartharvest", "bayesian"])
def test_policies_for_one_host_stand_side_by_side(policy: str) -> None:
    scenario = worn("alone-or-not")
    one = HalWorld(SimulatedHal(scenario, seed=3), mind_of(policy), 10_000_000)
    many = SimulatedWorld(scenario, mind_of(policy), hosts=2, seed=[5, 3])
    for t in range(300):
        one.sense()
        many.sense()
        assert (one.act().placement.units == many.act().placement.units[1]).all(), f"tick {t}"


def test_a_mind_for_many_hosts_refuses_a_policy_for_one() -> None:
    model = Simulator(load_scenario("mixed")).model
    many = Host(model.topology, model.vms, batch=(2,))
    for kind in (Static, WaterFilling, Triage, PrioritySort):
        assert kind.batched
    with pytest.raises(InputError, match="one host at a time"):
        Mind(many, LastValue(many), Parties())
