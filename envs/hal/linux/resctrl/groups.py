"""Our groups in the kernel's tree: made, opened once, removed; and the lock that resctrl's users share.

pqos and libvirt take flock(2) on the root directory around their changes; so do we, never for longer than one batch of
writes, and never waiting for longer than was agreed.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from foreshare.envs.hal.linux.cgroups import GONE
from foreshare.policies.errors import HostError

from .files import DIRECTORY, Files, explain
from .info import parse_schemata, read_file

NOT_GROUPS = frozenset({"info", "mon_groups", "mon_data"})
_NAP_S = 50e-6
PAGE = 4096
"""Most bytes of one write."""


class Group:
    """One control group with its files open."""

    __slots__ = ("_files", "dir", "mon", "name", "schemata", "tasks")

    def __init__(self, files: Files, top: int, name: str) -> None:
        self._files, self.name = files, name
        self.dir = self.schemata = self.tasks = self.mon = -1
        try:
            self.dir = files.open(name, DIRECTORY, dir_fd=top)
            self.schemata = files.open("schemata", os.O_RDWR, dir_fd=self.dir)
            self.tasks = files.open("tasks", os.O_RDWR, dir_fd=self.dir)
            try:
                self.mon = files.open("mon_groups", DIRECTORY, dir_fd=self.dir)
            except OSError as error:  # a host without monitoring has none
                if error.errno not in GONE:
                    raise
        except OSError:
            self.close()
            raise

    def values(self) -> dict[str, dict[int, int]]:
        """Return what schemata holds. Raises OSError; ENODEV: the group was removed."""
        return parse_schemata(self._files.pread(self.schemata, 1 << 14, 0).decode("ascii", "replace"))

    def close(self) -> None:
        """Close all files; closing twice is fine."""
        for name in ("dir", "schemata", "tasks", "mon"):
            fd = getattr(self, name)
            if fd >= 0:
                self._files.close(fd)
                setattr(self, name, -1)


class Tree:
    """The mount, opened. Raises HostError where it cannot be."""

    def __init__(self, files: Files, path: str) -> None:
        self.files, self.path = files, path
        self.mount_id = files.mount_id(path)
        self._lease = -1
        try:
            self.top = files.open(path, DIRECTORY)
            self._status = files.open("info/last_cmd_status", os.O_RDONLY, dir_fd=self.top)
        except OSError as error:
            raise HostError(f"{path}: {explain(error)}") from error

    def lease(self) -> None:
        """Lock info/ for as long as this is open, so that no second foreshare drives the same mount.

        The root directory's own lock is for short changes, and other tools wait on it. Doing it twice is fine. Raises
        HostError.
        """
        if self._lease >= 0:
            return
        fd = -1
        try:
            fd = self.files.open("info", DIRECTORY, dir_fd=self.top)
            self.files.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._lease = fd
        except OSError as error:
            if fd >= 0:
                self.files.close(fd)
            if error.errno == errno.EWOULDBLOCK:
                raise HostError(f"another foreshare drives {self.path}") from error
            raise HostError(f"{self.path}/info: {explain(error)}") from error

    @contextmanager
    def locked(self, patience_ns: int) -> Iterator[None]:
        """Hold the lock that pqos and libvirt take. Raises OSError (EWOULDBLOCK) where it cannot be had in time."""
        until = time.monotonic_ns() + patience_ns
        while True:
            try:
                self.files.flock(self.top, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if error.errno != errno.EWOULDBLOCK:
                    raise
                if time.monotonic_ns() >= until:
                    raise OSError(errno.EWOULDBLOCK, "another tool holds the lock on resctrl") from error
            time.sleep(_NAP_S)
        try:
            yield
        finally:
            self.files.flock(self.top, fcntl.LOCK_UN)

    def status(self) -> str:
        """Return the kernel's own words about the latest failure, in one line. Informational: it may be stale."""
        try:
            text = self.files.pread(self._status, 512, 0).decode("ascii", "replace").strip()
        except OSError as error:
            return explain(error)
        return "; ".join(text.splitlines())[:300]

    def words(self, error: OSError) -> str:
        """Return errno and status together."""
        said = self.status()
        return explain(error) if said in ("ok", "") else f"{explain(error)} ({said})"

    def group(self, name: str) -> Group:
        """Make a group (one that is there already is ours from an earlier run) and open it. Raises OSError."""
        with suppress(FileExistsError):
            self.files.mkdir(name, dir_fd=self.top)
        return Group(self.files, self.top, name)

    def links(self) -> int:
        """Return a number that changes when a group comes or goes. Raises OSError."""
        return self.files.links(self.top)

    def names(self) -> set[str]:
        """Return the names of all control groups but the default one. Raises OSError."""
        return group_names(self.files, self.top)

    def tasks_of(self, name: str) -> set[int]:
        """Return the threads in a group. Raises OSError."""
        return {int(word) for word in read_file(self.files, self.top, f"{name}/tasks").split()}

    def root_values(self) -> dict[str, dict[int, int]]:
        """Return what the default group's schemata holds. Raises OSError."""
        return parse_schemata(read_file(self.files, self.top, "schemata"))

    def confine(self, resources: list[bytes], mask: int) -> None:
        """Keep the default group to ``mask`` in every domain. Raises OSError."""
        values = ";".join(f"{d}={mask:x}" for d in self.root_values().get(resources[0].decode(), {})).encode()
        if values:
            self.write_root(b"".join(b"%s:%s\n" % (name, values) for name in resources))

    def write_root(self, data: bytes) -> None:
        """Write the default group's schemata. Raises OSError."""
        fd = self.files.open("schemata", os.O_WRONLY, dir_fd=self.top)
        try:
            self.files.pwrite(fd, data, 0)
        finally:
            self.files.close(fd)

    def remove(self, name: str) -> bool:
        """Remove a group, its threads go to the default one; return whether it was there. Raises OSError."""
        try:
            self.files.rmdir(name, dir_fd=self.top)
        except OSError as error:
            if error.errno in GONE:
                return False
            raise
        return True

    def close(self) -> None:
        """Close everything; closing twice is fine."""
        for name in ("_lease", "_status", "top"):
            fd = getattr(self, name)
            if fd >= 0:
                self.files.close(fd)
                setattr(self, name, -1)


def packed(lines: list[bytes]) -> list[bytes]:
    """Return lines joined into as few writes as fit: kernfs takes a page at most (kernfs_fop_write_iter(), E2BIG)."""
    out: list[bytes] = []
    for line in lines:
        if out and len(out[-1]) + len(line) <= PAGE:
            out[-1] += line
        else:
            out.append(line)
    return out


def group_names(files: Files, top: int) -> set[str]:
    """Return the names of all control groups but the default one. Raises OSError."""
    found = set()
    for name in files.listdir(top):
        if name in NOT_GROUPS:
            continue
        try:
            files.close(files.open(name, DIRECTORY, dir_fd=top))
        except OSError as error:
            if error.errno in (errno.ENOTDIR, *GONE):
                continue
            raise
        found.add(name)
    return found
