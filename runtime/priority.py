"""The loop's turn comes first: SCHED_FIFO while it runs, where the kernel allows that.

On a host that is busy, and a host whose VMs compete is, an ordinary process loses its CPU in the middle of a tick for
one time slice or several, some milliseconds each. The loop works for a small part of every tick and sleeps for the
rest, so that it takes nobody's CPU for long; the kernel holds back real-time threads that use more than
/proc/sys/kernel/sched_rt_runtime_us of every second all the same (sched(7)). Children start as ordinary processes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

PRIORITY = 1
"""The lowest of the real-time priorities: whatever else on the host is one goes first."""


@contextmanager
def first_in_turn(wanted: bool = True) -> Iterator[str]:
    """Within this the calling thread runs under SCHED_FIFO, if ``wanted`` and allowed; yields "fifo" or "other".

    Needs CAP_SYS_NICE or an RLIMIT_RTPRIO; without either nothing changes. A thread that is a real-time one already
    stays as it is.
    """
    before, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    ordinary = before & ~os.SCHED_RESET_ON_FORK in (os.SCHED_OTHER, os.SCHED_BATCH, os.SCHED_IDLE)
    raised = False
    if wanted and ordinary:
        with suppress(PermissionError):
            os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(PRIORITY))
            raised = True
    try:
        yield "fifo" if raised or not ordinary else "other"
    finally:
        if raised:
            with suppress(PermissionError):  # without CAP_SYS_NICE the flag cannot be taken back
                os.sched_setscheduler(0, before, parameters)
            if os.sched_getscheduler(0) != before:
                os.sched_setscheduler(0, before | os.SCHED_RESET_ON_FORK, parameters)
