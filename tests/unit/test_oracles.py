from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from foreshare.envs.hal.plan import advance, build_plan
from foreshare.envs.hal.simulated import SimulatedHal
from foreshare.envs.hal.types import Receipt
from foreshare.envs.simulator.lateness import LatenessMeter
from foreshare.envs.simulator.scenario import (
    HostShape,
    MissCurve,
    PerResource,
    Scenario,
    VmShape,
    WorkloadShape,
    load_scenario,
)
from foreshare.policies.decide import DecideOptions, Decision, Mind, decide_tick
from foreshare.policies.errors import InputError
from foreshare.policies.guard import GuardOptions
from foreshare.policies.host import CACHE, CPU, IO, MEMORY, Host, Isolation, Placement, Resource
from foreshare.policies.reading import Reading
from foreshare.policies.registry import make_mind
from foreshare.training.oracles import ORACLES, Foresight, OracleKnobs, oracle_mind, world_of
from foreshare.training.oracles.allocator import OracleAllocator, choices_of, entitled, hand_out_rest
from foreshare.training.oracles.horizon import least_violation_pct
from foreshare.training.oracles.options import make_menu, service_levels, way_options
from foreshare.training.oracles.queues import Situation, deadlines
from foreshare.training.oracles.solve import IMPOSSIBLE

NO_BUDGET_NS = 1 << 62


class Run:
    """A policy on a host, tick by tick, as the control loop would."""

    def __init__(self, scenario: Scenario, policy: str, seed: int = 0, **knobs: float) -> None:
        self.hal = SimulatedHal(scenario, seed)
        self.host = Host(self.hal.topology, self.hal.vms)
        options = DecideOptions(policy_budget_ns=NO_BUDGET_NS)
        self.mind: Mind
        if policy in ORACLES:
            self.mind = oracle_mind(policy, self.hal, self.host, seed, options=options, knobs=OracleKnobs(**knobs))  # type: ignore[arg-type] # keywords by name
        else:
            self.mind = make_mind(policy, self.host, options)
        n = len(self.host)
        self.held, self.reading, self.receipt = (
            Placement.empty(n, self.host.topology.cpus),
            Reading.empty(n),
            Receipt(),
        )
        self.hal.claim(lambda originals: None)
        self.hal.read_back(self.held)
        self.mind.adopt(self.held)
        self.hal.sample(self.reading)

    def tick(self) -> Decision:
        self.hal.clock.sleep_until(self.hal.clock.now_ns() + self.hal.simulator.tick_ns)
        self.hal.sample(self.reading)
        decision = decide_tick(self.mind, self.reading)
        assert decision.by_policy, decision.fault
        plan = build_plan(self.host, self.held, decision.placement)
        self.receipt.clear()
        if len(plan):
            self.hal.apply(plan, 0, self.receipt)
            advance(self.held, plan, self.receipt, decision.placement, self.host)
        return decision

    def violation_pct(self, ticks: int) -> float:
        for _ in range(ticks):
            self.tick()
        return self.hal.slo()


def mixed(load: float, vms: int | None = None) -> Scenario:
    return replace(load_scenario("mixed", vms=vms), load=load)


def small(*vms: VmShape, load: float = 0.6, reserved: float = 0.3, **host: object) -> Scenario:
    shape = HostShape(
        **{"cores": 8, "ways": 10, "shared_ways": 2, "memory_units": 100, "io_units": 100, **host}  # type: ignore[arg-type] # keywords by name
    )
    return Scenario(name="t", host=shape, vm=vms, load=load, reserved=reserved)


def vm(name: str, **more: object) -> VmShape:
    calm = WorkloadShape(kind="steady", noise=0.0)
    return VmShape(**{"name": name, "workload": calm, "access_kb": 1000.0, "io_kb": 10.0, "vcpus": 8, **more})  # type: ignore[arg-type] # keywords by name


# --- foresight


