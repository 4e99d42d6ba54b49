"""Contiguous cache ways on a line: who fills which, with the fewest moves.

The owners keep their order along the line, and their place where they can: an owner grows into free ways beside it
before it pushes a neighbour. Pinned owners sit at the low end and move only when another pinned one comes or goes.
Bits below ``shared`` always belong to the shared class. The loop is over owners, of whom
there are at most as many as ways (about twenty), and runs only when a count changed.
"""

from __future__ import annotations

import numpy as np

from .host import BoolArray, IntArray


class WayLine:
    """The ways of one zone's L3 domains."""

    def __init__(self, ways: int, shared: int, min_ways: int) -> None:
        self._ways, self._shared, self._min = ways, shared, min_ways
        self._held: dict[int, tuple[int, int]] = {}  # row -> [start, end)
        self._pinned: set[int] = set()
        self._rank: list[int] = []
        self._count: IntArray = np.zeros(0, np.int64)
        self._masks: IntArray | None = None
        """The answer to the latest ``_count``; None: work it out afresh."""

    def pin(self, rows: IntArray, rank: IntArray) -> None:
        """Let ``rows`` sit at the low end, where no neighbour's growth moves them (security class).

        ``rank`` (N,) breaks ties between owners, whatever order the rows have.
        """
        self._pinned = set(rows.tolist())
        self._rank = rank.tolist()
        self._masks = None

    def rename(self, new_row: IntArray) -> None:
        """Follow the rows to their new numbers; -1 drops them."""
        self._masks = None
        self._held = {int(new_row[r]): span for r, span in self._held.items() if new_row[r] >= 0}

    def adopt(self, masks: IntArray, rows: BoolArray) -> None:
        """Take over the owners found in ``masks`` (N,) among ``rows`` (N,), as far as they do not overlap."""
        self._held, self._masks = {}, None
        end = 0
        found = np.flatnonzero(rows & (masks != 0)).tolist()
        spans = sorted((*_span(int(masks[r]) >> self._shared), self._rank[r], r) for r in found)
        for start, stop, _, row in spans:
            if start >= end and stop <= self._ways:
                self._held[row] = (start, stop)
                end = stop

    def place(self, count: IntArray, rows: BoolArray | None, into: IntArray) -> None:
        """Write masks for ``count`` (N,) ways to ``into`` (N,), for ``rows`` only (None: all)."""
        if rows is None and self._masks is not None and np.array_equal(count, self._count):
            into[:] = self._masks
            return
        owners = np.flatnonzero((count > 0) if rows is None else (count > 0) & rows)
        want = {int(r): int(count[r]) for r in owners}
        if {r: b - a for r, (a, b) in self._held.items()} != want:
            self._held = self._layout(want)
        if rows is None:
            into[:] = 0
        else:
            into[rows] = 0
        for row, (start, end) in self._held.items():
            into[row] = ((1 << (end - start)) - 1) << (start + self._shared)
        if rows is None:
            self._count, self._masks = count.copy(), into.copy()

    def _layout(self, want: dict[int, int]) -> dict[int, tuple[int, int]]:
        spans: list[tuple[int, int, int]] = []  # row, start, length
        for row in sorted(self._pinned & set(want), key=lambda r: (self._held.get(r, (self._ways, 0)), self._rank[r])):
            spans.append((row, spans[-1][1] + spans[-1][2] if spans else 0, want[row]))
        stay = sorted((span, row) for row, span in self._held.items() if row in want and row not in self._pinned)
        for i, ((a, b), row) in enumerate(stay):
            length = want[row]
            left_end = spans[-1][1] + spans[-1][2] if spans else 0
            right = stay[i + 1][0][0] if i + 1 < len(stay) else self._ways
            grow = length - (b - a)
            start = a
            if grow > 0:
                start = a - min(max(grow - (right - b), 0), max(a - left_end, 0))
            spans.append((row, max(start, left_end), length))
        for row in sorted(set(want) - {r for r, _, _ in spans}, key=lambda r: self._rank[r]):
            spans = _insert(spans, row, want[row], self._ways)
        out: dict[int, tuple[int, int]] = {}
        limit = self._ways
        for row, start, length in reversed(spans):
            at = min(start, limit - length)
            out[row] = (at, at + length)
            limit = at
        return out


def _insert(spans: list[tuple[int, int, int]], row: int, length: int, ways: int) -> list[tuple[int, int, int]]:
    """Put a new owner into the smallest gap that holds it, else at the end (where the others make room)."""
    best, at = (ways + 1, 0), len(spans)
    end = 0
    for i, (_, start, size) in enumerate([*spans, (-1, ways, 0)]):
        if length <= start - end < best[0]:
            best, at = (start - end, end), i
        end = start + size
    if best[0] <= ways:
        return [*spans[:at], (row, best[1], length), *spans[at:]]
    end = spans[-1][1] + spans[-1][2] if spans else 0
    return [*spans, (row, end, length)]


def _span(mask: int) -> tuple[int, int]:
    """Return [start, end) of the lowest run of ones in ``mask``."""
    if mask <= 0:
        return 0, 0
    start = (mask & -mask).bit_length() - 1
    run = mask >> start
    return start, start + ((run + 1) & -(run + 1)).bit_length() - 1
