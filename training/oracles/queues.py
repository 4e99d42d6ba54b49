"""What is true of the VMs when a decision takes effect, and what of their queues is due when."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from foreshare.policies.host import FloatArray, IntArray

_BEYOND = 2
"""Points in time after the horizon at which lateness is looked at."""


class Situation(NamedTuple):
    """What is true of N VMs when the decision takes effect, at the start of "tick 0"."""

    backlog: FloatArray
    """(N,) requests."""
    past: FloatArray
    """(P, N) arrivals of the ticks before, the newest last; P is at least the longest target."""
    arrivals: FloatArray
    """(H, N) arrivals of the horizon."""
    mix: FloatArray
    """(N, R) need of a request relative to its usual need."""
    held: FloatArray
    """(N, R) units commanded for the tick before."""
    cold: FloatArray
    """(N, R) of these, units that are not worth anything yet."""
    shared_ways: FloatArray
    """(N,) ways that each VM would profit from in the shared class."""
    low: IntArray
    """(N, R) units that each VM must be given: min(reservation, demand), in whole granules."""
    threads: FloatArray
    """(N,) units of CPU that the VM can use at once."""
    ways_after: int = 0
    """Ticks after the other resources that ways take effect."""


class Deadlines(NamedTuple):
    """Positions in each VM's queue, requests counted from now, (K, N) for the K ticks of the horizon."""

    arrived: FloatArray
    due: FloatArray
    late: FloatArray
    """(N,) what is late already."""
    due_beyond: FloatArray
    """(M, N) due at some ticks after the horizon; the last of them is when all that arrives in it is due."""
    ticks_beyond: FloatArray
    """(M, N) how many ticks after the horizon."""


def deadlines(situation: Situation, target: IntArray) -> Deadlines:
    """Return what is due when. ``target``: (N,) ticks; requests of tick s are in time up to the end of s + target."""
    s = situation
    p, h = len(s.past), len(s.arrivals)
    total = np.zeros((p + h + 1, len(target)))  # before tick j - P; entries before the start are 0
    np.cumsum(np.concatenate([s.past, s.arrivals]), axis=0, out=total[1:])
    done = total[p] - s.backlog
    m = -(-target * np.arange(1, _BEYOND + 1)[:, None] // _BEYOND)
    ticks = np.concatenate([np.broadcast_to(np.arange(-1, h)[:, None], (h + 1, len(target))), h - 1 + m])
    at = np.minimum(np.maximum(p + 1 + ticks - target, 0), p + h)
    due = np.maximum(total[at, np.arange(len(target))] - done, 0.0)
    return Deadlines(total[p + 1 :] - done, due[1 : h + 1], due[0], due[h + 1 :], m.astype(np.float64))
