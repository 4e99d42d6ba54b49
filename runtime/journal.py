"""What is needed to put a host back: one small document, written before the first change, and a lease on the host.

The document is replaced atomically (temporary file, fsync, rename, fsync of the directory) and carries its checksum;
a document that does not check out is put aside, never trusted and never a reason not to start. The lease is a kernel
lock (flock) on a file of our own: it ends with the process that holds it, however that ends.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from foreshare.policies.errors import HostError

VERSION = 1
_JOURNAL, _LOCK = "journal.json", "lock"
_MAX_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Entry:
    """A journal as read: ``originals`` is what the HAL gave to ``remember``."""

    hal: str
    originals: dict[str, Any]
    same_boot: bool
    """False: the machine has been restarted since; nothing of what was changed is left."""


def default_state_dir() -> str:
    """Return /run/foreshare for root, a directory of the user's own otherwise."""
    if os.geteuid() == 0:
        return "/run/foreshare"
    base = os.environ.get("XDG_RUNTIME_DIR") or f"/tmp/foreshare-{os.getuid()}"  # noqa: S108 - checked for owner and mode on opening
    return os.path.join(base, "foreshare")


def boot_id(proc: str = "/proc") -> str:
    """Return the kernel's identity of this boot."""
    try:
        with open(f"{proc}/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError as error:
        raise HostError(f"cannot read the boot id: {error.strerror}") from error


class StateDir:
    """The directory that holds lease and journal. Use as a context manager: entering takes the lease.

    Raises HostError when another foreshare holds the lease, or when the directory is not safely ours.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.sidelined = ""
        """Name of a corrupt journal that was put aside by :meth:`read`; empty if none."""
        self._dir = -1
        self._lock = -1

    def __enter__(self) -> StateDir:
        try:
            os.makedirs(self.path, mode=0o700, exist_ok=True)
            if os.path.islink(self.path):
                raise HostError(f"state directory {self.path} must be a directory of its own, not a link to one")
            self._dir = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            info = os.fstat(self._dir)
            if info.st_uid != os.geteuid() or stat.S_IMODE(info.st_mode) & 0o022:
                raise HostError(
                    f"state directory {self.path} must belong to the user who runs foreshare, and to no other"
                )
            self._lock = os.open(_LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=self._dir)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._close()
            why = "another foreshare manages this host" if error.errno == errno.EAGAIN else error.strerror
            raise HostError(f"state directory {self.path}: {why}") from error
        except HostError:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def _close(self) -> None:
        for fd in (self._lock, self._dir):
            if fd >= 0:
                os.close(fd)
        self._lock = self._dir = -1

    def write(self, hal: str, originals: Mapping[str, object]) -> None:
        """Store a journal durably. Raises HostError: without it nothing may be changed."""
        body = {"version": VERSION, "boot_id": boot_id(), "hal": hal, "originals": originals}
        text = json.dumps(body, sort_keys=True)
        data = json.dumps({"sha256": hashlib.sha256(text.encode()).hexdigest(), "body": body}, sort_keys=True).encode()
        if len(data) > _MAX_BYTES:  # what would not be read again must not be relied upon
            raise HostError(f"the journal would have {len(data)} bytes, more than {_MAX_BYTES}; nothing was changed")
        try:
            fd = os.open(
                _JOURNAL + ".tmp", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600,
                dir_fd=self._dir,
            )  # fmt: skip
            try:
                view = memoryview(data)
                while view:
                    view = view[os.write(fd, view) :]
                os.fsync(fd)
            finally:
                os.close(fd)
            os.replace(_JOURNAL + ".tmp", _JOURNAL, src_dir_fd=self._dir, dst_dir_fd=self._dir)
            os.fsync(self._dir)
        except OSError as error:
            raise HostError(
                f"cannot write the journal in {self.path}: {error.strerror}; nothing was changed"
            ) from error

    def read(self) -> Entry | None:
        """Return the journal of an unfinished run, or None. A corrupt one is put aside (see ``sidelined``)."""
        try:
            info = os.stat(_JOURNAL, dir_fd=self._dir, follow_symlinks=False)
            data = b""  # a link, a folder, a pipe: nothing that we wrote
            if stat.S_ISREG(info.st_mode):
                fd = os.open(_JOURNAL, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._dir)
                with os.fdopen(fd, "rb") as file:
                    data = file.read(_MAX_BYTES + 1)
            entry = _parse(data)
            if entry is None:
                self.put_aside()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise HostError(f"cannot read the journal in {self.path}: {error.strerror}") from error
        return entry

    def put_aside(self) -> None:
        """Keep the journal under another name (``sidelined``), where nobody goes on from it."""
        for number in range(1000):
            name = f"journal.corrupt-{number}"
            try:
                os.stat(name, dir_fd=self._dir, follow_symlinks=False)
            except FileNotFoundError:
                os.rename(_JOURNAL, name, src_dir_fd=self._dir, dst_dir_fd=self._dir)
                self.sidelined = name
                return
        os.replace(_JOURNAL, name, src_dir_fd=self._dir, dst_dir_fd=self._dir)  # the newest one is worth keeping
        self.sidelined = name

    def clear(self) -> None:
        """Forget the journal: the host is as it was found."""
        try:
            os.unlink(_JOURNAL, dir_fd=self._dir)
            os.fsync(self._dir)
        except FileNotFoundError:
            return
        except OSError as error:
            raise HostError(f"cannot remove the journal in {self.path}: {error.strerror}") from error


def _parse(data: bytes) -> Entry | None:
    try:
        document = json.loads(data)
        body = document["body"]
        text = json.dumps(body, sort_keys=True)
        if document["sha256"] != hashlib.sha256(text.encode()).hexdigest() or body["version"] != VERSION:
            return None
        hal, originals = body["hal"], body["originals"]
        if not isinstance(hal, str) or not isinstance(originals, dict):
            return None
        return Entry(hal, originals, body["boot_id"] == boot_id())
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
