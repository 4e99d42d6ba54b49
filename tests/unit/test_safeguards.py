"""Data, model, prediction, actuator: each safeguard against the fault that it is there for, injected.

Whatever it is, a VM's worst case is its reservation, within two ticks.
"""

from __future__ import annotations

import errno
import itertools
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
from fake_hal import FakeHal
from hosts import check_feasible, check_isolated, table, topology
from misbehaving import Miser

from foreshare.envs.hal import Plan, Receipt
from foreshare.envs.hal.types import Control
from foreshare.envs.simulator.suites import load_suite
from foreshare.envs.world import SimulatedWorld
from foreshare.policies.allocators import Allocator, Request, Triage, WaterFilling
from foreshare.policies.assess import LEAST_TICKS
from foreshare.policies.decide import UNHURRIED, DecideOptions, Mind, decide_tick
from foreshare.policies.forecast import LastValue
from foreshare.policies.guard import GuardOptions
from foreshare.policies.host import CACHE, CPU, IO, MEMORY, Host, IntArray, Placement
from foreshare.policies.reading import Quality, Reading
from foreshare.policies.registry import make_mind, tuned_knobs
from foreshare.policies.standing import Standing, StandingOptions
from foreshare.policies.trust import DOUBT_TICKS, FROZEN_TICKS, LENDER_KEEPS, LOST_TICKS
from foreshare.runtime.actuator import CALM, PATIENCE
from foreshare.runtime.asking import PLUG_IN_RADIUS, open_mind
from foreshare.runtime.loop import ControlLoop, LoopOptions, Tick
from foreshare.runtime.verify import CHUNK, Rounds

DT = 10_000_000
RESERVED = np.array([8, 0, 6, 6])


def small_host(n: int = 4) -> Host:
    return Host(topology(), table(n, reservation=np.tile(RESERVED, (n, 1))))


class Log:
    def __init__(self) -> None:
        self.events: list[tuple[int, str, int]] = []
        self.number = 0
        self.each: Callable[[Tick], None] = lambda tick: None

    def on_event(self, kind: str, vm: int, text: str) -> None:
        self.events.append((self.number, kind, vm))

    def on_tick(self, tick: Tick) -> None:
        self.number = tick.number + 1
        self.each(tick)

    def first(self, kind: str) -> int:
        return next(number for number, k, _ in self.events if k == kind)

    def rows(self, kind: str) -> list[int]:
        return sorted(vm for _, k, vm in self.events if k == kind)


def idle_reading(host: Host, tick: int) -> Reading:
    """Return a reading in which everybody uses next to nothing, at a clock that is never quite the same."""
    r = Reading.empty(len(host))
    r.dt_ns = DT + 1000 * (tick % 7)
    rng = np.random.default_rng(tick)
    r.usage[:] = rng.uniform(0.4, 0.6, (len(host), 4))
    r.demand_low[:] = r.usage
    r.quality[:] = 0
    return r


# -- data


def missing(r: Reading) -> None:
    r.usage[0] = r.demand_low[0] = np.nan
    r.quality[0] = Quality.MISSING


def negative(r: Reading) -> None:
    r.usage[0] = -3.0


def impossible(r: Reading) -> None:
    r.usage[0] = r.demand_low[0] = 1e6


def infinite(r: Reading) -> None:
    r.usage[0] = r.demand_low[0] = np.inf


def frozen(r: Reading) -> None:
    r.usage[0] = r.demand_low[0] = 0.123


def lying(r: Reading) -> None:
    """More than it can have, together with what the others use."""
    r.usage[1:, CPU] = r.demand_low[1:, CPU] = 15.0 + r.usage[1:, CPU]
    r.usage[0] = r.demand_low[0] = [95.0, 0.5, 0.5, 0.5]


def standing_clock(r: Reading) -> None:
    r.dt_ns = 0


@pytest.mark.parametrize(
    ("spoil", "within"),
    [(missing, DOUBT_TICKS), (negative, DOUBT_TICKS), (impossible, DOUBT_TICKS), (infinite, DOUBT_TICKS),
     (frozen, FROZEN_TICKS + DOUBT_TICKS), (standing_clock, DOUBT_TICKS)],
)  # fmt: skip
def test_who_cannot_be_measured_has_its_reservation(spoil: Callable[[Reading], None], within: int) -> None:
    host = small_host()
    mind = make_mind("triage", host, UNHURRIED)
    for t in range(30):
        before = decide_tick(mind, idle_reading(host, t)).request.ask[0].copy()
    assert (before[[0, 2, 3]] < RESERVED[[0, 2, 3]]).all(), "it was idle"
    for t in range(30, 30 + within):
        reading = idle_reading(host, t)
        spoil(reading)
        decision = decide_tick(mind, reading)
    assert (decision.request.ask[0] >= RESERVED).all()
    assert (decision.placement.units[0] >= RESERVED).all()
    assert mind.trust.doubted_vms(reading.present)[0]
    for t in range(60, 120):
        decision = decide_tick(mind, idle_reading(host, t))
    assert not mind.trust.doubted_vms(reading.present).any(), "it makes sense again"
    assert (decision.request.ask[0, [0, 2, 3]] < RESERVED[[0, 2, 3]]).all()


