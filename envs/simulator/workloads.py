"""What VMs are asked to do: request arrivals and the mix of resources that a request needs.

Nearly every kind is one parametrisation of the same process, so that a tick costs a handful of array operations for any
number of hosts, VMs and kinds: a two-phase semi-Markov level (phase ``hi`` or ``lo``; a phase lasts
``mean * (1 - j + j * E)`` ticks with ``E`` exponential, so ``j = 1`` is a Markov-modulated process and ``j = 0`` a
clock), approached with a ramp, times a daily sine, times first-order autoregressive noise. Means are 1 by construction:
``p hi + (1 - p) lo = 1`` with ``p`` the share of time in ``hi``, or divided by their mean (:func:`_crowd_mean`).
Arrivals never depend on what the host does (common random numbers).

============  ==========================================================================================
steady        the mean and its noise
bursty        Markov-modulated on/off with ramps
diurnal       a sine of ``period_ms`` and slow noise
batch         jobs of random size with pauses between them
training      a near-periodic cycle of computing and loading; loading is short and heavy on IO
database      steady queries; near-periodic checkpoints make every request heavy on IO
churn         a level that alternates between low and high every ``on_ms``, VMs staggered: a third of the VMs
              change by a lot in every 10 ms tick when ``on_ms`` is 30
flash_crowd   crowds of ``peak`` times the usual that come within ``ramp_ms`` and lose interest over ``decay_ms``
streaming     steady; what it reads it never reads again, so ways do not help it (model.py)
self_similar  heavy-tailed on/off sources together: bursts on every scale (sources.py)
oscillator    adversarial: clockwork between low and high, as fast as moves take effect, to provoke them
inflator      adversarial: steady; its counters show ``inflate`` times what it needs (counters.py)
silent        adversarial: nothing at all for ``off_ms`` on average, then all of it at once
replay        arrivals from a recording or a public trace (traces.py), each host from a point of its own
============  ==========================================================================================
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from foreshare.policies.errors import InputError
from foreshare.policies.host import BoolArray, FloatArray, IntArray, R, Resource

from .scenario import REPLAY, WorkloadShape
from .sources import OnOffSources
from .streams import WORKLOAD, HostStreams, Seed
from .traces import Trace, load_trace

UNIFORMS, NORMALS = 2, 1
LO, HI = 0, 1
_FOREVER = 1e18


class _Process(NamedTuple):
    """The parameters of one VM's level."""

    lo: float = 1.0
    hi: float = 1.0
    lo_ticks: float = _FOREVER
    hi_ticks: float = _FOREVER
    jitter: float = 0.0
    """Share of a phase's length that is exponential."""
    spread: float = 0.0
    """Phases differ in level by up to this share."""
    fall: float = 1.0
    """Share of the way to ``lo`` that is gone in a tick."""
    rise: float = 1.0
    amplitude: float = 0.0
    omega: float = 0.0
    noise: float = 0.0
    keep: float = 0.0
    """Autocorrelation of the noise from tick to tick."""
    lo_io: float = 1.0
    hi_io: float = 1.0


