"""Quantiles by situation: what followed, for each series, whenever it was as it is now.

A **situation** is a cell of a table: how long ago the series was last above 0, how busy its VM's CPUs are and for how
long, how its level compares with what is usual. A program does not have to be known for that: a checkpoint after the
CPUs went quiet, a log synced a second after the last, are found in each VM's own past. Each cell tracks the quantiles
of what came after it by stochastic approximation, ``q += g me (level - 1{y <= q})``, with ``me`` the mean excess above
``q`` and the gain ``g = 1 / ((1 - level) (n + n0))`` of n visits, the optimal one where tails are exponential (Robbins
and Monro 1951, Annals of Mathematical Statistics 22(3)), down to that of MOST_VISITS: quantiles of the last minutes,
whose noise does not grow with the level as it does at one rate for all.

Four tables, each a member of the mixture: **smooth** has offsets to an EWMA, **idle**, **busy** and **runs** (of the
CPUs, for these of the IO: :mod:`~.climate`) have quantiles themselves. A cell that was never judged says what
its fallback says.
"""

from __future__ import annotations

import numpy as np

from foreshare.policies.host import CPU, IntArray, R

from .climate import OFF, ON, PEAK, QUANTILES
from .features import partners
from .history import AHEAD, FLOOR, HORIZONS, WINDOW, Float32Array, History, K, Q, aligned_zeros, carry_series, spread

TABLES = ("smooth", "idle", "busy", "runs")
SMOOTH_GAIN = 0.1
MOST_IDLE = 500.0
LEVEL_EDGES = (0.03, 0.1, 0.3, 0.6, 1.0)
"""Of the mean of five ticks over the 0.9 quantile of such means: of the series itself, or of its VM's CPUs."""
TREND_EDGES = (0.5, 1.0, 2.0)
"""Of the mean of five ticks over that of the 20 before them."""
IDLE_EDGES = (1.0, 3.0, 6.0, 12.0, 25.0, 50.0, 90.0, 110.0, 150.0)
"""Ticks since the series was last above FLOOR, for the idle table."""
BUSY_EDGES = (3.0, 8.0, 20.0, 60.0, 110.0)
"""The same for the busy one."""
RUN_EDGES = (3.0, 8.0, 20.0, 60.0)
"""Ticks that the partner's run has lasted."""
SHORT_EDGES = (3.0, 20.0, 110.0)
"""Of the ticks since the series was last above FLOOR, for the table of runs."""
CELLS = (
    (len(LEVEL_EDGES) + 1) * (len(TREND_EDGES) + 1),
    len(IDLE_EDGES) + 1,
    (len(BUSY_EDGES) + 1) * (len(LEVEL_EDGES) + 1),
    2 * (len(RUN_EDGES) + 1) * (len(SHORT_EDGES) + 1),
)
FIRST = (0, CELLS[0], CELLS[0] + CELLS[1], CELLS[0] + CELLS[1] + CELLS[2])
"""The first cell of each table."""
VISITS, CELL = Q, (2, K + 1, Q + 1)
"""A cell is two cache lines: an answer needs but the first. There each horizon has Q quantiles and the visits, in the
second Q mean excesses; what is one over of either is unused."""
EXCESS_GAIN, MOST_EXCESS_GAIN = 0.05, 0.5
INVERSE = (2.0, 10.0, 100.0)
"""1 / (1 - level)."""
FEWEST_VISITS = (4.0, 20.0, 100.0)
"""n0."""
MOST_VISITS = (3000.0, 4000.0, 8000.0)
START_SHARE = 0.02
"""The mean excess starts with this share of the largest mean of five ticks, or the usual error if that is more."""
SLOTS = AHEAD + 1
LANES = 8
"""Of a vector: compiled/dense.h."""
_TREND = (5, 25)
_LEVEL = np.array([1.0 - 1.0 / i for i in INVERSE], np.float32)
_INVERSE, _FEWEST, _MOST = (np.array(x, np.float32) for x in (INVERSE, FEWEST_VISITS, MOST_VISITS))
_FLOOR = np.float32(FLOOR)