def silent(resource: int) -> Callable[[Reading], None]:
    def spoil(r: Reading) -> None:
        r.usage[0, resource] = r.demand_low[0, resource] = 0.0

    return spoil


def old_and_near_its_limit(r: Reading) -> None:
    r.quality[0, MEMORY] = Quality.STALE
    r.limit[0, MEMORY] = 1.5 * r.usage[0, MEMORY]


def old(r: Reading) -> None:
    r.quality[0, MEMORY] = Quality.STALE
    r.limit[0, MEMORY] = 9.0


@pytest.mark.parametrize(
    ("spoil", "reserved", "believed_at_last"),
    [(silent(MEMORY), [CPU, MEMORY, IO], True), (silent(CPU), [CPU, MEMORY, IO], True), (silent(IO), [IO], True),
     (old_and_near_its_limit, [CPU, MEMORY, IO], False), (old, [MEMORY], False)],
)  # fmt: skip
def test_what_may_hide_a_burst_is_no_ground_to_lend_what_is_reserved(
    spoil: Callable[[Reading], None], reserved: list[int], believed_at_last: bool
) -> None:
    """A counter that says 0 beside others that count, and a bandwidth that was read ticks ago."""
    host = small_host()
    mind = make_mind("triage", host, UNHURRIED)
    for t in range(30):
        decide_tick(mind, idle_reading(host, t))
    others = [r for r in (CPU, MEMORY, IO) if r not in reserved]
    for t in range(30, 30 + LOST_TICKS - 1):
        reading = idle_reading(host, t)
        spoil(reading)
        decision = decide_tick(mind, reading)
        assert (decision.placement.units[0, reserved] >= RESERVED[reserved]).all()
        assert t < 50 or (decision.request.ask[0, others] < RESERVED[others]).all()
        assert (decision.request.ask[1:, CPU] < RESERVED[CPU]).all()
    for t in range(130, 145):
        reading = idle_reading(host, t)
        if believed_at_last:  # after LOST_TICKS a counter that says 0
            spoil(reading)
        decision = decide_tick(mind, reading)
    assert (decision.request.ask[0, [CPU, MEMORY, IO]] < RESERVED[[CPU, MEMORY, IO]]).all()


@pytest.mark.parametrize("resource", [CPU, MEMORY, IO])
def test_a_lender_keeps_several_times_what_he_uses_and_does_not_flap(resource: int) -> None:
    """One VM wants all there is; another uses a tenth of its reservation, and lends most of the rest, steadily."""
    reserved = np.array([16, 0, 12, 12])
    host = Host(topology(), table(4, reservation=np.tile(reserved, (4, 1))))
    mind, rng = make_mind("triage", host, UNHURRIED), np.random.default_rng(3)
    held, given_out = host.reservation.copy(), []
    for t in range(80):
        r = idle_reading(host, t)
        r.wait_ns[:] = 0.0
        r.usage[0] = 0.1 * reserved * rng.uniform(0.9, 1.1, 4)
        r.usage[3] = held[3] * rng.uniform(0.97, 1.0, 4)
        r.limit[:] = held
        r.demand_low[:] = r.usage
        held = decide_tick(mind, r).placement.units.copy()
        given_out.append(held[0, resource])
    lately = np.array(given_out[40:])
    use = 0.1 * reserved[resource]
    assert (lately >= 0.9 * LENDER_KEEPS * use).all() and (lately < 0.8 * reserved[resource]).all()
    assert np.ptp(lately) <= 0.3 * LENDER_KEEPS * use + 1
    r.usage[0, resource] = 0.3 * reserved[resource]  # a burst that does not yet meet the limit
    assert (decide_tick(mind, r).placement.units[0, resource]) >= reserved[resource]


@pytest.mark.parametrize("spoil", [impossible, infinite, lying])
def test_who_claims_the_impossible_gets_its_reservation_and_no_more(spoil: Callable[[Reading], None]) -> None:
    host = small_host()
    mind = make_mind("triage", host, UNHURRIED)
    for t in range(30):
        decide_tick(mind, idle_reading(host, t))
    for t in range(30, 90):
        reading = idle_reading(host, t)
        spoil(reading)
        decision = decide_tick(mind, reading)
        check_feasible(host, decision.placement.units)
        if t >= 30 + DOUBT_TICKS:
            assert decision.request.ask[0, CPU] == RESERVED[CPU]
    if spoil is lying:  # those who tell the truth about the same pool are believed
        assert (decision.request.ask[1:, CPU] >= 15.0).all()
        assert (decision.placement.units[1:, CPU] >= 15).all()


