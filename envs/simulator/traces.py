"""Replayed demand: recordings and public traces as arrivals per tick.

========================  ======================================================================================
a recording (folder)      what ``foreshare record`` wrote: usage scaled up to what is known of demand, per resource
request stamps (.csv)     a column ``TIMESTAMP``, ISO 8601 or seconds: requests counted per tick
percentile windows        ``time`` (us) and ``pN_cpu_usage`` columns: a distribution inside each window, from which
                          bursts below the window are drawn (:func:`bursts_in_windows`), the same ones every time
arrivals (.npy)           one number for each 10 ms
========================  ======================================================================================
"""

from __future__ import annotations

import csv
import re
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from foreshare.envs.hal.recording import read_recording
from foreshare.policies.errors import InputError, TraceError
from foreshare.policies.host import BoolArray, FloatArray, R, Resource

ARRAY_TICK_MS = 10.0
MAX_TICKS = 1 << 25
REPLAYED_WINDOWS = 12
"""Of a file of percentile windows, so many are replayed."""
_MIX_LIMITS = (0.02, 50.0)


@dataclass(frozen=True, eq=False, slots=True)
class Trace:
    """Arrivals of one VM, for each tick."""

    intensity: FloatArray
    """(T,) requests relative to their mean."""
    mix: FloatArray
    """(T, R) need of a request relative to its usual need; weighted by the arrivals its mean is 1."""

    def __post_init__(self) -> None:
        self.intensity.setflags(write=False)
        self.mix.setflags(write=False)


def trace_of_arrivals(arrivals: FloatArray, *, from_ms: float = 10.0, tick_ms: float = 10.0) -> Trace:
    """Return ``arrivals`` (T,) >= 0, any unit, each over ``from_ms``, as a trace at ``tick_ms``.

    Raises TraceError where there are none.
    """
    rate = resampled(_checked(arrivals), from_ms, tick_ms)
    return Trace(rate / rate.mean(), np.broadcast_to(np.ones(R), (len(rate), R)))


def resampled(rate: FloatArray, from_ms: float, to_ms: float) -> FloatArray:
    """Return mean rates (T,) over intervals of ``from_ms`` as mean rates over intervals of ``to_ms``."""
    if from_ms == to_ms:
        return rate
    total = np.concatenate([[0.0], np.cumsum(rate)])
    edges = np.arange(max(int(len(rate) * from_ms / to_ms), 1) + 1) * (to_ms / from_ms)
    return np.asarray(np.diff(np.interp(edges, np.arange(len(total)), total)) * (from_ms / to_ms))


def load_trace(path: str | Path, *, tick_ms: float = 10.0, row: int = 0) -> Trace:
    """Return the trace in a file or recording, by its kind. Raises TraceError or InputError.

    ``row``: the VM of a recording, the first of REPLAYED_WINDOWS percentile windows; it means nothing elsewhere.
    """
    if not str(path):
        raise InputError("workload replay: needs a trace")
    path = Path(path)
    if path.is_dir():
        return trace_of_recording(path, row, tick_ms=tick_ms)
    if path.suffix == ".csv" and _has_percentiles(path):
        windows = read_percentile_windows(path)
        values = windows.values[row : row + REPLAYED_WINDOWS]
        if not len(values):
            raise InputError(f"{path}: has {len(windows.values)} windows, there is no number {row}")
        few = PercentileWindows(windows.levels, values, windows.window_ms)
        bursts = bursts_in_windows(few, np.random.default_rng(row), tick_ms=tick_ms)
        return trace_of_arrivals(bursts, from_ms=tick_ms, tick_ms=tick_ms)
    if path.suffix == ".csv":
        counts = arrivals_of_stamps(read_request_stamps(path), tick_ms=tick_ms)
        return trace_of_arrivals(counts, from_ms=tick_ms, tick_ms=tick_ms)
    if path.suffix == ".npy":
        try:
            with path.open("rb") as file:
                values = np.load(file, allow_pickle=False)
        except (OSError, ValueError, EOFError) as e:
            raise TraceError(f"{path}: cannot be read: {e}") from e
        if not isinstance(values, np.ndarray) or values.dtype.kind not in "fiu":
            raise TraceError(f"{path}: holds no array of numbers")
        return trace_of_arrivals(values.astype(np.float64), from_ms=ARRAY_TICK_MS, tick_ms=tick_ms)
    raise TraceError(f"{path}: is neither a recording nor a .csv or .npy file")


