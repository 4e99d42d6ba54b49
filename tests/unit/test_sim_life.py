"""VMs that come, go, get more vCPUs and turn to other work during a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from foreshare.envs.hal.simulated import SimulatedHal
from foreshare.envs.simulator.host import Simulator
from foreshare.envs.simulator.scenario import (
    HostShape,
    HotAdd,
    PhaseChange,
    Scenario,
    TelemetryShape,
    VmShape,
    WorkloadShape,
    load_scenario,
)
from foreshare.policies.errors import InputError
from foreshare.policies.host import Isolation, Resource
from foreshare.policies.reading import Quality, Reading

CALM = WorkloadShape(kind="steady", noise=0.0)


def scenario(*vms: VmShape, load: float = 0.4) -> Scenario:
    host = HostShape(cores=8, ways=10, shared_ways=2, memory_units=100, io_units=100)
    return Scenario(name="t", host=host, vm=vms, load=load, telemetry=TelemetryShape(noise=0.0), reserved=0.3)


def vm(name: str = "a", **more: object) -> VmShape:
    return VmShape(**{"name": name, "workload": CALM, "access_kb": 500.0, "io_kb": 10.0, **more})  # type: ignore[arg-type] # keywords by name


def test_a_vm_comes_and_goes() -> None:
    sim = Simulator(scenario(vm("a"), vm("b", arrive_ms=100, leave_ms=300)), hosts=2)
    there = []
    for t in range(50):
        if t == 15:
            sim.command(np.full((2, 2, 4), 10.0) * [1, 0, 1, 1])
        if t == 35:
            sim.command(np.full((2, 2, 4), 20.0) * [1, 0, 1, 1])
        sim.step()
        there.append(bool(sim.alive[0, 1]))
        assert (sim.alive[0] == sim.alive[1]).all()
        if not there[-1]:
            for array in (sim.arrivals, sim.backlog, sim.used, sim.demand, sim.holding, sim.commanded):
                assert (array[:, 1] == 0).all()
        if t == 12:
            assert sim.holding[0, 1].tolist() == [80, 0, 100, 100], "as found: nobody limits it"
    assert there == [10 <= t < 30 for t in range(50)]
    assert sim.alive[:, 0].all() and np.isfinite(sim.latency.mean_ticks()).all()


def test_what_a_vm_held_is_free_when_it_has_gone() -> None:
    own = vm("own", isolation=Isolation.ISOLATED, cpus=0.1, leave_ms=200)
    sim = Simulator(scenario(own, vm("rest", cpus=10.0, vcpus=8), load=0.95))
    sim.command(np.array([[[40, 4, 50, 50], [80, 0, 50, 50]]], float))
    for _ in range(20):
        sim.step()
    assert sim.used[0, 1, Resource.CPU] == pytest.approx(40) and sim.ways[0, 1] == 6
    for _ in range(20):
        sim.step()
    assert sim.used[0, 1, Resource.CPU] > 60 and sim.ways[0, 1] == pytest.approx(10)


def test_more_vcpus_serve_more() -> None:
    sim = Simulator(scenario(vm("a", vcpus=1, hot_add=HotAdd(at_ms=200, vcpus=4)), load=0.4))
    used = []
    for _ in range(40):
        sim.step()
        used.append(sim.used[0, 0, Resource.CPU])
    assert used[10] == pytest.approx(10) and used[21] == pytest.approx(40)
    assert sim.model.vms.cap[0, Resource.CPU] == 40, "the contract knows what can come"


def test_a_phase_change_changes_the_mean_from_then_on() -> None:
    sim = Simulator(scenario(vm("a", phase_change=PhaseChange(at_ms=100, load=0.25))))
    seen = []
    for _ in range(20):
        sim.step()
        seen.append(sim.arrivals[0, 0])
    assert seen[:10] == pytest.approx([seen[0]] * 10) and seen[10:] == pytest.approx([seen[0] / 4] * 10)


def test_life_moves_nobody_else_s_arrivals() -> None:
    plain = load_scenario("mixed", vms=4)
    from dataclasses import replace

    other = replace(plain, vm=(plain.vm[0], replace(plain.vm[1], arrive_ms=50, leave_ms=250), *plain.vm[2:]))
    a, b = Simulator(plain, seed=2), Simulator(other, seed=2)
    for _ in range(40):
        a.step()
        b.step()
        assert (a.arrivals[0, [0, 2, 3]] == b.arrivals[0, [0, 2, 3]]).all()
        assert (a.arrivals[0, 1] == b.arrivals[0, 1]) == bool(b.alive[0, 1])


def test_the_backend_shows_it_as_presence() -> None:
    hal = SimulatedHal(scenario(vm("a"), vm("b", arrive_ms=100, leave_ms=300)))
    hal.claim(lambda doc: None)
    r = Reading.empty(2)
    for t in range(1, 41):
        hal.clock.sleep_until(1_000_000_000 + t * 10_000_000)
        hal.sample(r)
        there = 10 < t <= 30
        assert r.present.tolist() == [True, there]
        if not there:
            assert np.isnan(r.usage[1]).all() and (r.quality[1] & Quality.MISSING).all()
        elif t > 11:
            assert np.isfinite(r.usage[1]).all()


def test_a_file_can_say_it(tmp_path: Path) -> None:
    text = "version = 1\n[host]\ncores = 4\nways = 8\nmemory_units = 10\nio_units = 10\n[[vm]]\nname = 'a'\n"
    (tmp_path / "s.toml").write_text(
        text + "arrive_ms = 20\nleave_ms = 90\nhot_add = { at_ms = 50, vcpus = 8 }\nphase_change = { at_ms = 60 }\n"
    )
    v = load_scenario(tmp_path / "s.toml").vm[0]
    assert (v.arrive_ms, v.leave_ms, v.hot_add, v.phase_change.load) == (20, 90, HotAdd(at_ms=50, vcpus=8), 1)
    (tmp_path / "s.toml").write_text(text + "arrive_ms = 20\nleave_ms = 10\n")
    with pytest.raises(InputError, match="leaves"):
        load_scenario(tmp_path / "s.toml")
