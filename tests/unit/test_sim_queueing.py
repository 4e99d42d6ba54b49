"""The simulated queue against what is known exactly: Pollaczek and Khinchine, Little, and conservation."""

from __future__ import annotations

import numpy as np
import pytest

from foreshare.envs.simulator.host import Simulator
from foreshare.envs.simulator.requests import LatencyMeter, mean_latency_ticks, random_work, served_at_random
from foreshare.envs.simulator.scenario import (
    HostShape,
    Scenario,
    TelemetryShape,
    VmShape,
    WorkloadShape,
    load_scenario,
)
from foreshare.policies.errors import InputError
from foreshare.policies.host import Resource


def one_core(load: float, *, cv: float, cpu_ms: float = 0.5) -> Scenario:
    calm = WorkloadShape(kind="steady", noise=0.0)
    vm = VmShape(name="a", vcpus=1, cpu_ms=cpu_ms, stall=0.0, workload=calm, arrivals="poisson", request_cv=cv)
    host = HostShape(cores=2, ways=4, memory_units=10, io_units=10)
    return Scenario(name="mg1", host=host, vm=(vm,), load=load / 2, reserved=0.3, telemetry=TelemetryShape(noise=0.0))


@pytest.mark.parametrize("cpu_ms", [0.2, 0.5, 1.0])
@pytest.mark.parametrize(("cv", "name"), [(1.0, "M/M/1"), (0.0, "M/D/1")])
@pytest.mark.parametrize("rho", [0.5, 0.7, 0.9])
def test_mean_waits_are_those_of_pollaczek_and_khinchine(rho: float, cv: float, name: str, cpu_ms: float) -> None:
    sim = Simulator(one_core(rho, cv=cv, cpu_ms=cpu_ms), hosts=600, seed=3)
    for _ in range(100):
        sim.step()
    sim.latency = LatencyMeter((600, 1))
    for _ in range(600):
        sim.step()
    rate = 10.0 / cpu_ms  # requests per tick that one core can serve
    wait = float(sim.latency.mean_ticks().mean()) - 1.0 / rate
    assert wait == pytest.approx(rho * (1 + cv**2) / (2 * rate * (1 - rho)), rel=0.03), name


@pytest.mark.parametrize("cv", [0.0, 1.0])
def test_waits_agree_with_a_simulation_of_every_request(cv: float) -> None:
    rho, rate, count = 0.8, 20.0, 400_000
    rng = np.random.default_rng(1)
    gaps = rng.exponential(1 / (rho * rate), count)
    work = rng.exponential(1.0, count) / rate if cv else np.full(count, 1 / rate)
    free = np.cumsum(np.concatenate([[0.0], work[:-1]]) - np.concatenate([[0.0], gaps[1:]]))
    waits = free - np.minimum.accumulate(np.minimum(free, 0.0))  # Lindley (1952)
    sim = Simulator(one_core(rho, cv=cv), hosts=400, seed=5)
    for _ in range(500):
        sim.step()
    assert float(sim.latency.mean_ticks().mean()) - 1 / rate == pytest.approx(waits.mean(), rel=0.05)


def test_the_work_of_a_tick_has_the_mean_and_the_variance_of_a_compound_poisson() -> None:
    rng = np.random.default_rng(0)
    for expected, spread in ((0.05, 2.0), (1.0, 1.0), (20.0, 1.0), (20.0, 2.0), (5.0, 0.0)):
        size = 10_000
        lam, owed = np.full(size, expected), np.zeros(size)
        total, squares = 0.0, 0.0
        for _ in range(200):
            work = random_work(lam, np.full(size, spread), rng.standard_normal(size), owed)
            assert (work >= 0).all() and (owed >= 0).all()
            total, squares = total + work.mean() / 200, squares + work.var() / 200
        assert total - owed.mean() / 200 == pytest.approx(expected, rel=0.02)
        if expected > 2.0:
            assert squares == pytest.approx(expected * spread, rel=0.03)


