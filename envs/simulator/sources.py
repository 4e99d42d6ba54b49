"""Self-similar traffic: many on/off sources whose phases have heavy tails, added up.

On and off times are Pareto with shape ``alpha = 3 - 2 H`` (between 1 and 2: a finite mean, no variance); the sum of
many such sources is asymptotically self-similar with Hurst exponent ``H`` (Willinger, Taqqu, Sherman & Wilson, "Self-
similarity through high-variability", IEEE/ACM Trans. Netw. 5, 1997). Sources start in equilibrium: the rest of the
phase that is under way is drawn from the Pareto's residual life.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from foreshare.policies.host import BoolArray, FloatArray

from .scenario import WorkloadShape
from .streams import SOURCES, HostStreams, Seed

COUNT = 24
"""Sources of one VM."""
_LONGEST = 1e7  # ticks


class OnOffSources:
    """The sources of (H, M) self-similar VMs."""

    def __init__(
        self, shapes: Sequence[WorkloadShape], *, hosts: int, seed: Seed, tick_ms: float, first_host: int
    ) -> None:
        on = np.array([max(s.on_ms / tick_ms, 1.0) for s in shapes])
        off = np.array([max(s.off_ms / tick_ms, 1.0) for s in shapes])
        self._alpha: FloatArray = 3.0 - 2.0 * np.array([s.hurst for s in shapes])
        self._least = np.stack([off, on]) * (self._alpha - 1.0) / self._alpha  # (2, M): the Pareto's scale
        self._scale = (on + off) / on / COUNT
        self._streams = HostStreams(
            seed, hosts=hosts, first_host=first_host, stream=SOURCES, vms=len(shapes), uniforms=COUNT, normals=0
        )
        u = self._streams.draw()[0]
        share = on / (on + off)
        self._on: BoolArray = u < share
        again = np.where(self._on, u / share, (u - share) / (1.0 - share))  # uniform again, given the phase
        least = np.where(self._on, self._least[1], self._least[0])
        # Residual life of a Pareto with scale 1: uniform below 1 with probability (alpha - 1) / alpha, else a Pareto
        # tail of shape alpha - 1.
        early = (self._alpha - 1.0) / self._alpha
        tail = np.maximum(1.0 - again, 1e-300) / (1.0 - early)
        rest = np.where(again < early, again / early, tail ** (-1.0 / (self._alpha - 1.0)))
        self._left: FloatArray = np.minimum(least * rest, _LONGEST)

    def step(self) -> FloatArray:
        """Advance one tick and return the (H, M) intensity, mean 1."""
        u = self._streams.draw()[0]
        self._left -= 1.0
        turn = self._left <= 0.0
        if turn.any():
            self._on ^= turn
            least = np.where(self._on, self._least[1], self._least[0])
            length = least * np.maximum(1.0 - u, 1e-15) ** (-1.0 / self._alpha)
            # The fraction of a tick by which the old phase ended early counts for the new one.
            np.copyto(self._left, np.minimum(self._left + length, _LONGEST), where=turn)
        return np.asarray(self._on.sum(axis=1) * self._scale)
