"""Puts a bundle's folder in place in one step: whoever looks, or whoever is killed when, finds the old one or the new.

The new one is written beside it, on disk before it is shown, and then exchanged with the old one by renameat2(2).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from foreshare.policies.errors import InputError

from .bundle import is_bundle

_AT_FDCWD, _RENAME_NOREPLACE, _RENAME_EXCHANGE = -100, 1, 2


def lay(contents: Mapping[str, bytes], at: Path) -> None:
    """Put a verified bundle at ``at``, in place of the one that is there, if one is.

    Processes that do so in one folder wait for each other. Raises InputError where something else is there, the folder
    cannot be written, or the file system cannot exchange two names.
    """
    at = Path(os.path.abspath(at))
    check_place(at)
    lock = os.open(at.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for left in at.parent.glob(f".{at.name}.incoming-*"):  # of one that was killed
            shutil.rmtree(left)
        fresh = Path(tempfile.mkdtemp(prefix=f".{at.name}.incoming-", dir=at.parent))
        try:
            _write(contents, fresh)
            check_place(at)
            _swap(fresh, at)
            os.fsync(lock)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    finally:
        os.close(lock)


def check_place(at: Path) -> None:
    """Raise InputError where no bundle can be put: said before anything is fetched."""
    if at.is_symlink() or (at.exists() and not (at.is_dir() and (is_bundle(at) or not any(at.iterdir())))):
        raise InputError(f"{at} is there, and is no bundle: it is left alone")
    if not at.parent.is_dir() or not os.access(at.parent, os.W_OK):
        raise InputError(f"{at}: the folder {at.parent} cannot be written")


def _write(contents: Mapping[str, bytes], folder: Path) -> None:
    for name, data in contents.items():
        with (folder / name).open("xb") as file:
            os.fchmod(file.fileno(), 0o644)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    folder.chmod(0o755)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _swap(fresh: Path, at: Path) -> None:
    """Give ``fresh`` the name ``at``; what had it is ``fresh`` then."""
    libc = ctypes.CDLL(None, use_errno=True)
    flags = _RENAME_EXCHANGE if at.exists() else _RENAME_NOREPLACE
    if libc.renameat2(_AT_FDCWD, os.fsencode(fresh), _AT_FDCWD, os.fsencode(at), flags) == 0:
        return
    code = ctypes.get_errno()
    if code == errno.EINVAL and flags == _RENAME_NOREPLACE:
        fresh.rename(at)  # the file system has no flags; without them a folder replaces an empty one at most
        return
    if code == errno.EINVAL:
        raise InputError(f"{at}: this file system cannot exchange two folders; name one that is not there yet")
    raise InputError(f"{at}: {os.strerror(code)}")
