"""What holds in every tick of the simulator, whatever allocation is asked for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foreshare.envs.simulator.cache import effective_ways, miss_ratio
from foreshare.envs.simulator.host import Simulator
from foreshare.envs.simulator.scenario import (
    HotAdd,
    PhaseChange,
    Scenario,
    TelemetryShape,
    WorkloadShape,
    load_scenario,
    resized,
)
from foreshare.policies.host import Resource
from foreshare.policies.reading import Quality

RATES = [Resource.CPU, Resource.MEMORY, Resource.IO]


def everything(vms: int) -> Scenario:
    """Return a host on which all happens: sockets, siblings, random requests, faults, VMs that come and go."""
    s = load_scenario("mixed")
    kinds = ("bursty", "self_similar", "flash_crowd", "silent", "oscillator", "inflator", "streaming", "database")
    s = replace(
        s,
        load=0.9,
        host=replace(s.host, zones=2, threads_per_core=2, cores=16),
        telemetry=TelemetryShape(
            noise=0.1, gap_share=0.05, gap_ms=40, reset_share=0.02, stale_share=0.1, frozen_share=0.05
        ),
        vm=tuple(
            replace(
                v,
                arrivals="poisson" if i % 2 else "fluid",
                workload=WorkloadShape(kind=kinds[i % len(kinds)], on_ms=60, off_ms=140),
                arrive_ms=100.0 * (i % 4 == 1),
                leave_ms=250.0 * (i % 4 == 3),
                hot_add=HotAdd(at_ms=150, vcpus=2 * v.vcpus),
                phase_change=PhaseChange(at_ms=200, load=0.5),
            )
            for i, v in enumerate(s.vm)
        ),
    )
    return resized(s, vms)


def made(name: str, vms: int) -> Scenario:
    return everything(vms) if name == "everything" else load_scenario(name, vms=vms)


@settings(max_examples=25)
@given(
    seed=st.integers(0, 2**31),
    vms=st.integers(0, 20),
    hosts=st.integers(1, 3),
    name=st.sampled_from(["mixed", "churn", "everything"]),
)
def test_work_is_conserved_and_nothing_is_negative_or_over_capacity(seed: int, vms: int, hosts: int, name: str) -> None:
    sim = Simulator(made(name, vms), hosts=hosts, seed=seed)
    rng = np.random.default_rng(seed)
    arrived, gone = np.zeros((hosts, vms)), np.zeros((hosts, vms))
    for _ in range(40):
        units = rng.integers(0, 1 + 2 * sim.model.capacity.astype(int) // max(vms, 1), size=(hosts, vms, 4))
        units[..., Resource.CACHE] = rng.integers(0, 3, size=(hosts, vms)) * (rng.random((hosts, vms)) < 0.3)
        if rng.random() < 0.8:
            sim.command(units)
        before = sim.backlog.copy()
        sim.step()
        lost = before * ~sim.alive  # with a VM that went
        gone += lost
        assert sim.served + sim.backlog == pytest.approx(before - lost + sim.arrivals, rel=1e-9, abs=1e-9)
        assert np.isfinite(sim.latency.latest).all() and (sim.latency.latest >= 0).all()
        sim.counters.collect()
        missing = (sim.counters.quality & Quality.MISSING) > 0
        assert (np.isnan(sim.counters.usage) == missing).all()
        for array in (sim.arrivals, sim.served, sim.backlog, sim.used, sim.demand, sim.ways, sim.cold, sim.need):
            assert np.isfinite(array).all() and (array >= 0).all()
        assert (sim.used[..., RATES].sum(axis=1) <= sim.model.capacity[RATES] * (1 + 1e-9)).all()
        for z in range(sim.scenario.host.zones):
            here = sim.model.vms.zone == z
            if here.any():
                most = sim.model.home[here][0, RATES] * (1 + 1e-9)
                assert (sim.used[:, here][..., RATES].sum(axis=1) <= most).all()
        within = np.maximum(sim.holding, 0.05) * (1 + 1e-9)
        assert (sim.used[..., RATES] <= within[..., RATES]).all()
        arrived += sim.arrivals
        if vms:
            waiting = (sim.arrivals > 0) & (sim.model.request_spread == 0)
            assert (sim.served > 0)[waiting].all()  # nobody is ever stopped for good
    assert sim.served_total + sim.backlog + gone == pytest.approx(arrived, rel=1e-9)
    assert sim.lateness.arrived_total == pytest.approx(arrived)


@settings(max_examples=10)
@given(
    seed=st.integers(0, 2**31),
    first=st.integers(0, 5),
    hosts=st.integers(1, 9),
    name=st.sampled_from(["mixed", "everything"]),
)
def test_a_host_does_not_depend_on_those_beside_it(seed: int, first: int, hosts: int, name: str) -> None:
    scenario = made(name, 5)
    together = Simulator(scenario, hosts=hosts, seed=seed, first_host=first)
    alone = [Simulator(scenario, hosts=1, seed=seed, first_host=first + h) for h in range(hosts)]
    again = Simulator(scenario, hosts=hosts, seed=seed, first_host=first)
    units = np.array(together.model.vms.reservation)
    for t in range(80):
        if t == 10:
            for sim in (together, again, *alone):
                sim.command(np.broadcast_to(units, (sim.hosts, *units.shape)))
        for sim in (together, again, *alone):
            sim.step()
            assert sim.counters.collect()
        assert (together.demand == again.demand).all()
        for h, sim in enumerate(alone):
            for field in ("demand", "backlog", "used", "ways"):
                assert (getattr(together, field)[h] == getattr(sim, field)[0]).all()
            assert (together.latency.latest[h] == sim.latency.latest[0]).all()
            np.testing.assert_array_equal(together.counters.usage[h], sim.counters.usage[0])


@given(
    ends=st.tuples(st.floats(0, 1), st.floats(0, 1)), half=st.floats(0.01, 50), k=st.floats(0.2, 10),
    ways=st.lists(st.floats(0, 64), min_size=2, max_size=8),
)  # fmt: skip
def test_miss_curves_fall_from_none_to_all(ends: tuple[float, float], half: float, k: float, ways: list[float]) -> None:
    none, all_ = np.array(max(ends)), np.array(min(ends))
    w = np.sort(np.array(ways))
    m = miss_ratio(w, none, all_, np.array(half), np.array(k))
    assert (np.diff(m) <= 1e-12).all() and (m <= none + 1e-12).all() and (m >= all_ - 1e-12).all()
    assert miss_ratio(np.array(0.0), none, all_, np.array(half), np.array(k)) == pytest.approx(none)
    assert miss_ratio(np.array(half), none, all_, np.array(half), np.array(k)) == pytest.approx((none + all_) / 2)


@given(own=st.lists(st.integers(0, 4), min_size=1, max_size=12), seed=st.integers(0, 1000), shared=st.integers(1, 3))
def test_ways_are_neither_lost_nor_made(own: list[int], seed: int, shared: int) -> None:
    rng = np.random.default_rng(seed)
    have = np.array([own], float)
    total = have.sum() + shared + rng.integers(0, 5)
    ways, together = effective_ways(
        have, np.zeros_like(have), rng.random(have.shape), total=float(total), shared=float(shared)
    )
    assert (together == (have == 0)).all()
    if together.any():
        assert ways.sum() == pytest.approx(total)
    else:
        assert (ways == have).all()
