from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from foreshare.envs.hal.recording import RecordingWriter, iter_blocks, read_host, read_recording, recording_metadata
from foreshare.envs.simulator.model import build_model
from foreshare.envs.simulator.scenario import load_scenario
from foreshare.policies.errors import HostError, TraceError
from foreshare.policies.host import RESOURCES, Host

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
N = 4


def facts(vms: int = N) -> dict[str, object]:
    m = build_model(load_scenario("mixed", vms=vms), tick_ms=10)
    return recording_metadata(
        m.topology, m.vms, hal="simulated", tick_ns=10_000_000, boot_id="boot", monotonic_ns=11, utc_ns=22
    )


def ticks(count: int, seed: int = 0, start: int = 0, n: int = N) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    block = {
        "t_ns": 10_000_000 * np.arange(start, start + count, dtype=np.int64),
        "wait_ns": rng.integers(0, 10**9, size=(count, n)).astype(float),
        "quality": rng.integers(0, 256, size=(count, n, 4), dtype=np.uint8),
        "present": rng.random((count, n)) < 0.9,
        **{k: rng.random((count, n, 4)) * 100 for k in ("usage", "demand_low", "limit")},
    }
    block["present"][:, 0] = True
    block["usage"][rng.random((count, n, 4)) < 0.1] = np.nan
    block["wait_ns"][rng.random((count, n)) < 0.1] = np.nan
    block["limit"][rng.random((count, n, 4)) < 0.1] = np.inf
    return block


def check_equal(got: object, want: dict[str, np.ndarray]) -> None:
    there = want["present"]
    np.testing.assert_array_equal(got.t_ns, want["t_ns"])
    np.testing.assert_array_equal(got.present, there)
    for k in ("usage", "demand_low", "limit"):
        np.testing.assert_allclose(getattr(got, k)[there], want[k][there].astype(np.float32))
        assert np.isnan(getattr(got, k)[~there]).all()
    np.testing.assert_array_equal(got.wait_ns[there], want["wait_ns"][there])
    np.testing.assert_array_equal(got.quality[there], want["quality"][there])


def write(folder: Path, block: dict[str, np.ndarray], step: int = 7, **limits: int) -> None:
    with RecordingWriter(folder, facts(), **limits) as w:
        for i in range(0, len(block["t_ns"]), step):
            w.append({k: v[i : i + step] for k, v in block.items()})


@pytest.mark.parametrize(
    "limits",
    [{}, {"row_group_rows": 5}, {"row_group_rows": 10, "part_rows": 40}, {"row_group_rows": 10, "part_bytes": 1}],
)
def test_what_was_written_is_read(tmp_path: Path, limits: dict[str, int]) -> None:
    block = ticks(50)
    write(tmp_path / "r", block, **limits)
    check_equal(read_recording(tmp_path / "r"), block)
    parts = sorted((tmp_path / "r").iterdir())
    assert [p.name for p in parts] == [f"part-{i:05d}.parquet" for i in range(len(parts))]
    assert (len(parts) > 1) == ("part_rows" in limits or "part_bytes" in limits)


def test_the_format_is_the_documented_one(tmp_path: Path) -> None:
    block = ticks(3)
    write(tmp_path, block)
    table = pq.read_table(tmp_path / "part-00000.parquet")
    assert table.column_names == [
        "t_ns", "vm", *(f"{r}_{k}" for r in RESOURCES for k in ("usage", "demand_low", "limit")), "wait_ns", "quality",
    ]  # fmt: skip
    assert table.num_rows == block["present"].sum()
    said = json.loads(table.schema.metadata[b"foreshare"])
    assert said["version"] == 1 and said["boot_id"] == "boot" and said["anchor"] == {"monotonic_ns": 11, "utc_ns": 22}
    uuid = said["vms"][0]["uuid"]
    rows = [r for r in table.to_pylist() if r["vm"] == uuid and r["t_ns"] == 0]
    assert len(rows) == 1
    q = [(rows[0]["quality"] & 0xFFFFFFFF) >> (8 * i) & 0xFF for i in range(4)]
    assert q == block["quality"][0, 0].tolist()
    gaps = np.isnan(block["usage"])[block["present"]]
    assert table.column("cpu_usage").null_count == gaps[:, 0].sum()


def test_no_vm_name_is_recorded(tmp_path: Path) -> None:
    write(tmp_path, ticks(3))
    raw = (tmp_path / "part-00000.parquet").read_bytes()
    for name in build_model(load_scenario("mixed", vms=N), tick_ms=10).vms.name:
        assert name.encode() not in raw and name not in json.dumps(facts())


def test_the_host_comes_back(tmp_path: Path) -> None:
    write(tmp_path, ticks(3))
    got, want = read_host(tmp_path), build_model(load_scenario("mixed", vms=N), tick_ms=10)
    assert got.topology.pools == want.topology.pools
    a, b = Host(got.topology, got.vms), Host(want.topology, want.vms)
    assert (a.reservation == b.reservation).all() and (a.cap == b.cap).all()
    assert got.vms.uuid == want.vms.uuid and (got.vms.priority == want.vms.priority).all()
    assert (got.tick_ns, got.boot_id, got.monotonic_ns, got.utc_ns, got.hal) == (10**7, "boot", 11, 22, "simulated")


