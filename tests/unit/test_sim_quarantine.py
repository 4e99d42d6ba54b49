"""A way that leaves an isolated VM rests with nobody: in the simulator as on a real host."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from resctrl_host import FakeHost, apply, plan

from foreshare.envs.hal.linux.resctrl.masks import longest_run
from foreshare.envs.hal.simulated import SimulatedHal
from foreshare.envs.hal.types import Control, Receipt
from foreshare.envs.simulator import host as simulated
from foreshare.envs.simulator.host import Simulator
from foreshare.envs.simulator.resting import longest_runs
from foreshare.envs.simulator.scenario import HostShape, PerResource, Scenario, VmShape, WorkloadShape, load_scenario
from foreshare.envs.simulator.scenario_draw import QUARANTINE_MS, draw
from foreshare.envs.world import HalWorld, SimulatedWorld
from foreshare.policies.decide import UNHURRIED
from foreshare.policies.errors import InputError
from foreshare.policies.host import CACHE, Isolation
from foreshare.policies.reading import Reading
from foreshare.policies.registry import make_mind
from foreshare.training.learning.config import ScenesConfig
from foreshare.training.learning.scenes import scenes

CALM = WorkloadShape(kind="steady", noise=0.0)
AT_ONCE = PerResource(cpu=0, cache=0, memory=0, io=0)
WAYS = Control.WAYS
FREE, BASE = 10, 0b1
"""What the resctrl host of the tests below has: ways that VMs can own, and the shared class's own."""


def scenario(quarantine_ms: float, *, n: int = 4, isolated: int = 2, delay: int = 1, zones: int = 1) -> Scenario:
    shapes = tuple(
        VmShape(name=f"v{i}", workload=CALM, access_kb=500.0, io_kb=10.0, vcpus=2, zone=i % zones if zones > 1 else -1,
                isolation=Isolation.ISOLATED if i < isolated else Isolation.SHARED)
        for i in range(n)
    )  # fmt: skip
    host = HostShape(
        cores=8, ways=12, shared_ways=1, memory_units=100, io_units=100, warm_ticks=AT_ONCE, zones=zones,
        quarantine_ms=quarantine_ms, delay_ticks=PerResource(cache=delay),
    )  # fmt: skip
    return Scenario(name="t", host=host, vm=shapes, load=0.4, reserved=0.2)


def test_the_longest_run_is_that_of_the_kernel_s_side() -> None:
    masks = np.random.default_rng(1).integers(0, 1 << 20, 500)
    assert longest_runs(masks).tolist() == [longest_run(int(m)) for m in masks]


@pytest.mark.parametrize("compiled", [True, False])
def test_both_backends_let_a_way_rest_for_as_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiled: bool
) -> None:
    """The same random plans, a tick each, on resctrl's rules and in the simulator: who may fill how many ways."""
    if not compiled:
        monkeypatch.setattr(simulated, "compiled_step", None)
    quarantine_ms, rng, reading = 30.0, np.random.default_rng(7), Reading.empty(4)
    real = FakeHost(tmp_path, isolated=(0, 1), zones=lambda i: 0)
    linux = real.open(quarantine_ms=quarantine_ms)
    linux.claim(lambda originals: None)
    parts = linux.partitions
    assert parts is not None and linux.topology.ways == FREE
    hal = SimulatedHal(scenario(quarantine_ms))
    hal.claim(lambda originals: None)
    sim = hal.simulator
    hal.sample(reading)
    linux.sample(Reading.empty(4))
    rested = 0
    for t in range(300):
        if t % 3 == 0:
            masks = _random_line(rng)
            shrink = [(WAYS, i, int(hal._held.ways[i]) & masks[i]) for i in range(4)]
            legal = [(WAYS, i, m if m.bit_count() and longest_run(m) == m else 0) for _, i, m in shrink]
            grow = [(WAYS, i, masks[i]) for i in range(4)]
            assert apply(linux, *legal, *grow).failures == [], t
            receipt = Receipt()
            hal.apply(plan(*legal, *grow), 0, receipt)
            assert receipt.failures == [], t
        real.clock.t_ns += 10_000_000
        hal.clock.sleep_until(hal.clock.now_ns() + 10_000_000)
        # The simulator's tick t is what the kernel does between this reading and the one before.
        held = [real.masks(parts.named[int(parts.state.group[i])][0])[0] & ~BASE for i in range(4)]
        own = [bool(parts.state.ways[i]) for i in range(4)]
        there = sim._resting.fills[0].tolist()  # type: ignore[union-attr]
        for i in range(4):
            if own[i]:
                assert held[i] == there[i], (t, i)
                assert sim.holding[0, i, CACHE] == held[i].bit_count()
                rested += held[i] != int(parts.state.ways[i])
        linux.sample(Reading.empty(4))
        hal.sample(reading)
    assert rested > 50, "some of what was promised did rest"
    linux.close()


