"""Sockets, hardware threads, and units as coarse as the specification imagines."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from foreshare.envs.hal.simulated import SimulatedHal
from foreshare.envs.simulator.host import Simulator
from foreshare.envs.simulator.model import build_model
from foreshare.envs.simulator.scenario import (
    HostShape,
    PerResource,
    Scenario,
    TelemetryShape,
    VmShape,
    WorkloadShape,
    load_scenario,
    resized,
)
from foreshare.envs.simulator.siblings import time_per_work
from foreshare.policies.errors import CapacityError, InputError
from foreshare.policies.host import Host, Isolation, Resource

CALM = WorkloadShape(kind="steady", noise=0.0)
AT_ONCE = PerResource(cpu=0, cache=0, memory=0, io=0)


def vm(name: str, **more: object) -> VmShape:
    base = {"name": name, "workload": CALM, "access_kb": 500.0, "io_kb": 10.0, "vcpus": 16}
    return VmShape(**{**base, **more})  # type: ignore[arg-type] # keywords by name


def scenario(*vms: VmShape, load: float = 0.4, **host: object) -> Scenario:
    base = {"cores": 8, "ways": 10, "shared_ways": 2, "memory_units": 100, "io_units": 100, "warm_ticks": AT_ONCE}
    shape = HostShape(**{**base, **host})  # type: ignore[arg-type] # keywords by name
    return Scenario(name="t", host=shape, vm=vms, load=load, telemetry=TelemetryShape(noise=0.0), reserved=0.3)


def after(sim: Simulator, ticks: int) -> Simulator:
    for _ in range(ticks):
        sim.step()
    return sim


def test_two_sockets_divide_the_host() -> None:
    m = build_model(scenario(vm("a"), vm("b"), vm("c"), zones=2), tick_ms=10)
    t = m.topology
    assert t.zones == 2 and t.zone.tolist() == [0] * 4 + [1] * 4
    assert [t.pool(r, 1).units for r in Resource] == [40, 8, 50, 100]
    assert m.capacity.tolist() == [80, 20, 100, 100] and m.home[0].tolist() == [40, 10, 50, 100]
    assert sorted(m.vms.zone.tolist()) in ([0, 0, 1], [0, 1, 1])
    assert len(Host(t, m.vms).groups) == 3


def test_a_vm_lives_where_it_says_or_where_room_is() -> None:
    m = build_model(scenario(vm("a", zone=1), vm("b", cpus=0.5), vm("c", cpus=3.0), zones=2), tick_ms=10)
    assert m.vms.zone.tolist() == [1, 1, 0]
    for bad, zones in ((2, 2), (1, 1)):
        with pytest.raises(CapacityError, match=f"zone {bad}"):
            build_model(scenario(vm("a", zone=bad), zones=zones), tick_ms=10)
    own = [vm(f"v{i}", isolation=Isolation.ISOLATED, own_ways=5, cpus=1) for i in range(3)]
    with pytest.raises(CapacityError, match="5 ways"):
        build_model(scenario(*own, zones=2), tick_ms=10)
    with pytest.raises(InputError, match="cores"):
        HostShape(cores=5, zones=2, ways=8, memory_units=10, io_units=10)


def test_a_zone_s_neighbours_do_not_feel_the_other_zone() -> None:
    """Two sockets are two hosts of half the size, but for IO."""
    noisy = WorkloadShape(kind="bursty")
    shapes = [vm(f"v{i}", zone=i % 2, cpus=1 + i, workload=noisy, own_ways=i % 3) for i in range(6)]
    both = Simulator(scenario(*shapes, zones=2, load=0.9), seed=1)
    one = Simulator(
        scenario(*(replace(v, zone=-1) for v in shapes[::2]), cores=4, memory_units=50, load=0.9), seed=1
    )  # fmt: skip
    one._rate[:] = both.model.rate[::2]
    units = np.array([[20, 2 * (i % 3), 30, 40] for i in range(6)], float)
    one.workloads.step = lambda: None  # type: ignore[method-assign] # its arrivals are those of the others, below
    both.command(units[None])
    one.command(units[None, ::2])
    for _ in range(60):
        both.step()
        one.workloads.intensity[:] = both.workloads.intensity[:, ::2]
        one.workloads.mix[:] = both.workloads.mix[:, ::2]
        one.step()
        for name in ("used", "backlog", "ways", "demand"):
            np.testing.assert_allclose(getattr(one, name)[0], getattr(both, name)[0, ::2], rtol=1e-9, atol=1e-9)


def test_the_load_is_that_of_the_busiest_zone() -> None:
    m = build_model(scenario(vm("a", zone=0, cpus=3), vm("b", zone=1), zones=2, load=0.6), tick_ms=10)
    sim = after(Simulator(scenario(vm("a", zone=0, cpus=3), vm("b", zone=1), zones=2, load=0.6)), 20)
    share = (sim.used[0] / m.home)[:, [Resource.CPU, Resource.MEMORY, Resource.IO]]
    assert share[0].max() == pytest.approx(0.6, rel=0.1) and share[1].max() == pytest.approx(0.2, rel=0.1)


@pytest.mark.parametrize("name", ["mixed", "churn"])
@pytest.mark.parametrize("vms", [4, 9, 33, 128])
def test_two_socket_hosts_of_any_size_are_feasible(name: str, vms: int) -> None:
    s = load_scenario(name)
    s = resized(replace(s, host=replace(s.host, zones=2)), vms)
    m = build_model(s, tick_ms=10)
    assert len(Host(m.topology, m.vms)) == vms
    weight = np.bincount(m.vms.zone, [v.cpus for v in s.vm], minlength=2)
    assert weight.max() < 1.35 * weight.min()
    sim = after(Simulator(s, hosts=2, seed=1), 30)
    within = np.array([sim.used[0, m.vms.zone == z].sum(axis=0)[[0, 2]] for z in range(2)])
    assert (within <= m.home[0, [0, 2]] * (1 + 1e-9)).all()
    hal = SimulatedHal(s)
    assert hal.topology.zones == 2


def test_threads_alone_on_their_core_do_more() -> None:
    busy = np.array([0.0, 2.0, 4.0, 6.0, 8.0, 9.0])
    got = time_per_work(busy, np.full(6, 8.0), 1.3)
    assert got[:3] == pytest.approx([1, 1, 1]) and got[4:] == pytest.approx([2 / 1.3] * 2)
    assert got[3] == pytest.approx(6 / (2 + 2 * 1.3)), "two cores with one thread, two with both"
    assert time_per_work(np.zeros(1), np.zeros(1), 1.3) == pytest.approx([1])


@pytest.mark.parametrize("isolation", [Isolation.SHARED, Isolation.ISOLATED])
def test_cpu_time_depends_on_whether_the_sibling_is_busy(isolation: Isolation) -> None:
    def run(load: float) -> Simulator:
        a = vm("a", isolation=isolation, own_ways=0, stall=0.0)
        s = scenario(a, cores=4, threads_per_core=2, smt_yield=1.3, load=load)
        sim = Simulator(s)
        sim.command(np.array([[[80, 4 * (isolation > 0), 100, 100]]], float))
        return after(sim, 60)

    light, heavy, full = run(0.2), run(0.8), run(1.5)
    per_request = [float(s.used[0, 0, Resource.CPU] / s.served[0, 0]) for s in (light, heavy, full)]
    alone = light.model.base[0, Resource.CPU] * 0.65
    assert per_request[0] == pytest.approx(alone)
    assert alone < per_request[1] < per_request[2] == pytest.approx(alone * 2 / 1.3)
    # Work is work: what the busy threads do is what the cores can do with so many busy.
    busy = heavy.used[0, 0, Resource.CPU]
    assert heavy.served[0, 0] * alone == pytest.approx((80 - busy) + (busy - 40) * 1.3, rel=1e-6)
    assert full.served[0, 0] * alone == pytest.approx(40 * 1.3, rel=1e-6), "four cores with both threads busy"


def test_whole_channels_and_lanes_can_be_the_units() -> None:
    s = load_scenario("channels")
    m = build_model(s, tick_ms=10)
    memory, io = m.topology.pool(Resource.MEMORY, 0), m.topology.pool(Resource.IO, 0)
    assert (memory.unit, io.unit) == ("channel", "lane")
    assert memory.units <= 16 and io.units <= 64
    host = Host(m.topology, m.vms)
    assert (host.floor[:, [Resource.MEMORY, Resource.IO]] == 1).all()
    sim = after(Simulator(s, seed=2), 300)
    assert 0 < sim.utilisation.pct()[0] < 100
