from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from foreshare.envs.simulator.host import Simulator
from foreshare.envs.simulator.scenario import (
    HostShape,
    MissCurve,
    PerResource,
    Scenario,
    TelemetryShape,
    VmShape,
    WorkloadShape,
    load_scenario,
)
from foreshare.policies.errors import InputError
from foreshare.policies.host import Isolation, Resource
from foreshare.policies.reading import Quality

CALM = WorkloadShape(kind="steady", noise=0.0)


def scenario(*vms: VmShape, load: float = 0.5, noise: float = 0.0, gaps: float = 0.0, **host: object) -> Scenario:
    shape = HostShape(
        **{"cores": 8, "ways": 10, "shared_ways": 2, "memory_units": 100, "io_units": 100, **host}  # type: ignore[arg-type] # keywords by name
    )
    return Scenario(
        name="t", host=shape, vm=vms, load=load, telemetry=TelemetryShape(noise=noise, gap_share=gaps), reserved=0.3
    )


def vm(name: str = "a", **more: object) -> VmShape:
    return VmShape(**{"name": name, "workload": CALM, "access_kb": 1000.0, "io_kb": 10.0, "vcpus": 8, **more})  # type: ignore[arg-type] # keywords by name


def give(sim: Simulator, row: int, resource: Resource, units: float) -> None:
    wanted = sim.commanded.copy()
    wanted[:, row, resource] = units
    sim.command(wanted)


def test_unlimited_vms_are_served_at_once_and_use_what_they_demand() -> None:
    sim = Simulator(scenario(vm("a"), vm("b"), load=0.4))
    for _ in range(50):
        sim.step()
    assert sim.backlog.max() == 0 and sim.violation_pct() == [0]
    assert sim.used[0, :, Resource.IO] == pytest.approx(sim.demand[0, :, Resource.IO])
    assert sim.used[0, :, Resource.CPU] == pytest.approx(sim.demand[0, :, Resource.CPU], rel=0.02)
    busiest = (sim.used[0].sum(axis=0) / sim.model.capacity)[[0, 2, 3]].max()
    assert busiest == pytest.approx(0.4, rel=0.02)
    assert sim.utilisation.pct()[0] > 0


@pytest.mark.parametrize("resource", [Resource.CPU, Resource.MEMORY, Resource.IO])
def test_any_of_the_three_can_be_the_bottleneck(resource: Resource) -> None:
    sim = Simulator(scenario(vm("a")))
    for _ in range(5):
        sim.step()
    full = sim.used[0, 0, resource]
    give(sim, 0, resource, full / 2)
    for _ in range(40):
        sim.step()
    assert sim.used[0, 0, resource] == pytest.approx(full / 2)
    assert sim.served[0, 0] == pytest.approx(sim.arrivals[0, 0] / 2)
    assert sim.backlog[0, 0] == pytest.approx(40 * sim.arrivals[0, 0] / 2, rel=0.02)
    assert sim.violation_pct()[0] > 50


@pytest.mark.parametrize("delay", [1, 2, 5])
def test_a_change_takes_its_delay(delay: int) -> None:
    d = PerResource(cpu=delay, cache=1, memory=delay, io=3)
    sim = Simulator(scenario(vm("a"), delay_ticks=d, warm_ticks=PerResource(cpu=0, cache=0, memory=0, io=0)))
    for _ in range(7):
        sim.step()
    sim.command(np.full((1, 1, 4), 4.0))
    seen = []
    for _ in range(8):
        sim.step()
        seen.append(sim.holding[0, 0].copy())
    for r, lag in enumerate((delay, 1, delay, 3)):
        assert [bool(s[r] == 4.0) for s in seen] == [t >= lag - 1 for t in range(8)]