def test_who_is_silent_for_long_is_forecast_at_its_reservation() -> None:
    host = small_host()
    mind = make_mind("triage", host, UNHURRIED)
    for t in range(30):
        reading = idle_reading(host, t)
        reading.usage[0, CPU] = reading.demand_low[0, CPU] = 30.0 + 0.01 * t
        busy = decide_tick(mind, reading).request.ask[0, CPU]
    assert busy >= 30.0
    asks = []
    for t in range(30, 30 + LOST_TICKS + 2):
        reading = idle_reading(host, t)
        missing(reading)
        asks.append(float(decide_tick(mind, reading).request.ask[0, CPU]))
    assert min(asks[:50]) >= 30.0, "a gap costs it nothing"
    assert asks[-1] == RESERVED[CPU], "but the forecast expires"


def test_a_constant_that_follows_the_clock_is_no_frozen_counter() -> None:
    """Where the clock ticks evenly (a simulator) a rate may well stay the same; and 0 is always the same."""
    host = small_host()
    mind = make_mind("triage", host, UNHURRIED)
    for _ in range(60):
        reading = idle_reading(host, 0)
        reading.dt_ns = DT
        reading.usage[1] = reading.demand_low[1] = 0.0
        decide_tick(mind, reading)
    assert not mind.trust.doubted_vms(reading.present).any()
    for t in range(60):
        reading = idle_reading(host, t)
        reading.usage[1] = reading.demand_low[1] = 0.0
        reading.usage[2], reading.quality[2] = 8.0, Quality.CENSORED  # at its limit
        decide_tick(mind, reading)
    assert not mind.trust.doubted_vms(reading.present).any()


def test_a_host_without_a_sample_keeps_everybody_at_least_at_the_reservation() -> None:
    host = small_host()

    class Blind(FakeHal):
        def sample(self, reading: Reading) -> None:
            super().sample(reading)
            if 20 <= self.samples < 40:
                raise OSError(errno.EIO, "no counters")

    hal = Blind(host, lambda tick: [0.5, 0.0, 0.5, 0.5])
    log = Log()
    loop = ControlLoop(hal, make_mind("triage", host, UNHURRIED), observers=[log])

    def each(tick: Tick) -> None:
        if 22 <= hal.samples < 40:
            assert (hal.held.units >= host.reservation).all()

    log.each = each
    counts = loop.run(60)
    assert counts.ticks == 60 and counts.host_faults == {"sample": 20}
    assert log.rows("distrusted") == [0, 1, 2, 3] == log.rows("trusted")


# -- model


def busy_reading(host: Host, tick: int) -> Reading:
    r = idle_reading(host, tick)
    rng = np.random.default_rng(tick)
    r.usage[:] = rng.uniform(10, 18, (len(host), 1)) * [1.0, 0.05, 0.8, 0.9]
    r.demand_low[:] = r.usage
    return r


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


# -- actuator


def taking_turns(tick: int) -> object:
    """Return demand of which half the VMs have much, the other half little, in turns: something moves every tick."""
    much = (np.arange(4) + tick) % 2
    return np.where(much, 60.0, 10.0)[:, None] * np.array([1.0, 0.0, 1.0, 1.0])


def looped(hal: FakeHal, host: Host, **options: int) -> tuple[ControlLoop, Log]:
    log = Log()
    return ControlLoop(hal, Mind(host, LastValue(host), WaterFilling(), UNHURRIED), LoopOptions(**options), [log]), log


def test_who_does_not_obey_is_reported_at_once_and_held_to_its_reservation_after_two_writes() -> None:
    host = small_host()
    hal = FakeHal(host, taking_turns)
    loop, log = looped(hal, host)
    loop.run(20)
    hal.refuse = lambda control, row: errno.EBUSY if row == 2 and control == Control.CPU else 0
    first = log.number
    loop.run(30)
    assert log.first("write-failed") - first <= 1
    assert log.rows("disobeys") == [2] and log.first("disobeys") - first <= 2 * PATIENCE  # tried in every other tick
    assert (loop.mind.decision.placement.units[2] == RESERVED).all()
    assert loop.counts.disobedient == 1
    hal.refuse = lambda control, row: 0
    loop.run(CALM + 5)
    assert log.rows("obeys") == [2]
    assert loop.mind.decision.placement.units[2, CPU] > RESERVED[CPU]


