"""CLITE-like: Bayesian optimisation over whole partitions, by a score that puts latency before throughput.

Source: Patel, Tiwari, "CLITE: Efficient and QoS-Aware Co-Location of Multiple Latency-Critical Jobs for Warehouse Scale
Computers", HPCA 2020, section 4. Expected improvement: Jones, Schonlau, Welch, Journal of Global Optimization 13, 1998;
Gaussian process with the Matern 5/2 kernel: Rasmussen, Williams, Gaussian Processes for Machine Learning, 2006, ch. 2.

Kept: a partition is tried for one sampling period and scored: ``0.5 * mean_i min(1, target / delay_i)`` while any
latency-critical VM misses its target, ``0.5 + 0.5 * (throughput of the best-effort ones)`` once none does; the search
starts from the equal partition and the extremes in which one VM has the most; a Gaussian process over the tried
partitions; expected improvement with exploration ``xi``; candidates by **dropout-copy**, which keeps the parts of the
VM that did best and varies the others'; the best partition stays when the expected improvement is below ``stop_gain``;
a score that drops starts the search anew.

Adapted: latency-critical is who stands above the lowest priority (all, where all are the same), latency is the queueing
delay estimated from what waits (estimate.py), throughput is usage over ask. A window of the latest ``window`` samples
bounds the cost, and forgets a load that is no more. Extremes are tried for at most ``extremes`` VMs, highest priority
first. Candidates are drawn, not optimised over the simplex.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from foreshare.policies.host import BoolArray, FloatArray, Host, IntArray, R
from foreshare.policies.knobs import knob

from .base import Request, former_rows, whole_units, within_capacity


@dataclass(frozen=True, kw_only=True, slots=True)
class BayesianKnobs:
    """What can be tuned."""

    period_ticks: int = knob(20, 1, 200, log=True)
    """Ticks for which a partition is tried; 200 at 10 ms is the paper's 2 s, 1 is our tick."""
    target_ticks: float = knob(2.0, 0.5, 10.0, log=True)
    """Queueing delay that counts as the target."""
    window: int = knob(30, 8, 64)
    """Samples that the model is made of."""
    candidates: int = knob(64, 16, 256, log=True)
    """Partitions compared by expected improvement."""
    length: float = knob(1.0, 0.1, 10.0, log=True)
    """Length scale of the kernel, in mean distances between samples."""
    noise: float = knob(0.03, 0.001, 0.3, log=True)
    """Standard deviation of a score."""
    spread: float = knob(0.4, 0.05, 1.5, log=True)
    """Standard deviation of the logarithm by which a candidate's parts differ from the best partition's."""
    xi: float = knob(0.01, 0.0, 0.1)
    """Exploration: improvement that is not counted."""
    stop_gain: float = knob(0.002, 0.0001, 0.05, log=True)
    """Expected improvement below which the best partition stays."""
    drop: float = knob(0.15, 0.02, 0.5, log=True)
    """A score so far below the best one's starts the search anew."""
    extremes: int = knob(4, 0, 16)
    """Extreme partitions tried at the start."""


