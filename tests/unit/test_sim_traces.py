from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from foreshare.envs.hal.recording import RecordingWriter, recording_metadata
from foreshare.envs.hal.simulated import SimulatedHal
from foreshare.envs.simulator.host import Simulator
from foreshare.envs.simulator.scenario import REPLAY, WorkloadShape, load_scenario
from foreshare.envs.simulator.traces import (
    PercentileWindows,
    arrivals_of_stamps,
    bursts_in_windows,
    load_trace,
    read_percentile_windows,
    read_request_stamps,
    resampled,
    trace_of_arrivals,
    trace_of_recording,
)
from foreshare.envs.simulator.workloads import Workloads
from foreshare.policies.errors import ForeshareError, InputError, TraceError
from foreshare.policies.host import Resource
from foreshare.policies.reading import Reading


def traces() -> Path:
    root = Path(os.environ.get("FORESHARE_TRACES", str(Path(__file__).resolve().parents[3] / "shared" / "traces")))
    if not root.is_dir():
        pytest.skip(f"no public traces in {root}: set FORESHARE_TRACES")
    return root


def test_request_stamps_become_arrivals_per_tick(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("TIMESTAMP,Tokens\n2023-11-16 18:15:46.6805900,3\n2023-11-16 18:15:46.6905890,1\n"
                    "2023-11-16 18:15:46.6905901,1\n2023-11-16 18:15:46.7305900,9\n")  # fmt: skip
    stamps = read_request_stamps(path)
    assert stamps == pytest.approx([0, 0.009999, 0.0100001, 0.05])
    assert arrivals_of_stamps(stamps).tolist() == [2, 1, 0, 0, 0, 1]
    path.write_text("TIMESTAMP\n12.5\n12.505\n12.52\n")
    assert arrivals_of_stamps(read_request_stamps(path)).tolist() == [2, 0, 1]
    assert load_trace(path).intensity.tolist() == [2, 0, 1]


def test_resampling_keeps_what_arrives() -> None:
    rate = np.random.default_rng(0).exponential(1.0, 600)
    for to_ms in (5.0, 10.0, 20.0, 30.0, 100.0):
        other = resampled(rate, 10.0, to_ms)
        assert len(other) == 6000 / to_ms and other.mean() == pytest.approx(rate.mean())
    assert resampled(rate, 10.0, 20.0)[3] == pytest.approx(rate[6:8].mean())
    assert resampled(rate, 10.0, 2.5)[8:12] == pytest.approx(np.full(4, rate[2]))


def test_bursts_inside_windows_have_the_windows_percentiles() -> None:
    levels = np.array([0.0, 0.5, 0.9, 1.0])
    w = PercentileWindows(levels, np.array([[0.1, 0.2, 1.0, 4.0], [0.0, 2.0, 3.0, 3.5]]), 200_000.0)
    x = bursts_in_windows(w, np.random.default_rng(1), hold_ms=50.0).reshape(2, 20_000)
    for row, values in zip(x, w.values, strict=True):
        assert np.quantile(row, levels) == pytest.approx(values, rel=0.1, abs=0.05)
        runs = np.diff(np.flatnonzero(np.diff(row)))
        assert runs.mean() == pytest.approx(5, rel=0.1)


def test_replay_repeats_its_array_from_a_point_of_each_host_s_own(tmp_path: Path) -> None:
    arrivals = np.arange(1.0, 51.0)
    np.save(tmp_path / "a.npy", arrivals)
    shape = WorkloadShape(kind=REPLAY, trace=str(tmp_path / "a.npy"))
    w = Workloads([shape, WorkloadShape(kind="steady")], hosts=6, seed=1, tick_ms=10)
    seen = []
    for _ in range(100):
        w.step()
        seen.append(w.intensity[:, 0].copy())
    x = np.array(seen)
    assert (x[:50] == x[50:]).all() and x[:50].mean(axis=0) == pytest.approx(np.ones(6))
    starts = x[0] * arrivals.mean()
    assert len(np.unique(starts)) > 3
    assert np.roll(arrivals, -round(starts[2] - 1)) / arrivals.mean() == pytest.approx(x[:50, 2])


def test_a_scenario_names_its_trace_relative_to_itself(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([1, 3]))
    (tmp_path / "s.toml").write_text(
        "version = 1\n[host]\ncores = 4\nways = 8\nmemory_units = 10\nio_units = 10\n"
        '[[vm]]\nname = "a"\nworkload = { kind = "replay", trace = "a.npy" }\n'
    )
    s = load_scenario(tmp_path / "s.toml")
    sim = Simulator(s)
    sim.step()
    first = sim.arrivals[0, 0]
    sim.step()
    assert {round(float(first / sim.model.rate[0]), 6), round(float(sim.arrivals[0, 0] / sim.model.rate[0]), 6)} == {
        0.5, 1.5,
    }  # fmt: skip
    given = Simulator(s, traces={"a": trace_of_arrivals(np.array([2.0]))})
    given.step()
    assert given.arrivals[0, 0] == given.model.rate[0]


def test_what_was_recorded_is_replayed(tmp_path: Path) -> None:
    scenario = load_scenario("mixed", vms=4)
    scenario = replace(scenario, load=0.4, telemetry=replace(scenario.telemetry, noise=0.0, gap_share=0.05))
    hal = SimulatedHal(scenario, seed=3)
    r = Reading.empty(4)
    truth = []
    metadata = recording_metadata(
        hal.topology, hal.vms, hal="simulated", tick_ns=10_000_000, boot_id="x", monotonic_ns=0, utc_ns=0
    )
    ticks = 200
    with RecordingWriter(tmp_path / "rec", metadata) as writer:
        for _ in range(ticks):
            hal.clock.sleep_until(hal.clock.now_ns() + 10_000_000)
            hal.sample(r)
            truth.append(hal.truth)
            columns = ("usage", "demand_low", "limit", "quality", "wait_ns", "present")
            writer.append({"t_ns": np.array([r.t_ns]), **{k: np.array(getattr(r, k))[None] for k in columns}})
    trace = trace_of_recording(tmp_path / "rec", 1)
    cpu = np.array(truth)[:, 1, Resource.CPU]
    assert np.corrcoef(trace.intensity[-150:], cpu[-150:])[0, 1] > 0.95
    assert trace.intensity.mean() == pytest.approx(1.0)
    assert (trace.intensity * trace.mix[:, Resource.IO]).mean() == pytest.approx(1.0)
    with pytest.raises(InputError, match="4 VMs"):
        trace_of_recording(tmp_path / "rec", 4)


def test_what_is_no_trace_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "negative.npy", np.array([1.0, -1.0]))
    np.save(tmp_path / "two.npy", np.ones((2, 2)))
    np.save(tmp_path / "text.npy", np.array(["a"]))
    np.save(tmp_path / "zero.npy", np.zeros(4))
    (tmp_path / "broken.npy").write_bytes(b"\x93NUMPY")
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "none.csv").write_text("TIMESTAMP\n")
    (tmp_path / "words.csv").write_text("TIMESTAMP\nyesterday\n")
    (tmp_path / "x.bin").write_text("")
    (tmp_path / "folder").mkdir()
    for name in ("negative.npy", "two.npy", "text.npy", "zero.npy", "broken.npy", "empty.csv", "none.csv", "words.csv",
                 "x.bin", "folder", "missing.npy", "missing.csv"):  # fmt: skip
        with pytest.raises(ForeshareError):
            load_trace(tmp_path / name)
    with pytest.raises(TraceError, match="pN_cpu_usage"):
        read_percentile_windows(tmp_path / "none.csv")
    with pytest.raises(InputError, match="trace"):
        Workloads([WorkloadShape(kind=REPLAY)], hosts=1, seed=0, tick_ms=10)


