"""What VMs are asked to do: request arrivals and the mix of resources that a request needs.

Every kind is one parametrisation of the same process, so that a tick costs a handful of array operations for any number
of hosts, VMs and kinds: a two-phase semi-Markov level (phase ``hi`` or ``lo``; a phase lasts ``mean * (1 - j + j * E)``
ticks with ``E`` exponential, so ``j = 1`` is a Markov-modulated process and ``j = 0`` a clock), approached with a ramp,
times a daily sine, times first-order autoregressive noise. Means are 1 by construction: ``p hi + (1 - p) lo = 1`` with
``p`` the share of time in ``hi``. Arrivals never depend on what the host does (common random numbers).

============  ==========================================================================================
steady        the mean and its noise
bursty        Markov-modulated on/off with ramps
diurnal       a sine of ``period_ms`` and slow noise
batch         jobs of random size with pauses between them
training      a near-periodic cycle of computing and loading; loading is short and heavy on IO
database      steady queries; near-periodic checkpoints make every request heavy on IO
churn         a level that alternates between low and high every ``on_ms``, VMs staggered: a third of the VMs
              change by a lot in every 10 ms tick when ``on_ms`` is 30
============  ==========================================================================================
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from foreshare.policies.errors import InputError
from foreshare.policies.host import BoolArray, FloatArray, R, Resource

from .scenario import WorkloadShape
from .streams import WORKLOAD, HostStreams

UNIFORMS, NORMALS = 2, 1
LO, HI = 0, 1
_FOREVER = 1e18


class Workloads:
    """The arrivals of (H, N) VMs. :meth:`step` advances one tick and refreshes ``intensity`` and ``mix``."""

    def __init__(
        self, shapes: Sequence[WorkloadShape], *, hosts: int, seed: int, tick_ms: float, first_host: int = 0
    ) -> None:
        n = len(shapes)
        size = (hosts, n)
        table = [_parameters(s, tick_ms) for s in shapes]

        def column(i: int) -> FloatArray:
            return np.array([row[i] for row in table], np.float64).reshape(n)

        self._level = np.stack([column(0), column(1)])  # (2, N) lo, hi
        self._mean_ticks = np.stack([column(2), column(3)])
        self._jitter, self._spread, self._rate = column(4), column(5), column(6)
        self._amplitude, self._omega, self._noise, self._keep = column(7), column(8), column(9), column(10)
        self._kick = self._noise * np.sqrt(1.0 - self._keep**2)
        mix = np.ones((2, n, R))
        mix[LO, :, Resource.IO], mix[HI, :, Resource.IO] = column(11), column(12)
        self._mix = mix
        staggered = np.array([s.kind == "churn" for s in shapes], bool)

        self._streams = HostStreams(
            seed, hosts=hosts, first_host=first_host, stream=WORKLOAD, vms=n, uniforms=UNIFORMS, normals=NORMALS
        )
        u, z = self._streams.draw()
        share = self._mean_ticks[HI] / self._mean_ticks.sum(axis=0)
        place = np.arange(n) / np.maximum(self._mean_ticks[LO], 1.0)
        self._phase: BoolArray = np.where(staggered, np.floor(place) % 2 < 1, u[:, 0] < share)
        mean = np.where(self._phase, self._mean_ticks[HI], self._mean_ticks[LO])
        waiting = np.where(staggered, 1.0 + np.arange(n) % np.maximum(mean, 1.0), np.ceil(u[:, 1] * mean))
        self._left: FloatArray = np.maximum(waiting, 1.0)
        self._angle: FloatArray = 2.0 * np.pi * u[:, 0]
        self._target: FloatArray = np.where(self._phase, self._level[HI], self._level[LO])
        self._now: FloatArray = self._target.copy()
        self._ar: FloatArray = self._noise * z[:, 0]
        self.intensity: FloatArray = np.ones(size)
        """(H, N) arrival rate of this tick relative to the VM's mean."""
        self.mix: FloatArray = np.ones((*size, R))
        """(H, N, R) need of a request relative to its usual need; the cache column is unused."""

    def step(self) -> None:
        """Advance one tick."""
        u, z = self._streams.draw()
        self._left -= 1.0
        turn = self._left <= 0.0
        if turn.any():
            self._turn(turn, u)
        self._now += self._rate * (self._target - self._now)
        self._angle += self._omega
        self._ar *= self._keep
        self._ar += self._kick * z[:, 0]
        np.multiply(self._now, 1.0 + self._amplitude * np.sin(self._angle), out=self.intensity)
        self.intensity *= 1.0 + self._ar
        np.maximum(self.intensity, 0.0, out=self.intensity)
        np.copyto(self.mix, np.where(self._phase[..., None], self._mix[HI], self._mix[LO]))

    def _turn(self, turn: BoolArray, u: FloatArray) -> None:
        """Send the VMs in ``turn`` into their other phase."""
        self._phase ^= turn
        mean = np.where(self._phase, self._mean_ticks[HI], self._mean_ticks[LO])
        length = mean * (1.0 - self._jitter - self._jitter * np.log1p(-u[:, 0]))
        level = np.where(self._phase, self._level[HI], self._level[LO]) * (1.0 + self._spread * (2.0 * u[:, 1] - 1.0))
        np.copyto(self._left, np.maximum(np.round(length), 1.0), where=turn)
        np.copyto(self._target, level, where=turn)


