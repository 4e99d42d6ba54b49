"""Liars in a training: what differs between a host's halves, and what it costs who serves liars better."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from foreshare.envs.simulator.scenario import Scenario
from foreshare.envs.world import SimulatedWorld
from foreshare.policies.features import VM_FEATURES
from foreshare.policies.host import FloatArray
from foreshare.policies.learned import Network
from foreshare.policies.learned.weights import Widths
from foreshare.policies.registry import make_mind
from foreshare.training.learning.config import EsConfig, Learner, NetworkConfig, ScenesConfig, TrainConfig
from foreshare.training.learning.es import EvolutionStrategy
from foreshare.training.learning.judge import play_here
from foreshare.training.learning.liars import EVERY, LEAST_LOAD, lie, pairs
from foreshare.training.learning.members import MARGIN, Match, Members, late_of_members

SCENES = ScenesConfig(suite="train", most_vms=12, ticks=60, warm_ticks=20)
PAIRS = pairs(SCENES, 40, 3)


def arrivals(scenario: Scenario, ticks: int) -> FloatArray:
    """Return (N,) the mean arrivals of a tick."""
    world = SimulatedWorld(scenario, lambda host: make_mind("triage", host), hosts=1, seed=2)
    for _ in range(ticks):
        world.sense()
        world.act()
    return np.asarray(world.simulator.lateness.arrived_total[0] / ticks)


def test_halves_differ_in_how_the_liars_ask_and_in_nothing_else() -> None:
    kinds = set()
    for pair in PAIRS:
        assert pair.honest.load == pair.lying.load >= LEAST_LOAD
        assert len(pair.liars) == len(range(pair.liars[0], len(pair.honest.vm), EVERY))
        for i, (one, other) in enumerate(zip(pair.honest.vm, pair.lying.vm, strict=True)):
            if i in pair.liars:
                assert one.workload.kind == "steady"
                kinds.add(other.workload.kind)
                assert replace(one, workload=other.workload) == other
            else:
                assert one == other
        assert replace(pair.honest, vm=()) == replace(pair.lying, vm=())
    assert kinds == {"oscillator", "inflator", "silent"}
    assert pairs(SCENES, 40, 3) == PAIRS != pairs(SCENES, 40, 4)


@pytest.mark.parametrize(("kind", "ticks", "within"), [("oscillator", 600, 0.1), ("inflator", 600, 0.1),
                                                       ("silent", 3000, 0.25)])  # fmt: skip
def test_liars_have_as_much_work_as_when_they_are_honest(kind: str, ticks: int, within: float) -> None:
    tried = 0
    for pair in PAIRS:
        rows = list(pair.liars)
        if pair.lying.vm[rows[0]].workload.kind == kind and tried < 3:
            honest, lying = arrivals(pair.honest, ticks), arrivals(pair.lying, ticks)
            assert lying[rows] == pytest.approx(honest[rows], rel=within)
            tried += 1
    assert tried == 3


def test_some_oscillate_with_every_tick() -> None:
    rng = np.random.default_rng(0)
    lies = [lie(rng) for _ in range(200)]
    assert {(w.on_ms, w.off_ms) for w in lies if w.kind == "oscillator"} >= {(10.0, 10.0), (10.0, 20.0), (20.0, 20.0)}
    assert all(w.on_ms % 10.0 == 0.0 == w.off_ms % 10.0 for w in lies if w.kind == "oscillator")


def serving(feature: str, weight: float) -> dict[str, FloatArray]:
    """Return the change that puts VMs of which this feature is high before others."""
    linear = np.zeros((2, *Network.random(0, Widths(0, 0, 0), gain=0.0).arrays["lin_w"].shape), np.float32)
    linear[1, [f.name for f in VM_FEATURES].index(feature), 0] = weight
    return {"lin_w": linear}


def test_who_serves_those_first_whose_use_swings_pays_for_it() -> None:
    members = Members(Network.random(0, Widths(0, 0, 0), gain=0.0), serving("swing_need_cpu", 5.0))
    paid = np.zeros(2)
    for pair in PAIRS[:12]:
        match = Match(scenario=pair.honest, seed=1, ticks=150, warm_ticks=30, base="triage", pair=pair)
        free, dear = (late_of_members(replace(match, honesty=honesty), members) for honesty in (0.0, 2.0))
        assert (free == dear[0]).all(), "the base is what it is, and nobody's lateness counts here"
        assert (dear >= free).all()
        paid += (dear - free)[1:]
    assert paid[1] > paid[0] + 10.0, paid


def test_what_is_paid_is_what_liars_gain() -> None:
    """A pair whose lying half is the honest one: nobody gains anything, so that only the margin is paid."""
    members = Members(Network.random(0, Widths(0, 0, 0), gain=0.0), serving("due_all", -5.0))
    shares = []
    for pair in [p for p in PAIRS if p.honest.load > 0.9][:4]:
        alone = Match(scenario=pair.honest, seed=1, ticks=150, warm_ticks=30, base="triage")
        both = replace(alone, pair=replace(pair, lying=pair.honest))
        assert both.steps == 2 * alone.steps and both.env_steps == 2 * alone.env_steps
        free, dear = (late_of_members(replace(both, honesty=honesty), members) for honesty in (0.0, 1.0))
        assert free == pytest.approx(late_of_members(alone, members)[0])
        shares.append((dear - free)[2] / MARGIN)
    assert 1.0 < max(shares) <= 100.0 and min(shares) >= 0.0


def test_a_strategy_meets_as_many_pairs_as_it_is_told() -> None:
    met: list[Match] = []

    def play(matches: object, members: Members) -> object:
        met.extend(matches)  # type: ignore[arg-type] # a sequence of them
        return play_here(matches, members)  # type: ignore[arg-type]

    config = TrainConfig(
        learner=Learner.ES, scenes=replace(SCENES, ticks=10, warm_ticks=2), network=NetworkConfig(encoder=0, head=0),
        es=EsConfig(pairs=2, scenarios=2, liars=3, honesty=1.5),
    )  # fmt: skip
    network = Network.random(0, config.network.widths, gain=0.0)
    row = EvolutionStrategy(config, network, 0, play).iterate()  # type: ignore[arg-type]
    assert [m.pair is not None for m in met] == [False, False, True, True, True]
    assert {m.honesty for m in met if m.pair} == {1.5}
    assert row["env_steps"] == (2 + 2 * 3) * 12 * 6