def test_what_is_gained_warms_up_linearly_and_what_is_lost_is_lost_at_once() -> None:
    sim = Simulator(scenario(vm("a"), warm_ticks=PerResource(cpu=4, cache=8, memory=0, io=0), cold_cpu=0.4, cores=100))
    give(sim, 0, Resource.CPU, 10)
    give(sim, 0, Resource.CACHE, 2)
    for _ in range(20):
        sim.step()
    assert sim.cold.max() == pytest.approx(0)
    wanted = sim.commanded.copy()
    wanted[0, 0] = [110, 10, 100, 100]
    sim.command(wanted)
    cpu, ways = [], []
    for _ in range(10):
        sim.step()
        cpu.append(sim.cold[0, 0, Resource.CPU])
        ways.append(sim.cold[0, 0, Resource.CACHE])
    assert cpu == pytest.approx([40, 30, 20, 10, 0, 0, 0, 0, 0, 0])
    assert ways == pytest.approx([8, 7, 6, 5, 4, 3, 2, 1, 0, 0])
    give(sim, 0, Resource.CPU, 20)
    sim.step()
    assert sim.cold[0, 0, Resource.CPU] == 0 and sim.holding[0, 0, Resource.CPU] == 20


def test_a_core_against_another_is_cold_too() -> None:
    sim = Simulator(scenario(vm("a")))
    sim.step()
    gained = np.zeros((1, 1, 4))
    gained[0, 0, Resource.CPU] = 10
    sim.command(sim.commanded.copy(), gained)
    sim.step()
    assert sim.cold[0, 0, Resource.CPU] == pytest.approx(4)


def test_fewer_ways_mean_more_memory_traffic_and_more_cpu_time() -> None:
    curve = MissCurve(none=0.6, all=0.1, half_ways=2.0, steepness=2.0)
    sim = Simulator(scenario(vm("a", miss=curve), vm("b", miss=curve), load=0.2))
    sim.command(np.array([[[80, 1, 100, 100], [80, 7, 100, 100]]], float))
    for _ in range(30):
        sim.step()
    few, many = sim.used[0]
    assert few[Resource.MEMORY] > 2 * many[Resource.MEMORY]
    assert few[Resource.CPU] > 1.1 * many[Resource.CPU]
    assert few[Resource.IO] == pytest.approx(many[Resource.IO])
    # The curve reads back from the bytes: traffic is accesses times misses.
    assert few[Resource.MEMORY] / many[Resource.MEMORY] == pytest.approx(
        (0.1 + 0.5 / (1 + 0.5**2)) / (0.1 + 0.5 / (1 + 3.5**2))
    )


def test_shared_ways_follow_the_access_rate() -> None:
    sim = Simulator(scenario(vm("a", cpus=3.0), vm("b", cpus=1.0), load=0.3))
    for _ in range(60):
        sim.step()
    assert sim.ways[0].sum() == pytest.approx(10)
    assert sim.ways[0, 0] / sim.ways[0, 1] == pytest.approx(3, rel=0.02)


def test_isolated_cores_are_not_for_the_others() -> None:
    sim = Simulator(scenario(vm("own", isolation=Isolation.ISOLATED, cpus=0.1), vm("rest", cpus=10.0), load=0.95))
    sim.command(np.array([[[40, 2, 50, 50], [80, 0, 50, 50]]], float))
    for _ in range(20):
        sim.step()
    assert sim.used[0, 1, Resource.CPU] == pytest.approx(40)


def test_too_much_wanted_is_shared_in_proportion() -> None:
    sim = Simulator(scenario(vm("a", cpus=2.0), vm("b", cpus=1.0), load=2.0))
    for _ in range(10):
        sim.step()
    assert sim.used[0].sum(axis=0)[Resource.CPU] == pytest.approx(80)
    assert sim.backlog.min() > 0


def test_siblings_give_less_than_two_cores() -> None:
    plain = Simulator(scenario(vm("a"), load=0.5))
    smt = Simulator(scenario(vm("a"), load=0.5, threads_per_core=2, cores=4, smt_yield=1.3))
    assert smt.model.base[0, Resource.CPU] == pytest.approx(plain.model.base[0, Resource.CPU] / 0.65)


