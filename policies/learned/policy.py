"""The learned policy at run time: what envs/agent.py does around a network, as an allocator.

It sees more than a request: :class:`~..features.Encoder` looks at what was decided before and at the VMs' contracts,
which its :class:`~..decide.Mind` holds. :func:`learned_mind` joins the two; a test holds its allocations against those
of the environment whose agent is the same network.
"""

from __future__ import annotations

import copy
from types import ModuleType
from typing import Any

import numpy as np

from foreshare.policies import kernel
from foreshare.policies.allocators import Request, Triage
from foreshare.policies.allocators.corrected import LIMIT, Corrected
from foreshare.policies.decide import DecideOptions, Mind
from foreshare.policies.errors import InputError
from foreshare.policies.features import Encoder
from foreshare.policies.host import BoolArray, Host, IntArray

from .network import Network


class Learned:
    """Corrects ``base`` as ``network`` says. Must be attached to the mind that asks it."""

    def __init__(self, base: Triage, network: Network, name: str = "learned") -> None:
        self.name, self.network, self.batched = name, network, base.batched
        self.base = base
        """What it corrects."""
        self._corrected = Corrected(base)
        self._mind: Mind | None = None
        self._encoder: Encoder | None = None
        self._host: Host | None = None
        self._there: BoolArray = np.zeros(0, bool)
        self._bound: tuple[Host, IntArray] | None = None
        self._arrays: tuple[object, ...] = ()
        self.memo = kernel.Memo()

    def attach(self, mind: Mind) -> None:
        """See from now on what ``mind`` knows."""
        self._mind, self._encoder = mind, Encoder(mind, mind.options.tick_ms)

    def allocate(self, request: Request, host: Host, tick: int) -> IntArray:
        """See :class:`~..allocators.Allocator`. Raises InputError where nobody attached it."""
        if self._encoder is None:
            raise InputError(f"policy {self.name} has no mind to see with")
        if host is not self._host:
            self._host, self._there = host, np.ascontiguousarray(np.broadcast_to(host.active, host.shape[:-1]))
        if kernel.compiled is not None and self._mind is not None and self._mind.asks(request) and not host.batch:
            return self._consult(kernel.compiled, self._mind, self._encoder, host)
        vms, whole = self._encoder.encode()
        action = self.network.forward(vms, self._there, whole)
        action *= LIMIT
        self._corrected.action = action
        return self._corrected.allocate(request, host, tick)

    def _consult(self, compiled: ModuleType, mind: Mind, encoder: Encoder, host: Host) -> IntArray:
        """Do all of it in one compiled call, over arrays that are checked once."""
        mind.see_deadlines()
        if self._bound is None or self._bound[0] is not host or self._bound[1] is not mind.held:
            encoder.bind(host)
            self.base.bind(host)
            self._bound = host, mind.held
            self._arrays = (
                kernel.tables(host),
                *encoder.arrays(),
                *self.network.compiled_form,
                self._there,
                *self.base.arrays,
            )
        out = np.empty(host.shape, np.int64)
        compiled.consult(self.memo.held, self._arrays, LIMIT, out)
        return out

    def __deepcopy__(self, memo: dict[int, Any]) -> Learned:
        """Return a twin that remembers nothing of what was seen, and looks at the same mind."""
        twin = Learned(copy.deepcopy(self.base, memo), self.network, self.name)
        if self._mind is not None:
            twin.attach(self._mind)
        return twin


def learned_mind(network: Network, inner: Mind, options: DecideOptions | None = None, name: str = "learned") -> Mind:
    """Return a mind that decides as ``network`` corrects what ``inner``, the mind of a base policy, would decide.

    Raises InputError where ``inner`` does not decide by triage.
    """
    if not isinstance(inner.policy, Triage):
        raise InputError(f"policy {inner.policy.name!r} takes no corrections")
    return Mind(inner.host, inner.forecaster, Learned(inner.policy, network, name), options)
