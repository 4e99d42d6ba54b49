"""Safeguards against policies that do worse, run wild, or answer late: each fault injected."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
from hosts import check_feasible
from misbehaving import Miser
from safeguarding import busy_reading, small_host

from foreshare.envs.simulator.suites import load_suite
from foreshare.envs.world import SimulatedWorld
from foreshare.policies.allocators import Allocator, Request, Triage, WaterFilling
from foreshare.policies.assess import LEAST_TICKS
from foreshare.policies.decide import UNHURRIED, DecideOptions, Mind, decide_tick
from foreshare.policies.forecast import LastValue
from foreshare.policies.guard import GuardOptions
from foreshare.policies.host import CACHE, Host, IntArray
from foreshare.policies.registry import make_mind, tuned_knobs
from foreshare.policies.standing import Standing, StandingOptions
from foreshare.runtime.asking import PLUG_IN_RADIUS, open_mind


def test_a_model_that_does_worse_is_benched_and_the_default_decides() -> None:
    host = small_host()
    forecaster = make_mind("triage", host, UNHURRIED).forecaster
    mind = Mind(host, forecaster, Miser(), UNHURRIED, default=Triage())
    kinds = []
    for t in range(3 * LEAST_TICKS):
        decision = decide_tick(mind, busy_reading(host, t))
        kinds.append(decision.fault_kind)
        if decision.fault_kind == "benched":
            assert not decision.by_policy and decision.default is not None
            assert (decision.placement.units >= np.minimum(decision.default, decision.request.ask)).all()
    assert not any(kinds[: LEAST_TICKS - 1]), "not judged by a few ticks"
    assert kinds.count("worse") == 1 and kinds[-1] == "benched", "it does not come back as long as it does worse"
    assert mind.standing.faults == {"worse": 1} and mind.standing.benches == 1
    mind.policy.allocate = Triage().allocate  # type: ignore[method-assign] # it has learnt
    for t in range(3 * LEAST_TICKS, 12 * LEAST_TICKS):
        if not decide_tick(mind, busy_reading(host, t)).fault_kind:
            break
    else:
        pytest.fail("it never came back")


@pytest.mark.parametrize("policy", [Triage, WaterFilling])
def test_a_model_that_does_as_well_stays(policy: type[Triage]) -> None:
    host = small_host()
    forecaster = make_mind("triage", host, UNHURRIED).forecaster
    mind = Mind(host, forecaster, policy(), UNHURRIED, default=Triage())
    for t in range(4 * LEAST_TICKS):
        assert not decide_tick(mind, busy_reading(host, t)).fault_kind
    assert mind.assessor is not None and abs(mind.assessor.mean) < 0.01


class Hoarder:
    """Gives one VM everything, and says so every tick anew."""

    name = "hoarder"
    batched = True

    def allocate(self, request: Request, host: Host, tick: int) -> IntArray:
        out = np.zeros(host.shape, np.int64)
        out[..., tick % len(host), :] = host.cap[tick % len(host)]
        return out


def test_within_the_trust_region_a_wild_policy_costs_nobody_more_than_his_share() -> None:
    host, radius = small_host(), 0.25
    options = replace(UNHURRIED, guard=GuardOptions(radius=radius))
    inner = make_mind("triage", host, UNHURRIED)
    mind = Mind(host, inner.forecaster, Hoarder(), options, default=Triage())
    raised = 0
    for t in range(LEAST_TICKS - 1):  # until it is found out
        decision = decide_tick(mind, busy_reading(host, t))
        assert decision.by_policy and decision.default is not None
        least = np.floor((1.0 - radius) * decision.default)
        least[:, CACHE] = 0  # best effort
        assert (decision.placement.units >= least).all()
        raised += decision.raised > 0
    assert raised > LEAST_TICKS / 2, "it was counted"
    for t in range(LEAST_TICKS, 3 * LEAST_TICKS):
        decision = decide_tick(mind, busy_reading(host, t))
    assert not decision.by_policy and not decision.raised, "who is benched is not held to anything"


def test_plug_ins_are_held_to_a_trust_region_and_our_own_policies_are_not() -> None:
    host = small_host()
    for policy, radius in (("hoarder", PLUG_IN_RADIUS), ("triage", 1.0), ("champion", 1.0)):
        name = f"{__name__}:Hoarder" if policy == "hoarder" else policy
        with closing(open_mind(name, host, UNHURRIED, "inline")) as mind:
            assert mind.options.guard.radius == radius
    with closing(open_mind(f"{__name__}:Hoarder", host, UNHURRIED, "inline", radius=0.5)) as mind:
        assert mind.options.guard.radius == 0.5


def test_how_much_worse_a_wild_policy_makes_it_is_bounded() -> None:
    """V on an overcommitted host, with a policy that starves all but one VM, and triage's share beside it."""
    (scenario,) = (s for s in load_suite("train").scenarios if s.name == "train-12x8")

    def late(policy: Allocator | None, radius: float) -> float:
        def mind(host: Host) -> Mind:
            inner = make_mind("triage", host, UNHURRIED)
            if policy is None:
                return inner
            options = replace(UNHURRIED, guard=GuardOptions(radius=radius))
            out = Mind(host, inner.forecaster, policy, options, default=Triage(tuned_knobs("triage")))
            out.assessor = None  # not benched: for ever
            return out

        world = SimulatedWorld(replace(scenario, load=0.65), mind, hosts=2, seed=0)
        for _ in range(250):
            world.sense()
            world.act()
        return float(world.simulator.violation_pct().mean())

    alone, held, wild = late(None, 1.0), late(Hoarder(), 0.25), late(Hoarder(), 1.0)
    assert held - alone < 0.6 * (wild - alone), (alone, held, wild)


