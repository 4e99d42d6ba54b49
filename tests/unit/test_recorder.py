"""The recorder never holds up a tick, and whatever ends the loop leaves a readable recording."""

from __future__ import annotations

import json
import mmap
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hosts import table, topology

from foreshare.envs.hal.recording import read_recording, recording_metadata
from foreshare.envs.hal.simulated import SimulatedHal
from foreshare.envs.simulator.scenario import load_scenario
from foreshare.policies.errors import HostError
from foreshare.policies.host import Host
from foreshare.policies.reading import Reading
from foreshare.runtime.recorder import Recorder, Ring
from foreshare.runtime.telemetry import metadata_of, record

N = 3
SECOND = 10**9
KILLED = """
import sys
from pathlib import Path
import test_recorder as t
recorder = t.Recorder(Path(sys.argv[1]), t.N, t.facts())
for k in range(40):
    recorder.put(t.reading(k))
print(recorder._process.pid, flush=True)
sys.stdin.read()
"""


def facts() -> dict[str, Any]:
    return recording_metadata(
        topology(), table(N), hal="simulated", tick_ns=10**7, boot_id="b", monotonic_ns=0, utc_ns=0
    )


def reading(k: int, n: int = N) -> Reading:
    """Return a reading in which every value is another one, that float32 holds exactly."""
    r = Reading.empty(n)
    base = np.arange(n * 4, dtype=float).reshape(n, 4)
    r.t_ns, r.dt_ns = (k + 1) * 10**7, 10**7 if k else 0
    r.usage[:], r.demand_low[:], r.limit[:] = base + k, base + k + 0.5, np.where(base % 3, base, np.inf)
    r.usage[:, 1] = np.nan
    r.wait_ns[:] = k * 1000 + np.arange(n)
    r.quality[:] = (np.arange(n * 4).reshape(n, 4) + k) % 16
    r.present[:] = True
    if n and k % 5 == 4:
        r.present[0] = False
    return r


def check_equal(folder: Path, readings: list[Reading]) -> None:
    got = read_recording(folder)
    assert got.t_ns.tolist() == [r.t_ns for r in readings]
    here = np.array([r.present for r in readings])
    assert (got.present == here).all()
    for name in ("usage", "demand_low", "limit", "wait_ns", "quality"):
        want = np.array([getattr(r, name) for r in readings])[here]
        np.testing.assert_array_equal(getattr(got, name)[here], want, err_msg=name)


