"""Another tool that keeps changing a group of ours: mended so often, then left to it for a while, longer each time.

Two programs that both insist would write for ever, under the kernel's one lock. A group that is left alone keeps what
it was given by others: nobody grows into what it holds, its VMs count as refused, and a line says so.
"""

from __future__ import annotations

from collections import deque

MOST = 8
WINDOW_NS = 10_000_000_000
"""MOST changes of one group within this are a fight."""
FIRST_NS, LONGEST_NS = 2_000_000_000, 120_000_000_000
"""How long a group is left alone; twice as long if it is fought over again."""
PEACE_NS = 60_000_000_000
"""After so long without a change all is forgotten."""


class Fights:
    """Who has touched which group of ours lately."""

    def __init__(self, groups: int) -> None:
        self._seen: list[deque[int]] = [deque() for _ in range(groups)]
        self._wait = [FIRST_NS] * groups
        self._until: dict[int, int] = {}

    def changed(self, s: int, now_ns: int) -> None:
        """Count a change of group ``s`` that was not ours."""
        seen = self._seen[s]
        if seen and now_ns - seen[-1] > PEACE_NS:
            self._wait[s] = FIRST_NS
        seen.append(now_ns)
        while seen[0] < now_ns - WINDOW_NS:
            seen.popleft()
        if len(seen) >= MOST and s not in self._until:
            self._until[s] = now_ns + self._wait[s]
            self._wait[s] = min(2 * self._wait[s], LONGEST_NS)

    def over(self, now_ns: int) -> bool:
        """Return whether a group that was left alone is ours again from now on."""
        over = [s for s, until in self._until.items() if now_ns >= until]
        for s in over:
            del self._until[s]
            last = self._seen[s][-1]
            self._seen[s].clear()
            self._seen[s].append(last)
        return bool(over)

    def left_alone(self, s: int) -> bool:
        """Return whether group ``s`` is somebody else's for now."""
        return s in self._until

    def lines(self, names: list[str]) -> list[str]:
        """Return a line for each group that is left alone; ``names`` of all."""
        return [
            f"another tool keeps changing the resctrl group {names[s]}: it is left alone for a while"
            for s in sorted(self._until)
        ]
