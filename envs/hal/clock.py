"""The kernel's monotonic clock."""

from __future__ import annotations

import time


class MonotonicClock:
    """CLOCK_MONOTONIC; never the wall clock, which jumps."""

    now_ns = staticmethod(time.monotonic_ns)

    def sleep_until(self, t_ns: int) -> None:
        """Sleep until ``t_ns``; returns at once when that is past."""
        left = t_ns - time.monotonic_ns()
        if left > 0:
            time.sleep(left * 1e-9)
