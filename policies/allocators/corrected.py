"""A correction on top of triage: how a learned policy, or an agent in the environment, has its say.

The action is one log-multiplier for each VM and a residual for each of its resources, (N, 1 + R). A VM's target is
triage's answer times ``exp(clip(multiplier + residual, -LIMIT, LIMIT))``; the guard makes it feasible. All zeros is
exactly triage, so that an untrained policy is already sensible.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from foreshare.policies.host import Host, IntArray, R

from .base import Allocator, Request

LIMIT = 2.5
"""No tighter: the oracle's correction of CPU spans about three either way, because it sheds."""
ACTIONS = 1 + R


class Corrected:
    """Wraps an allocator; ``action`` is what the next call applies."""

    name = "corrected"

    def __init__(self, base: Allocator) -> None:
        self.base, self.batched = base, base.batched
        self.action: npt.NDArray[np.floating] | None = None
        """(N, ACTIONS), in a batch (H, N, ACTIONS), or None for no correction; what is no number corrects nothing."""

    def allocate(self, request: Request, host: Host, tick: int) -> IntArray:
        """See :class:`~.base.Allocator`."""
        units = self.base.allocate(request, host, tick)
        if self.action is None or not self.action.any():
            return units
        total = np.clip(np.nan_to_num(self.action[..., :1] + self.action[..., 1:]), -LIMIT, LIMIT)
        corrected: IntArray = np.rint(np.maximum(units, host.floor) * np.exp(total)).astype(np.int64)
        return corrected
