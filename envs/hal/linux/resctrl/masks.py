"""Way masks as integers: runs, and what is legal."""

from __future__ import annotations


def runs(mask: int) -> list[int]:
    """Return the runs of ones in ``mask``, lowest first."""
    out: list[int] = []
    while mask > 0:
        rest = mask & (mask + (mask & -mask))
        out.append(mask & ~rest)
        mask = rest
    return out


def longest_run(mask: int) -> int:
    """Return the longest run of ones, the lowest of equals; 0 where there is none."""
    return max(runs(mask), key=int.bit_count, default=0)


def is_run(mask: int) -> bool:
    """Return whether ``mask`` is one run of ones, none missing: legal on every processor."""
    return mask > 0 and mask & (mask + (mask & -mask)) == 0