def mean_io_factor(shape: WorkloadShape, tick_ms: float) -> float:
    """Return the mean IO need of a request of this workload relative to its usual need."""
    row = _parameters(shape, tick_ms)
    share = row[3] / (row[2] + row[3])
    return (1.0 - share) * row[0] * row[11] + share * row[1] * row[12]


def _parameters(s: WorkloadShape, tick_ms: float) -> tuple[float, ...]:
    """Return lo, hi, lo ticks, hi ticks, jitter, spread, ramp, amplitude, omega, noise, keep, io in lo, io in hi."""
    on, off = max(s.on_ms / tick_ms, 1.0), max(s.off_ms / tick_ms, 1.0)
    ramp = 1.0 / max(s.ramp_ms / tick_ms, 1.0)
    omega = 2.0 * np.pi * tick_ms / s.period_ms
    share = on / (on + off)
    lo = (1.0 - share * s.peak) / (1.0 - share)
    if s.kind in ("bursty", "batch", "training") and lo < 0.0:
        raise InputError(
            f"workload {s.kind}: peak {s.peak:g} for {share:.0%} of the time is more than the mean,"
            f" it may be {1 / share:.3g} at most"
        )
    steady = (1.0, 1.0, _FOREVER, _FOREVER)
    match s.kind:
        case "bursty":
            return (lo, s.peak, off, on, 1.0, 0.25, ramp, 0.0, 0.0, s.noise, 0.3, 1.0, 1.0)
        case "batch":
            return (lo, s.peak, off, on, 0.7, 0.4, ramp, 0.0, 0.0, s.noise, 0.5, 1.0, 1.0)
        case "training":  # hi computes, lo loads
            return (lo, s.peak, off, on, 0.05, 0.05, ramp, 0.0, 0.0, s.noise, 0.0, s.io_burst, 1.0)
        case "database":  # hi writes a checkpoint beside the queries
            return (1.0, 1.0, off, on, 0.1, 0.1, ramp, 0.0, 0.0, s.noise, 0.8, 1.0, s.io_burst)
        case "diurnal":
            return (*steady, 0.0, 0.0, 1.0, s.amplitude, omega, s.noise, 0.9, 1.0, 1.0)
        case "churn":
            hold = max(round(on), 1)
            return (0.35, 1.65, hold, hold, 0.0, 0.15, 1.0, 0.0, 0.0, s.noise, 0.0, 1.0, 1.0)
    return (*steady, 0.0, 0.0, 1.0, 0.0, 0.0, s.noise, 0.5, 1.0, 1.0)