def test_an_hour_of_real_requests_is_imported() -> None:
    trace = load_trace(traces() / "azure_llm_conv_2023.csv", tick_ms=10.0)
    stamps = read_request_stamps(traces() / "azure_llm_conv_2023.csv")
    assert len(stamps) > 10_000
    assert len(trace.intensity) == pytest.approx(stamps[-1] * 100, abs=2)
    counts = arrivals_of_stamps(stamps)
    assert counts.sum() == len(stamps) and trace.intensity == pytest.approx(counts / counts.mean())
    w = Workloads([WorkloadShape(kind=REPLAY, trace=str(traces() / "azure_llm_conv_2023.csv"))],
                  hosts=2, seed=0, tick_ms=10)  # fmt: skip
    for _ in range(50):
        w.step()
        assert np.isfinite(w.intensity).all()


def test_real_percentile_windows_become_bursts_below_the_window() -> None:
    windows = read_percentile_windows(traces() / "google2019_instance_115_300s.csv")
    assert windows.window_ms == pytest.approx(300_000, rel=0.05) and len(windows.values) > 800
    few = PercentileWindows(windows.levels, windows.values[:5], windows.window_ms)
    x = bursts_in_windows(few, np.random.default_rng(0)).reshape(5, -1)
    inner = windows.levels > 0.05
    inner &= windows.levels < 0.95
    for row, values in zip(x, few.values, strict=True):
        assert np.quantile(row, windows.levels[inner]) == pytest.approx(values[inner], rel=0.25)
    assert trace_of_arrivals(x.ravel()).intensity.std() > 0.2
    path = traces() / "google2019_instance_115_300s.csv"
    a, b = load_trace(path, row=3), load_trace(path, row=3)
    assert (a.intensity == b.intensity).all() and len(a.intensity) == 12 * x.shape[1]
    with pytest.raises(InputError, match="windows"):
        load_trace(path, row=10_000)
