"""How late requests are, and how busy the host is: the figures that every policy is judged by.

A request is late when it finishes after its VM's latency target of ``S`` ticks. With ``A(k)`` the requests that arrived
before tick ``k`` and ``D(t)`` those served by the end of tick ``t`` (fluid, first in first out), the late ones among
the ``a(t-S)`` arrivals of tick ``t-S`` are known at the end of tick ``t``, exactly:

``v(t) = clip(A(t-S+1) - max(D(t), A(t-S)), 0, a(t-S))``

and ``V = 100 * sum_i p_i (sum_t v_i / sum_t a_i) / sum_i p_i`` over the VMs to which requests came.
"""

from __future__ import annotations

import numpy as np

from foreshare.policies.axes import total
from foreshare.policies.host import FloatArray, IntArray


def weights_of(priority: IntArray) -> FloatArray:
    """Return the weights ``p`` of priorities: ``1 + priority``, and 1 for priorities of 0 and below."""
    return 1.0 + np.maximum(priority, 0).astype(np.float64)


def violation_pct(late: FloatArray, arrived: FloatArray, weight: FloatArray) -> FloatArray:
    """Return V in percent for each host: (..., N) late and arrived requests, weights broadcast; 0 where none came."""
    asked = arrived > 0
    share = np.divide(late, arrived, out=np.zeros_like(arrived), where=asked)
    weights = (weight * asked).sum(axis=-1)
    sums = 100.0 * (weight * share).sum(axis=-1)
    return np.asarray(np.divide(sums, weights, out=np.zeros_like(weights), where=weights > 0))


class LatenessMeter:
    """Counts late requests of (H, N) queues. One :meth:`update` a tick, O(1) in the targets."""

    def __init__(self, target_ticks: IntArray) -> None:
        """``target_ticks``: (H, N), each at least 1."""
        self._target = target_ticks.astype(np.int64)
        # Two slots more than the longest target: those of times before the start are still zero when they are read.
        self._length = int(self._target.max(initial=1)) + 2
        self._ring: FloatArray = np.zeros((self._length, self._target.size))
        # Where in the ring A(t-S+1) is in tick t = 0; it is A(t-S) a tick later.
        self._at = (1 - self._target) % self._length * self._target.size
        self._at += np.arange(self._target.size).reshape(self._target.shape)
        self.before: FloatArray = np.zeros(self._target.shape)
        """(H, N) A(t-S): what was due a tick ago."""
        self._t = 0
        self.late: FloatArray = np.zeros(self._target.shape)
        """(H, N) requests found late in the newest tick."""
        self.late_total: FloatArray = np.zeros(self._target.shape)
        self.arrived_total: FloatArray = np.zeros(self._target.shape)

    def update(self, arrivals: FloatArray, backlog: FloatArray) -> FloatArray:
        """Take the (H, N) arrivals of this tick and the backlog at its end; return the newly late requests."""
        after, before = self.due(), self.before
        self.arrived_total += arrivals
        late = np.subtract(self.arrived_total, backlog, out=self.late)  # D(t)
        np.maximum(late, before, out=late)
        np.subtract(after, late, out=late)
        np.maximum(late, 0.0, out=late)
        np.minimum(late, after - before, out=late)
        self.late_total += late
        np.copyto(before, after)
        self.turn()
        return late

    def due(self) -> FloatArray:
        """Return A(t-S+1), (H, N): all requests that are to be served by the end of this tick."""
        return np.asarray(self._ring.take(self._at))

    def turn(self) -> None:
        """Remember the arrivals so far, and go on to the next tick."""
        ring, row = self._ring, self._target.size
        self._t += 1
        ring[self._t % self._length] = self.arrived_total.ravel()
        self._at += row
        np.subtract(self._at, ring.size, out=self._at, where=self._at >= ring.size)


class UsageMeter:
    """Mean utilisation: used / capacity, averaged over the resources that can move."""

    def __init__(self, capacity: FloatArray, hosts: int) -> None:
        """``capacity``: (R,) units, 0 for what cannot move."""
        self._movable = np.flatnonzero(capacity > 0)
        self._scale = 100.0 / (capacity[self._movable] * max(len(self._movable), 1))
        self.used_total: FloatArray = np.zeros((hosts, len(capacity)))
        """(H, R) unit-ticks used so far."""
        self.ticks = 0

    def update(self, used: FloatArray) -> None:
        """Take (H, N, R) units in use during this tick."""
        self.used_total += total(used)
        self.ticks += 1

    def pct(self) -> FloatArray:
        """Return the (H,) mean utilisation so far in percent; an empty array before the first tick."""
        if not self.ticks:
            return np.zeros(0)
        return np.asarray((self.used_total[:, self._movable] * self._scale).sum(axis=1) / self.ticks)
