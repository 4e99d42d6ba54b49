"""The climate of each series: the quantiles of what it demanded over the last minute or two, whatever it does now.

Rare bursts that nothing announces are forecast best by how often they come. Every EVERY ticks the newest truth of a
horizon is kept, SAMPLES of them; each tick a few series have their quantiles worked out anew.
"""

from __future__ import annotations

import numpy as np

from foreshare.policies.host import BoolArray, IntArray, R

from .history import LEVELS, Float32Array, Q, carry_series

SAMPLES = 512
EVERY = 16
TURNS = 128
"""Each series has its turn once in so many ticks; which one is told by its place on its host alone."""


class Climate:
    """Samples and quantiles of all series."""

    def __init__(self, size: int, per_host: int) -> None:
        """``per_host``: N * R, the series of one host."""
        self._hosts = (size // max(per_host, 1), per_host)
        self._kept: Float32Array = np.zeros((SAMPLES, size), np.float32)
        self._count: IntArray = np.zeros(size, np.int64)
        self.quantiles: Float32Array = np.zeros((Q, size), np.float32)
        """(Q, S) units."""

    def update(self, value: Float32Array, known: BoolArray, tick: int) -> None:
        """Take in ``value`` (S,) where ``known``, and work out the quantiles of the series whose turn it is."""
        if tick % EVERY == 0:
            at = self._count % SAMPLES
            columns = np.flatnonzero(known)
            self._kept[at[columns], columns] = value[columns]
            self._count += known
        turn = slice(tick % TURNS, None, TURNS)
        count = self._count.reshape(self._hosts)[:, turn].ravel()
        if not count.any():
            return
        ordered = self._kept.reshape(SAMPLES, *self._hosts)[:, :, turn].copy().reshape(SAMPLES, -1)
        filled = np.minimum(count, SAMPLES)
        ordered[np.arange(SAMPLES)[:, None] >= filled] = np.inf
        ordered.sort(axis=0)
        for q, level in enumerate(LEVELS):
            at = np.minimum((level * filled).astype(np.int64), np.maximum(filled - 1, 0))
            found = ordered[at, np.arange(len(count))]
            into = self.quantiles[q].reshape(self._hosts)[:, turn]
            np.copyto(into, found.reshape(into.shape), where=(filled > 0).reshape(into.shape))

    def rebind(self, rows: IntArray, batch: tuple[int, ...], size: int) -> Climate:
        """Return the climate of another set of VMs; ``rows`` (N,) is each one's former row, or -1."""
        fresh = Climate(size, len(rows) * R)
        for name in ("_kept", "_count", "quantiles"):
            setattr(fresh, name, carry_series(getattr(self, name), rows, getattr(fresh, name), batch))
        return fresh
