"""The ring of what was seen: the newest WINDOW ticks of every series, and sums over windows that cost O(1).

A **series** is one VM's demand for one resource. Arrays are (..., S) with S = N * R series of a host, H * N * R of a
batch, in the order of (H, N, R) flattened; amounts in units, float32 but for running sums.

``HORIZONS`` are what is forecast after tick t: the demand of tick t + 1, in which the decision lands, its mean over
t + 1 .. t + 5, the 5 ticks that end 50 ms ahead at 10 ms a tick, and over t + 6 .. t + 10, which end 100 ms ahead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from foreshare.policies import kernel
from foreshare.policies.host import BoolArray, FloatArray, IntArray, R

from .climate import ROWS, follow_climate, fresh_climate

Float32Array = npt.NDArray[np.float32]
LEVELS = (0.5, 0.9, 0.99)
Q = len(LEVELS)


@dataclass(frozen=True, kw_only=True, slots=True)
class Horizon:
    """What is forecast: the mean over ``width`` ticks that end ``ahead`` ticks from now."""

    name: str
    ahead: int
    width: int


HORIZONS = (Horizon(name="landing", ahead=1, width=1), Horizon(name="50", ahead=5, width=5),
            Horizon(name="100", ahead=10, width=5))  # fmt: skip
K = len(HORIZONS)
AHEAD = max(h.ahead for h in HORIZONS)
WIDTH = max(h.width for h in HORIZONS)
WINDOW = 256
"""Ticks that are kept."""
MOST = 1e6
"""Units beyond which a value is no reading: missing."""
FLOOR = 0.01
"""Units below which the scale of a series does not fall."""
GAP_TICKS = 3.0
"""A sample that comes more than so many ticks after the one before it stands behind a gap: nothing is judged by it."""
SLOW_TICKS = 500
"""Memory of the long-run mean."""
_REBASE = 1 << 16
_LINE = 16
"""Float32 numbers in a cache line."""
VIEWS = ("_y", "_w", "running", "climate")


def spread(size: int) -> int:
    """Return how long rows of ``size`` numbers are made: an odd number of cache lines.

    What is done for some series goes over the same columns of hundreds of rows. Rows as long as a power of two would
    all compete for the same few places of a cache.
    """
    return (-(-size // _LINE) | 1) * _LINE


Number = TypeVar("Number", np.float32, np.float64)


def aligned_zeros(shape: tuple[int, ...], kind: type[Number]) -> npt.NDArray[Number]:
    """Return an array of zeros that begins with a cache line: none of numpy's does."""
    item = np.dtype(kind).itemsize
    out = np.zeros(int(np.prod(shape)) + _LINE, kind)
    first = -out.ctypes.data % (4 * _LINE) // item
    return out[first : first + int(np.prod(shape))].reshape(shape)