def gone(pid: int, seconds: float = 20.0) -> bool:
    """Return whether the process has ended (its files are closed and renamed by then) within ``seconds``."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.01)
    return False


@pytest.fixture
def ring() -> Iterator[Ring]:
    yield Ring(mmap.mmap(-1, Ring.bytes_for(8, N)), 8, N)


def test_the_ring_gives_back_what_was_put(ring: Ring) -> None:
    assert ring.take() is None
    for start in (0, 5, 10, 17):  # across the seam, several times
        readings = [reading(k) for k in range(start, start + 5)]
        for r in readings:
            ring.put(r)
        block = ring.take()
        assert block is not None and ring.take() is None
        assert block["t_ns"].tolist() == [r.t_ns for r in readings]
        for name in ("usage", "demand_low", "limit", "wait_ns", "quality", "present"):
            np.testing.assert_array_equal(block[name], np.array([getattr(r, name) for r in readings]))
    assert (ring.written, ring.dropped) == (20, 0)


def test_a_full_ring_drops_the_newest_and_counts(ring: Ring) -> None:
    for k in range(8):
        assert not ring.full
        ring.put(reading(k))
    assert ring.full
    for k in range(8, 11):
        ring.put(reading(k))
    assert (ring.written, ring.dropped) == (8, 3)
    block = ring.take()
    assert block is not None
    assert block["t_ns"].tolist() == [reading(k).t_ns for k in range(8)], "what waited was overwritten"
    ring.put(reading(11))
    block = ring.take()
    assert block is not None and block["t_ns"].tolist() == [reading(11).t_ns]


def test_what_was_taken_is_a_copy(ring: Ring) -> None:
    ring.put(reading(0))
    block = ring.take()
    assert block is not None
    before = block["demand_low"].copy()
    for k in range(1, 9):
        ring.put(reading(k))
    assert (block["demand_low"] == before).all()


def test_a_stopped_recorder_costs_readings_and_no_time(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "out", N, facts(), slots=16)
    os.kill(recorder._process.pid, signal.SIGSTOP)
    readings = [reading(k) for k in range(200)]
    began = time.monotonic()
    for r in readings:
        recorder.put(r)
    assert time.monotonic() - began < 1.0
    os.kill(recorder._process.pid, signal.SIGCONT)
    written, dropped = recorder.close()
    assert written + dropped == 200 and dropped > 100
    assert len(read_recording(tmp_path / "out").t_ns) == written


def test_the_process_writes_all_that_was_put(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "new" / "out", N, facts(), slots=64)
    readings = [reading(k) for k in range(500)]
    for r in readings:
        recorder.put(r, wait_s=10.0)
    assert recorder.close() == (500, 0)
    check_equal(tmp_path / "new" / "out", readings)


@pytest.mark.parametrize("n", [0, 1])
def test_nothing_put_and_nobody_there_are_recordings_too(tmp_path: Path, n: int) -> None:
    metadata = recording_metadata(
        topology(), table(n), hal="simulated", tick_ns=10**7, boot_id="b", monotonic_ns=0, utc_ns=0
    )
    recorder = Recorder(tmp_path, n, metadata)
    if not n:
        recorder.put(reading(0, 0))
    recorder.close()
    got = read_recording(tmp_path)
    assert got.usage.shape == (0, n, 4)


def test_a_killed_loop_leaves_a_readable_recording(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(out)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(str(p) for p in (Path(__file__).parent, *sys.path) if str(p))},
    ) as loop:  # fmt: skip
        assert loop.stdout is not None
        recorder = int(loop.stdout.readline())
        loop.send_signal(signal.SIGKILL)
        loop.wait()
    assert gone(recorder), "the recorder outlived the loop"
    check_equal(out, [reading(k) for k in range(40)])
    assert not list(out.glob("*.tmp"))


def test_signals_to_everybody_do_not_cut_the_recording_short(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, N, facts())
    assert os.getpgid(recorder._process.pid) != os.getpgid(0), "Ctrl-C would reach it"
    readings = [reading(k) for k in range(1024)]
    for r in readings[:1000]:
        recorder.put(r)
    while not recorder.ring.count[1]:  # it reads: it has come to where it ignores them
        assert recorder._process.poll() is None
        time.sleep(0.005)
    os.kill(recorder._process.pid, signal.SIGTERM)
    for r in readings[1000:]:
        recorder.put(r)
    assert recorder.close() == (1024, 0)
    check_equal(tmp_path, readings)


def _refusal(out: Path) -> str:
    recorder = Recorder(out, N, facts())
    recorder.put(reading(0))
    with pytest.raises(HostError) as error:
        recorder.close()
    text = str(error.value)
    assert "\n" not in text and "Traceback" not in text
    return text


def test_a_folder_that_cannot_be_made_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "cannot hold a recording" in _refusal(tmp_path / "file" / "out")
    assert "cannot hold a recording" in _refusal(tmp_path / "file")
    assert "cannot hold a recording" in _refusal(Path("/proc/nowhere"))


def test_an_earlier_recording_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "part-00000.parquet").write_bytes(b"precious")
    assert "holds a recording already" in _refusal(tmp_path)
    assert (tmp_path / "part-00000.parquet").read_bytes() == b"precious"


def test_a_recorder_that_dies_is_one_clear_line_and_holds_nobody_up(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, N, facts(), slots=4)
    recorder._process.kill()
    recorder._process.wait()
    began = time.monotonic()
    for k in range(50):
        recorder.put(reading(k), wait_s=30.0)
    assert time.monotonic() - began < 5.0, "waited for the dead"
    with pytest.raises(HostError, match="the recording is incomplete"):
        recorder.close()


def test_no_descriptor_and_no_process_is_left(tmp_path: Path) -> None:
    before = set(os.listdir("/proc/self/fd"))
    recorder = Recorder(tmp_path, N, facts())
    recorder.put(reading(0))
    recorder.close()
    assert recorder._process.returncode == 0
    del recorder  # and with it the shared memory, which outlives its descriptor
    assert set(os.listdir("/proc/self/fd")) == before


def test_a_simulated_host_is_recorded_tick_by_tick(tmp_path: Path) -> None:
    hal = SimulatedHal(load_scenario("mixed", vms=6), seed=1)
    host = Host(hal.topology, hal.vms)
    assert record(hal, host, tmp_path, ticks=300, tick_ms=10.0) == (300, 0)
    got = read_recording(tmp_path)
    assert len(got.t_ns) == 300 and (np.diff(got.t_ns) == 10**7).all()
    assert got.host.vms.uuid == host.vms.uuid
    assert np.isfinite(got.usage[:, :, 0]).any()
    assert not any(name in json.dumps(metadata_of(hal, 10.0)) for name in ("vm0", *host.vms.name))
