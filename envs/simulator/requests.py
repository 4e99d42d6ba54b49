"""Requests inside a tick: random arrivals, the queue that they make between two tick ends, and their mean latency.

A VM is a queue with one server, its bottleneck, of ``c`` requests per tick. What is asked of it is counted in mean
requests of work. With ``arrivals = "fluid"`` work flows in evenly; with ``"poisson"`` requests come at random, ``lam``
in a tick on average, each with work of mean 1 and coefficient of variation ``cv``. The work that arrives in a tick then
has mean ``lam`` and variance ``s2 = lam (1 + cv^2)`` (compound Poisson). Between tick ends the unfinished work
``v`` is modelled as Brownian motion with drift ``lam - c`` and variance ``s2`` per tick, reflected at 0:

- *the work of a tick* is ``max(lam + sqrt(s2) z - owed, 0)``, ``z`` normal; what would be below 0 is ``owed`` by the
  next tick, so that the mean is always right. With less than some 10 requests a tick (``lam < 5 (1 + cv^2)``) that
  smooths arrivals, and waits come out too short: by 1 to 7 % at 5 served per tick, by up to a quarter at 1;
- *idling*: the lowest point of the free path between tick ends ``0`` and ``x = a - c`` is that of a Brownian bridge,
  ``low = (x - sqrt(x^2 - 2 s2 ln U)) / 2``, ``U`` uniform (Borodin & Salminen, Handbook of Brownian Motion, 2nd ed.,
  part II, 1.2.8), so the server idles for ``max(0, -(q + low))`` requests and ``q' = q + x + idle`` (Harrison, Brownian
  Motion and Stochastic Flow Systems, 1985, section 1.9);
- its stationary mean, ``s2 / (2 (c - lam))``, makes the mean wait ``v / c`` exactly Pollaczek's and Khinchine's
  ``rho (1 + cv^2) / (2 c (1 - rho))`` (Kleinrock, Queueing Systems I, 1975, eq. 5.62): M/M/1 at cv = 1, M/D/1 at 0.

Mean latency of a tick, in ticks: ``mean(v) / c + service``. A request waits for the work ahead of it; requests that
come at random see time averages (Wolff, PASTA, Oper. Res. 30, 1982), so averages over ticks are weighted by the
*expected* arrivals. ``mean(v) = (q + q') / 2``, which is exact for a fluid path that does not reach 0 and unbiased for
the stationary random one; a fluid path that does reach 0 covers ``q^2 / (2 (c - a))``. A request runs on one thread:
``service`` is the longer of ``1 / c`` and its CPU time.
"""

from __future__ import annotations

import numpy as np

from foreshare.policies.host import FloatArray

_LEAST = 1e-300


def random_work(expected: FloatArray, spread: FloatArray, z: FloatArray, owed: FloatArray) -> FloatArray:
    """Return the work that arrives in one tick, requests, (..., N), and bring ``owed`` up to date in place.

    ``expected``: mean requests; ``spread``: ``1 + cv^2``, 0 where arrivals flow evenly; ``z``: standard normal.
    """
    free = expected + np.sqrt(expected * spread) * z - owed
    work = np.maximum(free, 0.0)
    np.subtract(work, free, out=owed)
    return work


def served_at_random(
    backlog: FloatArray, work: FloatArray, rate: FloatArray, variance: FloatArray, u: FloatArray
) -> FloatArray:
    """Return the requests served in one tick, (..., N), by a server that may run dry between tick ends.

    ``backlog`` at the start, ``work`` that arrives, ``rate`` of service: requests; ``variance``: of the work; ``u``:
    uniform in [0, 1). With no variance this is ``min(backlog + work, rate)``.
    """
    net = work - rate
    lowest = 0.5 * (net - np.sqrt(net * net - 2.0 * variance * np.log1p(-u)))
    idle = np.clip(-(backlog + lowest), 0.0, rate)
    return np.minimum(rate - idle, backlog + work)


def mean_latency_ticks(
    before: FloatArray, after: FloatArray, work: FloatArray, rate: FloatArray, thread_ticks: FloatArray
) -> FloatArray:
    """Return the mean latency of the requests of one tick, ticks, (..., N).

    ``before`` and ``after``: backlog at its ends; ``rate`` > 0: requests that could be served in it; ``thread_ticks``:
    CPU time of a request on a thread of its own.
    """
    mean = 0.5 * (before + after)
    # Emptied: it took before / (rate - work) of the tick, at half of ``before`` on average.
    mean *= np.where(after > 0.0, 1.0, before / np.maximum(np.maximum(rate - work, before), _LEAST))
    mean += 1.0
    mean /= rate
    service = 1.0 / rate
    return np.asarray(mean - service + np.maximum(service, thread_ticks))


class LatencyMeter:
    """Mean latency of each of (H, N) VMs over the ticks so far."""

    def __init__(self, shape: tuple[int, int]) -> None:
        self.latest: FloatArray = np.zeros(shape)
        """(H, N) mean latency of the requests of the newest tick, ticks."""
        self.sum: FloatArray = np.zeros(shape)
        self.weight: FloatArray = np.zeros(shape)
        """(H, N) latencies so far, each times the arrivals that were expected, and these."""

    def update(self, latency: FloatArray, expected: FloatArray) -> None:
        """Take the (H, N) mean latency of a tick and the arrivals that were expected in it."""
        self.latest = latency
        self.sum += latency * expected
        self.weight += expected

    def mean_ticks(self) -> FloatArray:
        """Return the (H, N) mean latency so far, ticks; NaN where no request was to come."""
        return np.divide(self.sum, self.weight, out=np.full_like(self.sum, np.nan), where=self.weight > 0)
