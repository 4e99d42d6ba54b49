"""Every figure of merit, its formula and its code; whoever reports one takes it from here.

Shapes: T ticks, N VMs, R resources, S scenarios, K seeds; times in ticks, requests as a fluid, first in first out.
``a_i(t)`` requests arrive for VM ``i`` in tick ``t``, ``s_i(t)`` are served; ``A_i(t) = sum_{u<t} a_i(u)`` came before
tick ``t``, ``D_i(t) = sum_{u<=t} s_i(u)`` were served by its end; ``S_i`` is the latency target, ``p_i`` the weight
``1 + max(priority, 0)``.

Lateness
    ``v_i(t) = clip(A_i(t-S+1) - max(D_i(t), A_i(t-S)), 0, a_i(t-S))``: of the requests of tick ``t-S`` those that were
    not served by the end of tick ``t``; each request is counted once, in the tick in which it turns late.
V (``slo_violation_pct``)
    ``100 sum_i p_i (sum_t v_i / sum_t a_i) / sum_i p_i`` over the VMs to which requests came.
Late, starved VMs
    share of these VMs with more than 1 %, with more than 50 % of their requests late, percent.
V by priority
    the mean of ``100 sum_t v_i / sum_t a_i`` over the VMs of one priority.
Reservations broken
    times that a VM was granted less than ``min(reservation, demand)`` of a resource for more than 2 ticks on end.
P99 against alone
    ``P99_i / P99_i(alone)``: the 99th percentile of the latency over that of the same arrivals with the socket to
    itself; median and 90th percentile over the VMs. Latency counts from the arrival to the end of service in ticks,
    a tick's completions being spread evenly over it; what is never served is as late as the run is long.
EMU (effective machine utilisation; PARTIES, ASPLOS'19, section 5)
    the highest load factor at which V <= 1 % and no VM has more than 50 % late, percent, by bisection.
Ticks to converge
    from a step of one VM's load to the first tick, once lateness has been at its worst, from which its mean over 20
    ticks is within one percentage point of its level in the last quarter of the run; 0 where it never was above that.
    It says how fast the steady state is reached, not how good that is.
Moves per tick
    (VM, resource) pairs whose units changed.
Fairness (Jain, Chiu, Hawe, DEC TR-301, 1984)
    ``(sum_i x_i)^2 / (n sum_i x_i^2)`` with ``x_i`` the mean over time and resources of granted units over reserved.
Closure
    ``100 (V_base - V_policy) / (V_base - V_oracle)``, each V the mean over the scenarios and seeds of one load class;
    only where the denominator is at least 1 point. Above 100 is possible: no oracle here is an upper bound.
Intervals
    paired percentile bootstrap (Efron, 1979): scenarios drawn with replacement, then seeds within each; the same draws
    for every policy, so that what all of them share cancels out of differences and ratios.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from foreshare.envs.simulator.lateness import violation_pct, weights_of
from foreshare.policies.errors import InputError
from foreshare.policies.host import BoolArray, FloatArray, IntArray

__all__ = [
    "Estimate", "broken_reservations", "closure_pct", "converge_ticks", "difference_interval", "emu_holds",
    "emu_load_pct", "jain_fairness", "late_requests", "late_share", "late_vm_pct", "latency_quantile",
    "mean_interval", "moves_per_tick", "p99_against_alone", "violation_by_priority", "violation_pct",
    "weights_of",
]  # fmt: skip

LATE_SHARE, STARVED_SHARE = 0.01, 0.50
GRACE_TICKS = 2
SETTLED_TICKS = 20
SETTLED_SHARE = 0.01
EMU_VIOLATION_PCT = 1.0
LEAST_GAP = 1.0
"""Points of V between base and oracle below which a closure says nothing."""
BOOTSTRAP_DRAWS = 2000
INTERVAL = (2.5, 97.5)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure and its 95 % interval."""

    value: float
    low: float
    high: float


def late_requests(arrivals: FloatArray, served: FloatArray, target_ticks: IntArray) -> FloatArray:
    """Return v, (T, N): the requests found late in each tick.

    ``arrivals`` and ``served``: (T, N), from an empty queue on; ``target_ticks``: (N,).
    """
    ticks, n = arrivals.shape
    came = np.zeros((ticks + 1, n))
    np.cumsum(arrivals, axis=0, out=came[1:])
    done = np.cumsum(served, axis=0)
    first = np.arange(ticks)[:, None] - np.asarray(target_ticks)
    column = np.arange(n)
    before = came[np.maximum(first, 0), column]
    after = came[np.maximum(first + 1, 0), column]
    return np.asarray(np.clip(after - np.maximum(done, before), 0.0, after - before))


