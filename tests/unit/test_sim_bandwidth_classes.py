"""Limits on memory bandwidth on few classes and in coarse steps: in the simulator as the kernel is told them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from resctrl_host import FakeHost, apply

from foreshare.envs.hal.simulated import SimulatedHal
from foreshare.envs.hal.types import Control
from foreshare.envs.simulator import host as simulated
from foreshare.envs.simulator.bandwidth_classes import BandwidthClasses, bandwidth_classes
from foreshare.envs.simulator.host import Simulator
from foreshare.envs.simulator.model import build_model
from foreshare.envs.simulator.scenario import HostShape, PerResource, Scenario, VmShape, WorkloadShape, load_scenario
from foreshare.envs.simulator.scenario_draw import draw
from foreshare.envs.world import HalWorld, SimulatedWorld
from foreshare.policies.decide import UNHURRIED
from foreshare.policies.host import MEMORY, Isolation
from foreshare.policies.registry import make_mind

CALM = WorkloadShape(kind="steady", noise=0.0)
AT_ONCE = PerResource(cpu=0, cache=0, memory=0, io=0)


def scenario(n: int = 12, isolated: int = 2, zones: int = 1, load: float = 0.4, **host: object) -> Scenario:
    shapes = tuple(
        VmShape(name=f"v{i}", workload=CALM, access_kb=3000.0, io_kb=10.0, vcpus=8, cpu_ms=0.2,
                zone=i % zones if zones > 1 else -1,
                isolation=Isolation.ISOLATED if i < isolated else Isolation.SHARED)
        for i in range(n)
    )  # fmt: skip
    base = {"cores": 32, "ways": 12, "shared_ways": 1, "memory_units": 20 * zones, "io_units": 100, "zones": zones,
            "warm_ticks": AT_ONCE, "memory_step": 2, "memory_classes": 7}  # fmt: skip
    shape = HostShape(**{**base, **host})  # type: ignore[arg-type]  # keywords by name
    return Scenario(name="t", host=shape, vm=shapes, load=load, reserved=0.1)


def test_a_class_may_use_what_the_kernel_is_told(tmp_path: Path) -> None:
    """The same VMs and units on resctrl's rules: 12 VMs on 7 groups, steps of 10 %, units of 5 %."""
    real = FakeHost(tmp_path, n=12, isolated=(0, 1), zones=lambda i: i % 2)
    hal = real.open()
    hal.claim(lambda doc: None)
    parts = hal.partitions
    assert parts is not None and parts.offer.split == 2 and len(parts.named) == 7
    units = np.random.default_rng(5).integers(1, 4, 12)
    assert apply(hal, *((Control.MEMORY, r, int(u)) for r, u in enumerate(units))).failures == []
    shape = scenario(zones=2)
    model = build_model(shape, tick_ms=10.0)
    classes = bandwidth_classes(shape.host, model)
    assert classes is not None and len(set(classes.at.tolist())) == 7
    alike = BandwidthClasses(shape.host, model, at=parts.state.group)  # which goes with whom hangs on reservations
    most = alike.limits(units[None].astype(float), np.zeros((1, 12)))[0]
    for row in range(12):
        told = real.bandwidth(parts.named[int(parts.state.group[row])][0])[row % 2]
        assert most[row] * 5 == told, row
    hal.close()


def test_who_wants_gets_what_his_class_leaves() -> None:
    shape = scenario(n=4, isolated=1, memory_step=1, memory_classes=2)
    classes = bandwidth_classes(shape.host, build_model(shape, tick_ms=10.0))
    assert classes is not None and classes.at.tolist() == [0, 1, 1, 1]
    units = np.array([[5.0, 2.0, 4.0, 6.0]])
    assert classes.limits(units, np.zeros((1, 4))).tolist() == [[5, 12, 12, 12]]
    assert classes.limits(units, np.array([[9.0, 10.0, 1.0, 0.0]])).tolist() == [[5, 11, 2, 1]]
    crowded = classes.limits(units, np.array([[9.0, 18.0, 6.0, 0.0]]))
    assert crowded[0].tolist() == [5, 9, 3, 0], "in proportion to what each wants, whatever each was given"


@pytest.mark.parametrize("compiled", [True, False])
def test_a_busy_vm_borrows_within_its_class_only(monkeypatch: pytest.MonkeyPatch, compiled: bool) -> None:
    if not compiled:
        monkeypatch.setattr(simulated, "compiled_step", None)
    used = {}
    for classes in (0, 2):
        shape = scenario(n=4, isolated=1, memory_step=1, memory_classes=classes, load=0.9)
        quiet = tuple(replace(v, cpus=v.cpus if i in (0, 1) else 0.01) for i, v in enumerate(shape.vm))
        sim = Simulator(replace(shape, vm=quiet), hosts=2)
        units = np.full((2, 4, 4), 80.0)
        units[..., MEMORY] = 3.0
        units[:, :, 1] = 0
        for _ in range(60):
            sim.command(units)
            sim.step()
        used[classes] = sim.used[0, :, MEMORY]
        assert (sim.holding[0, :, MEMORY] == 3).all(), "what is shown as the limit is what each was given"
    assert used[0][0] == pytest.approx(3.0) and used[0][1] == pytest.approx(3.0)
    assert used[2][0] == pytest.approx(3.0), "an isolated VM has its own class"
    assert 5.0 < used[2][1] <= 9.0 + 1e-9, "of three times three units"


def test_a_limit_in_force_is_whole_steps() -> None:
    shape = scenario(n=2, isolated=0, memory_step=4, memory_classes=0, load=0.9)
    sim = Simulator(shape)
    units = np.full((1, 2, 4), 80.0)
    units[..., 1], units[0, :, MEMORY] = 0, (3.0, 5.0)
    for _ in range(40):
        sim.command(units)
        sim.step()
    assert sim.used[0, :, MEMORY] == pytest.approx([4.0, 8.0])


def test_nothing_changes_by_default_and_both_fronts_agree() -> None:
    assert Simulator(load_scenario("mixed"))._classes is None
    drawn = draw(9, load=0.9)
    drawn = replace(drawn, host=replace(drawn.host, memory_step=2, memory_classes=3))
    one = HalWorld(SimulatedHal(drawn, seed=3), lambda h: make_mind("triage", h, UNHURRIED), 10_000_000)
    many = SimulatedWorld(drawn, lambda h: make_mind("triage", h, UNHURRIED), hosts=2, seed=3)
    for _ in range(60):
        one.sense()
        many.sense()
        one.act()
        many.act()
    simulator = one.hal.simulator  # type: ignore[attr-defined]  # it is a SimulatedHal
    assert (simulator.backlog[0] == many.simulator.backlog[0]).all() and simulator._classes is not None
