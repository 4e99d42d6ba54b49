"""A correction of triage: how a learned policy, or an agent in the environment, has its say.

The action is one log-multiplier for each VM and one for each of its resources, (N, 1 + R). The first multiplies the
VM's standing, its weight when triage decides who is served whole; the others multiply what is requested for it of each
resource: what it needs, and what it asks where that is less than it now needs. What comes out is an answer of triage,
feasible as it is, so that the guard has little to change. All zeros is exactly triage: an untrained policy is already
sensible. Correcting the units that triage hands out instead was dropped: it takes as much from those who were to be
served whole as from all others, and the guard has to change nearly every answer.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from foreshare.policies import kernel
from foreshare.policies.host import CACHE, FloatArray, Host, IntArray, R

from .base import Request
from .triage import Triage

LIMIT = 2.5
"""No tighter: the oracle's correction of CPU spans about three either way, because it sheds."""
ACTIONS = 1 + R


class Corrected:
    """Wraps triage; ``action`` is what the next call applies."""

    name = "corrected"
    batched = True

    def __init__(self, base: Triage) -> None:
        self.base = base
        self.action: npt.NDArray[np.floating] | None = None
        """(N, ACTIONS), in a batch (H, N, ACTIONS), or None for no correction; what is no number corrects nothing."""

    def allocate(self, request: Request, host: Host, tick: int) -> IntArray:
        """See :class:`~.base.Allocator`."""
        if self.action is None or not self.action.any():
            self.base.favour = None
            return self.base.allocate(request, host, tick)
        self.base.favour, ask, need = self._correct(self.action, request, host)
        return self.base.allocate(Request(ask, need, request.usage, request.backlog, request.delay_ticks), host, tick)

    @staticmethod
    def _correct(
        action: npt.NDArray[np.floating], request: Request, host: Host
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Return what the standings are multiplied with (..., N), and what is asked and needed (..., N, R) then."""
        if kernel.compiled is not None:
            favour, ask, need = np.empty(host.shape[:-1]), np.empty(host.shape), np.empty(host.shape)
            kernel.compiled.correct(
                kernel.tables(host), kernel.hosts_in(host), LIMIT, np.ascontiguousarray(action, np.float64),
                request.ask, request.need, favour, ask, need,
            )  # fmt: skip
            return favour, ask, need
        total = np.clip(action, -LIMIT, LIMIT)
        unknown = np.isnan(total)
        if unknown.any():
            total[unknown] = 0.0
        factor = np.exp(total)
        need = request.need * factor[..., 1:]
        np.clip(need, host.floor, host.cap, out=need)
        need[..., CACHE] = request.need[..., CACHE]
        ask = request.ask.copy()
        np.maximum(ask, need, out=ask)
        ask[..., CACHE] *= factor[..., 1 + CACHE]
        np.clip(ask, host.floor, host.cap, out=ask)
        return factor[..., 0], ask, need