@pytest.mark.parametrize("random_requests", [False, True])
def test_foresight_tells_what_later_arrives_whatever_is_allocated(random_requests: bool) -> None:
    scenario = mixed(0.9)
    if random_requests:
        scenario = replace(scenario, vm=tuple(replace(v, arrivals="poisson") for v in scenario.vm))
    run = Run(scenario, "triage", seed=3)
    sim = run.hal.simulator
    sight = Foresight(scenario, 3, horizon_ticks=7)
    told: list[np.ndarray] = []
    mixes: list[np.ndarray] = []
    for t in range(60):
        told.append(sight.arrivals.copy())
        mixes.append(sight.mix.copy())
        run.tick()
        sight.advance()
        for ahead in range(min(7, t + 1)):
            assert (told[t - ahead][ahead] == sim.arrivals[0]).all()
            assert (mixes[t - ahead][ahead] == sim.workloads.mix[0]).all()
        assert (sight.past[-1] == sim.arrivals[0]).all()
        assert (sight.past_mix == sim.workloads.mix[0]).all()
    assert len(sight.past) == sim.model.target_ticks.max()


def test_foresight_keeps_as_much_of_the_past_as_the_longest_target() -> None:
    scenario = small(vm("a", target_ms=20.0), vm("b", target_ms=60.0))
    sight = Foresight(scenario, 0, horizon_ticks=1)
    seen = []
    for _ in range(9):
        seen.append(sight.arrivals[0].copy())
        sight.advance()
    assert sight.past == pytest.approx(np.array(seen[-6:]))


def test_foresight_refuses_an_empty_horizon() -> None:
    with pytest.raises(InputError, match="horizon"):
        Foresight(small(vm("a")), 0, horizon_ticks=0)


# --- deadlines and options


def test_deadlines_agree_with_the_lateness_meter_for_any_service() -> None:
    rng = np.random.default_rng(5)
    target = np.array([1, 2, 3, 7])
    meter = LatenessMeter(target[None])
    past_ticks, horizon = 7, 6
    arrivals = rng.uniform(0.0, 2.0, (20 + horizon, 4)) * rng.integers(0, 2, (20 + horizon, 4))
    served = rng.uniform(0.0, 2.2, arrivals.shape)
    backlog = np.zeros(4)
    for t in range(20):
        backlog = np.maximum(backlog + arrivals[t] - served[t], 0.0)
        meter.update(arrivals[t][None], backlog[None])
    zeros = np.zeros((4, 4))
    d = deadlines(
        Situation(
            backlog=backlog, past=arrivals[20 - past_ticks : 20], arrivals=arrivals[20:], mix=np.ones((4, 4)),
            held=zeros, cold=zeros, shared_ways=np.zeros(4), low=np.zeros((4, 4), np.int64), threads=np.ones(4),
        ),
        target,
    )  # fmt: skip
    done, before = np.zeros(4), d.late
    for k in range(horizon):
        done = np.minimum(done + served[20 + k], d.arrived[k])
        backlog = np.maximum(backlog + arrivals[20 + k] - served[20 + k], 0.0)
        late = meter.update(arrivals[20 + k][None], backlog[None])[0]
        mine = d.due[k] - np.clip(done, before, d.due[k])
        assert mine == pytest.approx(late, abs=1e-9)
        assert d.arrived[k] - done == pytest.approx(backlog, abs=1e-9)
        before = d.due[k]
    assert (np.diff(d.due_beyond, axis=0) >= -1e-12).all()
    assert d.due_beyond[-1] == pytest.approx(d.arrived[-1])


def test_the_rate_that_meets_all_deadlines_is_among_the_service_levels() -> None:
    run = Run(mixed(0.9), "oracle-paying")
    for _ in range(40):
        run.tick()
    oracle = run.mind.policy
    assert isinstance(oracle, OracleAllocator)
    d = deadlines(oracle._situation(), run.hal.simulator.model.target_ticks)
    level = service_levels(d, np.zeros(len(run.host)))
    k = np.arange(1, len(d.due) + 1)[:, None]
    in_time = (level.max(axis=0) * k >= d.due - 1e-9).all()
    assert in_time and (level[0] == 0).all() and np.isfinite(level).all()


def menu_of(scenario: Scenario, *, pays: bool = True, ticks: int = 30):  # type: ignore[no-untyped-def] # a tuple of three
    run = Run(scenario, "oracle-paying")
    for _ in range(ticks):
        run.tick()
    oracle = run.mind.policy
    assert isinstance(oracle, OracleAllocator)
    situation = oracle._situation()._replace(low=entitled(run.mind.request.ask, run.host))
    sim = run.hal.simulator
    menu = make_menu(situation, sim.model, scenario.host, run.host, OracleKnobs(), pays=pays)
    return run, situation, menu


