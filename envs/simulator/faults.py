"""What goes wrong with counters: values that are missing, stale or reset, and counters that stand still.

Every fault is a two-state Markov chain for each host, VM and resource, from reading to reading: it holds for ``length``
readings on average (geometrically distributed) and for a ``share`` of the time.
"""

from __future__ import annotations

import numpy as np

from foreshare.policies.errors import InputError
from foreshare.policies.host import BoolArray, R

from .scenario import TelemetryShape
from .streams import FAULTS, HostStreams, Seed

GAP, RESET, STALE, FROZEN = range(4)


class CounterFaults:
    """The faults of (H, N, R) counters that a scenario asks for. :meth:`step` advances by one reading."""

    def __init__(
        self, shape: TelemetryShape, *, hosts: int, vms: int, seed: Seed, tick_ms: float, first_host: int
    ) -> None:
        wanted = {
            GAP: (shape.gap_share if shape.gap_ms else 0.0, shape.gap_ms),
            RESET: (shape.reset_share, tick_ms),
            STALE: (shape.stale_share, shape.stale_ms),
            FROZEN: (shape.frozen_share, shape.frozen_ms),
        }
        self._chains: list[tuple[int, float, float]] = []  # fault, probability to begin, probability to go on
        for fault, (share, length_ms) in wanted.items():
            if share <= 0.0:
                continue
            if share >= 1.0:
                raise InputError("telemetry: a fault that never ends leaves nothing to see")
            length = max(length_ms / tick_ms, 1.0, share / (1.0 - share))  # shorter ones cannot come often enough
            self._chains.append((fault, share / (1.0 - share) / length, 1.0 - 1.0 / length))
        self._none = np.zeros((hosts, vms, R), bool)
        self._now: dict[int, BoolArray] = {fault: self._none.copy() for fault, _, _ in self._chains}
        self._streams = HostStreams(
            seed, hosts=hosts, first_host=first_host, stream=FAULTS, vms=vms,
            uniforms=R * len(self._chains), normals=0,
        ) if self._chains else None  # fmt: skip

    def __bool__(self) -> bool:
        return self._streams is not None

    def step(self) -> None:
        """Advance by one reading."""
        if self._streams is None:
            return
        u = self._streams.draw()[0].transpose(0, 2, 1)
        for i, (fault, begin, go_on) in enumerate(self._chains):
            now = self._now[fault]
            np.less(u[..., i * R : (i + 1) * R], np.where(now, go_on, begin), out=now)

    def holds(self, fault: int) -> BoolArray:
        """Return (H, N, R) where a fault holds now; not to be changed."""
        return self._now.get(fault, self._none)
