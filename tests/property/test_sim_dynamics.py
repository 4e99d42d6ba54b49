"""What holds in every tick of the simulator, whatever allocation is asked for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foreshare.envs.simulator.cache import effective_ways, miss_ratio
from foreshare.envs.simulator.host import Simulator
from foreshare.envs.simulator.scenario import load_scenario
from foreshare.policies.host import Resource

RATES = [Resource.CPU, Resource.MEMORY, Resource.IO]


@settings(max_examples=25)
@given(
    seed=st.integers(0, 2**31),
    vms=st.integers(0, 20),
    hosts=st.integers(1, 3),
    name=st.sampled_from(["mixed", "churn"]),
)
def test_work_is_conserved_and_nothing_is_negative_or_over_capacity(seed: int, vms: int, hosts: int, name: str) -> None:
    sim = Simulator(load_scenario(name, vms=vms), hosts=hosts, seed=seed)
    rng = np.random.default_rng(seed)
    arrived = np.zeros((hosts, vms))
    for _ in range(40):
        units = rng.integers(0, 1 + 2 * sim.model.capacity.astype(int) // max(vms, 1), size=(hosts, vms, 4))
        units[..., Resource.CACHE] = rng.integers(0, 3, size=(hosts, vms)) * (rng.random((hosts, vms)) < 0.3)
        if rng.random() < 0.8:
            sim.command(units)
        before = sim.backlog.copy()
        sim.step()
        assert sim.served + sim.backlog == pytest.approx(before + sim.arrivals, rel=1e-9, abs=1e-9)
        for array in (sim.arrivals, sim.served, sim.backlog, sim.used, sim.demand, sim.ways, sim.cold, sim.need):
            assert np.isfinite(array).all() and (array >= 0).all()
        assert (sim.used[..., RATES].sum(axis=1) <= sim.model.capacity[RATES] * (1 + 1e-9)).all()
        within = np.maximum(sim.holding, 0.05) * (1 + 1e-9)
        assert (sim.used[..., RATES] <= within[..., RATES]).all()
        arrived += sim.arrivals
        if vms:
            assert (sim.served > 0)[sim.arrivals > 0].all()  # nobody is ever stopped for good
    assert sim.served_total + sim.backlog == pytest.approx(arrived, rel=1e-9)
    assert sim.lateness.arrived_total == pytest.approx(arrived)


@settings(max_examples=10)
@given(seed=st.integers(0, 2**31), first=st.integers(0, 5), hosts=st.integers(1, 9))
def test_a_host_does_not_depend_on_those_beside_it(seed: int, first: int, hosts: int) -> None:
    scenario = load_scenario("mixed", vms=5)
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