class History:
    """The ring. ``push`` once a tick; everything else is views and running sums, valid until the next push."""

    def __init__(self, size: int) -> None:
        """``size``: S, the number of series."""
        self.size = size
        self.count = 0
        """Ticks taken in."""
        self.newest_row = WINDOW - 1
        row = spread(size)
        self._rows: tuple[Float32Array, Float32Array, FloatArray, Float32Array] = (
            aligned_zeros((2 * WINDOW, row), np.float32), aligned_zeros((2 * WINDOW, row), np.float32),
            aligned_zeros((3, 2 * WINDOW, row), np.float64), aligned_zeros((len(ROWS), row), np.float32),
        )  # fmt: skip
        self._look()
        self._rows[-1][:] = fresh_climate(row)
        self.seen: IntArray = np.zeros(size, np.int64)
        """(S,) ticks with a value, until all have SLOW_TICKS and nothing is missing."""
        self.age: Float32Array = np.zeros(size, np.float32)
        """(S,) ticks since the latest value."""
        self.clean: IntArray = np.zeros(size, np.int64)
        """(S,) ticks since the latest missing value or gap."""
        self.loose: IntArray = np.full(size, WINDOW, np.int64)
        """(S,) ticks since the latest censored value; 0 if it is the newest."""
        self._now: FloatArray = np.zeros((3, size))
        self._step: FloatArray = np.zeros(size)
        self._held: object | None = None
        self.whole = False
        """Nothing is missing and nobody is new."""
        self.slow: FloatArray = np.zeros(size)
        """(S,) long-run mean."""
        self.scale: Float32Array = np.full(size, FLOOR, np.float32)
        """(S,) what values are divided by: half the mean of 20 ticks, half the long-run one, at least FLOOR."""
        self.five: Float32Array = np.zeros(size, np.float32)
        """(S,) the mean of the newest five ticks."""

    def _look(self) -> None:
        y, w, running, climate = self._rows
        self._y, self._w = y[:, : self.size], w[:, : self.size]
        self.running: FloatArray = running[..., : self.size]
        """(3, 2 WINDOW, S) running sums of demand, of its square, of what waits; the newest at newest_row + WINDOW."""
        self.climate: Float32Array = climate[:, : self.size]
        """(climate.ROWS, S)."""

    def push(
        self,
        demand: FloatArray | Float32Array,
        waiting: FloatArray | Float32Array,
        censored: BoolArray,
        *,
        gap: bool = False,
    ) -> None:
        """Take in one tick of all series, each array (S,).

        ``demand``: NaN where unknown; ``waiting``: the part of it that waited; ``censored``: demand was at least this;
        ``gap``: time was lost before this tick, or the clock jumped.
        """
        before = self.newest_row
        self.newest_row = at = (before + 1) % WINDOW
        self.count += 1
        if self.count % _REBASE == 0:  # running sums lose digits as they grow
            self.running -= self.running[:, before + 1 : before + 2].copy()
        if kernel.compiled is not None:
            self.whole = kernel.compiled.push(self.held, at, before, gap, self.whole, demand, waiting, censored)
            return
        now = self._now
        if self.whole and demand.min() >= 0.0 and demand.max() <= MOST:  # not where one is NaN
            now[0] = demand
            known = None
        else:
            known = self._holes(demand, before)
        np.fmax(waiting, 0.0, out=now[2])
        np.minimum(now[2], MOST, out=now[2])
        if known is not None and not known.all():
            now[2, ~known] = self._w[before, ~known]
        self.clean += 1
        if known is not None:
            self.clean[~known] = 0
        if gap:
            self.clean[:] = 0
        self.loose += 1
        if censored.any():
            np.copyto(self.loose, 0, where=censored)
        np.multiply(now[0], now[0], out=now[1])
        sums = self.running
        np.add(sums[:, before], now, out=sums[:, at])
        sums[:, at + WINDOW] = sums[:, at]
        self._y[at] = self._y[at + WINDOW] = now[0]
        self._w[at] = self._w[at + WINDOW] = now[2]
        if known is not None:
            fresh = known & (self.seen == 0)
            self.seen += known
            if fresh.any():
                self._begin(fresh)
        self._level(known)

    @property
    def held(self) -> object:
        """The arrays as compiled/forecast_module.c holds them: handed over once."""
        if self._held is None and kernel.compiled is not None:
            self._held = kernel.compiled.hold_history((
                *self._rows, self.seen, self.clean, self.loose, self.age, self.scale, self.five, self.slow, self.size,
                self._rows[0].shape[1],
            ))  # fmt: skip
        return self._held

    def __getstate__(self) -> dict[str, object]:
        """Return what a copy is made of: its arrays are others."""
        return {**{k: v for k, v in self.__dict__.items() if k not in VIEWS}, "_held": None}

    def __setstate__(self, state: dict[str, object]) -> None:
        """Take over what a copy is made of."""
        self.__dict__.update(state)
        self._look()

    def _holes(self, demand: FloatArray | Float32Array, before: int) -> BoolArray:
        """Take in demand (S,) with values missing, or of series that are new; return which are known."""
        known = (demand >= 0.0) & (demand <= MOST)
        self._now[0] = np.where(known, demand, self._y[before])  # a hole is bridged by the value before it
        self.age += 1.0
        np.copyto(self.age, 0.0, where=known)
        self.whole = bool(known.all() and (self.seen >= SLOW_TICKS).all())
        return known

    def _begin(self, fresh: BoolArray) -> None:
        """Give series their first value as their whole past."""
        first = self._now[0, fresh]
        self._y[:, fresh] = first
        self._w[:, fresh] = 0.0
        tick = np.empty(2 * WINDOW)
        order = (self.newest_row + 1 + np.arange(WINDOW)) % WINDOW
        tick[order] = tick[order + WINDOW] = np.arange(WINDOW)
        self.running[0][:, fresh] = tick[:, None] * first
        self.running[1][:, fresh] = tick[:, None] * first**2
        self.running[2][:, fresh] = 0.0
        self.slow[fresh] = first
        self.clean[fresh] = 0

    def _level(self, known: BoolArray | None) -> None:
        step = self._step
        np.subtract(self._now[0], self.slow, out=step)
        if known is None:
            step *= 1.0 / SLOW_TICKS
        else:
            step *= 1.0 / np.minimum(np.maximum(self.seen, 1), SLOW_TICKS)
            step *= known
        self.slow += step
        end = self.newest_row + WINDOW
        np.subtract(self.running[0, end], self.running[0, end - 20], out=step)
        step *= 1.0 / 20.0
        step += self.slow
        step *= 0.5
        np.maximum(step, FLOOR, out=step)
        self.scale[:] = step
        np.add.reduce(self.demand(WIDTH), axis=0, out=self.five)
        self.five *= np.float32(1.0 / WIDTH)
        follow_climate(self.climate, self.newest, self.five, self.slow.astype(np.float32), known)

    @property
    def newest(self) -> Float32Array:
        """(S,) the newest values, holes bridged. A view."""
        out: Float32Array = self._y[self.newest_row]
        return out

    def demand(self, ticks: int) -> Float32Array:
        """Return (ticks, S) the newest values, oldest first, ``ticks`` at most WINDOW. A view."""
        end = self.newest_row + WINDOW + 1
        return self._y[end - ticks : end]

    def waiting(self, ticks: int) -> Float32Array:
        """Return (ticks, S) what waited, oldest first. A view."""
        end = self.newest_row + WINDOW + 1
        return self._w[end - ticks : end]

    def mean(self, first: int, past: int) -> FloatArray:
        """Return (S,) the mean over lags ``first`` .. ``past`` - 1; lag 0 is the newest; ``past`` below WINDOW."""
        end = self.newest_row + WINDOW
        out: FloatArray = self.running[0, end - first] - self.running[0, end - past]
        out *= 1.0 / (past - first)
        return out

    def sums(self, which: int, lags: IntArray) -> FloatArray:
        """Return (len(lags), S) the running sums of demand (0), its square (1), what waits (2), up to each lag."""
        return np.asarray(self.running[which].take(self.newest_row + WINDOW - lags, axis=0))

    def truth(self, out: Float32Array) -> None:
        """Fill ``out`` (K, S) with what each horizon's forecast that ends now was about."""
        out[0] = self.newest
        out[1] = out[2] = self.five

    def judged(self, horizon: Horizon) -> BoolArray:
        """Return (S,) whether the forecast that ends now can be judged: nothing was missing since it was made."""
        return np.asarray(self.clean > horizon.ahead)

    def lower_bound(self, horizon: Horizon) -> BoolArray:
        """Return (S,) whether what that forecast was about is known only from below: a tick of it was censored."""
        return np.asarray(self.loose < horizon.width)

    def rebind(self, rows: IntArray, batch: tuple[int, ...]) -> History:
        """Return the history of another set of VMs; ``rows`` (N,) is each one's former row, or -1."""
        fresh = History(int(np.prod(batch, dtype=np.int64)) * len(rows) * R)
        fresh.count, fresh.newest_row = self.count, self.newest_row
        for name in ("_y", "_w", "running", "seen", "age", "clean", "loose", "slow", "scale", "climate", "five"):
            getattr(fresh, name)[:] = carry_series(getattr(self, name), rows, getattr(fresh, name), batch)
        return fresh


Kind = TypeVar("Kind", bound=np.generic)


def carry_series(
    old: npt.NDArray[Kind], rows: IntArray, fresh: npt.NDArray[Kind], batch: tuple[int, ...]
) -> npt.NDArray[Kind]:
    """Return ``fresh`` (..., S) with the series of the VMs that ``rows`` (N,) names taken from ``old``; -1: new."""
    out = fresh.copy()
    lead = fresh.shape[:-1]
    known = rows >= 0
    before = old.reshape(*lead, *batch, -1, R)
    np.moveaxis(out.reshape(*lead, *batch, len(rows), R), -2, 0)[known] = np.moveaxis(before, -2, 0)[rows[known]]
    return out
