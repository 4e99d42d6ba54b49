"""One option for each VM, the sum of whose values is greatest within the capacities: a multi-choice knapsack.

maximise ``sum_i value[i, o_i]`` subject to ``sum_{i in p} cost[i, o_i, c] <= capacity_p`` for every pool ``p``. The
values need not be concave in the costs: bottleneck service and miss-ratio curves have steps, where giving one unit at a
time sees no gain and stops. Lagrangian prices see whole options instead (Everett, Operations Research 11(3), 1963;
subgradient steps after Held, Wolfe and Crowder, Mathematical Programming 6, 1974, with Polyak's step length). What the
best prices choose may not fit, so that VMs are then admitted in the order of what they gain for the priced share they
take, and at last upgraded, alone or one against another, as long as something is won.

No loop is over options; the loops over VMs and steps do a few numpy operations each.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from foreshare.policies.host import FloatArray, IntArray

IMPOSSIBLE = -1e30
"""Value of an option that must not be chosen."""
_SLACK = 1e-9


@dataclass(frozen=True, slots=True, eq=False)
class Choices:
    """A knapsack instance: N VMs with O options each, C kinds of cost, P pools."""

    value: FloatArray
    """(N, O); IMPOSSIBLE where there is no such option. Option 0 of every VM is possible, and all of them fit."""
    cost: FloatArray
    """(N, O, C), not negative."""
    pool: IntArray
    """(N, C) which pool each VM's cost is drawn from."""
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
    of a VM that these look at; ``gap``: relative distance from the bound at which to stop.
    """
    n = len(choices.value)
    pools = len(choices.capacity)
    if n == 0:
        return Solution(np.zeros(0, np.int64), 0.0, 0.0, np.zeros(pools))
    size = np.maximum(choices.capacity, _SLACK)
    share = choices.cost / size[choices.pool][:, None, :]  # of the pool
    rows = np.arange(n)
    flat_pool = choices.pool.ravel()
    room = np.ones(pools)

    def used(option: IntArray) -> FloatArray:
        return np.asarray(np.bincount(flat_pool, weights=share[rows, option].ravel(), minlength=pools), np.float64)

    best_option = np.zeros(n, np.int64)
    best = float(choices.value[:, 0].sum())
    span = max(float(choices.value.max(axis=1).sum()) - best, 1e-12)
    price = np.zeros(pools) if prices is None else np.maximum(prices, 0.0)
    bound, bound_price, bound_option = np.inf, price, best_option
    theta, stale = 1.0, 0
    for _ in range(steps):
        reduced = choices.value - np.matmul(share, price[choices.pool][:, :, None])[..., 0]
        option = reduced.argmax(axis=1)
        dual = float(reduced[rows, option].sum() + price.sum())
        take = used(option)
        if dual < bound - 1e-12 * span:
            bound, bound_price, bound_option, stale = dual, price, option, 0
        else:
            stale += 1
            if stale >= 4:
                theta, stale = theta * 0.6, 0
        if (take <= room + _SLACK).all():
            worth = float(choices.value[rows, option].sum())
            if worth > best:
                best, best_option = worth, option
        if bound - best <= gap * max(abs(bound), 1e-12):
            break
        slope = take - room
        slope = np.where((price <= 0.0) & (slope < 0.0), 0.0, slope)
        steep = float(slope @ slope)
        if steep < 1e-18:
            break
        price = np.maximum(price + theta * max(dual - best, 0.05 * span / n) / steep * slope, 0.0)

    if bound - best > gap * max(abs(bound), 1e-12):
        # Only what is nearly worth its price can be part of a better choice: the rest is left out from here on.
        reduced = choices.value - np.matmul(share, bound_price[choices.pool][:, :, None])[..., 0]
        reduced[rows, 0] = reduced[rows, best_option] = reduced[rows, bound_option] = np.inf
        if keep < reduced.shape[1]:
            kept = np.sort(np.argpartition(-reduced, keep - 1, axis=1)[:, :keep], axis=1)
        else:
            kept = np.broadcast_to(np.arange(reduced.shape[1]), reduced.shape)
        value, cost = choices.value[rows[:, None], kept], share[rows[:, None], kept]
        starts = [(kept >= o[:, None]).argmax(axis=1) for o in (best_option, bound_option)]
        for first in (_admit(value, cost, choices.pool, bound_price, starts[1], room), starts[0]):
            option, worth = _improve(value, cost, choices.pool, first.copy(), bound_price, room, swaps)
            if worth > best:
                best, best_option = worth, kept[rows, option]
            if bound - best <= gap * max(abs(bound), 1e-12):
                break
    return Solution(best_option, best, max(bound, best), bound_price)


def _admit(
    value: FloatArray, share: FloatArray, pool: IntArray, price: FloatArray, wanted: IntArray, room: FloatArray
) -> IntArray:
    """Return what fits of ``wanted``: whole where it can be, else the best that still fits; (N,)."""
    n = len(value)
    rows = np.arange(n)
    option = np.zeros(n, np.int64)
    left = room - np.bincount(pool.ravel(), weights=share[:, 0].ravel(), minlength=len(room))
    more = share - share[:, :1]
    gain = value[rows, wanted] - value[:, 0]
    # A price of its own for every pool keeps the order sensible where nothing is scarce at the best prices.
    paid = (np.maximum(more[rows, wanted], 0.0) * (price[pool] + 1e-3 * price.max(initial=0.0) + 1e-9)).sum(axis=1)
    for i in np.argsort(-gain / np.maximum(paid, 1e-300), kind="stable"):
        fits = (more[i] <= left[pool[i]] + _SLACK).all(axis=1)
        if not fits[wanted[i]]:
            fits[0] = True
            chosen = int(np.where(fits, value[i] - more[i] @ price[pool[i]], IMPOSSIBLE * 10).argmax())
        else:
            chosen = int(wanted[i])
        option[i] = chosen
        np.subtract.at(left, pool[i], more[i, chosen])
    return option


def _improve(
    value: FloatArray, share: FloatArray, pool: IntArray, option: IntArray, price: FloatArray, room: FloatArray,
    swaps: int,
) -> tuple[IntArray, float]:  # fmt: skip
    """Upgrade VMs into what is left, then one against another; return the option of each VM and their value."""
    n = len(value)
    rows = np.arange(n)
    scarce = price[pool] + 0.05 * max(float(price.mean()), 1e-9)  # (N, C): what is free now may be missed later
    left = room - np.bincount(pool.ravel(), weights=share[rows, option].ravel(), minlength=len(room))
    for _ in range(4 * n):
        if not _upgrade(value, share, pool, option, scarce, left):
            break
    for _ in range(swaps):
        if not _swap(value, share, pool, option, price, left):
            break
        while _upgrade(value, share, pool, option, scarce, left):
            pass
    return option, float(value[rows, option].sum())


def _upgrade(
    value: FloatArray, share: FloatArray, pool: IntArray, option: IntArray, scarce: FloatArray, left: FloatArray
) -> bool:
    """Take the option that wins most for the priced share it takes, in place; return whether there was one."""
    rows = np.arange(len(value))
    gain = value - value[rows, option][:, None]
    at = np.argwhere(gain > 1e-12)
    if not len(at):
        return False
    i, o = at[:, 0], at[:, 1]
    more = share[i, o] - share[i, option[i]]
    fits = (more <= left[pool[i]] + _SLACK).all(axis=1)
    if not fits.any():
        return False
    i, o, more = i[fits], o[fits], more[fits]
    k = int((gain[i, o] / (np.maximum((more * scarce[i]).sum(axis=1), 0.0) + 1e-9)).argmax())
    np.subtract.at(left, pool[i[k]], more[k])
    option[i[k]] = o[k]
    return True


def _swap(
    value: FloatArray, share: FloatArray, pool: IntArray, option: IntArray, price: FloatArray, left: FloatArray
) -> bool:
    """Find a VM whose upgrade is worth more than what another one gives up for it, in place.

    For the most wanted upgrades (by reduced value) every option of every other VM is tried at once.
    """
    n = len(value)
    rows = np.arange(n)
    now = share[rows, option]
    gain = value - value[rows, option][:, None]
    reduced = gain - ((share - now[:, None]) * price[pool][:, None, :]).sum(axis=2)
    up = np.where(gain > 1e-12, reduced, -np.inf).ravel()
    count = min(2 * n, up.size)
    order = np.argpartition(-up, count - 1)[:count]
    order = order[np.argsort(-up[order], kind="stable")]
    order = order[np.isfinite(up[order])]
    for flat in order.tolist():
        i, o = divmod(flat, value.shape[1])
        need = np.zeros_like(left)
        np.add.at(need, pool[i], share[i, o] - now[i])
        after = left - need + _SLACK  # may be negative: what the other has to free
        net = gain + gain[i, o]  # the other VM gives up -gain[j, p]
        net[i] = -np.inf
        j, p = np.nonzero(net > 1e-9)
        if not len(j):
            continue
        # Pools that the giver does not draw on must have room by themselves.
        fits = (share[j, p] - now[j] <= after[pool[j]]).all(axis=1)
        outside = after < 0
        if outside.any():
            drawn = np.zeros((n, len(left)), bool)
            drawn[rows[:, None], pool] = True
            fits &= (drawn[j] | ~outside).all(axis=1)
        if not fits.any():
            continue
        k = int(np.where(fits, net[j, p], -np.inf).argmax())
        other, down = int(j[k]), int(p[k])
        np.subtract.at(left, pool[i], share[i, o] - now[i])
        np.subtract.at(left, pool[other], share[other, down] - now[other])
        option[i], option[other] = o, down
        return True
    return False
