"""One option for each VM, the sum of whose values is greatest within the capacities: a multi-choice knapsack.

maximise ``sum_i value[i, o_i]`` subject to ``sum_{i in p} cost[c, i, o_i] <= capacity_p`` for every pool ``p``. The
values need not be concave in the costs: bottleneck service and miss-ratio curves have steps, where giving one unit at a
time sees no gain and stops. Lagrangian prices see whole options instead (Everett, Operations Research 11(3), 1963;
subgradient steps after Held, Wolfe and Crowder, Mathematical Programming 6, 1974, with Polyak's step length). What the
best prices choose may not fit, so that VMs are then admitted in the order of what they gain for the priced share they
take, and at last upgraded, alone or one against another, as long as something is won.

No loop is over options. Loops over VMs are over plain numbers, a handful for each VM.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from foreshare.policies.host import BoolArray, FloatArray, IntArray

IMPOSSIBLE = -1e30
"""Value of an option that must not be chosen."""
_SLACK = 1e-9
_TRIED = 12
"""Upgrades for which a swap looks for a giver."""


@dataclass(frozen=True, slots=True, eq=False)
class Choices:
    """A knapsack instance: N VMs with O options each, C kinds of cost, P pools."""

    value: FloatArray
    """(N, O); IMPOSSIBLE where there is no such option. Option 0 of every VM is possible, and all of them fit."""
    cost: FloatArray
    """(C, N, O), not negative."""
    pool: IntArray
    """(C, N) which pool each VM's cost is drawn from."""
    capacity: FloatArray
    """(P,)."""


@dataclass(frozen=True, slots=True, eq=False)
class Solution:
    """What was found, and the bound that shows how good it is."""

    option: IntArray
    """(N,)."""
    value: float
    bound: float
    """No choice that fits is worth more than this (weak duality)."""
    prices: FloatArray
    """(P,) value of the whole of each pool."""


def solve(
    choices: Choices, *, prices: FloatArray | None = None, steps: int = 40, swaps: int = 8, keep: int = 32,
    gap: float = 0.001,
) -> Solution:  # fmt: skip
    """Return a choice that fits. ``prices``: where to start, e.g. those of the tick before.

    ``steps``: of the prices, at most; ``swaps``: upgrades of one VM against another, at most; ``keep``: options
    of a VM that these look at; ``gap``: distance from the bound, relative to what can be won over option 0, at which
    to stop.
    """
    n, options = choices.value.shape
    pools = len(choices.capacity)
    if n == 0:
        return Solution(np.zeros(0, np.int64), 0.0, 0.0, np.zeros(pools))
    value, pool = choices.value, choices.pool
    size = np.maximum(choices.capacity, _SLACK)
    share = choices.cost * (1.0 / size)[pool][:, :, None]  # of the pool
    rows = np.arange(n)
    at = rows * options
    flat_pool, flat_value = pool.ravel(), value.ravel()
    flat_share = share.reshape(len(share), -1)

    best_option = np.zeros(n, np.int64)
    best = base = float(value[:, 0].sum())
    span = max(float(value.max(axis=1).sum()) - base, 1e-12)
    price = np.zeros(pools) if prices is None else np.maximum(prices, 0.0)
    bound, bound_price, bound_option = np.inf, price, best_option
    theta, stale = 1.0, 0
    reduced, paid = np.empty_like(value), np.empty_like(value)
    for _ in range(steps):
        _reduce(value, share, price[pool], reduced, paid)
        option = reduced.argmax(axis=1)
        index = at + option
        dual = float(reduced.ravel()[index].sum() + price.sum())
        take = np.bincount(flat_pool, weights=flat_share[:, index].ravel(), minlength=pools)
        if dual < bound - 1e-12 * span:
            bound, bound_price, bound_option, stale = dual, price, option, 0
        else:
            stale += 1
            if stale >= 3:
                theta, stale = theta * 0.6, 0
        slope = take - 1.0
        if slope.max() <= _SLACK:
            worth = float(flat_value[index].sum())
            if worth > best:
                best, best_option = worth, option
        if bound - best <= gap * max(bound - base, 1e-12):
            break
        slope[(price <= 0.0) & (slope < 0.0)] = 0.0
        steep = float(slope @ slope)
        if steep < 1e-18:
            break
        price = np.maximum(price + theta * max(dual - best, 0.05 * span / n) / steep * slope, 0.0)

    enough = bound - gap * max(bound - base, 1e-12)
    if best < enough:
        # Only what is nearly worth its price can be part of a better choice: the rest is left out from here on.
        _reduce(value, share, bound_price[pool], reduced, paid)
        if keep < options:
            reduced[:, 0] = reduced[rows, best_option] = reduced[rows, bound_option] = np.inf
            kept = np.sort(np.argpartition(reduced, options - keep, axis=1)[:, options - keep :], axis=1)
            value, share = value[rows[:, None], kept], share[:, rows[:, None], kept]
        else:
            kept = np.broadcast_to(np.arange(options), reduced.shape)
        packing = _Packing(value, share, pool, bound_price)
        starts = [(kept >= o[:, None]).argmax(axis=1) for o in (bound_option, best_option)]
        for first in (packing.admit(starts[0]), starts[1]):
            option, worth = packing.improve(first, swaps, enough)
            if worth > best:
                best, best_option = worth, kept[rows, option]
            if best >= enough:
                break
    return Solution(best_option, best, max(bound, best), bound_price)