def test_every_option_respects_entitlement_cap_and_granule() -> None:
    run, situation, menu = menu_of(mixed(0.9))
    possible = menu.value > IMPOSSIBLE / 2
    assert possible[:, 0].all()
    units = menu.units
    assert (units >= situation.low.T[:, :, None]).all()
    assert (units <= run.host.cap.T[:, :, None]).all()
    assert (units % run.host.granule.T[:, :, None] == 0).all()
    assert (units[:, :, 0] == situation.low.T).all()


def test_moves_cost_what_they_lose_only_to_who_pays() -> None:
    scenario = mixed(0.9)
    run, situation, paid = menu_of(scenario)
    free = make_menu(situation, run.hal.simulator.model, scenario.host, run.host, OracleKnobs(), pays=False)
    ok = paid.value > IMPOSSIBLE / 2
    assert (paid.units == free.units).all()
    assert (paid.value <= free.value + 1e-9)[ok].all()
    stays = (paid.units <= situation.held.T[:, :, None] + 1e-9).all(axis=0) & ok
    stays &= (situation.cold.sum(axis=1) == 0)[:, None]
    assert stays.any() and paid.value[stays] == pytest.approx(free.value[stays])
    gains = (paid.units[CPU] > situation.held[:, None, CPU]) & ok
    assert (paid.value < free.value - 1e-12)[gains].any()


def test_options_know_that_ways_save_memory_and_cpu() -> None:
    curve = MissCurve(none=0.9, all=0.05, half_ways=2.0, steepness=2.0)
    shapes = [vm("a", access_kb=20000.0, miss=curve), vm("b", access_kb=20000.0, miss=curve)]
    _, _, menu = menu_of(small(*shapes, load=0.8))
    need = menu.need[:, :, 0]
    ways = menu.units[CACHE, 0].reshape(need.shape[1], -1)[:, 0]
    order = np.flatnonzero(ways > 0)[np.argsort(ways[ways > 0], kind="stable")]
    assert (np.diff(need[MEMORY, order]) <= 1e-12).all()
    assert (np.diff(need[CPU, order]) <= 1e-12).all()
    assert need[MEMORY, order].max() > 2.0 * need[MEMORY, order].min()


def test_what_a_vm_holds_is_among_its_way_options_once() -> None:
    run, situation, _ = menu_of(mixed(0.9))
    for own in (0, 5, 12):
        held = situation.held.copy()
        held[:, CACHE] = own
        ways, allowed = way_options(run.host, situation.low, held)
        for i in range(len(run.host)):
            tried = ways[:, i][allowed[:, i]].tolist()
            assert len(set(tried)) == len(tried) and ways[0, i] == situation.low[i, CACHE]
            assert max(own, tried[0]) in tried or own > run.host.cap[i, CACHE]


def test_who_is_in_time_has_more_to_lose_than_who_is_far_behind() -> None:
    """A whole request of work: worth much to a VM that it keeps in time, little to one with a second of backlog."""
    scenario = small(vm("a", target_ms=20.0), vm("b", target_ms=20.0), load=0.9)
    run, situation, _ = menu_of(scenario)
    model = run.hal.simulator.model
    fed = model.rate.copy()
    arrivals = np.broadcast_to(fed, situation.arrivals.shape)
    past = np.broadcast_to(fed, situation.past.shape)
    behind = np.array([0.0, 100.0]) * fed
    now = situation._replace(arrivals=arrivals, past=past, backlog=behind)
    menu = make_menu(now, model, scenario.host, run.host, OracleKnobs(), pays=False)
    worth = menu.value.reshape(2, -1, len(menu.level))[:, 0]
    rate = menu.level.T
    for i in range(2):
        assert (np.diff(worth[i][np.argsort(rate[i], kind="stable")]) >= -1e-9).all()
    enough = np.abs(rate[0] - fed[0]).argmin()
    gain = worth[0, enough] - worth[0, 0]
    same = np.abs(rate[1] - fed[1]).argmin()
    assert gain > 5.0 * (worth[1, same] - worth[1, 0]) > 0.0


def test_cache_classes_are_a_pool_where_they_are_few() -> None:
    scenario = small(*(vm(f"v{i}") for i in range(5)), classes=3)
    run, _, menu = menu_of(scenario)
    choices = choices_of(menu, run.host)
    assert choices.capacity[-1] == 2 and len(choices.cost) == len(choices.pool) == len(Resource) + 1
    for _ in range(30):
        owners = (run.tick().placement.units[:, CACHE] > 0).sum()
        assert owners <= 2