def late_share(late: FloatArray, arrived: FloatArray) -> FloatArray:
    """Return late / arrived, NaN where nothing arrived."""
    return np.asarray(np.divide(late, arrived, out=np.full(np.shape(arrived), np.nan), where=np.asarray(arrived) > 0))


def late_vm_pct(share: FloatArray, above: float = LATE_SHARE) -> float:
    """Return the percentage of VMs, of those with a share (N,), whose share of late requests is over ``above``."""
    known = share[~np.isnan(share)]
    return 100.0 * float((known > above).mean()) if len(known) else 0.0


def violation_by_priority(share: FloatArray, priority: IntArray) -> dict[int, float]:
    """Return {priority: mean percentage of late requests} over the VMs with a share (N,)."""
    known = ~np.isnan(share)
    return {int(p): 100.0 * float(share[known & (priority == p)].mean()) for p in np.unique(priority[known])}


def broken_reservations(
    granted: FloatArray, reservation: FloatArray | IntArray, demand: FloatArray, grace: int = GRACE_TICKS
) -> int:
    """Return how often a VM was below min(reservation, demand) for more than ``grace`` ticks on end.

    ``granted`` and ``demand``: (T, N, R) units; ``reservation``: (N, R).
    """
    below = granted < np.minimum(reservation, demand) - 1e-9
    return int((_streak(below) == grace + 1).sum())


def _streak(on: BoolArray) -> IntArray:
    """Return for each tick of (T, ...) how many ticks on end, this one included, have been on."""
    index = np.arange(1, len(on) + 1).reshape(-1, *[1] * (on.ndim - 1))
    last_off = np.maximum.accumulate(np.where(on, 0, index), axis=0)
    return np.asarray(np.where(on, index - last_off, 0))


def latency_quantile(arrivals: FloatArray, served: FloatArray, quantile: float = 0.99, first: int = 0) -> FloatArray:
    """Return (N,) the latency in ticks that ``quantile`` of the requests of the ticks from ``first`` on did not exceed.

    ``arrivals`` and ``served``: (T, N), from an empty queue on. NaN for VMs without requests. Of a VM whose requests
    were not served often enough before the end it is T - first, which is less than the truth. The share served within
    L ticks grows with L, so that L is bisected for all VMs at once.
    """
    ticks, n = arrivals.shape
    came = np.zeros((ticks + 1, n))
    np.cumsum(arrivals, axis=0, out=came[1:])
    done = np.minimum(np.cumsum(served, axis=0), came[1:])
    a = arrivals[first:]
    before = came[first:-1]
    row, column = np.arange(first, ticks)[:, None], np.arange(n)
    total = a.sum(axis=0)
    wanted = quantile * total
    span = ticks - first

    def within(lag: IntArray) -> FloatArray:
        """Return (N,) the requests served at most ``lag`` ticks after the one in which they came; -1: none."""
        end = np.minimum(row + np.maximum(lag, 0), ticks - 1)
        count = np.clip(done[end, column] - before, 0.0, a).sum(axis=0)
        return np.where(lag < 0, 0.0, count)

    low, high = np.full(n, -1, np.int64), np.full(n, span - 1, np.int64)
    tolerance = 1e-9 * np.maximum(total, 1.0)
    while (high - low > 1).any():
        middle = (low + high) // 2
        enough = within(middle) >= wanted - tolerance
        high = np.where(enough & (high - low > 1), middle, high)
        low = np.where(~enough & (high - low > 1), middle, low)
    less, more = within(low), within(high)
    inside = np.divide(wanted - less, more - less, out=np.ones(n), where=more > less)
    latency = high + np.clip(inside, 0.0, 1.0)
    latency = np.where(more >= wanted - tolerance, latency, float(span))
    return np.asarray(np.where(total > 0, latency, np.nan))


def p99_against_alone(latency: FloatArray, alone: FloatArray) -> tuple[float, float]:
    """Return the median and the 90th percentile over the VMs (N,) of latency / alone; 1 where no VM has one."""
    ratio = latency[alone > 0] / alone[alone > 0]
    ratio = ratio[~np.isnan(ratio)]
    if not len(ratio):
        return 1.0, 1.0
    median, worst = np.percentile(ratio, (50, 90))
    return float(median), float(worst)


