"""Public traces as recordings: one VM, its demand in whole machines' shares or requests, at the trace's own step.

=====================  ============================================================================================
request stamps         ``TIMESTAMP``: requests counted in each 10 ms (Azure's inference traces)
percentiles            ``time`` and ``pN_cpu_usage``: bursts drawn from the first windows (Google's 2019 trace)
machine averages       ``cpu_util_percent`` ..., one row each 10 s (Alibaba's 2018 trace)
VM averages            ``Timestamp [ms]`` ..., semicolons, one row each 300 s (Bitbrains)
one metric             ``timestamp`` and ``value`` (NAB)
=====================  ============================================================================================
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

import numpy as np

from foreshare.envs.hal.recording import RecordingWriter, recording_metadata
from foreshare.envs.simulator.traces import (
    REPLAYED_WINDOWS,
    PercentileWindows,
    arrivals_of_stamps,
    bursts_in_windows,
    read_percentile_windows,
    read_request_stamps,
)
from foreshare.policies.errors import TraceError
from foreshare.policies.host import WHOLE_HOST, FloatArray, Isolation, Pool, R, Resource, Topology, VmTable
from foreshare.policies.reading import Quality

TICK_MS = 10.0
UNITS = 100
_BLOCK = 1 << 16
Columns = dict[Resource, FloatArray]


def import_trace(path: Path, out: Path) -> dict[str, Any]:
    """Write the trace in ``path`` as a recording into ``out``; return kind, ticks and tick_ms.

    Raises TraceError for a file of another kind, HostError where ``out`` holds a recording already.
    """
    kind, tick_ms, columns = _read(path)
    ticks = len(next(iter(columns.values())))
    if not ticks:
        raise TraceError(f"{path}: holds no rows")
    with RecordingWriter(out, _metadata(path, tick_ms, columns)) as writer:
        for first in range(0, ticks, _BLOCK):
            writer.append(_block(columns, slice(first, min(first + _BLOCK, ticks)), tick_ms))
    return {"kind": kind, "ticks": ticks, "tick_ms": tick_ms, "resources": [r.name.lower() for r in columns]}


def _read(path: Path) -> tuple[str, float, Columns]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            head = file.readline()
    except (OSError, UnicodeDecodeError) as e:
        raise TraceError(f"{path}: cannot be read: {e}") from e
    names = {n.strip() for n in head.replace(";", ",").split(",")}
    if "TIMESTAMP" in names:
        return "request stamps", TICK_MS, {Resource.CPU: arrivals_of_stamps(read_request_stamps(path), tick_ms=TICK_MS)}
    if "p50_cpu_usage" in names:
        windows = read_percentile_windows(path)
        few = PercentileWindows(windows.levels, windows.values[:REPLAYED_WINDOWS], windows.window_ms)
        bursts = bursts_in_windows(few, np.random.default_rng(0), tick_ms=TICK_MS)
        return "percentiles", TICK_MS, {Resource.CPU: bursts * UNITS}
    if "cpu_util_percent" in names:
        rows = _table(path, ",", {Resource.CPU: "cpu_util_percent", Resource.IO: "disk_io_percent"})
        return "machine averages", 10_000.0, rows
    if "CPU usage [%]" in names:
        rows = _table(path, ";", {Resource.CPU: "CPU usage [%]", Resource.IO: "Disk write throughput [KB/s]"})
        return "VM averages", _step_ms(path, ";", "Timestamp [ms]", lambda text: float(text) * 1000.0), rows
    if {"timestamp", "value"} <= names:
        rows = _table(path, ",", {Resource.CPU: "value"})
        return (
            "one metric",
            _step_ms(path, ",", "timestamp", lambda t: datetime.fromisoformat(t).timestamp() * 1e3),
            rows,
        )
    raise TraceError(f"{path}: is none of the public formats that are known")


def _rows(path: Path, separator: str) -> list[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [
                {str(k).strip(): str(v).strip() for k, v in row.items()}
                for row in csv.DictReader(file, delimiter=separator)
            ]
    except (OSError, csv.Error, UnicodeDecodeError) as e:
        raise TraceError(f"{path}: cannot be read: {e}") from e


def _table(path: Path, separator: str, wanted: Mapping[Resource, str]) -> Columns:
    rows = _rows(path, separator)
    try:
        return {r: np.array([float(row[name] or "nan") for row in rows]) for r, name in wanted.items()}
    except (KeyError, ValueError) as e:
        raise TraceError(f"{path}: a row has no number where it should: {e}") from e


def _step_ms(path: Path, separator: str, column: str, read: Callable[[str], float]) -> float:
    """Return the median step between rows, ms. The traces' stamps are seconds or dates, whatever the column's name."""
    try:
        steps = np.diff([read(row[column]) for row in _rows(path, separator)[:1000]])
    except (KeyError, ValueError) as e:
        raise TraceError(f"{path}: column {column!r} holds no times: {e}") from e
    step = float(np.median(steps)) if len(steps) else 0.0
    if step <= 0:
        raise TraceError(f"{path}: its rows are not in order of time")
    return step


def _metadata(path: Path, tick_ms: float, columns: Columns) -> dict[str, Any]:
    most = {r: max(int(np.ceil(np.nanmax(columns[r], initial=1.0))), UNITS) if r in columns else 0 for r in Resource}
    zone = {r: WHOLE_HOST if r is Resource.IO else 0 for r in Resource}
    pools = tuple(
        Pool(resource=r, zone=zone[r], units=most[r], unit="as in the trace", unit_size=1.0, measure="")
        for r in Resource
    )
    one = np.zeros(1, np.int64)
    topology = Topology(cpu_id=one, core=one, zone=one, units_per_cpu=max(most[Resource.CPU], 1), pools=pools)
    cap = np.array([list(most.values())], np.int64)
    vms = VmTable(
        uuid=(str(uuid5(NAMESPACE_URL, path.name)),), name=("trace",), priority=np.zeros(1, np.int64),
        isolation=np.full(1, Isolation.SHARED, np.int64), zone=np.zeros(1, np.int64),
        reservation=np.zeros((1, R), np.int64), cap=cap,
    )  # fmt: skip
    return recording_metadata(
        topology, vms, hal="import", tick_ns=round(tick_ms * 1e6), boot_id="", monotonic_ns=0, utc_ns=0
    )


def _block(columns: Columns, rows: slice, tick_ms: float) -> dict[str, np.ndarray[Any, Any]]:
    count = rows.stop - rows.start
    usage = np.full((count, 1, R), np.nan)
    for r, values in columns.items():
        usage[:, 0, r] = values[rows]
    return {
        "t_ns": (np.arange(rows.start, rows.stop) + 1) * round(tick_ms * 1e6),
        "usage": usage, "demand_low": usage, "limit": np.full(usage.shape, np.inf),
        "wait_ns": np.full((count, 1), np.nan), "present": np.ones((count, 1), bool),
        "quality": np.where(np.isnan(usage), np.uint8(Quality.MISSING), np.uint8(Quality.OK)),
    }  # fmt: skip
