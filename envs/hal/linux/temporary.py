"""Cgroups that live as long as a with block: for the bench and for tests."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from foreshare.policies.errors import HostError

from .cgroups import DENIED, Hierarchies, Mount, find_hierarchies
from .roots import Roots, read_text

_V1 = ("cpu", "cpuset", "cpuacct", "blkio", "memory")
_V2 = ("cpu", "cpuset", "io", "memory")
_PATIENCE_S = 2.0


@contextmanager
def temporary_cgroups(n: int, roots: Roots | None = None) -> Iterator[list[str]]:
    """Make ``n`` cgroups below one of our own in every hierarchy that a VM is moved through; yield their paths.

    They and their parent are gone afterwards; threads that are still in them go to the hierarchy's root. Raises
    HostError where the host has no cgroups or does not let us make any.
    """
    hierarchies = find_hierarchies(roots or Roots())
    mounts = _mounts(hierarchies)
    parent = _free_name(mounts)
    made: list[tuple[Mount, str]] = []
    switched: list[tuple[str, str]] = []
    paths = [f"{parent}/vm{i:03d}" for i in range(n)]
    try:
        for mount in mounts:
            if mount.version == 2:
                switched += _switch_on(mount.path, [c for c in _V2 if hierarchies.controllers.get(c) == mount])
            for path in (parent, *paths):
                os.mkdir(f"{mount.path}/{path}")
                made.append((mount, path))
                if mount.version == 1 and hierarchies.controllers.get("cpuset") == mount:
                    _fill_cpuset(mount, path)
                if mount.version == 2 and path == parent:
                    _switch_on(f"{mount.path}/{path}", [c for c in _V2 if hierarchies.controllers.get(c) == mount])
        yield paths
    except OSError as error:
        if error.errno in DENIED and not made:
            raise HostError(f"no permission to make cgroups under {hierarchies.root}: run as root") from error
        raise
    finally:
        for mount, path in reversed(made):
            _remove(mount, path)
        for directory, controller in reversed(switched):
            _write(f"{directory}/cgroup.subtree_control", f"-{controller}")


def _mounts(hierarchies: Hierarchies) -> list[Mount]:
    if "cpu" not in hierarchies.controllers:
        raise HostError(f"no cgroup hierarchy with the cpu controller is mounted under {hierarchies.root}")
    wanted = [hierarchies.controllers.get(c) for c in dict.fromkeys((*_V1, *_V2))]
    return list(dict.fromkeys(m for m in wanted if m is not None))


def _free_name(mounts: list[Mount]) -> str:
    for k in range(1000):
        name = f"foreshare-bench-{os.getpid()}" + (f"-{k}" if k else "")
        if not any(os.path.exists(f"{m.path}/{name}") for m in mounts):
            return name
    raise HostError("a thousand cgroups of this process are already there")


def _switch_on(directory: str, controllers: list[str]) -> list[tuple[str, str]]:
    """Enable controllers for the children of ``directory``; return those that were off. Raises HostError, OSError."""
    on = (read_text(f"{directory}/cgroup.subtree_control") or "").split()
    done: list[tuple[str, str]] = []
    for controller in controllers:
        if controller not in on:
            try:
                _write(f"{directory}/cgroup.subtree_control", f"+{controller}")
            except OSError as error:
                if error.errno == errno.EBUSY:
                    raise HostError(
                        f"{directory} has processes of its own, so it cannot pass the {controller} controller on: move"
                        " them into a cgroup below it"
                    ) from error
                raise
            done.append((directory, controller))
    return done


def _fill_cpuset(mount: Mount, path: str) -> None:
    above = f"{mount.path}/{path}".rpartition("/")[0]
    for name in ("cpuset.mems", "cpuset.cpus"):
        _write(f"{mount.path}/{path}/{name}", read_text(f"{above}/{name}") or "0")


def _remove(mount: Mount, path: str) -> None:
    directory = f"{mount.path}/{path}"
    until = time.monotonic() + _PATIENCE_S
    while True:
        try:
            os.rmdir(directory)
            return
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > until:
                raise
        # Threads are still there, or a process that was killed has not been buried yet.
        for pid in (read_text(f"{directory}/cgroup.procs") or "").split():
            try:
                _write(f"{mount.path}/cgroup.procs", pid)
            except OSError as error:
                if error.errno != errno.ESRCH:
                    raise
        for name in os.listdir(directory):
            if os.path.isdir(f"{directory}/{name}"):
                _remove(mount, f"{path}/{name}")
        time.sleep(0.005)


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
