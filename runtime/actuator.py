"""The actuator safeguard (SOL, ASPLOS'22): who does not obey gets what he is owed, and is reported.

A VM **disobeys** when in ``PATIENCE`` ticks a write to it failed, or left its controls with something else than was
written, without ``CALM`` ticks in between in which it was written to and all was well. (One knob may be stuck while the
others turn, and a stuck one is not tried in every tick.) It then gets exactly its reservation, whoever decides, written
anew every tick until it sticks, and what it holds beyond that is counted as taken. After ``CALM`` looks on end at which
everything was as it should be it is free again.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from foreshare.policies.host import BoolArray, IntArray

PATIENCE = 2
CALM = 10


class Obedience:
    """Keeps a record for each of N VMs."""

    def __init__(self, vms: int) -> None:
        self._strikes = np.zeros(vms, np.int64)
        self._calm = np.zeros(vms, np.int64)
        self._struck = np.zeros(vms, bool)
        self.pinned: BoolArray = np.zeros(vms, bool)
        """(N,) VMs that get exactly their reservation."""
        self._reason: dict[int, str] = {}

    def strike(self, row: int, why: str) -> None:
        """Take note that a write to a VM failed or did nothing; twice in a tick counts once."""
        if not self._struck[row]:
            self._struck[row] = True
            self._strikes[row] += 1
        self._calm[row] = 0
        self._reason[row] = why

    def good(self, rows: IntArray) -> None:
        """Take note that the controls of ``rows`` hold what was just written, or that pinned VMs are as they should."""
        fine = rows[~self._struck[rows]]
        self._calm[fine] += 1
        self._strikes[fine[self._calm[fine] >= CALM]] = 0

    def forget(self, row: int) -> None:
        """Drop the record of a VM that has gone, or come."""
        self._strikes[row] = self._calm[row] = 0
        self._struck[row] = self.pinned[row] = False
        self._reason.pop(row, None)

    def judge(self) -> Iterator[tuple[str, int, str]]:
        """Close a tick; yield (kind, row, text) for each VM that is pinned to its reservation now, or free again."""
        self._struck[:] = False
        if not self._reason and not self.pinned.any():
            return
        for row in np.flatnonzero(~self.pinned & (self._strikes >= PATIENCE)).tolist():
            self.pinned[row] = True
            yield "disobeys", row, f"held to its reservation: {self._reason.get(row, '')}"
        for row in np.flatnonzero(self.pinned & (self._calm >= CALM)).tolist():
            self.forget(row)
            yield "obeys", row, "its controls hold what is written again"
        for row in [r for r in self._reason if not self.pinned[r] and not self._strikes[r]]:
            del self._reason[row]
