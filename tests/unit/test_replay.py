from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from foreshare.envs.hal.recording import RecordingWriter, recording_metadata
from foreshare.envs.hal.replay import EndOfTrace, ReplayHal
from foreshare.envs.hal.simulated import SimulatedHal
from foreshare.envs.simulator.scenario import load_scenario
from foreshare.policies.errors import TraceError
from foreshare.policies.reading import Quality, Reading

TICK = 10_000_000
FIELDS = ("usage", "demand_low", "limit", "wait_ns", "quality", "present")


def record(folder: Path, times: list[int], vms: int = 5) -> list[Reading]:
    source = SimulatedHal(load_scenario("mixed", vms=vms), seed=1)
    facts = recording_metadata(
        source.topology, source.vms, hal="simulated", tick_ns=TICK, boot_id="b", monotonic_ns=1, utc_ns=2
    )
    out = []
    with RecordingWriter(folder, facts) as writer:
        for t in times:
            source.clock.sleep_until(source.clock.now_ns() + TICK)
            r = Reading.empty(vms)
            source.sample(r)
            r.t_ns = t
            out.append(r)
            writer.append({"t_ns": np.array([t]), **{f: getattr(r, f)[None] for f in FIELDS}})
    return out


def same(a: Reading, b: Reading) -> None:
    for f in FIELDS:
        np.testing.assert_allclose(getattr(a, f).astype(float), getattr(b, f).astype(float), rtol=1e-5, atol=1)


def test_a_loop_at_the_recorded_rate_gets_each_tick_once_in_spite_of_jitter(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    times = (10**9 + TICK * np.arange(60) + rng.integers(0, 4_000_000, 60)).tolist()
    recorded = record(tmp_path, times)
    hal = ReplayHal(tmp_path)
    start = hal.clock.now_ns()
    assert start == times[0]
    r = Reading.empty(5)
    for i, want in enumerate(recorded):
        hal.clock.sleep_until(start + i * TICK)
        hal.sample(r)
        assert r.t_ns == want.t_ns
        assert r.dt_ns == (times[i] - times[i - 1] if i else 0)
        if i:
            same(r, want)
    with pytest.raises(EndOfTrace):
        hal.sample(r)


def test_a_gap_is_missing_and_a_slower_loop_gets_means(tmp_path: Path) -> None:
    times = [10**9 + TICK * i for i in (0, 1, 2, 10, 11, 12)]
    recorded = record(tmp_path, times)
    hal = ReplayHal(tmp_path)
    r = Reading.empty(5)
    hal.sample(r)
    hal.clock.sleep_until(times[2])
    hal.sample(r)
    known = ~np.isnan(recorded[1].usage) & ~np.isnan(recorded[2].usage)
    np.testing.assert_allclose(r.usage[known], ((recorded[1].usage + recorded[2].usage) / 2)[known], rtol=1e-5)
    assert r.dt_ns == 2 * TICK
    hal.clock.sleep_until(times[2] + 3 * TICK)
    hal.sample(r)
    assert np.isnan(r.usage).all() and (r.quality & Quality.MISSING).all() and r.present.all()
    hal.clock.sleep_until(times[3])
    hal.sample(r)
    same(r, recorded[3])


def test_what_is_no_recording_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TraceError):
        ReplayHal(tmp_path)


def test_a_recording_without_ticks_ends_at_once(tmp_path: Path) -> None:
    record(tmp_path, [])
    with pytest.raises(EndOfTrace):
        ReplayHal(tmp_path).sample(Reading.empty(5))
