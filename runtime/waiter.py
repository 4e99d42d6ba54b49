"""Waiting for a descriptor with a deadline in nanoseconds: ppoll, which Python's select module does not offer."""

from __future__ import annotations

import ctypes
import select
import time


class _PollFd(ctypes.Structure):
    _fields_ = (("fd", ctypes.c_int), ("events", ctypes.c_short), ("revents", ctypes.c_short))


class _Timespec(ctypes.Structure):
    _fields_ = (("s", ctypes.c_long), ("ns", ctypes.c_long))


_libc = ctypes.CDLL(None, use_errno=True)
_libc.ppoll.argtypes = (ctypes.c_void_p, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_void_p)


class Waiter:
    """Waits for one descriptor with a resolution of nanoseconds, whatever its number."""

    def __init__(self, fd: int) -> None:
        self._entry, self._left = _PollFd(fd, select.POLLIN, 0), _Timespec(0, 0)
        self._pointers = ctypes.addressof(self._entry), ctypes.addressof(self._left)

    def readable(self, until_ns: int) -> bool:
        """Return whether there is something to read (or the other side has gone) by ``until_ns``, perf_counter_ns."""
        entry, left = self._pointers
        while True:
            ns = max(until_ns - time.perf_counter_ns(), 0)
            self._left.s, self._left.ns = divmod(ns, 1_000_000_000)
            found: int = _libc.ppoll(entry, 1, left, None)
            if found >= 0 or not ns:
                return found > 0
