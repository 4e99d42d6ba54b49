"""The climate of each series: what it demands over minutes, whatever it does now, and the rhythm of its bursts.

Rare bursts that nothing announces are forecast best by how often they come and how high they rise; those of a timer
(a log that is synced once a second, a checkpoint after each epoch) by how long ago the latest was. Everything is
tracked in O(1) a tick:

- **levels**: quantiles of the mean of five ticks by stochastic approximation, ``l += rate peak (level - 1{m <= l})``
  (Robbins and Monro 1951, Annals of Mathematical Statistics 22(3)), ``peak`` the largest mean, slowly forgotten;
- **bursts**: ticks above BURST_SHARE of the largest tick and BURST_TIMES the long-run mean. The ticks since the latest
  one, and smoothed: the ticks between two, how much these differ, and the height;
- **runs**: for how many ticks the series has been above ACTIVE_SHARE of its long-run mean, or not, and how long the
  latest run of either kind was. A job that has lasted as long as the one before it may write its result now: the runs
  of a VM's CPUs tell of its IO.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from foreshare.policies.host import BoolArray

Float32Array = npt.NDArray[np.float32]
KEPT = (0.5, 0.9, 0.97, 0.99)
"""Levels that are tracked."""
RATE = 0.004
KEEP_PEAK, KEEP_TOP = 0.9998, 0.9999
BURST_SHARE, BURST_TIMES = 0.05, 3.0
APART = 2.0
"""Ticks after a burst in which another belongs to it."""
BURST_GAIN = 0.2
MOST_OFF = 2.0
"""Spreads beyond which an interval counts as so many: one that was left out must not move the usual one."""
LONG_TICKS = 4000.0
MOST_SINCE = 3000.0
USUAL_TICKS = 500.0
"""Between two bursts, where none was seen."""
ACTIVE_SHARE, ACTIVE_FLOOR = 0.3, 0.01
ROWS = ("ticks", "mean", "peak", "top", "since", "between", "spread", "height", "q50", "q90", "q97", "q99", "on", "off",
        "latest_on", "latest_off")  # fmt: skip
TICKS, MEAN, PEAK, TOP, SINCE, BETWEEN, SPREAD, HEIGHT = range(8)
QUANTILES = slice(8, 12)
RUNS = slice(12, 16)
ON, OFF, LATEST_ON, LATEST_OFF = range(12, 16)
AT_LEVELS = [8, 9, 11]
"""The rows of 0.5, 0.9 and 0.99."""
_KEPT = np.array(KEPT, np.float32)[:, None]


def fresh_climate(size: int) -> Float32Array:
    """Return (ROWS, S): nothing is known of any series."""
    out = np.zeros((len(ROWS), size), np.float32)
    out[SINCE] = out[BETWEEN] = USUAL_TICKS
    out[SPREAD] = USUAL_TICKS / 2
    return out


def follow_climate(state: Float32Array, value: Float32Array, five: Float32Array, slow: Float32Array,
                   known: BoolArray | None) -> None:  # fmt: skip
    """Take in one tick.

    ``value`` (S,) the newest tick, ``five`` (S,) the mean of the newest five, ``slow`` (S,) the long-run mean; all
    units. ``known`` (S,): the others are left as they are; None: all are.
    """
    before = None if known is None else state.copy()
    f = np.float32
    state[TICKS] += f(1.0)
    gain = f(1.0) / state[TICKS]
    state[MEAN] += (value - state[MEAN]) * np.maximum(gain, f(1.0 / LONG_TICKS))
    state[PEAK] = np.maximum(state[PEAK] * f(KEEP_PEAK), five)
    state[TOP] = np.maximum(state[TOP] * f(KEEP_TOP), value)
    levels = state[QUANTILES]
    step = np.maximum(gain, f(RATE)) * state[PEAK]
    levels += step * (_KEPT - (five <= levels))
    np.maximum(levels, f(0.0), out=levels)
    burst = (value > f(BURST_SHARE) * state[TOP]) & (value > f(BURST_TIMES) * slow)
    begun = burst & (state[SINCE] > f(APART))
    if begun.any():
        off = np.where(begun, state[SINCE] - state[BETWEEN], f(0.0))
        most = f(MOST_OFF) * state[SPREAD] + f(MOST_OFF)
        state[BETWEEN] += f(BURST_GAIN) * np.minimum(np.maximum(off, -most), most)
        state[SPREAD] += f(BURST_GAIN) * np.where(begun, np.abs(off) - state[SPREAD], f(0.0))
        state[HEIGHT] += f(BURST_GAIN) * np.where(begun, value - state[HEIGHT], f(0.0))
    state[SINCE] += f(1.0)
    np.minimum(state[SINCE], f(MOST_SINCE), out=state[SINCE])
    state[SINCE][burst] = 0.0
    active = value > np.maximum(f(ACTIVE_SHARE) * slow, f(ACTIVE_FLOOR))
    on, off = state[ON], state[OFF]
    np.copyto(state[LATEST_OFF], off, where=active & (off > 0.0))
    np.copyto(state[LATEST_ON], on, where=~active & (on > 0.0))
    on += f(1.0)
    on *= active
    off += f(1.0)
    off *= ~active
    np.minimum(state[ON : OFF + 1], f(MOST_SINCE), out=state[ON : OFF + 1])
    if before is not None:
        np.copyto(state, before, where=~np.asarray(known))


def rhythm(state: Float32Array, per_scale: Float32Array, out: Float32Array) -> None:
    """Fill ``out`` (RHYTHM, S) with what the bursts tell.

    Roots of the ticks since the latest and between two, their ratio, the spread, the root of the height, and how close
    the middles of the two spans of 5 ticks that are forecast lie to the time at which the next one is due.
    """
    f = np.float32
    since, between, spread = state[SINCE], state[BETWEEN], state[SPREAD]
    np.sqrt(state[SINCE : BETWEEN + 1], out=out[:2])
    out[:2] *= f(0.1)
    np.divide(since, between, out=out[2])
    np.divide(spread, between, out=out[3])
    np.minimum(out[2:4], f(3.0), out=out[2:4])
    np.sqrt(state[HEIGHT] * per_scale, out=out[4])
    width = spread * f(0.5) + f(3.0)
    for row, ahead in enumerate(DUE, start=5):
        off = (since + f(ahead) - between) / width
        out[row] = f(1.0) / (f(1.0) + off * off)


RHYTHM = 7
"""Rows of :func:`rhythm`."""
DUE = (3.0, 8.0)
