"""The kernel's CPU list format, "0-3,8": parsing, formatting, and the step from booleans to the bytes to write.

Grammar: https://docs.kernel.org/admin-guide/cgroup-v2.html (cpuset.cpus) and lib/bitmap-str.c (bitmap_parselist); the
kernel prints only numbers and ranges, so strides ("0-7:2/4") are not understood here and are refused.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from foreshare.policies.errors import InputError
from foreshare.policies.host import BoolArray, IntArray

MAX_CPU = 1 << 16


def parse(text: str) -> frozenset[int]:
    """Return the CPUs (or memory nodes) in ``text``; the empty list is the empty set. Raises InputError."""
    out: set[int] = set()
    text = text.strip()
    if not text:
        return frozenset()
    for part in text.split(","):
        low, dash, high = part.strip().partition("-")
        # isascii: str.isdigit() also takes digits of other scripts, which the kernel never prints.
        if not (low.isascii() and low.isdigit()) or (dash and not (high.isascii() and high.isdigit())):
            raise InputError(f"{text[:80]!r} is not a list of CPUs such as 0-3,8")
        first, last = int(low), int(high) if dash else int(low)
        if last < first or last >= MAX_CPU:
            raise InputError(f"{text[:80]!r}: the range {part.strip()!r} runs backwards or beyond CPU {MAX_CPU - 1}")
        out.update(range(first, last + 1))
    return frozenset(out)


def form(cpus: Iterable[int]) -> str:
    """Return the shortest list that means ``cpus``, as the kernel prints it: ascending, ranges joined."""
    parts: list[str] = []
    first = last = -2
    for cpu in sorted(set(cpus)):
        if cpu == last + 1:
            last = cpu
            continue
        if first >= 0:
            parts.append(str(first) if first == last else f"{first}-{last}")
        first = last = cpu
    if first >= 0:
        parts.append(str(first) if first == last else f"{first}-{last}")
    return ",".join(parts)


class CpuLists:
    """Translates between rows over the managed CPUs and the kernel's bytes, remembering every answer.

    A host uses few different sets again and again, so after a while no tick formats or parses anything.
    """

    def __init__(self, cpu_id: IntArray) -> None:
        self._ids = [int(c) for c in cpu_id]
        self._index = {c: i for i, c in enumerate(self._ids)}
        self._payloads: dict[bytes, bytes] = {}
        self._rows: dict[bytes, tuple[BoolArray, int]] = {}

    def payload(self, raw: bytes) -> bytes:
        """Return what to write for one row, given as the C bytes of its booleans."""
        found = self._payloads.get(raw)
        if found is None:
            row = np.frombuffer(raw, bool)
            found = form(self._ids[i] for i in np.flatnonzero(row)).encode() or b"\n"
            if len(self._payloads) > 1 << 14:  # bounded: a day of ever new sets must not grow the process
                self._payloads.clear()
            self._payloads[raw] = found
        return found

    def row(self, data: bytes) -> tuple[BoolArray, int]:
        """Return ((C,) managed CPUs in the kernel's list ``data``, how many). Raises InputError."""
        found = self._rows.get(data)
        if found is None:
            row = np.zeros(len(self._ids), bool)
            for cpu in parse(data.decode("ascii", "replace")):
                if cpu in self._index:
                    row[self._index[cpu]] = True
            row.setflags(write=False)
            found = row, int(row.sum())
            if len(self._rows) > 1 << 14:
                self._rows.clear()
            self._rows[data] = found
        return found