class Deaf(FakeHal):
    """Writes of amounts to VM 1 are accepted: they have no effect, or have it ``lag`` ticks later."""

    lag: int | None = None
    deaf = False

    def apply(self, plan: Plan, deadline_ns: int, receipt: Receipt) -> None:
        before = self.held.units[1].copy()
        super().apply(plan, deadline_ns, receipt)
        if self.deaf:
            wanted = self.held.units[1].copy()
            self.held.units[1] = before
            self.queue.append(wanted)
            if self.lag is not None and len(self.queue) > self.lag:
                self.held.units[1] = self.queue.pop(0)

    queue: list[IntArray]


@pytest.mark.parametrize("lag", [None, 3])
def test_a_write_without_effect_is_noticed_in_the_same_tick(lag: int | None) -> None:
    host = small_host()
    hal = Deaf(host, taking_turns)
    hal.queue = []
    loop, log = looped(hal, host)
    loop.run(20)
    hal.deaf, hal.lag = True, lag
    first = log.number
    loop.run(2 * PATIENCE)
    assert log.first("drift") - first <= 1 and set(log.rows("drift")) == {1}
    assert log.rows("disobeys") == [1]
    loop.run(20)
    assert (loop.mind.decision.placement.units[1] == RESERVED).all()
    assert (loop.controls.held.units == hal.held.units).all(), "it is believed what the kernel says"
    hal.deaf = False
    loop.run(CALM + 20)
    assert set(log.rows("obeys")) == {1}
    assert (hal.held.units[1] >= [10, 0, 9, 9]).all()


def test_a_plan_that_breaks_off_is_not_built_upon_until_it_has_been_read() -> None:
    host = Host(topology(), table(4, isolation=[1, 0, 0, 1]))

    class Breaks(FakeHal):
        broken = blind = False

        def apply(self, plan: Plan, deadline_ns: int, receipt: Receipt) -> None:
            if self.broken:
                self.held.apply(plan, Receipt(), 0)  # all of it was written, but nobody says so
                raise OSError(errno.EIO, "no idea")
            super().apply(plan, deadline_ns, receipt)

        def read_back(self, into: Placement, rows: IntArray | None = None) -> None:
            if self.blind:
                raise OSError(errno.EIO, "cannot read")
            super().read_back(into, rows)

    hal = Breaks(host, taking_turns)
    loop, _ = looped(hal, host)
    loop.run(20)
    hal.broken = True
    loop.run(1)
    hal.blind, hal.broken = True, False
    loop.run(8)
    plans = len(hal.plans)
    loop.run(8)
    assert len(hal.plans) == plans, "it wrote without knowing what is there"
    hal.blind = False
    loop.run(20)
    assert len(hal.plans) > plans
    check_isolated(host, hal.held_placement())
    assert (loop.controls.held.units == hal.held.units).all() and (loop.controls.held.cpus == hal.held.cpus).all()
    assert set(loop.counts.host_faults) == {"apply", "read-back"}
    assert loop.counts.ticks == 57


# -- verify


def test_suspects_wait_for_the_budget_and_nobody_for_ever() -> None:
    rounds = Rounds(64, 100)
    rounds.suspect(np.arange(64))
    read: list[int] = []
    for _ in range(10):
        clock = itertools.count()
        for rows in rounds.rows(lambda clock=clock: next(clock), 0):  # type: ignore[misc] # bound here
            read += rows.tolist()  # the budget is gone after the first batch
    assert len(read) < 100 and set(read) == set(range(64))
    rounds.suspect(np.arange(40))
    batches = list(rounds.rows(lambda: 0, 0))
    assert len(batches[0]) == 1 and all(len(rows) <= CHUNK for rows in batches)
    assert set(np.concatenate(batches).tolist()) >= set(range(40))


@pytest.mark.parametrize(("tick_ms", "within"), [(10, 100), (5, 200), (1000, 1), (400, 2)])
def test_all_of_the_state_is_read_back_once_a_second(tick_ms: int, within: int) -> None:
    host = small_host(8)
    hal = FakeHal(host)
    loop, _ = looped(hal, host, tick_ns=tick_ms * 1_000_000)
    loop.run(2)
    hal.verified.clear()
    loop.run(within)
    assert set(np.concatenate(hal.verified).tolist()) == set(range(8))


# -- time


def test_a_clock_that_goes_back_does_not_stop_the_ticks() -> None:
    host = small_host()
    hal = FakeHal(host)
    loop, log = looped(hal, host)
    clock = hal.clock

    def each(tick: Tick) -> None:
        if tick.number == 10:
            clock._now_ns -= 5 * 10**8  # type: ignore[attr-defined]

    log.each = each
    started = clock.now_ns()
    counts = loop.run(50)
    assert counts.ticks == 50 and counts.missed == 0
    assert clock.now_ns() - started < 50 * DT, "it waited until the clock had caught up"
    assert CACHE == 1
