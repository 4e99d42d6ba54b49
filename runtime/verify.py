"""Which VMs' controls are read back in a tick: a share of all in turn, come what may, and suspects as time allows.

``ceil(N / (round - 1))`` VMs in each tick make a round of all in fewer than ``round`` ticks; so much is always read.
What was just written, or did not hold what it should, is read before its turn, as long as the budget lasts; who does
not fit waits for the next tick.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from foreshare.policies.host import BoolArray, IntArray

CHUNK = 16
"""Suspects that are read between two looks at the clock."""


class Rounds:
    """Says whose turn it is."""

    def __init__(self, vms: int, round_ticks: int) -> None:
        per_tick = -(-vms // max(round_ticks - 1, 1)) if vms else 0
        self._turns = [np.arange(i, min(i + per_tick, vms)) for i in range(0, vms, max(per_tick, 1))]
        self._at = 0
        self._suspect: BoolArray = np.zeros(vms, bool)
        self._next = 0

    def suspect(self, rows: IntArray) -> None:
        """Have these VMs read before their turn."""
        self._suspect[rows] = True

    def rows(self, now_ns: Callable[[], int], deadline_ns: int) -> Iterator[IntArray]:
        """Yield the rows to read in this tick, batch by batch, until ``deadline_ns``."""
        if not self._turns:
            return
        due = self._turns[self._at % len(self._turns)]
        self._at += 1
        self._suspect[due] = False
        yield due
        waiting = np.flatnonzero(self._suspect)
        if not len(waiting):
            return
        waiting = np.roll(waiting, -int(np.searchsorted(waiting, self._next)))  # nobody waits behind others for ever
        for i in range(0, len(waiting), CHUNK):
            if now_ns() > deadline_ns:
                return
            rows = waiting[i : i + CHUNK]
            self._suspect[rows] = False
            self._next = int(rows[-1]) + 1
            yield rows