def test_what_is_left_is_handed_out_within_caps_and_capacity() -> None:
    run, situation, _ = menu_of(mixed(0.45))
    units = situation.low.copy()
    hand_out_rest(units, run.host)
    assert (units >= situation.low).all() and (units <= run.host.cap).all()
    assert (units % run.host.granule == 0).all()
    for g in run.host.groups:
        assert (units[g.rows, g.cols].sum(axis=0) <= g.capacity).all()
    assert (units[:, CACHE] == situation.low[:, CACHE]).all()
    assert units[:, IO].sum() > situation.low[:, IO].sum()


def test_what_is_left_stays_first_with_who_holds_it() -> None:
    run, situation, _ = menu_of(mixed(0.45))
    base = situation.low.copy()
    held = base.astype(np.float64)
    held[0, CPU] = run.host.cap[0, CPU]
    spare = run.host.groups[0].capacity[CPU] - base[:, CPU].sum()
    assert 0 < held[0, CPU] - base[0, CPU] < spare
    apart, together = base.copy(), base.copy()
    hand_out_rest(apart, run.host)
    hand_out_rest(together, run.host, held)
    assert together[0, CPU] == held[0, CPU] > apart[0, CPU]
    assert (together[:, CPU].sum() <= run.host.groups[0].capacity[CPU]).all()


# --- the oracles as policies


@pytest.mark.parametrize("name", list(ORACLES))
def test_what_is_decided_together_is_in_force_together(name: str) -> None:
    """CPU in the next tick, memory two and IO three ticks on: the fast ones wait for the slow one."""
    scenario = world_of(name, mixed(0.65, vms=6))
    delay = PerResource(cpu=1, cache=1, memory=2, io=3)
    scenario = replace(scenario, host=replace(scenario.host, delay_ticks=delay))
    run = Run(scenario, name)
    oracle = run.mind.policy
    assert isinstance(oracle, OracleAllocator)
    decided: list[np.ndarray] = []
    through = oracle._decided.through
    oracle._decided.through = lambda units: through(decided.append(units) or units)  # type: ignore[method-assign, func-returns-value] # spied on
    run.mind.guard.options = GuardOptions(hysteresis=False)
    for t in range(40):
        run.tick()
        assert t < 3 or run.mind.guard.changed == 0
        if t > 6:  # in force in the tick just done: what was decided three ticks before it
            sim = run.hal.simulator
            for r in (CPU, MEMORY, IO):
                assert (sim.holding[0, :, r] == decided[-4][:, r]).all(), (t, r)


@pytest.mark.parametrize("name", list(ORACLES))
def test_an_oracle_keeps_reservations_and_capacity_and_its_word(name: str) -> None:
    run = Run(world_of(name, mixed(0.9)), name, seed=1)
    for _ in range(60):
        decision = run.tick()
        units, host = decision.placement.units, run.host
        assert (units >= entitled(decision.request.ask, host)).all()
        assert (units <= host.cap).all()
        for g in host.groups:
            assert (units[g.rows, g.cols].sum(axis=0) <= g.capacity).all()
        assert run.mind.guard.changed == 0, "the guard had to repair an oracle's answer"


@pytest.mark.parametrize("name", ["oracle-paying", "oracle-state"])
def test_an_oracle_beats_triage_where_the_host_is_short(name: str) -> None:
    scenario = mixed(0.9)
    base = Run(scenario, "triage", seed=1).violation_pct(150)
    assert base > 5.0
    assert Run(scenario, name, seed=1).violation_pct(150) < 0.8 * base


def test_moves_for_free_are_worth_something_where_they_are_free() -> None:
    scenario = mixed(0.9)
    free = Run(world_of("oracle-free", scenario), "oracle-free", seed=1).violation_pct(150)
    paying = Run(scenario, "oracle-paying", seed=1).violation_pct(150)
    assert free < paying


def test_the_same_seed_gives_the_same_decisions() -> None:
    def units() -> list[bytes]:
        run = Run(mixed(0.9, vms=8), "oracle-paying", seed=4)
        return [run.tick().placement.units.tobytes() for _ in range(40)]

    assert units() == units()


def test_only_the_free_oracle_has_a_world_of_its_own() -> None:
    scenario = mixed(0.65)
    assert world_of("oracle-paying", scenario) is scenario
    other = world_of("oracle-free", scenario)
    assert other.host.warm_ticks == PerResource(cpu=0, cache=0, memory=0, io=0)
    assert replace(other, host=scenario.host) == scenario


