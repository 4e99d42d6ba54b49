"""Other tools' groups, and the ways that they keep for themselves: read at the start, and again and again from then on.

A tool makes its group first, which the kernel gives the whole mask, and writes its ways then; no count of links shows
that. So the list is read when a group comes or goes, and one of the groups in each tick, when its turn comes.
"""

from __future__ import annotations

import functools
import operator
import os
from collections.abc import Callable

from foreshare.envs.hal.linux.cgroups import GONE

from .files import Files
from .groups import group_names
from .info import CacheInfo, parse_schemata

_MOST_TEXT = 1 << 14


class Others:
    """The groups of a mount that ``ours`` does not know, with their schemata open."""

    def __init__(self, files: Files, cache: CacheInfo | None, ours: Callable[[str], bool]) -> None:
        self._files, self._cache, self._ours = files, cache, ours
        self._fds: dict[str, int] = {}
        self.kept: dict[str, int] = {}
        """By group: a mask of the ways that it keeps for itself in any domain. The whole mask keeps none: 0."""
        self.lost = False
        """A group was found to be gone: another may have its name."""

    def __len__(self) -> int:
        return len(self._fds)

    @property
    def taken(self) -> int:
        """Ways that any of them keeps."""
        return functools.reduce(operator.or_, self.kept.values(), 0)

    def list(self, top: int) -> None:
        """Find out which groups there are below the directory ``top``, and read them all. Raises OSError."""
        self.lost = False
        there = {name for name in group_names(self._files, top) if not self._ours(name)}
        for name in self._fds.keys() - there:
            self._drop(name)
        for name in sorted(there - self._fds.keys()):
            try:
                self._fds[name] = self._files.open(f"{name}/schemata", os.O_RDONLY, dir_fd=top)
            except OSError as error:
                if error.errno not in GONE:
                    raise
        for name in list(self._fds):
            self._read(name)

    def look(self, turn: int) -> None:
        """Read one of them, the ``turn``-th. Raises OSError."""
        self._read(list(self._fds)[turn])

    def close(self) -> None:
        """Close all files; closing twice is fine."""
        for name in list(self._fds):
            self._drop(name)

    def _read(self, name: str) -> None:
        try:
            text = self._files.pread(self._fds[name], _MOST_TEXT, 0).decode("ascii", "replace")
        except OSError as error:
            if error.errno not in GONE:
                raise
            self._drop(name)
            self.lost = True
            return
        values = parse_schemata(text)
        names, full = (self._cache.names, (1 << self._cache.bits) - 1) if self._cache is not None else ((), 0)
        masks = [mask for resource in names for mask in values.get(resource, {}).values() if mask != full]
        self.kept[name] = functools.reduce(operator.or_, masks, 0)

    def _drop(self, name: str) -> None:
        self._files.close(self._fds.pop(name))
        self.kept.pop(name, None)