def test_counters_hide_demand_behind_the_limit_but_show_the_queue() -> None:
    sim = Simulator(scenario(vm("a"), load=0.5))
    for _ in range(5):
        sim.step()
    full = sim.used[0, 0, Resource.CPU]
    give(sim, 0, Resource.CPU, full / 2)
    for _ in range(30):
        sim.step()
        sim.counters.collect()
    c = sim.counters
    assert c.quality[0, 0, Resource.CPU] & Quality.CENSORED and not c.quality[0, 0, Resource.IO]
    assert c.usage[0, 0, Resource.CPU] == pytest.approx(full / 2)
    assert c.limit[0, 0, Resource.CPU] == pytest.approx(full / 2)
    assert c.demand_low[0, 0, Resource.CPU] == pytest.approx(80), "all eight threads run or wait by now"
    assert c.wait_ns[0, 0] == pytest.approx((80 - full / 2) / 10 * 1e7)


def test_counters_average_over_the_ticks_since_the_last_look() -> None:
    sim = Simulator(load_scenario("mixed"), seed=1)
    assert sim.scenario.telemetry.noise == 0.02
    used = np.zeros((16, 4))
    for _ in range(5):
        sim.step()
        used += sim.used[0] / 5
    assert sim.counters.collect()
    known = ~np.isnan(sim.counters.usage[0])
    assert sim.counters.usage[0][known] == pytest.approx(used[known], rel=0.15)
    assert not sim.counters.collect()


def test_gaps_are_missing_not_zero() -> None:
    sim = Simulator(scenario(vm("a"), gaps=0.3), hosts=4)
    missing = 0
    for _ in range(100):
        sim.step()
        sim.counters.collect()
        gap = (sim.counters.quality & Quality.MISSING) > 0
        assert (np.isnan(sim.counters.usage) == gap).all() and (np.isnan(sim.counters.demand_low) == gap).all()
        assert (np.isnan(sim.counters.wait_ns) == gap[..., Resource.CPU]).all()
        missing += int(gap.sum())
    assert missing / (100 * 16) == pytest.approx(0.3, abs=0.05)


def test_noise_does_not_touch_the_demand() -> None:
    a = Simulator(scenario(vm("a"), noise=0.0), seed=4)
    b = Simulator(scenario(vm("a"), noise=0.3), seed=4)
    for _ in range(70):
        a.step()
        b.step()
        b.counters.collect()
    assert (a.demand == b.demand).all()


def test_a_removed_vm_asks_for_nothing_more() -> None:
    sim = Simulator(scenario(vm("a"), vm("b"), load=3.0))
    for _ in range(5):
        sim.step()
    sim.remove(0, 0)
    sim.step()
    assert sim.arrivals[0, 0] == sim.backlog[0, 0] == sim.demand[0, 0].sum() == 0
    assert sim.backlog[0, 1] > 0


def test_allocation_does_not_move_the_arrivals() -> None:
    s = load_scenario("mixed")
    a, b = Simulator(s, seed=9), Simulator(s, seed=9)
    b.command(np.ones((1, 16, 4)))
    for _ in range(30):
        a.step()
        b.step()
        assert (a.arrivals == b.arrivals).all() and (a.demand == b.demand).all()


def test_the_static_partition_is_late_and_following_demand_is_not() -> None:
    s = replace(load_scenario("mixed"), load=0.6)
    static, following = Simulator(s, seed=0), Simulator(s, seed=0)
    m = static.model
    reserved = m.vms.reservation.astype(float)
    whole = np.where(m.isolated[:, None] > 0, reserved, np.floor(reserved * m.capacity / reserved.sum(axis=0)))
    whole[:, Resource.CACHE] = reserved[:, Resource.CACHE]
    static.command(whole[None])
    for _ in range(600):
        want = following.demand * 1.2 + following.backlog[..., None] * following.need + 1
        want[..., Resource.CACHE] = 0
        want *= np.minimum(1, m.capacity / np.maximum(want.sum(axis=1, keepdims=True), 1e-9))
        following.command(want)
        static.step()
        following.step()
    assert static.violation_pct()[0] > 20
    assert following.violation_pct()[0] < 5


@pytest.mark.parametrize(
    "kwargs", [{"hosts": 0}, {"seed": -1}, {"tick_ms": 0.0}, {"tick_ms": 5000.0}, {"first_host": -1}]
)
def test_what_cannot_be_simulated_is_refused(kwargs: dict[str, float]) -> None:
    with pytest.raises(InputError):
        Simulator(load_scenario("mixed"), **kwargs)  # type: ignore[arg-type] # one keyword at a time