def test_without_variance_the_random_server_is_the_fluid_one() -> None:
    rng = np.random.default_rng(2)
    q, a, c = rng.exponential(5.0, (3, 1000))
    served = served_at_random(q, a, c, np.zeros(1000), rng.random(1000))
    assert served == pytest.approx(np.minimum(q + a, c), rel=1e-12)
    served = served_at_random(q, a, c, 3 * a, rng.random(1000))
    assert (served >= 0).all() and (served <= np.minimum(q + a, c) * (1 + 1e-12)).all()


def test_littles_law_holds_exactly_over_busy_periods() -> None:
    """Time spent waiting, summed over requests, is the backlog integrated over time: for every fluid trace."""
    rng = np.random.default_rng(4)
    c = np.full(50, 10.0)
    q, waited, held = np.zeros(50), np.zeros(50), np.zeros(50)
    for t in range(400):
        a = rng.exponential(9.0, 50) * (t < 300)
        after = np.maximum(q + a - c, 0.0)
        waited += a * (mean_latency_ticks(q, after, a, c, np.zeros(50)) - 1 / c)
        # The same path, followed in small steps.
        s = (np.arange(200) + 0.5) / 200
        held += np.maximum(q + np.outer(s, a - c), 0.0).mean(axis=0)
        q = after
    assert (q == 0).all()
    assert waited == pytest.approx(held, rel=2e-3)


def test_littles_law_holds_for_random_requests() -> None:
    """The mean number in the system is the rate times the mean time in it, for M/M/1 as the simulator runs it."""
    rho, rate = 0.8, 20.0
    sim = Simulator(one_core(rho, cv=1.0), hosts=500, seed=8)
    held = 0.0
    for _ in range(400):
        sim.step()
        held += float(sim.backlog.mean()) / 400
    # Exponential work has no memory, so unfinished work counts the requests: the one in service as 1, the others too.
    latency = float(sim.latency.mean_ticks().mean())
    assert held == pytest.approx(rho * rate * (latency - 1 / rate) / rho, rel=0.03)
    assert sim.served_total.sum() / 500 / 400 == pytest.approx(rho * rate, rel=0.01)


@pytest.mark.parametrize("arrivals", ["fluid", "poisson"])
def test_work_and_bytes_are_conserved(arrivals: str) -> None:
    from dataclasses import replace

    s = load_scenario("mixed")
    s = replace(s, load=0.9, vm=tuple(replace(v, arrivals=arrivals) for v in s.vm))
    sim = Simulator(s, hosts=3, seed=1, tick_ms=10)
    sim.command(np.broadcast_to(np.maximum(sim.model.capacity // 14, 1), (3, 16, 4)) * [1, 0, 1, 1])
    io_bytes, asked_bytes = np.zeros((3, 16)), np.zeros((3, 16))
    io_kb = np.array([v.io_kb for v in s.vm])
    arrived = np.zeros((3, 16))
    for _ in range(300):
        sim.step()
        arrived += sim.arrivals
        io_bytes += sim.used[..., Resource.IO] * s.host.io_unit_bytes * 0.01
        asked_bytes += sim.served * io_kb * 1000 * sim.workloads.mix[..., Resource.IO]
    assert io_bytes == pytest.approx(asked_bytes, rel=1e-9)
    assert sim.served_total + sim.backlog == pytest.approx(arrived, rel=1e-9)


def test_a_slow_vm_is_slow_by_its_backlog_and_an_idle_one_takes_a_request_s_own_time() -> None:
    q, none = np.array([100.0]), np.zeros(1)
    assert mean_latency_ticks(q, q, np.array([10.0]), np.array([10.0]), none) == pytest.approx([10.1])
    assert mean_latency_ticks(none, none, np.array([5.0]), np.array([80.0]), np.array([0.05])) == pytest.approx([0.05])
    # 4 requests are ahead, 2 of 6 per tick come on top: gone after a tick, 2 on average.
    assert mean_latency_ticks(np.array([4.0]), none, np.array([2.0]), np.array([6.0]), none) == pytest.approx([0.5])
    assert np.isnan(LatencyMeter((1, 1)).mean_ticks()).all()


def test_other_arrivals_are_refused() -> None:
    with pytest.raises(InputError, match="arrivals"):
        VmShape(name="a", arrivals="sometimes")
