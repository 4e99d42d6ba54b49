"""Random numbers for many hosts: each host has streams of its own, drawn a block of ticks ahead.

What a host draws depends on the seed, its index and the stream, never on how many hosts run beside it (numpy
SeedSequence with ``spawn_key=(host, stream, distribution)``). Blocks keep the loop over hosts out of the step; their
size changes nothing, because uniforms and normals come from generators of their own, in order of time.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from foreshare.policies.errors import InputError
from foreshare.policies.host import FloatArray

Seed = int | Sequence[int]
"""One seed under which every host has an index of its own, or a seed for each host, all with the same index."""
WORKLOAD, TELEMETRY, REQUESTS, SOURCES, FAULTS = range(5)
_FEW_HOSTS = 8


class HostStreams:
    """``uniforms`` in [0, 1) and standard ``normals`` for every host, VM and tick."""

    def __init__(
        self, seed: Seed, *, hosts: int, first_host: int, stream: int, vms: int, uniforms: int, normals: int
    ) -> None:
        seeds = [seed] * hosts if isinstance(seed, int) else list(seed)
        index = [first_host + h if isinstance(seed, int) else first_host for h in range(hosts)]
        if len(seeds) != hosts or min(seeds) < 0:
            raise InputError(f"seed {seed}: a seed is a whole number of at least 0, one for all hosts or one for each")

        def generators(distribution: int) -> list[np.random.Generator]:
            roots = [
                np.random.SeedSequence(s, spawn_key=(i, stream, distribution))
                for s, i in zip(seeds, index, strict=True)
            ]
            return [np.random.Generator(np.random.PCG64(root)) for root in roots]

        self._uniform_rngs, self._normal_rngs = generators(0), generators(1)
        # A single host wants short, even ticks; many hosts want few Python loops.
        self._ticks = self._next = 8 if hosts < _FEW_HOSTS else 64
        self._uniform: FloatArray = np.empty((hosts, self._ticks, uniforms, vms))
        self._normal: FloatArray = np.empty((hosts, self._ticks, normals, vms))

    def draw(self) -> tuple[FloatArray, FloatArray]:
        """Return this tick's (H, uniforms, N) and (H, normals, N): views, valid until the next call."""
        if self._next == self._ticks:
            for h, (u, z) in enumerate(zip(self._uniform_rngs, self._normal_rngs, strict=True)):
                u.random(out=self._uniform[h])
                z.standard_normal(out=self._normal[h])
            self._next = 0
        i = self._next
        self._next += 1
        return self._uniform[:, i], self._normal[:, i]