class Bayesian:
    """See the module. Draws depend on the VMs' ranks, not on the order of their rows."""

    name = "bayesian"
    batched = False

    def __init__(self, knobs: BayesianKnobs | None = None, seed: int = 0) -> None:
        self.knobs = knobs or BayesianKnobs()
        self._rng = np.random.default_rng(np.random.SeedSequence(seed))
        self._host: Host | None = None
        self._units: IntArray = np.zeros((0, R), np.int64)
        self._now: FloatArray = np.zeros((0, R))
        """(N, R) the partition that is being tried, as shares of the pools."""
        self._tried: list[FloatArray] = []
        self._scores: list[float] = []
        self._well: list[int] = []
        """Rank of the VM that did best in each sample."""
        self._queue: list[FloatArray] = []
        self._settled = False
        self._ticks = 0

    def allocate(self, request: Request, host: Host, tick: int) -> IntArray:
        """See :class:`~.base.Allocator`."""
        if host is not self._host:
            self._bind(host)
        if not len(host):
            return self._units.copy()
        np.maximum(self._delay, request.delay_ticks, out=self._delay)
        wanted = np.maximum(request.ask, 1e-9)
        self._served += np.minimum(request.usage / wanted, 1.0).max(axis=1)
        self._ticks += 1
        if self._ticks >= self.knobs.period_ticks:
            self._learn(host)
            self._units = whole_units(self._next(host) * self._capacity, host)
            self._ticks = 0
            self._delay[:] = self._served[:] = 0.0
        return self._units.copy()

    def _bind(self, host: Host) -> None:
        rows = former_rows(self._host, host)
        same = self._host is not None and len(rows) == len(self._host) and bool((rows >= 0).all())
        self._host = host
        n = len(host)
        self._by_rank = np.argsort(host.vms.rank)
        priority = host.vms.priority
        lowest = int(priority.min(initial=0)) if n else 0
        critical = priority > lowest
        self._critical: BoolArray = critical if critical.any() else np.ones(n, bool)
        self._capacity: FloatArray = np.zeros((n, R))
        for g in host.groups:
            self._capacity[g.rows, g.cols] = g.capacity
        self._floor = host.floor / np.maximum(self._capacity, 1.0)
        self._cap = host.cap / np.maximum(self._capacity, 1.0)
        self._delay, self._served, self._ticks = np.zeros(n), np.zeros(n), 0
        if same:
            self._tried = [x[rows] for x in self._tried]
            self._now = self._now[rows]
            self._queue = [x[rows] for x in self._queue]
            self._units = self._units[rows]
            return
        self._restart(host)
        self._units = whole_units(self._now * self._capacity, host)

    def _restart(self, host: Host) -> None:
        """Begin the search: the equal partition, then extremes."""
        self._tried, self._scores, self._well, self._queue = [], [], [], []
        equal = self._shares(np.ones(self._capacity.shape), host)
        for row in np.lexsort((host.vms.rank, -host.vms.priority))[: self.knobs.extremes]:
            much = np.ones(self._capacity.shape)
            much[row] = max(len(host), 2)
            self._queue.append(self._shares(much, host))
        self._now = equal
        self._settled = False

    def _shares(self, weight: FloatArray, host: Host) -> FloatArray:
        """Return shares (N, R) of the pools in proportion to ``weight``, between floors and caps, within capacity."""
        x = np.zeros_like(weight)
        for g in host.groups:
            w = weight[g.rows, g.cols]
            floor = self._floor[g.rows, g.cols]
            room = np.maximum(1.0 - floor.sum(axis=0), 0.0)
            x[g.rows, g.cols] = floor + w / np.maximum(w.sum(axis=0), 1e-12) * room
        np.minimum(x, self._cap, out=x)
        out: FloatArray = within_capacity(x * self._capacity, host) / np.maximum(self._capacity, 1.0)
        return out

    def _learn(self, host: Host) -> None:
        """Score the partition that was tried."""
        k = self.knobs
        on_time = np.minimum(1.0, k.target_ticks / np.maximum(self._delay, 1e-9))
        critical = self._critical & host.active
        others = ~self._critical & host.active
        share = float(on_time[critical].mean()) if critical.any() else 1.0
        score = 0.5 * share
        if share >= 1.0:
            score = 0.5 + 0.5 * (float(self._served[others].mean()) / self._ticks if others.any() else 1.0)
        if self._settled and self._scores and score < max(self._scores) - k.drop:
            self._restart(host)
            return
        self._tried.append(self._now)
        self._scores.append(score)
        self._well.append(int(host.vms.rank[np.lexsort((host.vms.rank, self._delay))[0]]))
        for kept in (self._tried, self._scores, self._well):
            del kept[: -k.window]

    def _next(self, host: Host) -> FloatArray:
        """Return the partition to try next, or the best so far where nothing promises to be better."""
        if not self._tried:
            return self._now
        if self._queue:
            self._now = self._queue.pop(0)
            return self._now
        k = self.knobs
        best = int(np.argmax(self._scores))
        step = np.exp(k.spread * self._rng.standard_normal((k.candidates, *self._capacity.shape)))
        step = step[:, host.vms.rank]
        step[:, host.vms.rank == self._well[best]] = 1.0
        candidates = [self._shares(self._tried[best] * s, host) for s in step]
        gain = self._expected_improvement(np.stack(candidates)[:, self._by_rank])
        at = int(np.argmax(gain))
        self._settled = bool(gain[at] < k.stop_gain)
        self._now = self._tried[best] if self._settled else candidates[at]
        return self._now

    def _expected_improvement(self, candidates: FloatArray) -> FloatArray:
        """Return (K,) expected improvements over the best score. Rows of ``candidates`` (K, N, R) stand by rank."""
        k = self.knobs
        x = np.stack([t[self._by_rank] for t in self._tried]).reshape(len(self._tried), -1)
        c = candidates.reshape(len(candidates), -1)
        y = np.array(self._scores)
        mean, scale = float(y.mean()), max(float(y.std()), k.noise)
        z = (y - mean) / scale
        apart = _distances(x, x)
        length = k.length * max(float(apart.mean()), 1e-9)
        covariance = _matern(apart / length) + (k.noise / scale) ** 2 * np.eye(len(x)) + 1e-9 * np.eye(len(x))
        cross = _matern(_distances(c, x) / length)
        solved = np.linalg.solve(covariance, np.concatenate([z[:, None], cross.T], axis=1))
        mu = cross @ solved[:, 0]
        sigma = np.sqrt(np.maximum(1.0 - np.einsum("kt,tk->k", cross, solved[:, 1:]), 1e-12))
        ahead = mu - z.max() - k.xi / scale
        u = ahead / sigma
        # The normal distribution function, by the logistic fit of Bowling et al., JIEM 2(1), 2009: at most 1.4e-4 off.
        cdf = 1.0 / (1.0 + np.exp(-np.clip(0.07056 * u**3 + 1.5976 * u, -60.0, 60.0)))
        pdf = np.exp(-0.5 * u * u) / math.sqrt(2.0 * math.pi)
        out: FloatArray = np.maximum(scale * (ahead * cdf + sigma * pdf), 0.0)
        return out


def _distances(a: FloatArray, b: FloatArray) -> FloatArray:
    """Return (A, B) Euclidean distances."""
    square = (a * a).sum(axis=1)[:, None] + (b * b).sum(axis=1) - 2.0 * a @ b.T
    out: FloatArray = np.sqrt(np.maximum(square, 0.0))
    return out


def _matern(d: FloatArray) -> FloatArray:
    """Return the Matern 5/2 kernel of distances in length scales."""
    s = math.sqrt(5.0) * d
    out: FloatArray = (1.0 + s + s * s / 3.0) * np.exp(-s)
    return out