class Workloads:
    """The arrivals of (H, N) VMs. :meth:`step` advances one tick and refreshes ``intensity`` and ``mix``."""

    def __init__(
        self,
        shapes: Sequence[WorkloadShape],
        *,
        hosts: int,
        seed: Seed,
        tick_ms: float,
        first_host: int = 0,
        traces: Mapping[int, Trace] | None = None,
    ) -> None:
        """``traces``: what VMs (by row) of the kind replay replay, in place of the files that their shapes name."""
        n = len(shapes)
        size = (hosts, n)
        p = np.array([_parameters(s, tick_ms) for s in shapes], np.float64).reshape(n, len(_Process._fields)).T
        column = dict(zip(_Process._fields, p, strict=True))
        self._level = np.stack([column["lo"], column["hi"]])  # (2, N)
        self._mean_ticks = np.stack([column["lo_ticks"], column["hi_ticks"]])
        self._jitter, self._spread = column["jitter"], column["spread"]
        self._ramp = np.stack([column["fall"], column["rise"]])
        self._amplitude, self._omega, self._noise = column["amplitude"], column["omega"], column["noise"]
        self._keep = column["keep"]
        self._kick = self._noise * np.sqrt(1.0 - self._keep**2)
        mix = np.ones((2, n, R))
        mix[LO, :, Resource.IO], mix[HI, :, Resource.IO] = column["lo_io"], column["hi_io"]
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
        self._rate: FloatArray = np.where(self._phase, self._ramp[HI], self._ramp[LO])
        self._now: FloatArray = self._target.copy()
        self._ar: FloatArray = self._noise * z[:, 0]
        self.intensity: FloatArray = np.ones(size)
        """(H, N) arrival rate of this tick relative to the VM's mean."""
        self.mix: FloatArray = np.where(self._phase[..., None], mix[HI], mix[LO])
        """(H, N, R) need of a request relative to its usual need; the cache column is unused."""
        self._similar: IntArray = np.flatnonzero([s.kind == "self_similar" for s in shapes])
        self._sources = (
            OnOffSources(
                [s for s in shapes if s.kind == "self_similar"],
                hosts=hosts,
                seed=seed,
                tick_ms=tick_ms,
                first_host=first_host,
            )
            if len(self._similar)
            else None
        )
        self._replays: list[tuple[int, Trace, IntArray]] = []
        for i, s in enumerate(shapes):
            if s.kind != REPLAY:
                continue
            given = (traces or {}).get(i)
            trace = load_trace(s.trace, tick_ms=tick_ms, row=s.trace_row) if given is None else given
            starts = np.floor(u[:, 0, i] * len(trace.intensity)).astype(np.int64)
            self._replays.append((i, trace, starts))
        self._ticks = 0

    def step(self) -> None:
        """Advance one tick."""
        u, z = self._streams.draw()
        self._left -= 1.0
        turn = np.flatnonzero(self._left <= 0.0)
        if len(turn):
            self._turn(turn, u)
        self._now += self._rate * (self._target - self._now)
        self._angle += self._omega
        self._ar *= self._keep
        self._ar += self._kick * z[:, 0]
        np.multiply(self._now, 1.0 + self._amplitude * np.sin(self._angle), out=self.intensity)
        if self._sources is not None:
            self.intensity[:, self._similar] = self._sources.step()
        self.intensity *= 1.0 + self._ar
        np.maximum(self.intensity, 0.0, out=self.intensity)
        for i, trace, starts in self._replays:  # one for each VM that replays, not for each host
            at = (starts + self._ticks) % len(trace.intensity)
            self.intensity[:, i] = trace.intensity[at]
            self.mix[:, i] = trace.mix[at]
        self._ticks += 1

    def _turn(self, turn: IntArray, u: FloatArray) -> None:
        """Send the VMs in ``turn``, positions in the flattened (H, N), into their other phase."""
        host, vm = np.divmod(turn, self._phase.shape[1])
        phase = (~self._phase[host, vm]).astype(np.int64)
        self._phase[host, vm] = phase
        jitter, spread = self._jitter[vm], self._spread[vm]
        length = self._mean_ticks[phase, vm] * (1.0 - jitter - jitter * np.log1p(-u[host, 0, vm]))
        self._left[host, vm] = np.maximum(np.round(length), 1.0)
        self._target[host, vm] = self._level[phase, vm] * (1.0 + spread * (2.0 * u[host, 1, vm] - 1.0))
        self._rate[host, vm] = self._ramp[phase, vm]
        self.mix[host, vm] = self._mix[phase, vm]


def mean_io_factor(shape: WorkloadShape, tick_ms: float) -> float:
    """Return the mean IO need of a request of this workload relative to its usual need."""
    p = _parameters(shape, tick_ms)
    share = p.hi_ticks / (p.lo_ticks + p.hi_ticks)
    return (1.0 - share) * p.lo * p.lo_io + share * p.hi * p.hi_io if p.lo_io != p.hi_io else 1.0