def emu_load_pct(holds: Callable[[float], bool], *, low: float = 0.0, high: float = 1.28, rounds: int = 5) -> float:
    """Return the highest load at which ``holds``, percent, to ``(high - low) / 2 ** rounds``.

    ``low`` is taken to hold, and is never asked about.
    """
    for _ in range(rounds):
        middle = 0.5 * (low + high)
        if holds(middle):
            low = middle
        else:
            high = middle
    return 100.0 * low


def emu_holds(violation: float, share: FloatArray) -> bool:
    """Return whether V (percent) and the VMs' shares of late requests are good enough for EMU."""
    return violation <= EMU_VIOLATION_PCT and late_vm_pct(share, STARVED_SHARE) == 0.0


def converge_ticks(share: FloatArray, step: int) -> int:
    """Return the ticks from ``step`` until one VM's lateness is back at its steady level; all that are left if never.

    ``share``: (T,) its share of late requests tick by tick, with at least 2 * SETTLED_TICKS of them after ``step``.
    Raises InputError where there are fewer.
    """
    after = np.nan_to_num(np.asarray(share, np.float64)[step:])
    if len(after) < 2 * SETTLED_TICKS:
        raise InputError(f"{len(after)} ticks after the step cannot show {SETTLED_TICKS} settled ones")
    level = after[-max(len(after) // 4, SETTLED_TICKS) :].mean()
    total = np.concatenate([[0.0], np.cumsum(after)])
    mean = (total[SETTLED_TICKS:] - total[:-SETTLED_TICKS]) / SETTLED_TICKS
    above = mean > level + SETTLED_SHARE + 1e-12
    worst = int(mean.argmax())
    if not above[worst]:
        return 0
    settled = np.flatnonzero(~above[worst:])
    return worst + int(settled[0]) if len(settled) else len(after)


def moves_per_tick(units: FloatArray | IntArray) -> float:
    """Return the mean number of (VM, resource) pairs whose units (T, N, R) changed from one tick to the next."""
    return float((units[1:] != units[:-1]).sum() / max(len(units) - 1, 1))


def jain_fairness(granted: FloatArray, reservation: FloatArray | IntArray) -> float:
    """Return Jain's index of granted over reserved. ``granted``: (T, N, R); ``reservation``: (N, R); 1 for no VM.

    Resources of which a VM has nothing reserved say nothing about it.
    """
    mean = granted.mean(axis=0)
    held = np.asarray(reservation, np.float64)
    ratio = np.divide(mean, held, out=np.full(mean.shape, np.nan), where=held > 0)
    known = (held > 0).any(axis=1)
    if not known.any():
        return 1.0
    x = np.nanmean(ratio[known], axis=1)
    square = float((x**2).sum())
    return float(x.sum() ** 2 / (len(x) * square)) if square else 1.0


def mean_interval(values: FloatArray, *, seed: int = 0, draws: int = BOOTSTRAP_DRAWS) -> Estimate:
    """Return the mean of (S, K) values with its bootstrap interval."""
    low, high = np.percentile(_resampled(values[None], seed, draws)[0], INTERVAL)
    return Estimate(float(values.mean()), float(low), float(high))


def difference_interval(a: FloatArray, b: FloatArray, *, seed: int = 0, draws: int = BOOTSTRAP_DRAWS) -> Estimate:
    """Return the mean of ``a - b``, (S, K) each and paired, with its interval."""
    return mean_interval(a - b, seed=seed, draws=draws)


def closure_pct(
    base: FloatArray, policy: FloatArray, oracle: FloatArray, *, seed: int = 0, draws: int = BOOTSTRAP_DRAWS
) -> Estimate | None:
    """Return the closure of V, (S, K) each and paired, of one load class; None where the gap is below LEAST_GAP.

    Draws in which the gap all but vanishes are left out: a ratio over nothing has no place in an interval.
    """
    gap = float(base.mean() - oracle.mean())
    if gap < LEAST_GAP:
        return None
    b, p, o = _resampled(np.stack([base, policy, oracle]), seed, draws)
    usable = b - o >= 0.1 * LEAST_GAP
    low, high = np.percentile(100.0 * (b - p)[usable] / (b - o)[usable], INTERVAL)
    return Estimate(100.0 * float(base.mean() - policy.mean()) / gap, float(low), float(high))


def _resampled(values: FloatArray, seed: int, draws: int) -> FloatArray:
    """Return (P, draws) bootstrap means of (P, S, K) values, the same draws for every one of P."""
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(0xB007,))))
    _, scenarios, seeds = values.shape
    rows = rng.integers(scenarios, size=(draws, scenarios))
    columns = rng.integers(seeds, size=(draws, scenarios, seeds))
    return np.asarray(values[:, rows[..., None], columns].mean(axis=(-2, -1)))
