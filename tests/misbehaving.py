"""Policies that misbehave in every way that a process can, for the tests of what holds nevertheless.

Named as plug-ins: ``misbehaving:sleeps`` and so on. Each behaves for ``GOOD`` ticks first; those that hang or crash do
so again in every new process.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np

from foreshare.policies.allocators import Request, Triage
from foreshare.policies.host import Host, IntArray

GOOD = 20


class Scripted(Triage):
    """Triage, until ``act`` has its turn; what ``act`` returns is the answer, unless that is None."""

    def __init__(self, act: Callable[[int], Any]) -> None:
        super().__init__()
        self._act, self._asked = act, 0

    def allocate(self, request: Request, host: Host, tick: int) -> IntArray:
        self._asked += 1
        units = super().allocate(request, host, tick)
        answer = self._act(tick) if self._asked > GOOD else None
        return units if answer is None else answer  # type: ignore[no-any-return] # the point

    def __deepcopy__(self, memo: Any) -> Triage:
        return Triage()  # the rehearsal is none of the script


def sleeps() -> Scripted:
    return Scripted(lambda tick: time.sleep(3600))


def _spin(tick: int) -> None:
    while True:
        pass


def spins() -> Scripted:
    return Scripted(_spin)


def spins_natively() -> Scripted:
    """Loops in C for years: holds on to the interpreter's lock and does not look for signals."""
    return Scripted(lambda tick: sum(range(1 << 62)))


def crashes() -> Scripted:
    return Scripted(lambda tick: ctypes.string_at(0))


def stops() -> Scripted:
    return Scripted(lambda tick: os.kill(os.getpid(), signal.SIGSTOP))


def exits() -> Scripted:
    return Scripted(lambda tick: os._exit(7))


def leaks() -> Scripted:
    hoard: list[Any] = []
    return Scripted(lambda tick: hoard.append(np.ones(1 << 21)))  # 16 MiB, touched


def says_nan() -> Scripted:
    return Scripted(lambda tick: np.full((4, 4), np.nan))


def raises() -> Scripted:
    return Scripted(lambda tick: {}["missing"])


def chatters() -> Scripted:
    """Writes to both of its outputs and closes every descriptor that it finds."""

    def act(tick: int) -> None:
        os.write(1, b"hello\n")
        os.closerange(3, 256)

    return Scripted(act)


def floods() -> Scripted:
    """Sends as fast as it can over every socket that it finds, and never answers."""

    def act(tick: int) -> None:
        while True:
            for fd in range(3, 16):
                with suppress(OSError):
                    os.write(fd, b"A" + bytes(16))

    return Scripted(act)


class Miser:
    """Gives everybody the least that there is: feasible, in time, and bad."""

    name = "miser"
    batched = False

    def allocate(self, request: Request, host: Host, tick: int) -> IntArray:
        return host.floor.copy()


def good() -> Triage:
    return Triage()


def broken() -> Triage:
    raise ValueError("no weights")
