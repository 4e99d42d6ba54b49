"""Recorded telemetry: Parquet, wide, one row for each tick and VM that was there, in order of time.

Columns: ``t_ns`` (monotonic), ``vm`` (UUID), for each resource ``*_usage``, ``*_demand_low`` and ``*_limit`` in units
(float32; null where missing, infinite where unlimited), ``wait_ns``, and ``quality`` with 8 bits for each resource,
CPU lowest. A folder holds ``part-00000.parquet`` and so on; each part carries the same facts about the host as JSON in
its metadata under ``foreshare``: format version, topology with units, the VMs' contracts (no names), ``boot_id``, and a
pair (monotonic, UTC) that anchors the clock. Parts appear whole: they are written beside and renamed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from foreshare.policies.errors import HostError, TraceError
from foreshare.policies.host import RESOURCES, BoolArray, FloatArray, IntArray, R, Resource

from .recorded_host import RecordedHost, parse_metadata, recording_metadata

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

__all__ = [
    "Block", "RecordedHost", "Recording", "RecordingWriter", "iter_blocks", "parts_of", "read_host", "read_recording",
    "recording_metadata",
]  # fmt: skip

KEY = b"foreshare"
ROW_GROUP_ROWS = 65_536
PART_ROWS = 2_000_000
PART_BYTES = 64 << 20
_BLOCK_CELLS = 1 << 19  # ticks x VMs held in memory at a time while reading
_MAX_CELLS = 1 << 27  # ... and in all by read_recording
_KINDS = ("usage", "demand_low", "limit")
Float32Array = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Block:
    """Consecutive ticks; rows of the VM axis are those of ``RecordedHost.vms``."""

    t_ns: IntArray
    """(T,) monotonic, ascending."""
    usage: Float32Array
    """(T, N, R) units; NaN where missing. So are the next two."""
    demand_low: Float32Array
    limit: Float32Array
    wait_ns: FloatArray
    """(T, N); NaN where missing."""
    quality: npt.NDArray[np.uint8]
    """(T, N, R) of :class:`~foreshare.policies.reading.Quality`."""
    present: BoolArray
    """(T, N) whether the VM was there."""


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Recording(Block):
    """A whole recording in memory."""

    host: RecordedHost


def _schema(metadata: Mapping[str, Any]) -> pa.Schema:
    import pyarrow as pa

    columns: list[tuple[str, pa.DataType]] = [
        ("t_ns", pa.int64()),
        ("vm", pa.dictionary(pa.int32(), pa.string())),
        *((f"{r}_{kind}", pa.float32()) for r in RESOURCES for kind in _KINDS),
        ("wait_ns", pa.int64()),
        ("quality", pa.int32()),
    ]
    return pa.schema(columns, metadata={KEY: json.dumps(metadata).encode()})


class RecordingWriter:
    """Writes a recording into a new or empty folder. Raises HostError where it cannot, OSError when the disk fails."""

    def __init__(
        self,
        out: Path,
        metadata: Mapping[str, Any],
        *,
        part_rows: int = PART_ROWS,
        part_bytes: int = PART_BYTES,
        row_group_rows: int = ROW_GROUP_ROWS,
    ) -> None:
        self._schema = _schema(metadata)
        self._uuids = [str(v["uuid"]) for v in metadata["vms"]]
        self._out, self._part_rows, self._part_bytes, self._group_rows = out, part_rows, part_bytes, row_group_rows
        self._waiting: list[pa.RecordBatch] = []
        self._waiting_rows = 0
        self._rows_in_part = 0
        self._part = 0
        self._file: Any = None
        self._writer: pq.ParquetWriter | None = None
        self._closed = False
        try:
            out.mkdir(parents=True, exist_ok=True)
            if any(out.glob("part-*.parquet")):
                raise HostError(f"{out}: holds a recording already; give a new or empty folder")
        except OSError as e:
            raise HostError(f"{out}: cannot hold a recording: {e.strerror}") from e

    def __enter__(self) -> RecordingWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def append(self, block: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take T ticks; the arrays are copied, other keys than these are ignored.

        ``t_ns`` (T,); ``usage``, ``demand_low``, ``limit``, ``quality`` (T, N, R); ``wait_ns``, ``present`` (T, N).
        """
        import pyarrow as pa

        present = np.asarray(block["present"], bool)
        tick, row = np.nonzero(present)
        if not len(tick):
            return
        quality = np.zeros(len(tick), np.uint32)
        for r in Resource:
            quality |= block["quality"][tick, row, r].astype(np.uint32) << np.uint32(8 * r)
        columns: list[pa.Array[Any]] = [
            pa.array(block["t_ns"][tick], pa.int64()),
            pa.DictionaryArray.from_arrays(pa.array(row, pa.int32()), pa.array(self._uuids, pa.string())),
        ]
        for r in Resource:
            for kind in _KINDS:
                values = block[kind][tick, row, r].astype(np.float32)
                columns.append(pa.array(values, pa.float32(), mask=np.isnan(values)))
        wait = block["wait_ns"][tick, row]
        missing = ~np.isfinite(wait)
        columns.append(pa.array(np.where(missing, 0, wait).astype(np.int64), pa.int64(), mask=missing))
        columns.append(pa.array(quality.view(np.int32), pa.int32()))
        self._waiting.append(pa.record_batch(columns, schema=self._schema))
        self._waiting_rows += len(tick)
        if self._waiting_rows >= self._group_rows:
            self._flush()

    def close(self) -> None:
        """Write what is left and finish the last part. What a failing disk did not take is dropped."""
        if self._closed:
            return
        self._closed = True
        try:
            self._flush()
            if self._part == 0 and self._writer is None:
                self._open()  # no tick at all: the facts alone are a recording, too
            self._finish()
        except OSError:
            self._abandon()
            raise

    def _path(self) -> Path:
        return self._out / f"part-{self._part:05d}.parquet"

    def _open(self) -> None:
        import pyarrow.parquet as pq

        self._file = self._path().with_suffix(".parquet.tmp").open("wb")
        self._writer = pq.ParquetWriter(self._file, self._schema, compression="zstd", store_schema=True)
        self._rows_in_part = 0

    def _flush(self) -> None:
        import pyarrow as pa

        if not self._waiting:
            return
        if self._writer is None:
            self._open()
        table = pa.Table.from_batches(self._waiting, self._schema)
        self._waiting, self._waiting_rows = [], 0
        if self._writer is not None:
            self._writer.write_table(table, row_group_size=max(table.num_rows, 1))
        self._rows_in_part += table.num_rows
        if self._rows_in_part >= self._part_rows or self._file.tell() >= self._part_bytes:
            self._finish()

    def _finish(self) -> None:
        if self._writer is None:
            return
        self._writer.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        path = self._path()
        path.with_suffix(".parquet.tmp").replace(path)
        self._writer = self._file = None
        self._part += 1

    def _abandon(self) -> None:
        if self._file is not None:
            self._file.close()
            self._path().with_suffix(".parquet.tmp").unlink(missing_ok=True)
        self._writer = self._file = None


