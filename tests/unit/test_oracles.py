from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from oracle_runs import Run, mixed, small, vm

from foreshare.envs.simulator.scenario import (
    PerResource,
    load_scenario,
)
from foreshare.policies.errors import InputError
from foreshare.policies.guard import GuardOptions
from foreshare.policies.host import CPU, IO, MEMORY, Host, Isolation
from foreshare.training.oracles import ORACLES, oracle_mind, world_of
from foreshare.training.oracles.allocator import OracleAllocator, entitled
from foreshare.training.oracles.horizon import least_violation_pct

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
