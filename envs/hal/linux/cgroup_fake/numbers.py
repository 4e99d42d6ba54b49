"""The kernel's own readers of numbers and lists: what they take, and the errno of what they do not."""

from __future__ import annotations

import errno
import os
import re

_U64 = 1 << 64
_NUMBER = re.compile(r"\+?(?:0[xX]([0-9a-fA-F]+)|0([0-7]+)|([0-9]+))", re.ASCII)
_REGION = re.compile(r"(\d+|N)(?:-(\d+|N)(?::(\d+)/(\d+))?)?", re.ASCII)


def refuse(number: int) -> OSError:
    """Return the error that a system call fails with."""
    return OSError(number, os.strerror(number))


def kstrtoull(text: str) -> int:
    """Return a whole number, decimal, octal or hexadecimal by its prefix: one newline may follow, blanks may not.

    Raises OSError: EINVAL, ERANGE.
    """
    found = _NUMBER.fullmatch(text.removesuffix("\n"))
    if found is None:
        raise refuse(errno.EINVAL)
    sixteen, eight, ten = found.groups()
    value = int(sixteen, 16) if sixteen else int(eight, 8) if eight else int(ten)
    if value >= _U64:
        raise refuse(errno.ERANGE)
    return value


def kstrtoll(text: str) -> int:
    """Return a whole number with a sign. Raises OSError: EINVAL, ERANGE."""
    return -kstrtoull(text[1:]) if text.startswith("-") else kstrtoull(text)


def leading_number(text: str) -> int | None:
    """Return what sscanf's %llu takes: the digits at the beginning, whatever follows; None where there are none."""
    found = re.match(r"\d+", text, re.ASCII)
    return int(found[0]) % _U64 if found else None


def bitmap_parselist(text: str, bits: int) -> frozenset[int]:
    """Return the set that a list such as "0-3,8" or "0-7:2/4" names (lib/bitmap-str.c).

    Raises OSError: EINVAL for no list, ERANGE for a number of ``bits`` or more.
    """
    out: set[int] = set()
    for region in re.split(r"[,\s]+", text.strip(", \t\n")):
        if region == "all":
            out.update(range(bits))
            continue
        found = _REGION.fullmatch(region)
        if found is None:
            raise refuse(errno.EINVAL)
        first, last, used, group = (bits - 1 if part == "N" else int(part or 0) for part in found.groups())
        if found[2] is None:
            last = first
        step = group if found[4] else 1
        if last < first or not step or (found[3] and used > step):
            raise refuse(errno.EINVAL)
        if last >= bits:
            raise refuse(errno.ERANGE)
        out.update(c for c in range(first, last + 1) if (c - first) % step < (used if found[4] else 1))
    return frozenset(out)
