"""From a proposal to what is held: who keeps apart, the guard, who is contended."""

from __future__ import annotations

import numpy as np

from . import kernel
from .allocators import Request
from .ask import Units
from .guard import Guard
from .host import CACHE, BoolArray, Host, IntArray


class Conclusion:
    """Belongs to one mind and one set of VMs; writes to ``held`` and ``contended`` in place."""

    def __init__(
        self, host: Host, guard: Guard, request: Request, held: IntArray, fixed: BoolArray, pinned: BoolArray,
        throttled: BoolArray, contended: BoolArray,
    ) -> None:  # fmt: skip
        self.held, self.pinned = held, pinned
        self._host, self._guard, self._request, self._fixed = host, guard, request, fixed
        self._throttled, self._contended = throttled, contended
        self._arrays = (kernel.tables(host), request.ask, request.need, held, throttled, fixed, pinned, contended)
        self.memo = kernel.Memo()

    def hold(self, proposal: Units, anchor: IntArray | None) -> None:
        """Admit what of ``proposal`` is feasible, but for VMs whose partition never moves, or obeys nobody.

        ``anchor``: around which the trust region lies; None: there is none.
        """
        host, guard = self._host, self._guard
        plain = proposal.dtype == np.int64 and proposal.shape == host.shape and proposal.flags.c_contiguous
        if kernel.compiled is not None and not host.batch and plain:
            guard.broken = False
            guard.changed, guard.raised = kernel.compiled.conclude(
                self.memo.held, self._arrays, proposal, anchor, guard.options.hysteresis, 1.0 - guard.options.radius
            )
            return
        apart = self._fixed | self.pinned
        if apart.any():
            proposal = np.where(apart[:, None], host.reservation, proposal)
        frozen = self._throttled | self.pinned
        units = guard.admit(proposal, self._request.ask, self.held, frozen=frozen, anchor=anchor)
        units[..., self._fixed, :] = host.reservation[self._fixed]
        np.greater(self._request.need, units, out=self._contended)
        self._contended[..., CACHE] = False  # best effort: who has no ways of his own has the shared ones
        np.copyto(self.held, units)