def test_an_oracle_allows_for_a_delay() -> None:
    scenario = mixed(0.65)
    delay = PerResource(cpu=3, cache=2, memory=1, io=1)
    slow = replace(scenario, host=replace(scenario.host, delay_ticks=delay))
    knows = Run(slow, "oracle-paying", seed=1).violation_pct(200)
    guesses = Run(slow, "triage", seed=1).violation_pct(200)
    assert knows < 0.5 * guesses


def test_an_oracle_sees_vms_come_and_go() -> None:
    scenario = small(
        vm("stays"), vm("comes", arrive_ms=200.0), vm("goes", leave_ms=300.0), vm("removed"), load=0.7
    )  # fmt: skip
    run = Run(scenario, "oracle-paying")
    for _ in range(10):
        run.tick()
    run.hal.remove_vm(3)
    for _ in range(60):
        run.tick()
    sim = run.hal.simulator
    assert sim.alive[0].tolist() == [True, True, False, False]
    assert run.hal.slo() < 5.0


def test_security_partitions_never_move() -> None:
    scenario = small(vm("a"), vm("b", isolation=Isolation.SECURITY, own_ways=2), load=0.8)
    run = Run(scenario, "oracle-paying")
    held = {run.tick().placement.units[1].tobytes() for _ in range(30)}
    assert held == {run.host.reservation[1].tobytes()}


def test_two_zones_are_kept_apart() -> None:
    scenario = load_scenario("mixed", vms=8)
    scenario = replace(scenario, load=0.9, host=replace(scenario.host, cores=16, memory_units=40, zones=2))
    run = Run(scenario, "oracle-paying")
    for _ in range(40):
        units = run.tick().placement.units
        for g in run.host.groups:
            assert (units[g.rows, g.cols].sum(axis=0) <= g.capacity).all()
    assert run.mind.guard.changed == 0


def test_names_and_hosts_that_do_not_fit_are_refused() -> None:
    run = Run(mixed(0.65, vms=4), "oracle-state")
    with pytest.raises(InputError, match="no oracle named"):
        oracle_mind("oracle-of-delphi", run.hal, run.host, 0)
    for _ in range(3):
        run.tick()
    oracle = run.mind.policy
    assert isinstance(oracle, OracleAllocator)
    with pytest.raises(InputError, match="simulator's order"):
        oracle.bind(Host(run.hal.topology, run.hal.vms.take(np.array([1, 0]))))
    oracle.foresight.advance()
    with pytest.raises(InputError, match="behind its oracle"):
        oracle.follow()


# --- the horizon oracle


@pytest.mark.parametrize("load", [0.7, 1.5])
def test_nobody_gets_below_the_horizon_oracle(load: float) -> None:
    scenario = mixed(load, vms=4)
    least = least_violation_pct(scenario, 2, 150)
    assert 0.0 <= least < 100.0
    if load > 1.0:
        assert least > 0.1, "a bound of nothing tests nothing"
    for policy in ("oracle-paying", "oracle-state", "triage"):
        assert Run(scenario, policy, seed=2).violation_pct(150) >= least - 1e-6
    assert Run(world_of("oracle-free", scenario), "oracle-free", seed=2).violation_pct(150) >= least - 1e-6


def test_the_horizon_oracle_is_exact_for_one_vm_that_is_short_of_cpu() -> None:
    one = vm("a", access_kb=0.0, io_kb=0.0, target_ms=10.0, vcpus=8, stall=0.0)
    scenario = small(one, load=1.25)
    ticks = 200
    # Of the 1.25 that arrive in each tick 1 can be served; what comes in the last tick cannot be late in the window.
    late = 1.25 * (ticks - 1) - 1.0 * ticks
    assert least_violation_pct(scenario, 0, ticks) == pytest.approx(100.0 * late / (1.25 * ticks))


def test_the_horizon_oracle_refuses_what_it_cannot_bound() -> None:
    with pytest.raises(InputError, match="too much"):
        least_violation_pct(mixed(0.9), 0, 100_000)
    with pytest.raises(InputError, match="one thread per core"):
        least_violation_pct(small(vm("a"), threads_per_core=2), 0, 10)
    with pytest.raises(InputError, match="stay"):
        least_violation_pct(small(vm("a", leave_ms=50.0)), 0, 10)
