"""Core-scheduling cookies: what is not of a VM never runs beside it on a core, not even a host's process for a moment.

Threads with different cookies never run at once on the siblings of one core (prctl(2) PR_SCHED_CORE, Linux 5.14,
CONFIG_SCHED_CORE, https://docs.kernel.org/admin-guide/hw-vuln/core-scheduling.html); children inherit theirs. A new
cookie can only be made for a thread and be handed on from the caller, so a thread of ours makes it, hands it on and
ends; one that has none hands "none" on. It stops neither MDS between a guest's user and the kernel nor L1TF.
"""

from __future__ import annotations

import ctypes
import errno
import os
import threading
from collections.abc import Iterable

from .cgroups import GONE

_PR_SCHED_CORE, _GET, _CREATE, _SHARE_TO = 62, 0, 1, 2
_THREAD = 0
"""PIDTYPE_PID: this thread alone."""
_LIBC = ctypes.CDLL(None, use_errno=True)
_ULONG = ctypes.c_ulong


def why_none() -> str:
    """Return why this kernel has no core scheduling, or an empty string."""
    try:
        cookie_of(0)
    except OSError as error:
        return {
            errno.EINVAL: "this kernel was built without core scheduling (CONFIG_SCHED_CORE) or is older than 5.14",
            errno.ENODEV: "no core here has siblings (no SMT), so there is nothing to keep apart",
        }.get(error.errno or 0, f"core scheduling cannot be asked for: {error.strerror}")
    return ""


def cookie_of(tid: int) -> int:
    """Return the number of a thread's cookie (0: the calling thread), 0 where it has none. Raises OSError."""
    value = ctypes.c_ulonglong()
    _call(_GET, tid, ctypes.addressof(value))
    return value.value


def give(tids: Iterable[int]) -> None:
    """Give threads one new cookie. Raises OSError; threads that are gone do not matter."""
    _in_a_thread(list(tids), fresh=True)


def take_away(tids: Iterable[int]) -> None:
    """Leave threads without a cookie. Raises OSError; threads that are gone do not matter."""
    _in_a_thread(list(tids), fresh=False)


def _in_a_thread(tids: list[int], *, fresh: bool) -> None:
    failed: list[OSError] = []

    def hand_on() -> None:
        try:
            if fresh:
                _call(_CREATE, 0, 0)
            for tid in tids:
                try:
                    _call(_SHARE_TO, tid, 0)
                except OSError as error:
                    if error.errno not in GONE:
                        raise
        except OSError as error:
            failed.append(error)

    if any(tid <= 0 for tid in tids):
        raise ValueError("0 would be this thread itself")
    thread = threading.Thread(target=hand_on, name="foreshare-cookie")
    thread.start()
    thread.join()
    if failed:
        raise failed[0]


def _call(command: int, tid: int, into: int) -> None:
    if _LIBC.prctl(_PR_SCHED_CORE, _ULONG(command), _ULONG(tid), _ULONG(_THREAD), _ULONG(into)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
