from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from oracle_runs import Run, mixed, small, vm

from foreshare.envs.simulator.lateness import LatenessMeter
from foreshare.envs.simulator.scenario import (
    MissCurve,
    Scenario,
)
from foreshare.policies.errors import InputError
from foreshare.policies.host import CACHE, CPU, IO, MEMORY, Resource
from foreshare.training.oracles import Foresight, OracleKnobs
from foreshare.training.oracles.allocator import OracleAllocator, choices_of, entitled, hand_out_rest
from foreshare.training.oracles.options import make_menu, service_levels, way_options
from foreshare.training.oracles.queues import Situation, deadlines
from foreshare.training.oracles.solve import IMPOSSIBLE

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


def test_a_burst_to_come_takes_nothing_before_it_comes() -> None:
    scenario = small(vm("a", target_ms=20.0), vm("b", target_ms=20.0), load=0.9)
    run, situation, _ = menu_of(scenario)
    model = run.hal.simulator.model
    arrivals = np.broadcast_to(0.2 * model.rate, situation.arrivals.shape).copy()
    arrivals[5:] = 3.0 * model.rate
    now = situation._replace(
        arrivals=arrivals, past=np.zeros_like(situation.past), backlog=np.zeros(2), low=np.zeros_like(situation.low)
    )
    menu = make_menu(now, model, scenario.host, run.host, OracleKnobs(), pays=False)
    need = menu.need[CPU].repeat(len(menu.level), axis=0).T
    assert (menu.units[CPU] < np.ceil(arrivals[0][:, None] * need) + 1.0).all()
    steady = make_menu(now._replace(arrivals=arrivals[5:]), model, scenario.host, run.host, OracleKnobs(), pays=False)
    assert (steady.units[CPU].max(axis=1) > 5.0 * menu.units[CPU].max(axis=1)).all()


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
