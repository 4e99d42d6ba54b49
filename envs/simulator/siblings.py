"""Hardware threads: two on a core do less than twice the work of one.

``smt_yield`` is the work of a core with both threads busy, relative to one thread alone. Linux fills idle cores before
it doubles up (``select_idle_core`` in kernel/sched/fair.c), so ``b`` busy threads on ``k`` cores do the work of ``b``
threads alone while ``b <= k``; beyond that ``b - k`` cores are doubled up, and all do ``(2 k - b) + (b - k) yield``.
The CPU time of a piece of work grows accordingly, at most by ``2 / yield``.
"""

from __future__ import annotations

import numpy as np

from foreshare.policies.host import FloatArray


def time_per_work(busy: FloatArray, threads: FloatArray, smt_yield: float) -> FloatArray:
    """Return the CPU time of a piece of work relative to that on a core of its own: 1 to ``2 / smt_yield``.

    ``busy``: mean threads that run, ``threads``: those that there are, two for each core; any unit, any shape.
    """
    cores = 0.5 * threads
    b = np.minimum(busy, threads)
    doubled = np.maximum(b - cores, 0.0)
    work = b - doubled * (2.0 - smt_yield)  # (2k - b) + (b - k) y = b - (b - k) (2 - y)
    return np.divide(b, work, out=np.ones_like(b), where=work > 0.0)
