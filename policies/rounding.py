"""From amounts to whole units: the largest-remainder method, all columns at once."""

from __future__ import annotations

import numpy as np

from .host import FloatArray, IntArray


def apportion(x: FloatArray, granule: IntArray, capacity: IntArray, rank: IntArray) -> IntArray:
    """Round ``x`` (n, c) to multiples of ``granule`` (n, c) whose column sums stay within ``capacity`` (c,).

    Every value is rounded down, then the largest remainders are rounded up while units are left (Hamilton's method);
    ties go by ``rank`` (n,). A column of ``x`` that sums to no more than its capacity stays within it, and each value
    within one granule of what was asked.
    """
    down = np.floor(x / granule + 1e-9)
    rest = x / granule - down
    out = (down * granule).astype(np.int64)
    left = capacity - out.sum(axis=0)
    if rest.size and (left > 0).any() and (rest > 1e-6).any():
        order = np.argsort(-rest - 1e-9 * (len(rank) - rank)[:, None], axis=0, kind="stable")
        step = np.take_along_axis(np.where(rest > 1e-6, granule, 0), order, axis=0)
        fits = np.cumsum(step, axis=0) <= left
        up = np.zeros_like(out)
        np.put_along_axis(up, order, step * fits, axis=0)
        out += up
    return out


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