def test_parts_appear_whole(tmp_path: Path) -> None:
    w = RecordingWriter(tmp_path, facts(), row_group_rows=1)
    w.append(ticks(5))
    assert [p.name for p in tmp_path.iterdir()] == ["part-00000.parquet.tmp"]
    with pytest.raises(TraceError):
        read_recording(tmp_path)
    w.close()
    w.close()
    assert [p.name for p in tmp_path.iterdir()] == ["part-00000.parquet"]


def test_an_empty_recording_and_one_without_vms(tmp_path: Path) -> None:
    with RecordingWriter(tmp_path / "a", facts()):
        pass
    assert read_recording(tmp_path / "a").usage.shape == (0, N, 4)
    with RecordingWriter(tmp_path / "b", facts(0)) as w:
        w.append(ticks(0, n=1) | {"present": np.zeros((2, 0), bool)})
    assert read_recording(tmp_path / "b").usage.shape == (0, 0, 4)


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "r", ticks(2))
    with pytest.raises(HostError, match="already"):
        RecordingWriter(tmp_path / "r", facts())
    (tmp_path / "file").write_text("x")
    with pytest.raises(HostError):
        RecordingWriter(tmp_path / "file", facts())


def test_blocks_are_in_order_and_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    block = ticks(60)
    write(tmp_path, block, row_group_rows=9)
    monkeypatch.setattr("foreshare.envs.hal.recording._BLOCK_CELLS", 3 * N)
    blocks = list(iter_blocks(tmp_path, read_host(tmp_path)))
    assert max(len(b.t_ns) for b in blocks) <= 3
    assert np.concatenate([b.t_ns for b in blocks]).tolist() == block["t_ns"].tolist()


def rewrite(folder: Path, change: object) -> None:
    path = folder / "part-00000.parquet"
    table = pq.read_table(path)
    pq.write_table(change(table), path)


def meta(table: Any, **changes: object) -> Any:
    said = json.loads(table.schema.metadata[b"foreshare"]) | changes
    return table.replace_schema_metadata({b"foreshare": json.dumps(said).encode()})


SPOILED = {
    "no metadata": lambda t: t.replace_schema_metadata(None),
    "not JSON": lambda t: t.replace_schema_metadata({b"foreshare": b"{"}),
    "JSON but a list": lambda t: t.replace_schema_metadata({b"foreshare": b"[]"}),
    "version": lambda t: meta(t, version=9),
    "topology": lambda t: meta(t, topology={}),
    "negative tick": lambda t: meta(t, tick_ns=-1),
    "no VMs": lambda t: meta(t, vms=[]),
    "a column less": lambda t: t.drop_columns(["io_limit"]),
    "text for numbers": lambda t: t.set_column(2, "cpu_usage", pa.array(["x"] * t.num_rows)),
    "numbers for text": lambda t: t.set_column(1, "vm", pa.array([1] * t.num_rows)),
    "unknown VM": lambda t: t.set_column(1, "vm", pa.array(["x"] * t.num_rows)),
    "null VM": lambda t: t.set_column(1, "vm", pa.array([None] * t.num_rows, pa.string())),
    "null time": lambda t: t.set_column(0, "t_ns", pa.array([None] * t.num_rows, pa.int64())),
    "time runs back": lambda t: t.take(pa.array(range(t.num_rows - 1, -1, -1))),
    "rows twice": lambda t: pa.concat_tables([t.slice(0, 1), t]),
}


@pytest.mark.parametrize("kind", sorted(SPOILED))
def test_a_foreign_or_spoiled_file_is_refused_in_one_line(tmp_path: Path, kind: str) -> None:
    write(tmp_path, ticks(20))
    rewrite(tmp_path, SPOILED[kind])
    with pytest.raises(TraceError) as e:
        read_recording(tmp_path)
    assert "\n" not in str(e.value) and str(tmp_path) in str(e.value)


@pytest.mark.parametrize("keep", [0, 3, 100, 0.5, -1])
def test_a_truncated_file_is_refused(tmp_path: Path, keep: float) -> None:
    write(tmp_path, ticks(20))
    path = tmp_path / "part-00000.parquet"
    raw = path.read_bytes()
    path.write_bytes(raw[: int(keep if keep >= 1 or keep <= 0 else keep * len(raw))])
    with pytest.raises(TraceError) as e:
        read_recording(tmp_path)
    assert "\n" not in str(e.value)


def test_flipped_bytes_raise_nothing_but_trace_errors(tmp_path: Path) -> None:
    write(tmp_path, ticks(20))
    path = tmp_path / "part-00000.parquet"
    raw = path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(60):
        spoiled = bytearray(raw)
        for at in rng.integers(4, len(raw) - 8, size=3):
            spoiled[at] ^= int(rng.integers(1, 256))
        path.write_bytes(bytes(spoiled))
        try:
            read_recording(tmp_path)
        except TraceError as e:
            assert "\n" not in str(e)


def test_parts_of_two_recordings_do_not_mix(tmp_path: Path) -> None:
    write(tmp_path, ticks(20))
    with RecordingWriter(tmp_path / "other", facts() | {"boot_id": "another"}) as w:
        w.append(ticks(5, start=50))
    (tmp_path / "other" / "part-00000.parquet").rename(tmp_path / "part-00001.parquet")
    with pytest.raises(TraceError, match="another recording"):
        read_recording(tmp_path)
    for nothing in (tmp_path / "other", tmp_path / "none"):
        with pytest.raises(TraceError, match="no recording"):
            read_recording(nothing)
