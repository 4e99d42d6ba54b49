"""Whether the policy may have its say: three strikes and it is benched, and asked again after a while.

Every fault is a strike; ``FORGIVE`` usable answers on end take one back, but those for a process that was lost
(``GRAVE``) stay until there were ``REFORM``. With ``strikes`` of them the policy is benched for ``first_ticks``, after
that it is on probation: one more fault benches it again, for twice as long, up to ``most_ticks``. After ``REFORM``
usable answers on end the next bench is a short one again.
"""

from __future__ import annotations

from dataclasses import dataclass

FORGIVE = 3
REFORM = 1000
GRAVE = frozenset({"crashed", "hung", "leaked", "unloadable"})


@dataclass(frozen=True, kw_only=True, slots=True)
class StandingOptions:
    """How patient we are."""

    strikes: int = 3
    first_ticks: int = 10
    """Length of the first bench."""
    most_ticks: int = 6000
    """Longest bench: a minute of 10 ms ticks."""


class Standing:
    """One policy's record."""

    def __init__(self, options: StandingOptions | None = None) -> None:
        self.options = options or StandingOptions()
        self.faults: dict[str, int] = {}
        """How often each fault was found; see :data:`~.ask.FAULTS`."""
        self.benches = 0
        """How often it was benched."""
        self.benched_for = ""
        """The fault that it is benched for; empty while it may decide."""
        self.until = 0
        """The first tick in which it may decide again."""
        self._strikes = self._grave = self._good = 0
        self._next = self.options.first_ticks

    def may_decide(self, tick: int) -> bool:
        """Return whether the policy's answer may be used in ``tick``; a bench that is over ends here."""
        if self.benched_for and tick >= self.until:
            self.benched_for = ""
            self._strikes = max(self.options.strikes - 1 - self._grave, 0)
        return not self.benched_for

    def good(self) -> None:
        """Take note of a usable answer."""
        self._good += 1
        if self._good % FORGIVE == 0 and self._strikes:
            self._strikes -= 1
        if self._good == REFORM:
            self._grave = 0
            self._next = self.options.first_ticks

    def count(self, kind: str) -> None:
        """Take note of a fault that is no strike."""
        self.faults[kind] = self.faults.get(kind, 0) + 1

    def fault(self, kind: str, tick: int) -> bool:
        """Take note of a fault; return whether that was one too many."""
        self.count(kind)
        self._good = 0
        if self.benched_for:
            return False
        if kind in GRAVE:
            self._grave += 1
        else:
            self._strikes += 1
        if self._strikes + self._grave < self.options.strikes and kind != "worse":
            return False
        self.benched_for = kind
        self.benches += 1
        self.extend(tick + 1)
        return True

    def extend(self, tick: int) -> None:
        """Let the bench go on from ``tick``, for twice as long as the one before."""
        self.until = tick + self._next
        self._next = min(2 * self._next, self.options.most_ticks)
