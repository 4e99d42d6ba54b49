from __future__ import annotations

import numpy as np
import pytest

from foreshare.envs.simulator.host import Simulator
from foreshare.envs.simulator.scenario import (
    KINDS,
    HostShape,
    Scenario,
    TelemetryShape,
    VmShape,
    WorkloadShape,
    load_scenario,
)
from foreshare.envs.simulator.workloads import Workloads, mean_io_factor
from foreshare.policies.errors import InputError
from foreshare.policies.host import Resource
from foreshare.policies.reading import Quality


def trajectory(shape: WorkloadShape, ticks: int, hosts: int = 1, vms: int = 1, seed: int = 0) -> np.ndarray:
    w = Workloads([shape] * vms, hosts=hosts, seed=seed, tick_ms=10)
    out = np.empty((ticks, hosts, vms))
    for t in range(ticks):
        w.step()
        out[t] = w.intensity
    return out


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_mean_one_and_is_never_negative(kind: str) -> None:
    shape = WorkloadShape(kind=kind, peak=1.8, on_ms=100, off_ms=150, period_ms=2000)
    x = trajectory(shape, 2000, hosts=4, vms=16)
    # Heavy tails converge slowly, and so do phases that are all of the arrivals.
    assert x.mean() == pytest.approx(1.0, abs=0.1 if kind == "self_similar" else 0.04)
    assert x.min() >= 0


def test_bursts_reach_their_peak_and_last_as_long_as_they_should() -> None:
    x = trajectory(WorkloadShape(kind="bursty", peak=4.0, on_ms=100, off_ms=400, ramp_ms=0, noise=0.0), 4000, vms=16)[
        :, 0
    ]
    high = x > 2
    assert x.max() > 4.0 and high.mean() == pytest.approx(0.2, abs=0.03)
    starts = (high[1:] & ~high[:-1]).sum()
    assert high.sum() / starts == pytest.approx(10, rel=0.15)


def test_training_is_nearly_periodic_and_diurnal_follows_its_sine() -> None:
    x = trajectory(WorkloadShape(kind="training", peak=1.3, on_ms=600, off_ms=200, noise=0.0), 4000)[:, 0, 0]
    turns = np.flatnonzero(np.diff((x > 0.7).astype(int)) == 1)
    assert np.diff(turns).mean() == pytest.approx(80, rel=0.05) and np.diff(turns).std() < 8
    y = trajectory(WorkloadShape(kind="diurnal", period_ms=1000, amplitude=0.5, noise=0.0), 1000)[:, 0, 0]
    spectrum = np.abs(np.fft.rfft(y - y.mean()))
    assert spectrum.argmax() == 10 and y.max() == pytest.approx(1.5, abs=0.01)


def test_checkpoints_are_heavy_on_io_only() -> None:
    shape = WorkloadShape(kind="database", on_ms=200, off_ms=800, io_burst=7.0)
    w = Workloads([shape], hosts=1, seed=0, tick_ms=10)
    mix = []
    for _ in range(2000):
        w.step()
        mix.append(w.mix[0, 0].copy())
    m = np.array(mix)
    assert set(np.unique(m[:, Resource.IO])) == {1.0, 7.0}
    assert (m[:, [Resource.CPU, Resource.MEMORY]] == 1).all()
    assert m[:, Resource.IO].mean() == pytest.approx(mean_io_factor(shape, 10), rel=0.1)


def test_churn_changes_a_third_of_the_vms_by_a_lot_in_every_tick() -> None:
    sim = Simulator(load_scenario("churn", vms=64), seed=2)
    sim.step()
    for _ in range(60):
        before = sim.demand[0, :, Resource.CPU].copy()
        sim.step()
        now = sim.demand[0, :, Resource.CPU]
        assert (np.maximum(now, before) / np.minimum(now, before) > 1.5).sum() >= 16


def test_seeds_and_hosts_differ() -> None:
    shape = WorkloadShape(kind="bursty", peak=3.0)
    a, b = trajectory(shape, 200, hosts=2, vms=3, seed=1), trajectory(shape, 200, hosts=2, vms=3, seed=2)
    assert (a[:, 0] != a[:, 1]).any() and (a != b).any()
    assert (a == trajectory(shape, 200, hosts=2, vms=3, seed=1)).all()


def test_an_impossible_mean_is_refused() -> None:
    with pytest.raises(InputError, match="peak"):
        Workloads([WorkloadShape(kind="bursty", peak=5.0, on_ms=500, off_ms=500)], hosts=1, seed=0, tick_ms=10)
    with pytest.raises(InputError, match="kind"):
        WorkloadShape(kind="other")


