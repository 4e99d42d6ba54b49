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
from .water_filling import WaterFilling

LIMIT = 2.5
"""No tighter: the oracle's correction of CPU spans about three either way, because it sheds."""
ACTIONS = 1 + R


class Corrected:
    """Wraps triage; ``action`` is what the next call applies.

    Water-filling in its place turns nobody away, so that standing means nothing to it: what triage is worth to a
    policy, an ablation tells.
    """

    name = "corrected"
    batched = True

    def __init__(self, base: Triage | WaterFilling) -> None:
        self.base = base
        self.action: npt.NDArray[np.floating] | None = None
        """(N, ACTIONS), in a batch (H, N, ACTIONS), or what can be broadcast to that; None: no correction. What is no
        number corrects nothing."""
        self._asked = Request.empty(0)

    def allocate(self, request: Request, host: Host, tick: int) -> IntArray:
        """See :class:`~.base.Allocator`."""
        favour = self._correct(request, host)
        if isinstance(self.base, Triage):
            self.base.favour = favour
        return self.base.allocate(request if favour is None else self._asked, host, tick)

    def _correct(self, request: Request, host: Host) -> FloatArray | None:
        """Return what the standings are multiplied with (..., N), and fill what is asked and needed then.

        None where nothing is to be corrected.
        """
        if self.action is None:
            return None
        asked = self._asked
        asked.usage, asked.backlog, asked.delay_ticks = request.usage, request.backlog, request.delay_ticks
        action = np.ascontiguousarray(np.broadcast_to(self.action, (*host.shape[:-1], ACTIONS)), np.float32)
        if kernel.compiled is not None:
            if asked.ask.shape != host.shape:
                asked.ask, asked.need = np.empty(host.shape), np.empty(host.shape)
            favour = np.empty(host.shape[:-1])
            some = kernel.compiled.correct(
                kernel.tables(host), kernel.hosts_in(host), LIMIT, action, request.ask, request.need, favour,
                asked.ask, asked.need,
            )  # fmt: skip
            return favour if some else None
        if not action.any():
            return None
        total = np.clip(action.astype(np.float64), -LIMIT, LIMIT)
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
        asked.ask, asked.need = ask, need
        return np.ascontiguousarray(factor[..., 0])