def trace_of_recording(folder: Path, row: int, *, tick_ms: float = 10.0) -> Trace:
    """Return what one VM of a recording asked for. Raises TraceError, InputError where there is no such VM.

    Arrivals follow the CPU demand, known at least as usage and the threads that waited; memory and IO follow as the
    mix. Ticks without a value are interpolated.
    """
    recording = read_recording(folder)
    n = len(recording.host.vms)
    if not 0 <= row < n:
        raise InputError(f"{folder}: has {n} VMs, there is no number {row}")
    demand = recording.demand_low[:, row].astype(np.float64)
    from_ms = recording.host.tick_ns / 1e6
    seconds = (recording.t_ns - recording.t_ns[0]) / 1e6 if len(recording.t_ns) else np.zeros(0)
    grid = np.arange(0.0, seconds[-1] + from_ms / 2, from_ms) if len(seconds) else np.zeros(0)
    if len(grid) > MAX_TICKS:
        raise TraceError(f"{folder}: is longer than {MAX_TICKS} ticks")

    def series(r: Resource) -> FloatArray | None:
        known = np.isfinite(demand[:, r])
        if not known.any():
            return None
        rate = resampled(np.interp(grid, seconds[known], np.maximum(demand[known, r], 0.0)), from_ms, tick_ms)
        return rate / rate.mean() if rate.mean() > 0 else None

    cpu = series(Resource.CPU)
    if cpu is None:
        raise TraceError(f"{folder}: tells nothing of the CPU demand of VM {row}")
    mix = np.ones((len(cpu), R))
    for r in (Resource.MEMORY, Resource.IO):
        other = series(r)
        if other is not None:
            mix[:, r] = np.clip(other / np.maximum(cpu, 1e-3), *_MIX_LIMITS)
            mix[:, r] /= (cpu * mix[:, r]).mean()
    return Trace(cpu, mix)


def read_request_stamps(path: Path) -> FloatArray:
    """Return the request times (K,) in a CSV file with a column ``TIMESTAMP``: seconds from the first, ascending."""
    try:
        with path.open(newline="") as file:
            rows = csv.DictReader(file)
            if "TIMESTAMP" not in (rows.fieldnames or ()):
                raise TraceError(f"{path}: has no column TIMESTAMP")
            stamps = [row["TIMESTAMP"] or "" for row in rows]
        if not stamps:
            raise TraceError(f"{path}: holds no request")
        if re.fullmatch(r"[0-9.eE+-]+", stamps[0]) and stamps[0].count("-") < 2:
            seconds = np.sort(np.array(stamps, np.float64))
            seconds -= seconds[0]
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # numpy only warns about time zones, and drops them
                nanoseconds = np.sort(np.array(stamps, "datetime64[ns]").astype(np.int64))
            seconds = (nanoseconds - nanoseconds[0]) / 1e9
    except (OSError, ValueError, UserWarning, csv.Error) as e:
        raise TraceError(f"{path}: cannot be read: {e}") from e
    if not np.isfinite(seconds).all():
        raise TraceError(f"{path}: holds a time that is none")
    return seconds


def arrivals_of_stamps(seconds: FloatArray, *, tick_ms: float = 10.0) -> FloatArray:
    """Return how many of the request times (K,), seconds from 0 on, fall into each tick, (T,)."""
    tick = np.floor(np.asarray(seconds) * 1000.0 / tick_ms + 1e-6)  # decimal times are not exact
    if not len(tick) or not 0 <= tick.min() <= tick.max() < MAX_TICKS:
        raise TraceError(f"request times must lie within 0 and {MAX_TICKS} ticks")
    return np.bincount(tick.astype(np.int64)).astype(np.float64)


