"""The few calls that resctrl is driven through, so that a tree in memory can stand in for the kernel's.

Everything below the mount is opened under a directory descriptor and links are never followed.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
from typing import Protocol

from foreshare.envs.hal.linux.roots import Roots, read_text
from foreshare.policies.errors import HostError

RDTGROUP_SUPER_MAGIC = 0x7655821
"""f_type of resctrl; include/uapi/linux/magic.h."""
DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
FILE = os.O_NOFOLLOW | os.O_CLOEXEC


class Files(Protocol):
    """System calls on one resctrl mount. All raise OSError as the kernel's do."""

    def mount_id(self, path: str) -> int | None:
        """Return a number that tells this mount from an earlier or later one; None: no resctrl is mounted there."""
        ...

    def open(self, path: str, flags: int, *, dir_fd: int | None = None) -> int:
        """As os.open."""
        ...

    def close(self, fd: int) -> None:
        """As os.close."""
        ...

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        """As os.pread."""
        ...

    def pwrite(self, fd: int, data: bytes, offset: int) -> int:
        """As os.pwrite."""
        ...

    def mkdir(self, path: str, *, dir_fd: int) -> None:
        """As os.mkdir."""
        ...

    def rmdir(self, path: str, *, dir_fd: int) -> None:
        """As os.rmdir."""
        ...

    def rename(self, path: str, to: str, *, src_dir_fd: int, dst_dir_fd: int) -> None:
        """As os.rename."""
        ...

    def listdir(self, fd: int) -> list[str]:
        """As os.listdir of an open directory."""
        ...

    def links(self, fd: int) -> int:
        """Return st_nlink of an open directory: kernfs counts the directories in it."""
        ...

    def flock(self, fd: int, operation: int) -> None:
        """As fcntl.flock."""
        ...


class OsFiles:
    """The kernel's own."""

    def mount_id(self, path: str) -> int | None:
        """See Files: the device number, which each mount of a file system without a disk has for itself."""
        return os.stat(path).st_dev if filesystem_magic(path) == RDTGROUP_SUPER_MAGIC else None

    def open(self, path: str, flags: int, *, dir_fd: int | None = None) -> int:
        """See Files."""
        return os.open(path, flags | FILE, dir_fd=dir_fd)

    close = staticmethod(os.close)
    pread = staticmethod(os.pread)
    pwrite = staticmethod(os.pwrite)

    def mkdir(self, path: str, *, dir_fd: int) -> None:
        """See Files. Not makedirs: a parent that is missing is an error (intel/goresctrl does the same)."""
        os.mkdir(path, 0o755, dir_fd=dir_fd)

    def rmdir(self, path: str, *, dir_fd: int) -> None:
        """See Files."""
        os.rmdir(path, dir_fd=dir_fd)

    def rename(self, path: str, to: str, *, src_dir_fd: int, dst_dir_fd: int) -> None:
        """See Files."""
        os.rename(path, to, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

    def listdir(self, fd: int) -> list[str]:
        """See Files."""
        return os.listdir(fd)

    def links(self, fd: int) -> int:
        """See Files."""
        return os.fstat(fd).st_nlink

    def flock(self, fd: int, operation: int) -> None:
        """See Files."""
        fcntl.flock(fd, operation)


def filesystem_magic(path: str) -> int | None:
    """Return f_type of the file system at ``path`` (statfs(2)), None where there is nothing to ask."""
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(256)  # struct statfs has 120 bytes on 64-bit Linux; f_type comes first
    if libc.statfs(os.fsencode(path), buffer) != 0:
        return None
    return int(ctypes.c_long.from_buffer(buffer).value)


def find_mount(roots: Roots, files: Files) -> str:
    """Return where resctrl is mounted: below ``roots.sys`` or where mountinfo says. Raises HostError with the cure."""
    usual = f"{roots.sys}/fs/resctrl"
    if files.mount_id(usual) is not None:
        return usual
    for line in (read_text(f"{roots.proc}/self/mountinfo") or "").splitlines():
        left, _, right = line.partition(" - ")
        if right.startswith("resctrl ") and left.count(" ") >= 4:
            point = re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), left.split(" ")[4])
            if files.mount_id(point) is not None:
                return point
    if not os.path.isdir(usual):
        raise HostError(
            "this kernel offers no resctrl: the CPU has none of its features or the kernel was built without"
        )
    raise HostError(f"resctrl is not mounted: mount -t resctrl resctrl {usual}")


def explain(error: OSError) -> str:
    """Return an errno in the words of whoever has to act on it."""
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "no permission: run as root"
    return error.strerror or str(error)
