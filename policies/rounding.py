"""From amounts to whole units: the largest-remainder method, all columns (and all hosts of a batch) at once."""

from __future__ import annotations

import numpy as np

from .axes import flat_positions, total
from .host import FloatArray, IntArray


def apportion(x: FloatArray, granule: IntArray, capacity: IntArray, rank: IntArray) -> IntArray:
    """Round ``x`` (..., n, c) to multiples of ``granule`` (n, c) whose column sums stay within ``capacity`` (c,).

    Every value is rounded down, then the largest remainders are rounded up while units are left (Hamilton's method);
    ties go by ``rank`` (n,). A column of ``x`` that sums to no more than its capacity stays within it, and each value
    within one granule of what was asked.
    """
    rest = x / granule
    down = np.floor(rest + 1e-9)
    rest -= down
    out: IntArray = (down * granule).astype(np.int64, order="C")
    left = capacity - total(out)
    if rest.size and (left > 0).any() and (rest > 1e-6).any():
        at = flat_positions(np.argsort(rank[:, None] * 1e-9 - rest, axis=-2, kind="stable"))
        step = (granule * (rest > 1e-6)).take(at)
        out.ravel()[at] += step * (step.cumsum(axis=-2) <= left[..., None, :])
    return out


def fill_extras(extra: FloatArray, room: FloatArray) -> FloatArray:
    """Water-fill each column of (..., n, c) from zero: min(extra, level), the column sums being ``room`` (..., c).

    As :func:`fill_level` with nothing below: with the extras ascending, after k of them have been filled the level is
    ``(room - their sum) / (n - k)``; the first that is not above its k-th extra is the level.
    """
    n = extra.shape[-2]
    if n == 0 or (total(extra) <= room).all():
        return extra
    up = np.sort(extra, axis=-2)
    level = (room[..., None, :] - up.cumsum(axis=-2) + up) / np.arange(n, 0, -1)[:, None]
    reached = level <= up
    first = (reached.argmax(axis=-2)[..., None, :] * extra.shape[-1] + np.arange(extra.shape[-1])).reshape(-1)
    if extra.ndim > 2:
        first += np.repeat(np.arange(len(first) // extra.shape[-1]) * (n * extra.shape[-1]), extra.shape[-1])
    short = reached.take(first)
    found = np.where(short, level.take(first), np.inf).reshape(*extra.shape[:-2], 1, extra.shape[-1])
    return np.minimum(extra, found)


def fill_level(low: FloatArray, high: FloatArray, capacity: FloatArray) -> FloatArray:
    """Water-fill each column: x = clip(level, low, high) with the one level at which the column sums to capacity.

    ``low`` <= ``high`` are (n, c), the column sums of ``low`` at most ``capacity`` (c,). Where ``high`` sums to no more
    than capacity, x is ``high``. The sum is piecewise linear in the level with kinks at every low and high; both are
    sorted once and the level is found between two kinks (max-min fairness: Bertsekas, Gallager, Data Networks, 6.5.2).
    """
    n, c = low.shape
    if n == 0:
        return high.copy()
    total = high.sum(axis=0)
    if (total <= capacity).all():
        return high.copy()
    kinks = np.concatenate([low, high])
    slope = np.concatenate([np.ones((n, c)), -np.ones((n, c))])
    order = np.argsort(kinks, axis=0, kind="stable")
    kinks = np.take_along_axis(kinks, order, axis=0)
    slope = np.cumsum(np.take_along_axis(slope, order, axis=0), axis=0)
    # filled[k]: sum of x when the level stands at kink k
    filled = np.empty_like(kinks)
    filled[0] = low.sum(axis=0)
    np.cumsum(slope[:-1] * np.diff(kinks, axis=0), axis=0, out=filled[1:])
    filled[1:] += filled[0]
    k = np.maximum((filled <= capacity).sum(axis=0) - 1, 0)
    cols = np.arange(c)
    run = np.maximum(slope[k, cols], 1.0)
    level = kinks[k, cols] + (capacity - filled[k, cols]) / run
    x = np.clip(level, low, high)
    return np.where(total <= capacity, high, x)