def parts_of(folder: Path) -> list[Path]:
    """Return the parts of a recording in order. Raises TraceError where there is none."""
    parts = sorted(folder.glob("part-*.parquet")) if folder.is_dir() else []
    if not parts:
        raise TraceError(f"{folder}: is no recording; it must be a folder with part-00000.parquet in it")
    return parts


def read_host(folder: Path) -> RecordedHost:
    """Return what a recording says about its host. Raises TraceError unless all parts agree."""
    said: list[bytes] = []
    parts = parts_of(folder)
    for path in parts:
        with _opened(path) as file:
            raw = (file.schema_arrow.metadata or {}).get(KEY)
            if raw is None:
                raise TraceError(f"{path}: has no foreshare metadata; it was not written by foreshare record")
            said.append(raw)
            if raw != said[0]:
                raise TraceError(f"{path}: belongs to another recording than {parts[0].name}")
    return parse_metadata(said[0], str(parts[0]))


def iter_blocks(folder: Path, host: RecordedHost) -> Iterator[Block]:
    """Yield a recording in pieces of bounded size, in order of time. Raises TraceError."""
    import pyarrow as pa

    index = {u: i for i, u in enumerate(host.vms.uuid)}
    last = -(1 << 62)
    carry: list[pa.Table] = []  # rows of a tick that may go on in the next row group
    for path in parts_of(folder):
        try:
            with _opened(path) as file:
                _check_columns(file.schema_arrow, str(path))
                for g in range(file.num_row_groups):
                    table = pa.concat_tables([*carry, file.read_row_group(g)], promote_options="default")
                    t = _column(table, "t_ns", str(path)).astype(np.int64)
                    end = int(np.searchsorted(t, t[-1])) if len(t) else 0
                    carry = [table.slice(end)]
                    for block in _split(table.slice(0, end), t[:end], index, str(path), last):
                        last = int(block.t_ns[-1])
                        yield block
        except (pa.ArrowException, OSError, ValueError, MemoryError) as e:  # names that are not UTF-8, absurd sizes
            raise TraceError(f"{path}: cannot be read: {_line(e)}") from e
    for table in carry:
        t = _column(table, "t_ns", str(folder)).astype(np.int64)
        yield from _split(table, t, index, str(folder), last)


