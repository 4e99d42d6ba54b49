"""How a policy is asked, and what its answer is worth.

A policy that somebody else wrote, or that was learned, may be late, hang, crash, leak or talk nonsense; none of it may
cost more than its own say. :class:`Asker` is the seam: :class:`Inline` calls the policy, which suffices for our own
allocators (numpy on arrays of bounded size, no loop without a bound, tested with every reading that there can be);
``runtime.policy_process`` asks one in a process of its own and serves any :class:`~.allocators.Allocator`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from .allocators import Allocator, PrioritySort, Request
from .host import BoolArray, Host

Units = npt.NDArray[Any]

FAULTS = {
    "late": "no answer within its share of the tick",
    "raised": "it raised an exception",
    "wrong": "its answer has the wrong shape or type, or values that are no numbers",
    "crashed": "its process ended",
    "hung": "silent for so long that its process was ended",
    "leaked": "its process grew beyond its memory",
    "unloadable": "its process could not be started",
    "worse": "it did worse than the default over a long time",
}
"""What a policy can be found guilty of; each is a strike."""
ABSENCES = {"benched": "not asked, or not heeded, for a while", "starting": "its process is being started"}
"""Why a policy did not decide though it did nothing wrong in this tick."""


@dataclass(slots=True, eq=False)
class Answer:
    """What came of asking."""

    units: Units | None
    """(..., N, R) units, or None."""
    tick: int
    """The tick whose request it answers."""
    fault: str = ""
    """One of FAULTS or ABSENCES; empty if the answer can be used."""
    why: str = ""
    """The fault in words."""
    refused: BoolArray | None = None
    """(..., N) VMs that were throttled to their reservation, from allocators that tell."""
    earlier: Answer | None = None
    """An answer to an earlier tick, come too late for it."""


def newer(one: Answer | None, other: Answer) -> Answer:
    """Return the answer to the later tick."""
    return other if one is None or one.tick < other.tick else one


class Asker(Protocol):
    """A way of asking one policy. Nothing here raises for what the policy does."""

    beside: bool
    """Whether the policy thinks while the caller goes on."""

    def begin(self, request: Request, host: Host, tick: int) -> None:
        """Put the request for ``tick`` to the policy."""
        ...

    def arrived(self) -> bool:
        """Return whether there is nothing to wait for: whoever has work of his own to do meanwhile need not."""
        ...

    def end(self, budget_ns: int, now_ns: Callable[[], int]) -> Answer:
        """Return the answer, or that there is none ``budget_ns`` after ``begin``."""
        ...

    def rebind(self, host: Host) -> None:
        """Go on with other VMs; may take its time."""
        ...

    def warm_up(self, request: Request, host: Host) -> None:
        """Have the policy's code and memory ready before the first tick; nothing is learnt from it."""
        ...

    def rehearse(self) -> None:
        """Have the policy judge its latest request again, for nothing, so that its caches are warm; do not wait."""
        ...

    def rest(self, slack_ns: int, wanted: bool) -> Answer | None:
        """Do between two ticks what must not be done in one; ``slack_ns`` are left.

        ``wanted``: the policy will be asked soon. Returns a fault that was found here.
        """
        ...

    def close(self) -> None:
        """Let go of the policy."""
        ...


class Inline:
    """Asks by calling."""

    beside = False

    def __init__(self, policy: Allocator) -> None:
        self.policy = policy
        self._asked: tuple[Request, Host, int] | None = None

    def begin(self, request: Request, host: Host, tick: int) -> None:
        """See :class:`Asker`."""
        self._asked = request, host, tick

    def arrived(self) -> bool:
        """See :class:`Asker`: while it is called nobody else does anything."""
        return True

    def end(self, budget_ns: int, now_ns: Callable[[], int]) -> Answer:
        """See :class:`Asker`. A policy that hangs here hangs the caller."""
        if self._asked is None:
            return Answer(None, -1, "benched", "it was not asked")
        request, host, tick = self._asked
        self._asked = None
        begun = now_ns()
        answer = call(self.policy, request, host, tick)
        took = now_ns() - begun
        if took > budget_ns and not answer.fault:
            why = f"late: {took // 1000} us of {budget_ns // 1000}"
            return Answer(None, tick, "late", why, earlier=answer)
        return answer

    def rebind(self, host: Host) -> None:
        """See :class:`Asker`; allocators see for themselves that the host is another."""

    def warm_up(self, request: Request, host: Host) -> None:
        """See :class:`Asker`: a copy is asked."""
        call(copy.deepcopy(self.policy), request, host, 0)

    def rehearse(self) -> None:
        """See :class:`Asker`: whoever can call it can call its double."""

    def rest(self, slack_ns: int, wanted: bool) -> Answer | None:
        """See :class:`Asker`: there is nothing to do."""
        return None

    def close(self) -> None:
        """See :class:`Asker`."""


def call(policy: Allocator, request: Request, host: Host, tick: int) -> Answer:
    """Ask ``policy`` in this thread; whatever it raises or answers comes back as an Answer."""
    try:
        units = policy.allocate(request, host, tick)
        why = unusable(units, host)
        refused = policy.refused if isinstance(policy, PrioritySort) else None
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a plug-in: what it raises costs it the tick, not the host
        return Answer(None, tick, "raised", f"raised {type(error).__name__}: {error}")
    return Answer(None, tick, "wrong", why) if why else Answer(units, tick, refused=refused)


def unusable(proposal: object, host: Host) -> str:
    """Return what is wrong with ``proposal`` as an answer for ``host``; empty if it can be given to the guard."""
    if type(proposal) is not np.ndarray or proposal.shape != host.shape:
        return f"answered {getattr(proposal, 'shape', type(proposal).__name__)}, expected {host.shape}"
    if proposal.dtype.kind == "f" and not np.isfinite(proposal).all():
        return "answered values that are not finite"
    if proposal.dtype.kind not in "if" or proposal.dtype.itemsize > 8:
        return f"answered {proposal.dtype}"
    return ""