def test_a_flash_crowd_comes_fast_and_goes_slowly() -> None:
    shape = WorkloadShape(
        kind="flash_crowd", peak=8.0, on_ms=300, off_ms=5000, ramp_ms=30, decay_ms=1000, noise=0.0
    )  # fmt: skip
    x = trajectory(shape, 6000, hosts=8, vms=16, seed=3)
    assert x.mean() == pytest.approx(1.0, abs=0.05)
    change = np.diff(x.reshape(6000, -1), axis=0)
    assert change.max() > 5 * -change.min()
    assert x.max() / x.min() == pytest.approx(8.0, rel=0.1)


@pytest.mark.parametrize("hurst", [0.7, 0.9])
def test_self_similar_traffic_has_its_hurst_exponent(hurst: float) -> None:
    """Variance of means over m ticks falls as m ** (2 H - 2) (aggregated variance; Beran 1994, section 4.4)."""
    shape = WorkloadShape(kind="self_similar", hurst=hurst, on_ms=20, off_ms=20, noise=0.0)
    x = trajectory(shape, 16384, hosts=4, vms=16, seed=1).reshape(16384, -1)
    sizes = np.array([32, 64, 128, 256, 512])
    variance = [((x.reshape(-1, m, x.shape[1]).mean(axis=1) - 1.0) ** 2).mean() for m in sizes]
    slope = np.polyfit(np.log(sizes), np.log(variance), 1)[0]
    assert 1.0 + slope / 2.0 == pytest.approx(hurst, abs=0.08)
    short = trajectory(WorkloadShape(kind="steady", noise=0.3), 4096, vms=16)[:, 0]
    variance = [short.reshape(-1, m, 16).mean(axis=1).var() for m in sizes]
    assert 1.0 + np.polyfit(np.log(sizes), np.log(variance), 1)[0] / 2.0 < 0.58


def test_an_oscillator_is_a_clock_and_a_silent_vm_is_silent_then_loud() -> None:
    x = trajectory(WorkloadShape(kind="oscillator", peak=1.8, on_ms=40, off_ms=40, noise=0.0), 400)[:, 0, 0]
    assert set(np.round(np.unique(x), 9)) == {0.2, 1.8}
    assert (np.diff(np.flatnonzero(np.diff(x))) == 4).all()
    y = trajectory(WorkloadShape(kind="silent", on_ms=200, off_ms=1800), 20_000, vms=4)[:, 0]
    assert (y == 0).mean() == pytest.approx(0.9, abs=0.03)
    assert y[y > 0].mean() == pytest.approx(10, rel=0.1)


def small(*vms: VmShape, load: float = 0.3) -> Simulator:
    host = HostShape(cores=8, ways=10, shared_ways=2, memory_units=100, io_units=100)
    return Simulator(
        Scenario(name="t", host=host, vm=vms, load=load, telemetry=TelemetryShape(noise=0.0), reserved=0.2)
    )


def test_an_inflator_s_counters_lie_and_its_need_does_not() -> None:
    def run(kind: str) -> Simulator:
        w = WorkloadShape(kind=kind, noise=0.0, inflate=3.0)
        honest = VmShape(name="b", access_kb=500, io_kb=10, workload=WorkloadShape(kind="steady", noise=0.0))
        sim = small(VmShape(name="a", access_kb=500, io_kb=10, vcpus=8, workload=w), honest)
        sim.command(np.array([[[30.0, 0, 50, 50], [40, 0, 50, 50]]]))
        for _ in range(10):
            sim.step()
            sim.counters.collect()
        return sim

    true, lying = run("steady"), run("inflator")
    assert (true.demand == lying.demand).all() and (true.used == lying.used).all()
    shown, was = lying.counters, true.counters
    assert shown.usage[0, 0, Resource.CPU] == 30 and was.usage[0, 0, Resource.CPU] < 20
    assert shown.demand_low[0, 0, Resource.CPU] == pytest.approx(3 * was.usage[0, 0, Resource.CPU])
    assert shown.quality[0, 0, Resource.CPU] & Quality.CENSORED and not was.quality[0, 0, Resource.CPU]
    assert (shown.usage[0, 1] == was.usage[0, 1]).all() and (shown.demand_low[0, 1] == was.demand_low[0, 1]).all()
    assert shown.usage[0, 0, Resource.CACHE] == was.usage[0, 0, Resource.CACHE]


def test_ways_do_not_help_a_stream_but_it_fills_them() -> None:
    w = WorkloadShape(kind="streaming", noise=0.0)
    used = []
    for ways in (1.0, 6.0):
        sim = small(VmShape(name="a", access_kb=2000, workload=w))
        sim.command(np.array([[[80.0, ways, 100, 100]]]))
        for _ in range(20):
            sim.step()
        used.append(sim.used[0, 0].copy())
        assert sim.used[0, 0, Resource.CACHE] == ways and sim.demand[0, 0, Resource.CACHE] == 0
    assert used[0][Resource.MEMORY] == pytest.approx(used[1][Resource.MEMORY])
    assert used[0][Resource.MEMORY] / sim.model.base[0, Resource.MEMORY] / sim.served[0, 0] == pytest.approx(0.95)
