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

    def __init__(self, act: Callable[[int], Any], good: int = GOOD, period: int = 0) -> None:
        super().__init__()
        self._act, self._good, self._period, self._asked = act, good, period, 0

    def allocate(self, request: Request, host: Host, tick: int) -> IntArray:
        self._asked += 1
        units = super().allocate(request, host, tick)
        turn = self._asked > self._good and (not self._period or self._asked % self._period == 0)
        answer = self._act(tick) if turn else None
        return units if answer is None else answer  # type: ignore[no-any-return] # the point

    def __deepcopy__(self, memo: Any) -> Triage:
        return Triage()  # the rehearsal is none of the script


def sleeps() -> Scripted:
    return Scripted(lambda tick: time.sleep(3600))


def naps() -> Scripted:
    """Takes 2 ms every tenth time: too long, but not for ever."""
    return Scripted(lambda tick: time.sleep(0.002), period=10)


def _spin(tick: int) -> None:
    while True:
        pass


def spins() -> Scripted:
    return Scripted(_spin)


def spins_natively() -> Scripted:
    """Loops in C without ever letting go of the interpreter's lock: qsort whose comparison never ends is none of ours;
    a sum over memory that takes hours is."""

    def act(tick: int) -> None:
        step = np.lib.stride_tricks.as_strided(np.ones(1), shape=(1 << 45,), strides=(0,))
        step.sum()

    return Scripted(act)


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


def miser() -> Miser:
    return Miser()


def good() -> Triage:
    return Triage()


def broken() -> Triage:
    raise ValueError("no weights")