def _reduce(value: FloatArray, share: FloatArray, price: FloatArray, out: FloatArray, scratch: FloatArray) -> None:
    """Fill ``out`` (N, O) with the values less what the shares (C, N, O) cost at prices (C, N)."""
    left = value
    for s, p in zip(share, price, strict=True):
        if p.any():
            np.multiply(s, p[:, None], out=scratch)
            np.subtract(left, scratch, out=out)
            left = out
    if left is value:
        np.copyto(out, value)


class _Packing:
    """Options being exchanged within what is left of the pools. Arrays as in Choices, costs as shares of the pools."""

    def __init__(self, value: FloatArray, share: FloatArray, pool: IntArray, price: FloatArray) -> None:
        self.value, self.share, self.pool, self.price = value, share, pool, price
        self.rows = np.arange(len(value))
        self.pools_of: list[list[int]] = pool.T.tolist()
        self.scarce = price + 0.05 * max(float(price.mean()), 1e-9)  # what is free now may be missed later

    def left_by(self, option: IntArray) -> FloatArray:
        """Return (P,) what these options leave of each pool."""
        take = self.share[:, self.rows, option]
        return np.asarray(1.0 - np.bincount(self.pool.ravel(), weights=take.ravel(), minlength=len(self.price)))

    def admit(self, wanted: IntArray) -> IntArray:
        """Return what fits of ``wanted``: whole where it can be, else the best that still fits; (N,)."""
        rows, share, value = self.rows, self.share, self.value
        option = np.zeros(len(value), np.int64)
        left = self.left_by(option).tolist()
        more = share[:, rows, wanted] - share[:, :, 0]
        gain = value[rows, wanted] - value[:, 0]
        # A price of its own for every pool keeps the order sensible where nothing is scarce at the best prices.
        price = (self.price + 1e-3 * self.price.max(initial=0.0) + 1e-9)[self.pool]
        paid = (np.maximum(more, 0.0) * price).sum(axis=0)
        takes = more.T.tolist()
        for i in np.argsort(-gain / np.maximum(paid, 1e-300), kind="stable").tolist():
            pools, take = self.pools_of[i], takes[i]
            if all(t <= left[p] + _SLACK for t, p in zip(take, pools, strict=True)):
                option[i] = wanted[i]
            else:
                extra = share[:, i] - share[:, i, :1]
                room = np.array([left[p] for p in pools]) + _SLACK
                fits: BoolArray = np.asarray((extra <= room[:, None]).all(axis=0))
                fits[0] = True
                reduced = value[i] - self.price[self.pool[:, i]] @ extra
                option[i] = j = int(np.where(fits, reduced, IMPOSSIBLE * 10).argmax())
                take = extra[:, j].tolist()
            for t, p in zip(take, pools, strict=True):
                left[p] -= t
        return option

    def improve(self, option: IntArray, swaps: int, enough: float) -> tuple[IntArray, float]:
        """Upgrade VMs into what is left, then one against another; return the option of each VM and their value."""
        option = option.copy()
        left = self.left_by(option)
        self._upgrade(option, left)
        worth = float(self.value[self.rows, option].sum())
        for _ in range(swaps):
            if worth >= enough or not self._swap(option, left):
                break
            self._upgrade(option, left)
            worth = float(self.value[self.rows, option].sum())
        return option, worth

    def _upgrade(self, option: IntArray, left: FloatArray) -> None:
        """Take the options that win most for the priced share they take, while there are any; in place."""
        rows, share, value, pool = self.rows, self.share, self.value, self.pool
        for _ in range(2 * len(value)):
            gain = value - value[rows, option][:, None]
            i, o = np.nonzero(gain > 1e-9)
            if not len(i):
                return
            more = share[:, i, o] - share[:, i, option[i]]
            fits = (more <= left[pool[:, i]] + _SLACK).all(axis=0)
            if not fits.any():
                return
            i, o, more = i[fits], o[fits], more[:, fits]
            paid = np.maximum((more * self.scarce[pool[:, i]]).sum(axis=0), 0.0) + 1e-9
            order = np.argsort(-gain[i, o] / paid, kind="stable")
            room, done = left.tolist(), set()
            who, what, takes = i[order].tolist(), o[order].tolist(), more.T[order].tolist()
            for j, k, take in zip(who, what, takes, strict=True):
                pools = self.pools_of[j]
                if j in done or not all(t <= room[p] + _SLACK for t, p in zip(take, pools, strict=True)):
                    continue
                done.add(j)
                option[j] = k
                for t, p in zip(take, pools, strict=True):
                    room[p] -= t
            left[:] = room

    def _swap(self, option: IntArray, left: FloatArray) -> bool:
        """Find a VM whose upgrade is worth more than what another one gives up for it, in place.

        For the most wanted upgrades (by reduced value) every option of every other VM is tried at once.
        """
        rows, share, value, pool = self.rows, self.share, self.value, self.pool
        options = value.shape[1]
        now = share[:, rows, option]
        extra = share - now[:, :, None]
        gain = value - value[rows, option][:, None]
        reduced = gain - (extra * self.price[pool][:, :, None]).sum(axis=0)
        up = np.where(gain > 1e-9, reduced, -np.inf).ravel()
        count = min(_TRIED, up.size)
        order = np.argpartition(-up, count - 1)[:count]
        order = order[np.argsort(-up[order], kind="stable")]
        for flat in order[np.isfinite(up[order])].tolist():
            i, o = divmod(flat, options)
            need = np.bincount(pool[:, i], weights=extra[:, i, o], minlength=len(left))
            after = left - need + _SLACK  # may be negative: what the other has to free
            net = gain + gain[i, o]  # the other VM gives up -gain[j, p]
            net[i] = -np.inf
            j, p = np.nonzero(net > 1e-9)
            if not len(j):
                continue
            fits = (extra[:, j, p] <= after[pool[:, j]]).all(axis=0)
            for q in np.flatnonzero(after < 0.0):  # pools that the giver does not draw on must have room by themselves
                fits &= (pool[:, j] == q).any(axis=0)
            if not fits.any():
                continue
            k = int(np.where(fits, net[j, p], -np.inf).argmax())
            other, down = int(j[k]), int(p[k])
            np.subtract.at(left, pool[:, i], extra[:, i, o])
            np.subtract.at(left, pool[:, other], extra[:, other, down])
            option[i], option[other] = o, down
            return True
        return False
