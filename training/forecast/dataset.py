"""Recordings as series: what each VM demanded of each resource, tick by tick, and where that is not known.

Nothing is drawn from a recording but what its host saw: the demand known at least (usage and what waited for it), what
of it waited, and which ticks were censored, missing or late.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from foreshare.envs.hal.recording import read_recording
from foreshare.policies.errors import InputError
from foreshare.policies.forecast.history import GAP_TICKS, HORIZONS, Float32Array, History, K
from foreshare.policies.host import BoolArray, FloatArray, R
from foreshare.policies.reading import Quality

MIN_TICKS = 200


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Session:
    """One recording: T ticks, N VMs, S = N * R series."""

    name: str
    tick_ms: float
    uuid: tuple[str, ...]
    """(N,) what each VM is known by; the same program has the same in every recording."""
    capacity: FloatArray
    """(S,) units of the pool that each series draws on."""
    demand: Float32Array
    """(T, S) units, NaN where unknown."""
    waiting: Float32Array
    """(T, S) the part that waited."""
    censored: BoolArray
    """(T, S)."""
    gap: BoolArray
    """(T,) time was lost before the tick."""

    @property
    def ticks(self) -> int:
        """T."""
        return len(self.gap)

    @property
    def vms(self) -> int:
        """N."""
        return len(self.uuid)

    def only(self, uuids: Collection[str]) -> Session:
        """Return the recording of these of its VMs alone."""
        columns = np.flatnonzero(np.repeat([u in uuids for u in self.uuid], R))
        return replace(
            self, uuid=tuple(u for u in self.uuid if u in uuids), capacity=self.capacity[columns],
            demand=self.demand.take(columns, axis=1), waiting=self.waiting.take(columns, axis=1),
            censored=self.censored.take(columns, axis=1),
        )  # fmt: skip

    def replay(self, start: int = 0, end: int | None = None) -> Iterator[History]:
        """Yield the history after each tick from ``start`` on, as a forecaster on that host would have it."""
        history = History(self.demand.shape[1])
        for t in range(start, self.ticks if end is None else end):
            history.push(self.demand[t], self.waiting[t], self.censored[t], gap=bool(self.gap[t]))
            yield history


def load_session(folder: Path) -> Session:
    """Return a recording as series. Raises TraceError; InputError where it is too short to learn or judge by."""
    r = read_recording(folder)
    ticks, n = r.usage.shape[:2]
    if ticks < MIN_TICKS or n == 0:
        raise InputError(f"{folder}: {ticks} ticks of {n} VMs; {MIN_TICKS} of one are the least to fit or judge by")
    demand = np.fmax(r.demand_low, r.usage)
    missing = (r.quality & np.uint8(Quality.MISSING)) != 0
    demand[missing | ~r.present[..., None]] = np.nan
    waiting = np.fmax(demand - np.fmax(r.usage, 0.0), 0.0)
    np.nan_to_num(waiting, copy=False, nan=0.0)
    capacity = np.zeros((n, R))
    for pool in r.host.topology.pools:
        here = (r.host.vms.zone == pool.zone) | (pool.zone < 0)
        capacity[here, pool.resource] = pool.units
    return Session(
        name=folder.name or str(folder), tick_ms=r.host.tick_ns / 1e6, uuid=r.host.vms.uuid, capacity=capacity.ravel(),
        demand=demand.reshape(ticks, n * R), waiting=waiting.reshape(ticks, n * R),
        censored=((r.quality & np.uint8(Quality.CENSORED)) != 0).reshape(ticks, n * R),
        gap=np.concatenate([[True], np.diff(r.t_ns) > GAP_TICKS * r.host.tick_ns]),
    )  # fmt: skip


def load_sessions(folders: Sequence[Path]) -> list[Session]:
    """Return every recording named, or found in a folder that is named. Raises InputError where there is none."""
    found: list[Path] = []
    for folder in folders:
        inside = sorted({p.parent for p in folder.rglob("part-*.parquet")}) if folder.is_dir() else []
        if not inside:
            raise InputError(f"{folder}: holds no recording")
        found += inside
    return [load_session(f) for f in dict.fromkeys(found)]


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Truth:
    """What the forecasts of each origin were about: (T, K, S)."""

    value: Float32Array
    known: BoolArray
    """All its ticks, and those since the origin, have values and no gap."""
    bound: BoolArray
    """A tick of it was censored: the value is the least that it can have been."""


def truths(session: Session) -> Truth:
    """Return what came after every tick of a session, by origin."""
    ticks, size = session.demand.shape
    value = np.full((ticks, K, size), np.nan, np.float32)
    known, bound = np.zeros(value.shape, bool), np.zeros(value.shape, bool)
    bad = (~np.isfinite(session.demand)) | session.gap[:, None]
    sums = np.concatenate([np.zeros((1, size)), np.cumsum(np.nan_to_num(session.demand.astype(np.float64)), axis=0)])
    bads, bounds = (
        np.concatenate([np.zeros((1, size), np.int64), np.cumsum(x, axis=0)]) for x in (bad, session.censored)
    )
    for k, h in enumerate(HORIZONS):
        end = np.arange(h.ahead, ticks) + 1  # one past the last tick of it, for origins 0 .. T - ahead - 1
        value[: len(end), k] = (sums[end] - sums[end - h.width]) / h.width
        known[: len(end), k] = bads[end] == bads[end - h.ahead]
        bound[: len(end), k] = bounds[end] > bounds[end - h.width]
    return Truth(value=value, known=known, bound=bound)


def active_series(session: Session, without: tuple[str, ...] = ()) -> BoolArray:
    """Return (S,) which series have anything to forecast: values, not all of them 0.

    None of VMs whose UUIDs begin with one of ``without``.
    """
    here = [not u.startswith(without) if without else True for u in session.uuid]
    return np.asarray((np.nan_to_num(session.demand).max(axis=0) > 0) & np.repeat(here, R))
