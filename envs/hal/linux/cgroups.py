"""Finding cgroup hierarchies, and opening a VM's directories in them without being led astray.

A VM's path comes from a configuration or from libvirt, so it is hostile until proven otherwise: it is split and
checked, then opened one component at a time under a directory descriptor with O_NOFOLLOW. Everything after that is
relative to a descriptor, so a path that is swapped later changes nothing.

Formats: /proc/self/mountinfo is proc(5); v1 and v2 are https://docs.kernel.org/admin-guide/cgroup-v1/cgroups.html and
https://docs.kernel.org/admin-guide/cgroup-v2.html.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from foreshare.policies.errors import HostError, InputError

from .roots import Roots, read_text

GONE = frozenset({errno.ENOENT, errno.ENODEV, errno.ESRCH})
"""What the kernel says of a cgroup or thread that is not there any more; ENODEV: a file of a removed cgroup."""
DENIED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_NOFOLLOW | os.O_CLOEXEC
_SETTLE_ROUNDS = 5


@dataclass(frozen=True, slots=True)
class Mount:
    """One mounted hierarchy."""

    version: int
    """1 or 2."""
    path: str
    """Mount point."""
    pwrite: Callable[[int, bytes, int], int] = os.pwrite
    """See Roots."""


@dataclass(frozen=True, slots=True)
class Hierarchies:
    """Where each controller is; on a hybrid host some are in v1, the others in v2."""

    root: str
    controllers: Mapping[str, Mount]
    unified: Mount | None
    """The v2 hierarchy, also where it has no controllers."""

    def of(self, controller: str) -> Mount:
        """Return the hierarchy of ``controller``. Raises HostError where there is none."""
        mount = self.controllers.get(controller)
        if mount is None:
            raise HostError(f"no cgroup hierarchy with the {controller} controller is mounted under {self.root}")
        return mount


def find_hierarchies(roots: Roots) -> Hierarchies:
    """Return the cgroup mounts at or below ``roots.cgroup`` that mountinfo names; that there are none is an answer."""
    controllers: dict[str, Mount] = {}
    unified: Mount | None = None
    for line in (read_text(f"{roots.proc}/self/mountinfo") or "").splitlines():
        left, _, right = line.partition(" - ")
        before, after = left.split(" "), right.split(" ")
        if len(before) < 5 or len(after) < 3 or after[0] not in ("cgroup", "cgroup2"):
            continue
        point = re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), before[4])  # seq_path() writes \040 for a blank
        if point != roots.cgroup and not point.startswith(roots.cgroup + "/"):
            continue
        if after[0] == "cgroup2":
            if unified is None:
                unified = Mount(2, point, roots.pwrite)
            continue
        for option in after[2].split(","):
            if option.isalpha() or option == "perf_event":
                controllers.setdefault(option, Mount(1, point, roots.pwrite))
    for flag in ("rw", "ro", "xattr", "noprefix"):
        controllers.pop(flag, None)
    if unified is not None:
        for name in (read_text(f"{unified.path}/cgroup.controllers") or "").split():
            # The kernel's file names say "io" and "blkio" of the same controller in v2 and v1.
            controllers.setdefault(name, unified)
    return Hierarchies(roots.cgroup, controllers, unified)


def split_path(path: str) -> tuple[str, ...]:
    """Return the components of a cgroup path. Raises InputError for anything that could lead elsewhere.

    Refused: the empty path, absolute ones, empty components, "." and "..", control characters (a name with a newline
    would forge lines in /proc/PID/cgroup), names of 256 bytes or more, and names that start with "cgroup.", which
    belong to the kernel.
    """
    parts = tuple(path.split("/"))
    for part in parts:
        if part in ("", ".", "..") or part.startswith("cgroup."):
            raise InputError(f"{path[:80]!r} is not a cgroup path: {part[:40]!r} may not be part of one")
        if any(ord(c) < 32 or ord(c) == 127 for c in part) or len(os.fsencode(part)) > 255:
            raise InputError(f"{path[:80]!r} is not a cgroup path: control characters and long names are refused")
    return parts


class Cgroup:
    """One open cgroup directory."""

    __slots__ = ("fd", "mount", "path")

    def __init__(self, mount: Mount, path: str, fd: int) -> None:
        self.mount, self.path, self.fd = mount, path, fd

    @classmethod
    def open(cls, mount: Mount, path: str) -> Cgroup:
        """Open ``path`` below ``mount``. Raises HostError where it is not there, InputError for a hostile path."""
        parts = split_path(path)
        fd = -1
        try:
            fd = os.open(mount.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            for part in parts:
                deeper = os.open(part, _DIRECTORY, dir_fd=fd)
                os.close(fd)
                fd = deeper
        except OSError as error:
            if fd >= 0:
                os.close(fd)
            raise HostError(_cannot_open(mount, path, error)) from error
        return cls(mount, path, fd)

    @property
    def where(self) -> str:
        """The directory's full path, for people and for the floor measurement; never opened again by us."""
        return f"{self.mount.path}/{self.path}"

    @property
    def inode(self) -> int:
        """The directory's inode number: kernfs gives each cgroup of a boot its own, so it tells a namesake."""
        return os.fstat(self.fd).st_ino

    def open_file(self, name: str, flags: int) -> int:
        """Open a file of this cgroup and return the descriptor. Raises OSError."""
        return os.open(name, flags | _FILE, dir_fd=self.fd)

    def has(self, name: str) -> bool:
        """Return whether there is such a file."""
        try:
            os.stat(name, dir_fd=self.fd, follow_symlinks=False)
        except OSError:
            return False
        return True

    def read(self, name: str) -> bytes | None:
        """Return a whole file, or None where it is not there or cannot be read."""
        try:
            fd = self.open_file(name, os.O_RDONLY)
        except OSError:
            return None
        try:
            return read_all(fd)
        except OSError:
            return None
        finally:
            os.close(fd)

    def write(self, name: str, data: bytes) -> None:
        """Write ``data`` in one call. Raises OSError."""
        fd = self.open_file(name, os.O_WRONLY)
        try:
            self.mount.pwrite(fd, data, 0)
        finally:
            os.close(fd)

    def walk(self) -> list[Cgroup]:
        """Return this cgroup (the same object) and, newly opened, all below it, parents before children.

        One that vanishes meanwhile is left out.
        """
        out = [self]
        for at in out:  # grows while it is walked: breadth first
            try:
                with os.scandir(at.fd) as entries:
                    names = sorted(e.name for e in entries if e.is_dir(follow_symlinks=False))
            except OSError:
                continue
            for name in names:
                try:
                    fd = os.open(name, _DIRECTORY, dir_fd=at.fd)
                except OSError:
                    continue
                out.append(Cgroup(self.mount, f"{at.path}/{name}", fd))
        return out

    def close(self) -> None:
        """Close the directory; closing twice is fine."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def read_all(fd: int) -> bytes:
    """Return a kernel file from its beginning to its end; it may be longer than a page. Raises OSError."""
    data = os.pread(fd, 1 << 16, 0)
    if len(data) < 4096:  # seq_file fills at least a page when there is more
        return data
    while more := os.pread(fd, 1 << 16, len(data)):
        data += more
    return data


def parse_tids(data: bytes) -> list[int]:
    """Return the thread ids in a tasks or cgroup.threads file.

    v1 lists threads of other PID namespaces as 0; 0 would mean ourselves to sched_setaffinity, so only positive numbers
    leave this function.
    """
    return [tid for tid in map(int, data.split()) if tid > 0]


def threads_file(mount: Mount) -> str:
    """Return the name of the file that lists a cgroup's threads."""
    return "tasks" if mount.version == 1 else "cgroup.threads"


def settled(list_once: Callable[[], Iterable[int]]) -> set[int]:
    """Return all ids that ``list_once`` gives, asking again until an answer holds nothing new.

    A thread that is born during a scan of its parents would otherwise be missed (opencontainers/runc#4827).
    """
    seen: set[int] = set()
    for _ in range(_SETTLE_ROUNDS):
        now = set(list_once())
        if now <= seen:
            return now
        seen |= now
    return seen


def _cannot_open(mount: Mount, path: str, error: OSError) -> str:
    if error.errno in DENIED:
        return f"no permission to open cgroup {path} under {mount.path}: run as root or have it delegated"
    if error.errno in (errno.ELOOP, errno.ENOTDIR):
        return f"cgroup {path} under {mount.path} is not a directory all the way: links are not followed"
    if error.errno == errno.EMFILE:
        return "too many open files: raise the limit (ulimit -n) for this many VMs"
    if error.errno in GONE:
        return f"cgroup {path} does not exist under {mount.path}: create it (mkdir -p {mount.path}/{path})"
    return f"cgroup {path} under {mount.path} cannot be opened: {error.strerror}"