@dataclass(frozen=True, eq=False, slots=True)
class PercentileWindows:
    """Usage as percentiles inside consecutive windows."""

    levels: FloatArray
    """(P,) shares, 0..1, ascending."""
    values: FloatArray
    """(W, P) usage at these shares."""
    window_ms: float


def read_percentile_windows(path: Path) -> PercentileWindows:
    """Return the CPU percentiles in a CSV file with columns ``time`` (microseconds) and ``pN_cpu_usage``.

    A ``max_cpu_usage`` counts as the hundredth percentile. Windows whose percentiles are missing are left out.
    """
    try:
        with path.open(newline="") as file:
            rows = csv.DictReader(file)
            named = [re.fullmatch(r"p(\d+)_cpu_usage", name) for name in rows.fieldnames or ()]
            found = {float(m[1]) / 100: m[0] for m in named if m}
            if "max_cpu_usage" in (rows.fieldnames or ()):
                found[1.0] = "max_cpu_usage"
            levels = sorted(found)
            if len(levels) < 2 or "time" not in (rows.fieldnames or ()):
                raise TraceError(f"{path}: has no columns time and pN_cpu_usage")
            table = [[float(row["time"]), *(float(row[found[x]] or "nan") for x in levels)] for row in rows]
    except (OSError, ValueError, TypeError, csv.Error) as e:
        raise TraceError(f"{path}: cannot be read: {e}") from e
    values = np.array(table, np.float64).reshape(len(table), len(levels) + 1)
    values = values[np.isfinite(values).all(axis=1)]
    if len(values) < 2:
        raise TraceError(f"{path}: holds less than two windows")
    window_ms = float(np.median(np.diff(values[:, 0]))) / 1000.0
    return PercentileWindows(np.array(levels), np.maximum.accumulate(values[:, 1:], axis=1), window_ms)


def bursts_in_windows(
    windows: PercentileWindows, rng: np.random.Generator, *, tick_ms: float = 10.0, hold_ms: float = 50.0
) -> FloatArray:
    """Return usage per tick (T,) whose distribution inside each window is the window's.

    Percentiles tell how often a level occurs, not for how long it lasts: a level is held for ``hold_ms`` on average
    (geometrically distributed, at least a tick), then drawn anew by inverting the piecewise linear distribution.
    """
    per_window = max(round(windows.window_ms / tick_ms), 1)
    if per_window * len(windows.values) > MAX_TICKS:
        raise TraceError(f"{len(windows.values)} windows of {per_window} ticks are more than {MAX_TICKS} ticks")
    fresh: BoolArray = rng.random((len(windows.values), per_window)) < min(tick_ms / hold_ms, 1.0)
    fresh[:, 0] = True
    out: npt.NDArray[np.float64] = np.empty(fresh.shape)
    for levels, start, into in zip(windows.values, fresh, out, strict=True):  # one for each window, once
        drawn = np.interp(rng.random(int(start.sum())), windows.levels, levels)
        into[:] = drawn[np.cumsum(start) - 1]
    return out.ravel()


def _has_percentiles(path: Path) -> bool:
    try:
        with path.open() as file:
            return "p50_cpu_usage" in file.readline(1 << 16)
    except (OSError, ValueError) as e:
        raise TraceError(f"{path}: cannot be read: {e}") from e


def _checked(arrivals: FloatArray) -> FloatArray:
    values = np.asarray(arrivals, np.float64)
    if values.ndim != 1 or not len(values) or len(values) > MAX_TICKS:
        raise TraceError(f"arrivals must be one number for each tick, {MAX_TICKS} at most, not {values.shape}")
    if not np.isfinite(values).all() or values.min() < 0 or values.sum() <= 0:
        raise TraceError("arrivals must be finite, at least 0, and some must be above it")
    return values
