from __future__ import annotations

import numpy as np
import pytest

from foreshare.envs.simulator.host import Simulator
from foreshare.envs.simulator.scenario import KINDS, WorkloadShape, load_scenario
from foreshare.envs.simulator.workloads import Workloads, mean_io_factor
from foreshare.policies.errors import InputError
from foreshare.policies.host import Resource


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
    assert x.mean() == pytest.approx(1.0, abs=0.04)
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