class Situations:
    """The tables of all series, and where each series was in the latest ticks."""

    def __init__(self, size: int) -> None:
        self.padded: Float32Array = aligned_zeros((-(-size // LANES) * LANES, sum(CELLS), *CELL), np.float32)
        """(at least S, cells, 2, K + 1, Q + 1): there are series enough for whole vectors."""
        self.now: Float32Array = np.zeros((2, size), np.float32)
        """(2, S) the EWMA, units, and the ticks since the series was last above FLOOR."""
        self.now[1] = MOST_IDLE
        self.rows: Float32Array = aligned_zeros((SLOTS, 1 + len(TABLES), spread(size)), np.float32)
        """(SLOTS, 5, at least S) the EWMA and the cells of the latest ticks."""
        self._series = np.arange(size)
        self._partner = partners(size)

    @property
    def cells(self) -> Float32Array:
        """(S, cells, 2, K + 1, Q + 1) a view."""
        return self.padded[: len(self._series)]

    @property
    def was(self) -> Float32Array:
        """(SLOTS, 5, S) a view."""
        return self.rows[..., : len(self._series)]

    def look(self, history: History, tick: int) -> None:
        """Take in the newest tick: where every series is now."""
        newest, five, base, idle = history.newest, history.five, self.now[0], self.now[1]
        base += np.where(history.seen <= 1, np.float32(1.0), np.float32(SMOOTH_GAIN)) * (newest - base)
        np.minimum(idle + np.float32(1.0), np.float32(MOST_IDLE), out=idle)
        idle[newest > _FLOOR] = 0.0
        level = (five + _FLOOR) / (history.climate[QUANTILES.start + 1] + _FLOOR)
        own, cpu = _bin(level, LEVEL_EDGES), _bin(level.reshape(-1, R)[:, CPU].repeat(R), LEVEL_EDGES)
        end = history.newest_row + WINDOW
        before = history.running[0, end - _TREND[0]] - history.running[0, end - _TREND[1]]
        before = (before * (1.0 / (_TREND[1] - _TREND[0]))).astype(np.float32)
        trend = _bin((five + _FLOOR) / (before + _FLOOR), TREND_EDGES)
        was = self.was[tick % SLOTS]
        was[0] = base
        was[1] = own * (len(TREND_EDGES) + 1) + trend
        was[2] = FIRST[1] + _bin(idle, IDLE_EDGES)
        was[3] = FIRST[2] + _bin(idle, BUSY_EDGES) * (len(LEVEL_EDGES) + 1) + cpu
        on, off = history.climate[ON], history.climate[OFF]
        run = np.where(on > 0.0, _bin(on, RUN_EDGES), _bin(off, RUN_EDGES) + np.float32(len(RUN_EDGES) + 1))
        was[4] = FIRST[3] + run[self._partner] * (len(SHORT_EDGES) + 1) + _bin(idle, SHORT_EDGES)

    def answer(
        self, history: History, tick: int, error: Float32Array, recent: Float32Array, climate: Float32Array,
        out: Float32Array,
    ) -> None:  # fmt: skip
        """Fill ``out`` (tables, K, Q, S) with units.

        ``error`` (K, S) the usual error; ``recent`` (K, Q, S) and ``climate`` (Q, S) what cells that were never judged
        fall back to, the first for the smooth table.
        """
        was = self.was[tick % SLOTS]
        start = np.maximum(error, np.float32(START_SHARE) * history.climate[PEAK])
        for i in range(len(TABLES)):
            at = was[1 + i].astype(np.int64)
            found = self.cells[self._series, at]  # a copy
            quantiles, excess, new = found[:, 0, :K, :Q], found[:, 1, :K, :Q], found[:, 0, :K, VISITS, None] == 0.0
            if new.any():
                fallback = recent - was[0] if i == 0 else np.broadcast_to(climate, recent.shape)
                np.copyto(quantiles, fallback.transpose(2, 0, 1), where=new)
                np.copyto(excess, start.T[:, :, None], where=new)
                self.cells[self._series, at] = found
            out[i] = quantiles.transpose(1, 2, 0)
        out[0] += was[0]
        np.maximum(out, np.float32(0.0), out=out)

    def learn(self, k: int, tick: int, truth: Float32Array, judged: Float32Array, loose: Float32Array) -> None:
        """Take in what the newest tick tells of horizon ``k``; all (S,), ``judged`` and ``loose`` 1 or 0."""
        was = self.was[(tick - HORIZONS[k].ahead) % SLOTS]
        for i in range(len(TABLES)):
            at = was[1 + i].astype(np.int64)
            base = was[0] if i == 0 else np.zeros_like(was[0])
            cell = self.cells[self._series, at, :, k]
            q, visits, excess = cell[:, 0, :Q], cell[:, 0, VISITS], cell[:, 1, :Q]
            over = (truth - base)[:, None] - q
            above = over > 0.0
            counts = judged[:, None] * np.where(above, np.float32(1.0), (np.float32(1.0) - loose)[:, None])
            gain = _INVERSE / np.minimum(visits[:, None] + _FEWEST, _MOST)
            share = np.maximum(np.minimum(gain, np.float32(MOST_EXCESS_GAIN)), np.float32(EXCESS_GAIN))
            excess += np.where(above, over - excess, np.float32(0.0)) * (counts * share)
            q += gain * excess * (_LEVEL - ~above) * counts
            np.maximum(q, -base[:, None], out=q)
            visits += judged * (np.float32(1.0) - loose)
            self.cells[self._series, at, :, k] = cell

    def rebind(self, rows: IntArray, batch: tuple[int, ...], size: int) -> Situations:
        """Return the tables of another set of VMs; ``rows`` (N,) is each one's former row, or -1."""
        fresh = Situations(size)
        old, new = np.moveaxis(self.cells, 0, -1), np.moveaxis(fresh.cells, 0, -1)
        new[:] = carry_series(old, rows, new, batch)
        for name in ("now", "was"):
            getattr(fresh, name)[:] = carry_series(getattr(self, name), rows, getattr(fresh, name), batch)
        return fresh


def _bin(x: Float32Array, edges: tuple[float, ...]) -> Float32Array:
    """Return (S,) how many of ``edges`` each value has reached."""
    out = np.zeros(x.shape, np.float32)
    for edge in edges:
        out += x >= np.float32(edge)
    return out
