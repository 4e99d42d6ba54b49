"""Where the kernel's file systems are mounted. Everything in this package takes its paths from here."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .resctrl.files import Files


@dataclass(frozen=True, slots=True)
class Roots:
    """The three trees that the backend reads and writes; tests point them at captured ones."""

    cgroup: str = "/sys/fs/cgroup"
    sys: str = "/sys"
    proc: str = "/proc"
    resctrl: Files | None = None
    """What stands in for the system calls on resctrl; None: the kernel's own."""
    pwrite: Callable[[int, bytes, int], int] = os.pwrite
    """What cgroups' files are written with (see :mod:`.cgroup_fake`)."""
    pread: Callable[[int, int, int], bytes] = os.pread
    """What their counters are read with, each tick."""


def read_text(path: str) -> str | None:
    """Return the stripped text of a small kernel file, or None where it is not there or cannot be read.

    For discovery only, where a missing file is an answer; nothing on the tick path goes through here.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        parts = []
        while part := os.read(fd, 1 << 16):  # seq_file gives about a page at a time, however much is asked for
            parts.append(part)
        return b"".join(parts).decode("utf-8", "replace").strip()
    except OSError:
        return None
    finally:
        os.close(fd)
