"""Counters that fail: what they show, how often, for how long, and how it is marked."""

from __future__ import annotations

import numpy as np
import pytest

from foreshare.envs.simulator.host import Simulator
from foreshare.envs.simulator.scenario import HostShape, Scenario, TelemetryShape, VmShape, WorkloadShape
from foreshare.policies.errors import InputError
from foreshare.policies.host import Resource
from foreshare.policies.reading import Quality


def simulator(**telemetry: float) -> Simulator:
    vm = VmShape(name="a", access_kb=500, io_kb=10, workload=WorkloadShape(kind="steady", noise=0.3))
    host = HostShape(cores=8, ways=10, shared_ways=2, memory_units=100, io_units=100)
    shape = TelemetryShape(**{"noise": 0.0, **telemetry})
    return Simulator(Scenario(name="t", host=host, vm=(vm,), load=0.3, telemetry=shape), hosts=16, seed=3)


def run(sim: Simulator, ticks: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return (T, H, R) what was used, what was shown, the least demand known, and the quality."""
    used, shown, low, quality = [], [], [], []
    for _ in range(ticks):
        sim.step()
        sim.counters.collect()
        used.append(sim.used[:, 0].copy())
        shown.append(sim.counters.usage[:, 0].copy())
        low.append(sim.counters.demand_low[:, 0].copy())
        quality.append(sim.counters.quality[:, 0].copy())
    return np.array(used), np.array(shown), np.array(low), np.array(quality)


def mean_run(flags: np.ndarray) -> float:
    starts = flags & ~np.concatenate([np.zeros_like(flags[:1]), flags[:-1]])
    return float(flags.sum() / max(starts.sum(), 1))


def test_long_gaps_are_as_long_and_as_many_as_said() -> None:
    used, shown, low, quality = run(simulator(gap_share=0.2, gap_ms=100), 1500)
    gap = (quality & Quality.MISSING) > 0
    assert gap.mean() == pytest.approx(0.2, abs=0.03) and mean_run(gap) == pytest.approx(10, rel=0.15)
    assert (np.isnan(shown) == gap).all() and (np.isnan(low) == gap).all()
    assert shown[~gap] == pytest.approx(used[~gap])


def test_a_reset_throws_the_difference_away_and_says_so() -> None:
    used, shown, _, quality = run(simulator(reset_share=0.05), 1000)
    reset = (quality & Quality.RESET) > 0
    assert reset.mean() == pytest.approx(0.05, abs=0.01)
    assert np.isnan(shown[reset]).all() and ((quality[reset] & Quality.MISSING) > 0).all()
    assert shown[~reset] == pytest.approx(used[~reset]) and not (quality[~reset] & Quality.MISSING).any()


def test_a_stale_value_is_the_one_before_and_is_marked() -> None:
    _, shown, low, quality = run(simulator(stale_share=0.3, stale_ms=40), 1000)
    stale = (quality & Quality.STALE) > 0
    assert stale.mean() == pytest.approx(0.3, abs=0.03) and mean_run(stale) == pytest.approx(4, rel=0.15)
    assert (shown[1:][stale[1:]] == shown[:-1][stale[1:]]).all() and (low[1:][stale[1:]] == low[:-1][stale[1:]]).all()
    cpu, fresh = shown[1:, :, Resource.CPU], ~stale[1:, :, Resource.CPU]
    assert (cpu != shown[:-1, :, Resource.CPU])[fresh].mean() > 0.99


def test_a_frozen_counter_shows_nothing_then_everything_and_nobody_is_told() -> None:
    used, shown, _, quality = run(simulator(frozen_share=0.2, frozen_ms=30), 1000)
    assert not (quality & ~np.uint8(Quality.CENSORED)).any()
    cpu, true = shown[..., Resource.CPU], used[..., Resource.CPU]
    frozen = cpu == 0
    assert frozen.mean() == pytest.approx(0.2, abs=0.03) and mean_run(frozen) == pytest.approx(3, rel=0.15)
    thawed = ~frozen[1:] & frozen[:-1]
    assert cpu[1:][thawed].mean() > 2.5 * true[1:][thawed].mean()
    last = np.array([np.flatnonzero(~frozen[:, h])[-1] for h in range(16)])
    for h, t in enumerate(last):
        assert cpu[: t + 1, h].sum() == pytest.approx(true[: t + 1, h].sum())


def test_faults_change_neither_the_world_nor_the_other_readings() -> None:
    plain, faulty = simulator(noise=0.1), simulator(noise=0.1, reset_share=0.1, stale_share=0.2)
    a, b = run(plain, 100), run(faulty, 100)
    assert (a[0] == b[0]).all()
    clean = b[3] == 0
    assert 0.6 < clean.mean() < 0.8 and (a[1][clean] == b[1][clean]).all()


def test_a_fault_that_never_ends_is_refused() -> None:
    with pytest.raises(InputError, match="telemetry"):
        simulator(gap_share=1.0, gap_ms=100)