def read_recording(folder: Path) -> Recording:
    """Return a whole recording. Raises TraceError; so it does for one that is too large to hold in memory."""
    host = read_host(folder)
    n = len(host.vms)
    blocks: list[Block] = []
    cells = 0
    for block in iter_blocks(folder, host):
        blocks.append(block)
        cells += len(block.t_ns) * n
        if cells > _MAX_CELLS:
            raise TraceError(f"{folder}: is too large to be read at once ({_MAX_CELLS} ticks x VMs at most)")
    blocks = blocks or [_empty(0, n)]
    joined = {f.name: np.concatenate([getattr(b, f.name) for b in blocks]) for f in fields(Block)}
    return Recording(host=host, **joined)


def _opened(path: Path) -> pq.ParquetFile:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path, read_dictionary=["vm"], memory_map=False)
    except (pa.ArrowException, OSError, ValueError, MemoryError) as e:  # names that are not UTF-8, absurd sizes
        raise TraceError(f"{path}: is truncated or no Parquet file: {_line(e)}") from e


def _line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _check_columns(schema: pa.Schema, path: str) -> None:
    import pyarrow as pa

    want = _schema({})
    for field in want:
        at = schema.get_field_index(field.name)
        if at < 0:
            raise TraceError(f"{path}: has no column {field.name!r}")
        kind = schema.field(at).type
        text = pa.types.is_dictionary(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)
        number = pa.types.is_integer(kind) or pa.types.is_floating(kind)
        if not (text if field.name == "vm" else number):
            raise TraceError(f"{path}: column {field.name!r} holds {kind}")


def _column(table: pa.Table, name: str, path: str) -> npt.NDArray[Any]:
    column = table.column(name)
    if name in ("t_ns", "quality") and column.null_count:
        raise TraceError(f"{path}: column {name!r} has nulls")
    values: npt.NDArray[Any] = column.to_numpy()
    if name == "t_ns" and len(values) and (np.diff(values) < 0).any():
        raise TraceError(f"{path}: its rows are not in order of time")
    return values


def _split(table: pa.Table, t: IntArray, index: Mapping[str, int], path: str, after_ns: int) -> Iterator[Block]:
    """Yield the blocks of complete ticks, each of at most _BLOCK_CELLS ticks x VMs."""
    import pyarrow as pa

    if not len(t):
        return
    if t[0] <= after_ns:
        raise TraceError(f"{path}: its rows are not in order of time")
    rows = np.empty(len(t), np.int64)
    at = 0
    for chunk in table.column("vm").chunks:
        coded = chunk if isinstance(chunk, pa.DictionaryArray) else chunk.dictionary_encode()
        known = np.array([index.get(u or "", -1) for u in coded.dictionary.to_pylist()], np.int64)
        codes = coded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
        part = np.where(codes >= 0, known[codes], -1) if len(known) else np.full(len(codes), -1)
        rows[at : at + len(part)] = part
        at += len(part)
    if (rows < 0).any():
        raise TraceError(f"{path}: has rows of a VM that its metadata do not name")
    starts = np.flatnonzero(np.concatenate([[True], t[1:] != t[:-1]]))
    tick = np.cumsum(np.concatenate([[0], t[1:] != t[:-1]]))
    n = len(index)
    cell = tick * n + rows
    if len(np.unique(cell)) != len(cell):
        raise TraceError(f"{path}: has two rows for one VM at one time")
    columns = {name: _column(table, name, path) for name in table.column_names if name != "vm"}
    per_block = max(_BLOCK_CELLS // n, 1)
    for first in range(0, len(starts), per_block):
        low = int(starts[first])
        high = int(starts[first + per_block]) if first + per_block < len(starts) else len(t)
        size = min(per_block, len(starts) - first)
        block = _empty(size, n)
        block.t_ns[:] = t[starts[first : first + size]]
        where = (tick[low:high] - first, rows[low:high])
        block.present[where] = True
        block.wait_ns[where] = columns["wait_ns"][low:high]
        quality = columns["quality"][low:high].astype(np.int32).view(np.uint32)
        for r, name in enumerate(RESOURCES):
            block.quality[(*where, r)] = (quality >> np.uint32(8 * r)) & np.uint32(0xFF)
            for kind in _KINDS:
                getattr(block, kind)[(*where, r)] = columns[f"{name}_{kind}"][low:high]
        yield block


def _empty(ticks: int, n: int) -> Block:
    size = (ticks, n, R)
    return Block(
        t_ns=np.zeros(ticks, np.int64), usage=np.full(size, np.nan, np.float32),
        demand_low=np.full(size, np.nan, np.float32), limit=np.full(size, np.nan, np.float32),
        wait_ns=np.full(size[:2], np.nan), quality=np.ones(size, np.uint8), present=np.zeros(size[:2], bool),
    )  # fmt: skip
