"""Which VMs share a class where there are more VMs than classes: resctrl and the simulator. Pure numpy, no files.

Owners of ways need a class of their own. The others share the classes that are left, alike with alike: what a class may
use is the sum of what its members were given, so a member is safest among VMs that need about as much. VMs of
different zones do not meet in a class, because each L3 domain has its own controls.

Moving a VM costs its threads' moves, so groups change slowly: a hill climb, the best move first, until nothing gains
enough or the budget is spent.
"""

from __future__ import annotations

import numpy as np

from foreshare.policies.host import BoolArray, FloatArray, IntArray

GAIN = 0.05
"""A move must lower the total spread by this share of what it was at the start of the call, and at least by FLOOR."""
FLOOR = 0.02


def spread(need: FloatArray, zone: IntArray, at: IntArray, owner: BoolArray) -> float:
    """Return the sum over classes and zones of squared deviations of log(1 + need) from their mean."""
    total = 0.0
    x = np.log1p(need)
    for key in {(int(z), int(c)) for z, c in zip(zone[~owner], at[~owner], strict=True)}:
        here = x[(zone == key[0]) & (at == key[1]) & ~owner]
        total += float(((here - here.mean()) ** 2).sum())
    return total


def regroup(
    need: FloatArray, zone: IntArray, owner: BoolArray, rank: IntArray, threads: IntArray, at: IntArray,
    classes: int, budget: int,
) -> tuple[IntArray, int]:  # fmt: skip
    """Return (class of each VM (N,), threads moved).

    ``need`` (N,) units, ``zone`` (N,), ``owner`` (N,) needs a class alone, ``rank`` (N,) breaks ties, ``threads`` (N,)
    what moving each costs, ``at`` (N,) where they are now, all below ``classes``. A move is made while less than
    ``budget`` threads have been moved, so the last one may overdraw it by one VM's threads. At least one class must be
    left for those who own no ways; an owner for whom there is none stays where it is.
    """
    out, moved = at.copy(), 0
    if not len(out) or classes < 1:
        return out, moved
    for i in np.flatnonzero(owner)[np.argsort(rank[owner], kind="stable")]:
        moved = _seclude(int(i), need, owner, rank, threads, out, classes, budget, moved)
    loose = np.flatnonzero(~owner)
    open_ = ~_taken(owner, out, classes)
    if len(loose) < 2 or open_.sum() < 2:
        return out, moved
    least = max(GAIN * spread(need, zone, out, owner), FLOOR)
    while moved < budget:
        i, c, gain = _best_move(np.log1p(need), zone, loose, rank, out, open_)
        if gain < least:
            break
        out[i] = c
        moved += int(threads[i])
    return out, moved


def _taken(owner: BoolArray, at: IntArray, classes: int) -> BoolArray:
    """Return (classes,) which are an owner's, who is alone in it."""
    count = np.bincount(at, minlength=classes)
    mine = np.zeros(classes, bool)
    mine[at[owner]] = True
    out: BoolArray = mine & (count == 1)
    return out


def _seclude(
    i: int, need: FloatArray, owner: BoolArray, rank: IntArray, threads: IntArray, at: IntArray, classes: int,
    budget: int, moved: int,
) -> int:  # fmt: skip
    """Work towards a class of its own for owner ``i``; return the threads moved so far."""
    taken = _taken(owner, at, classes)
    if taken[at[i]]:
        return moved
    free = np.flatnonzero(~taken)
    if len(free) < 2 and len(at) > taken.sum() + 1:
        return moved  # the last one is for those who own nothing
    cost = np.zeros(classes, np.int64)
    np.add.at(cost, at, threads)
    cost[at[i]] -= threads[i]
    cost += np.where(np.arange(classes) == at[i], 0, threads[i])
    target = int(free[np.argmin(cost[free])])
    guests = np.flatnonzero((at == target) & (np.arange(len(at)) != i))
    for g in guests[np.argsort(rank[guests], kind="stable")]:
        if moved >= budget:
            return moved
        others = free[free != target]
        mean = np.array([_mean(need, at, owner, int(c)) for c in others])
        at[g] = others[np.argmin(np.abs(mean - np.log1p(need[g])))]
        moved += int(threads[g])
    if at[i] != target and moved < budget:
        at[i] = target
        moved += int(threads[i])
    return moved


def _mean(need: FloatArray, at: IntArray, owner: BoolArray, c: int) -> float:
    here = need[(at == c) & ~owner]
    return float(np.log1p(here).mean()) if len(here) else 0.0


def _best_move(
    x: FloatArray, zone: IntArray, loose: IntArray, rank: IntArray, at: IntArray, open_: BoolArray
) -> tuple[int, int, float]:
    """Return (VM, class, how much the move lowers the spread), the VM of lowest rank among equals."""
    classes, zones = len(open_), int(zone.max()) + 1
    key = zone[loose] * classes + at[loose]
    count = np.bincount(key, minlength=zones * classes).astype(float)
    total = np.bincount(key, weights=x[loose], minlength=zones * classes)
    mean = np.divide(total, count, out=np.zeros_like(total), where=count > 0)
    n, mine = count[key], x[loose] - mean[key]
    leave = np.where(n > 1, n / np.maximum(n - 1, 1) * mine**2, 0.0)
    there = zone[loose][:, None] * classes + np.arange(classes)
    enter = count[there] / (count[there] + 1) * (x[loose][:, None] - mean[there]) ** 2
    gain = leave[:, None] - enter
    gain[:, ~open_] = -np.inf
    gain[np.arange(len(loose)), at[loose]] = -np.inf
    gain = np.round(gain, 9)
    best = gain.max()
    row = min(np.flatnonzero((gain == best).any(axis=1)), key=lambda r: int(rank[loose[r]]))
    return int(loose[row]), int(np.flatnonzero(gain[row] == best)[0]), float(best)
