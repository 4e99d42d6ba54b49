"""io.max (block/blk-throttle.c, tg_set_limit())."""

from __future__ import annotations

import errno
import re
from typing import TYPE_CHECKING

from .group import NO_LIMIT, Group
from .numbers import leading_number, refuse

if TYPE_CHECKING:
    from .tree import FakeCgroups

_KEYS = ("rbps", "wbps", "riops", "wiops")
_MOST_OPERATIONS = (1 << 32) - 1


def listed(group: Group) -> str:
    """Return what io.max reads: only disks that have a limit."""
    lines = []
    for disk, values in group.limits.items():
        if any(v != NO_LIMIT for v in values):
            said = ("max" if v == NO_LIMIT else str(v) for v in values)
            lines.append(f"{disk} " + " ".join(f"{k}={v}" for k, v in zip(_KEYS, said, strict=True)))
    return "\n".join(lines)


def write_max(tree: FakeCgroups, group: Group, text: str) -> None:
    """Change the limits of one disk that are named; a later mention of one in the same write counts."""
    found = re.match(r"\s*(\d+:\d+)(?=\s|$)", text, re.ASCII)
    if found is None:
        raise refuse(errno.EINVAL)
    if found[1] not in tree.disks:
        raise refuse(errno.ENODEV)
    values = list(group.limits.get(found[1], [NO_LIMIT] * len(_KEYS)))
    for word in text[found.end() :].split():
        key, equals, said = word.partition("=")
        number = leading_number(said)
        if not equals or (number is None and said != "max"):
            raise refuse(errno.EINVAL)
        if number == 0:
            raise refuse(errno.ERANGE)
        if key not in _KEYS or number == 1:
            raise refuse(errno.EINVAL)
        at = _KEYS.index(key)
        if number is not None and at >= 2 and number >= _MOST_OPERATIONS:
            number = None
        values[at] = NO_LIMIT if number is None else number
    group.limits[found[1]] = values