def test_the_assessment_cannot_be_had_by_proposing_more_than_there_is() -> None:
    class Greedy(Miser):
        def allocate(self, request: Request, host: Host, tick: int) -> IntArray:
            out = host.floor.copy()
            out[0] = host.cap[0] * 100  # one gets all and more
            return out

    host = small_host()
    mind = Mind(host, LastValue(host), Greedy(), UNHURRIED, default=Triage())
    for t in range(2 * LEAST_TICKS):
        decide_tick(mind, busy_reading(host, t))
    assert mind.standing.faults.get("worse")


# -- strikes


def test_three_strikes_and_a_bench_that_doubles() -> None:
    standing = Standing(StandingOptions(strikes=3, first_ticks=10, most_ticks=25))
    tick, benches = 0, []
    for _ in range(4):
        while standing.may_decide(tick):
            standing.fault("late", tick)
            tick += 1
        start = tick
        while not standing.may_decide(tick):
            tick += 1
        benches.append(tick - start)
    assert benches == [10, 20, 25, 25]
    assert standing.faults == {"late": 6}, "three for the first, one for each of the others"


def test_answers_in_time_take_strikes_back_but_not_for_lost_processes() -> None:
    for kind, benched in (("late", False), ("crashed", True)):
        standing = Standing()
        for tick in range(0, 300, 30):
            if not standing.may_decide(tick):
                break
            standing.fault(kind, tick)
            for _ in range(29):
                standing.good()
        assert bool(standing.benches) == benched


# -- prediction: see also test_policy_process.py, where answers come late for real


def test_an_inline_answer_that_is_late_serves_the_next_tick() -> None:
    host = small_host()
    now = 0

    class Slow(WaterFilling):
        def allocate(self, request: Request, host: Host, tick: int) -> IntArray:
            nonlocal now
            now += 700_000 if tick in (5, 6) else 1
            return super().allocate(request, host, tick)

    mind = Mind(host, LastValue(host), Slow(), DecideOptions())
    mind.clock_ns = lambda: now
    seen = []
    for t in range(9):
        decision = decide_tick(mind, busy_reading(host, t))
        seen.append((decision.by_policy, decision.age, decision.fault_kind))
        check_feasible(host, decision.placement.units)
    assert seen[4:9] == [(True, 0, ""), (True, 1, "late"), (True, 1, "late"), (True, 0, ""), (True, 0, "")]