def _parameters(s: WorkloadShape, tick_ms: float) -> _Process:
    on, off = max(s.on_ms / tick_ms, 1.0), max(s.off_ms / tick_ms, 1.0)
    ramp = 1.0 / max(s.ramp_ms / tick_ms, 1.0)
    share = on / (on + off)
    lo = (1.0 - share * s.peak) / (1.0 - share)
    if s.kind in ("bursty", "batch", "training", "oscillator") and lo < 0.0:
        raise InputError(
            f"workload {s.kind}: peak {s.peak:g} for {share:.0%} of the time is more than the mean,"
            f" it may be {1 / share:.3g} at most"
        )
    phases = _Process(lo=lo, hi=s.peak, lo_ticks=off, hi_ticks=on, fall=ramp, rise=ramp, noise=s.noise)
    level = _Process(noise=s.noise, keep=0.5)
    match s.kind:
        case "bursty":
            return phases._replace(jitter=1.0, spread=0.25, keep=0.3)
        case "batch":
            return phases._replace(jitter=0.7, spread=0.4, keep=0.5)
        case "training":  # hi computes, lo loads
            return phases._replace(jitter=0.05, spread=0.05, lo_io=s.io_burst)
        case "database":  # hi writes a checkpoint beside the queries
            return phases._replace(lo=1.0, hi=1.0, jitter=0.1, spread=0.1, keep=0.8, hi_io=s.io_burst)
        case "diurnal":
            return level._replace(amplitude=s.amplitude, omega=2.0 * np.pi * tick_ms / s.period_ms, keep=0.9)
        case "churn":
            hold = max(round(on), 1)
            return phases._replace(lo=0.35, hi=1.65, lo_ticks=hold, hi_ticks=hold, spread=0.15, fall=1.0, rise=1.0)
        case "flash_crowd":
            crowd = phases._replace(lo=1.0, jitter=1.0, fall=1.0 / max(s.decay_ms / tick_ms, 1.0), keep=0.5)
            mean = _crowd_mean(crowd)
            return crowd._replace(lo=1.0 / mean, hi=s.peak / mean)
        case "streaming":
            return level._replace(keep=0.9)
        case "oscillator":
            return phases._replace(fall=1.0, rise=1.0)
        case "silent":
            return phases._replace(lo=0.0, hi=1.0 / share, jitter=1.0, spread=0.25, fall=1.0, rise=1.0, keep=0.5)
    return level


def _crowd_mean(p: _Process) -> float:
    """Return the mean level of a process that rises and falls at rates of its own.

    A phase of ``T`` ticks at level ``y`` that starts at ``x`` ends at ``y + (x - y) g`` on average,
    ``g = E[(1 - r)^T]``, and sums up to ``y T + (x - y) (1 - r) (1 - g) / r``.
    """
    g = [_mean_decay(p.lo_ticks, p.fall, p.jitter), _mean_decay(p.hi_ticks, p.rise, p.jitter)]
    end_hi = (p.hi * (1.0 - g[HI]) + p.lo * (1.0 - g[LO]) * g[HI]) / (1.0 - g[LO] * g[HI])
    end_lo = p.lo + (end_hi - p.lo) * g[LO]
    total = p.hi * p.hi_ticks + (end_lo - p.hi) * (1.0 - p.rise) * (1.0 - g[HI]) / p.rise
    total += p.lo * p.lo_ticks + (end_hi - p.lo) * (1.0 - p.fall) * (1.0 - g[LO]) / p.fall
    return total / (p.lo_ticks + p.hi_ticks)


def _mean_decay(ticks: float, rate: float, jitter: float) -> float:
    """Return E[(1 - rate)^T] for a phase of ``ticks`` on average of which a share ``jitter`` is exponential."""
    if rate >= 1.0:
        return 0.0
    speed = -np.log1p(-rate)
    return float(np.exp(-speed * ticks * (1.0 - jitter)) / (1.0 + speed * ticks * jitter))
