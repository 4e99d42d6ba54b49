"""Which VMs are there: one that misses from so many readings on end has gone for good, and gives up what it held."""

from __future__ import annotations

import numpy as np

from .host import BoolArray

GONE_TICKS = 3
"""A VM that is not there for so many ticks gives up what it held."""


class Presence:
    """Counts the ticks for which each VM has not been seen."""

    def __init__(self, vms: int) -> None:
        self._absent = np.zeros(vms, np.int64)

    def update(self, present: BoolArray) -> BoolArray:
        """Take one reading's ``present`` (N,); return who counts as there, (N,)."""
        self._absent += 1
        self._absent[present] = 0
        return self._absent < GONE_TICKS