def _random_line(rng: np.random.Generator) -> list[int]:
    """Return masks of four VMs that do not meet; the two isolated ones have ways always."""
    order, at, out = rng.permutation(4), 1, [0, 0, 0, 0]
    for k, i in enumerate(order):
        at += int(rng.integers(0, 2))
        most = FREE + 1 - at - (len(order) - k - 1) * 2
        count = int(rng.integers(1 if i < 2 else 0, max(min(most, 4), 1) + 1))
        out[i] = ((1 << count) - 1) << at
        at += count
    return out


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("delay", [1, 3])
def test_what_rests_serves_nobody(monkeypatch: pytest.MonkeyPatch, compiled: bool, delay: int) -> None:
    if not compiled:
        monkeypatch.setattr(simulated, "compiled_step", None)
    sim = Simulator(scenario(50.0, delay=delay), hosts=2)

    def give(*masks: int) -> None:
        units = np.full((2, 4, 4), 20.0)
        units[..., CACHE] = [m.bit_count() for m in masks]
        sim.command(units, ways=np.broadcast_to(np.array(masks), (2, 4)))

    def held(ticks: int) -> list[float]:
        for _ in range(ticks):
            sim.step()
        return [*sim.holding[0, :, CACHE].tolist(), round(float(sim.ways[0, 2:].sum()), 6)]

    give(0b111100, 0b11000000, 0, 0)
    assert held(delay) == [4, 2, 0, 0, 6]
    give(0b11100, 0b11100000, 0, 0)  # one way, from the first to the second
    assert held(delay) == [3, 2, 0, 0, 6], "nobody has it"
    assert held(4) == [3, 2, 0, 0, 6]
    assert held(1) == [3, 3, 0, 0, 6], "after five ticks"
    give(0b11100, 0, 0, 0)
    assert held(delay) == [3, 0, 0, 0, pytest.approx(6.0 - sim.ways[0, 1])]
    give(0b11100, 0b11100000, 0, 0)
    assert held(delay)[1] == 3, "what was one's own needs no rest"
    sim.remove(0, 0)
    give(0, 0b11100000, 0, 0)
    assert held(delay)[4] == 6, "what a VM that is gone had rests too"
    assert held(6)[4] == 9
    with pytest.raises(InputError, match="which ways"):
        sim.command(np.full((2, 4, 4), 20.0))


def test_zones_rest_apart_and_nothing_rests_by_default() -> None:
    sim = Simulator(scenario(100.0, zones=2), hosts=1)
    units = np.full((1, 4, 4), 10.0) * [1, 0, 1, 1]
    masks = np.array([[0b1110, 0b1110, 0, 0]])
    sim.command(units, ways=masks)
    sim.step()
    sim.command(units, ways=np.array([[0b10, 0b1110, 0, 0]]))
    sim.step()
    assert sim._there is not None and sim._there[0].tolist() == [10, 12, 10, 12]
    assert Simulator(load_scenario("mixed"))._resting is None
    assert load_scenario("mixed").host.quarantine_ms == 0.0


@pytest.mark.parametrize("policy", ["parties", "bayesian"])
def test_the_batch_and_a_host_behind_a_hal_rest_alike(policy: str) -> None:
    drawn = load_scenario("mixed")
    drawn = replace(drawn, host=replace(drawn.host, quarantine_ms=40.0))
    one = HalWorld(SimulatedHal(drawn, seed=3), lambda h: make_mind(policy, h, UNHURRIED), 10_000_000)
    many = SimulatedWorld(drawn, lambda h: make_mind(policy, h, UNHURRIED), hosts=2, seed=3)
    simulator = one.hal.simulator  # type: ignore[attr-defined]  # it is a SimulatedHal
    rested = 0
    for t in range(400):
        one.sense()
        many.sense()
        mine, theirs = one.act().placement, many.act().placement
        assert (mine.ways == theirs.ways[0]).all(), f"tick {t}"
        assert (simulator.holding[0] == many.simulator.holding[0]).all(), f"tick {t}"
        rested += int((simulator._there < drawn.host.ways).any())  # type: ignore[operator]
    assert rested, "something rested"


PLAIN = {"quarantine_ms": 0.0, "memory_step": 1, "memory_classes": 0}


def test_draws_do_what_resctrl_does_only_where_asked() -> None:
    plain, asked = draw(5), draw(5, resctrl=True)
    assert all(getattr(plain.host, name) == value for name, value in PLAIN.items())
    assert replace(asked, host=replace(asked.host, **PLAIN)) == plain  # type: ignore[arg-type]  # by name
    some = [draw(seed, vms=8, resctrl=True).host for seed in range(20)]
    assert all(QUARANTINE_MS[0] <= h.quarantine_ms <= QUARANTINE_MS[1] for h in some)
    assert len({h.quarantine_ms for h in some}) > 15
    assert len({h.memory_step for h in some}) == 3 and len({h.memory_classes for h in some}) > 2


def test_trainings_do_only_where_asked() -> None:
    plain = scenes(ScenesConfig(suite="smoke", drawn_share=1.0), 8, seed=4)
    some = scenes(ScenesConfig(suite="smoke", drawn_share=1.0, resctrl_share=0.5), 8, seed=4)
    assert [replace(s, host=replace(s.host, **PLAIN)) for s in some] == plain  # type: ignore[arg-type]  # by name
    assert not any(s.host.quarantine_ms for s in plain) and 0 < sum(s.host.quarantine_ms > 0 for s in some) < 8
