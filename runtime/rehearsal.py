"""The last moments before a tick: a rehearsal, then no more sleep.

A CPU that has slept through the gap between two ticks comes back with cold caches, and late: a wake-up takes some
hundred microseconds where a hypervisor is in between. So the loop gets up as much earlier as a rehearsal takes, and
waits out what is left of that awake: sleeping again would undo it within a millisecond.
"""

from __future__ import annotations

from collections.abc import Callable

from foreshare.envs.hal import Clock

FIRST_NS = 500_000
"""What the first rehearsal is expected to take."""
MOST_SHARE = 0.2
"""Of a tick: so much earlier it begins at most."""
_SHRINK = 0.01
_MARGIN = 1.05


class Rehearsal:
    """Knows how long rehearsals take here."""

    def __init__(self, clock: Clock, tick_ns: int) -> None:
        self._clock = clock
        self._most_ns = round(MOST_SHARE * tick_ns)
        self.lead_ns = min(FIRST_NS, self._most_ns)
        """By so much it begins before the tick."""

    def until(self, t_ns: int, rehearse: Callable[[], None]) -> None:
        """Sleep, rehearse, and return at ``t_ns``; where it is too late to rehearse, at once."""
        now = self._clock.now_ns
        self._clock.sleep_until(t_ns - self.lead_ns)
        begun = now()
        if t_ns - begun < self.lead_ns // 2:
            return
        rehearse()
        took = round(_MARGIN * (now() - begun))
        if took > self.lead_ns:
            self.lead_ns = min(took, self._most_ns)
        else:
            self.lead_ns -= round(_SHRINK * (self.lead_ns - took))
        while begun <= now() < t_ns:  # a clock that goes back keeps nobody here
            pass
