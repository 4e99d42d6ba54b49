"""The directories and files of the tree, and who is in them. Reads are plain reads; writes come through ``pwrite``."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator

from . import cpu, cpusets, io
from .group import THREADED, Group
from .numbers import kstrtoll, refuse

_CONTROLLERS = ("cpuset", "cpu", "io", "memory")
_DELETED = " (deleted)"
_COUNTERS = {
    "": {"cpu.stat": "usage_usec 0\nuser_usec 0\nsystem_usec 0\n", "cpu.pressure": "some total=0\nfull total=0\n"},
    "cpu": {}, "cpuset": {},
    "io": {"io.stat": "", "io.pressure": "some total=0\nfull total=0\n"},
    "memory": {"memory.current": "0\n", "memory.numa_stat": ""},
}  # fmt: skip
"""Files of each controller ("": of none) that only whoever plays the host changes."""


class FakeCgroups:
    """A mounted cgroup v2 with every controller on below the root.

    ``pwrite`` stands in for os.pwrite (:attr:`~foreshare.envs.hal.linux.roots.Roots.pwrite`); descriptors, links and
    locks are real. Raises OSError as the kernel does.
    """

    def __init__(
        self, root: str, *, cpus: int = 8, nodes: int = 2, disks: tuple[str, ...] = ("8:0",),
        memory: bool = True,
    ) -> None:  # fmt: skip
        """``root`` is an empty directory; ``disks`` are whole disks as MAJ:MIN."""
        self.root = os.path.realpath(root)
        self.possible = frozenset(range(cpus))
        self.online = self.possible
        self.nodes = frozenset(range(nodes))
        self.disks = disks
        self._controllers = [c for c in _CONTROLLERS if memory or c != "memory"]
        self.top = Group("", None)
        self.top.on = list(self._controllers)
        self.top.mems = self.nodes
        self.home: dict[int, Group] = {}
        """By process: its cgroup."""
        self.threads: dict[int, tuple[int, Group]] = {}
        """By thread: its process, and its cgroup."""
        self.refusals: dict[tuple[str, str], int] = {}
        """By (path, file): the errno that every write to it fails with, for what the kernel refuses at its whim."""
        self.writes: list[tuple[str, str, str]] = []
        """(path, file, text) of every write that was accepted."""
        self._shown: dict[str, str] = {}
        os.makedirs(self.root, exist_ok=True)
        self._show()

    def group(self, path: str) -> Group:
        """Return the cgroup at ``path`` ("": the root). Raises OSError (ENOENT)."""
        at = self.top
        for name in path.split("/") if path else ():
            if name not in at.children:
                raise refuse(errno.ENOENT)
            at = at.children[name]
        return at

    def spawn(self, path: str, pid: int, tids: tuple[int, ...] = ()) -> None:
        """Start a process with ``pid`` as its first thread, and ``tids`` besides, in the cgroup at ``path``."""
        group = self.group(path)
        self.home[pid] = group
        for tid in (pid, *tids):
            self.threads[tid] = pid, group
        self._show()

    def exit(self, pid: int) -> None:
        """End a process, or one thread of one."""
        for tid in [t for t, (owner, _) in self.threads.items() if pid in (t, owner)]:
            del self.threads[tid]
        self.home.pop(pid, None)
        self._show()

    def put(self, path: str, name: str, text: str) -> None:
        """Set a counter, which the kernel alone does."""
        self.group(path)
        self._write(f"{self.root}/{path}/{name}", text)

    def hotplug(self, cpu: int, online: bool) -> None:
        """Take a CPU away from the host, or give it back. Raises OSError (EBUSY) for the last one of a partition."""
        if not online and cpusets.last_of_a_partition(self, cpu):
            raise refuse(errno.EBUSY)
        self.online = self.online | {cpu} if online else self.online - {cpu}
        cpusets.after_hotplug(self)
        self._show()

    def mkdir(self, path: str) -> None:
        """Make a cgroup. Raises OSError."""
        above, _, name = path.rpartition("/")
        parent = self.group(above)
        if "\n" in name:
            raise refuse(errno.EINVAL)
        if name in parent.children or os.path.exists(f"{self.root}/{path}"):
            raise refuse(errno.EEXIST)
        os.mkdir(f"{self.root}/{path}")
        parent.children[name] = Group(path, parent)
        self._show()

    def rmdir(self, path: str) -> None:
        """Remove a cgroup; files of it that are open answer ENODEV from now on. Raises OSError."""
        group = self.group(path)
        if group.parent is None or group.children or self.inside(group):
            raise refuse(errno.EBUSY)
        folder = f"{self.root}/{path}"
        for name in os.listdir(folder):
            os.unlink(f"{folder}/{name}")
            self._shown.pop(f"{folder}/{name}", None)
        os.rmdir(folder)
        del group.parent.children[group.name]
        self._show()

    def pwrite(self, fd: int, data: bytes, offset: int) -> int:
        """Write to a control file that is open as ``fd``, whole or not at all. Raises OSError."""
        where = os.readlink(f"/proc/self/fd/{fd}")
        if where.endswith(_DELETED):
            raise refuse(errno.ENODEV)
        if not where.startswith(self.root + "/"):
            return os.pwrite(fd, data, offset)
        folder, _, name = where.rpartition("/")
        path, text = folder.removeprefix(self.root).strip("/"), data.decode()
        group = self.group(path)
        write = _WRITERS.get(name)
        if write is None:
            raise refuse(errno.EINVAL)
        if (path, name) in self.refusals:
            raise refuse(self.refusals[path, name])
        write(self, group, text)
        self.writes.append((path, name, text))
        self._show()
        return len(data)

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        """Read as os.pread; a file of a cgroup that is gone fails. Raises OSError (ENODEV)."""
        if os.fstat(fd).st_nlink == 0:
            raise refuse(errno.ENODEV)
        return os.pread(fd, length, offset)

    def inside(self, group: Group) -> bool:
        """Return whether a thread is in this very cgroup."""
        return any(at is group for _, at in self.threads.values())

    def populated(self, group: Group) -> bool:
        """Return whether a thread is in this cgroup or below."""
        return any(self.inside(at) for at in group.walk())

    def controllers(self, group: Group) -> list[str]:
        """Return those that a cgroup has, in the kernel's order."""
        if group.parent is None:
            return self._controllers
        on = [c for c in group.parent.on if c in THREADED or not group.threaded]
        return [c for c in _CONTROLLERS if c in on]

    def thread_root(self, group: Group) -> bool:
        """Return whether a cgroup is the domain of threaded ones, or would be if it had any (cgroup_is_thread_root)."""
        if group.threaded or group.parent is None:
            return False
        competes = self.inside(group) and bool(set(group.on) & THREADED)
        return any(child.threaded for child in group.children.values()) or competes

    def may_be_thread_root(self, group: Group) -> bool:
        """See cgroup_can_be_thread_root()."""
        if group.parent is None:
            return True
        domains = [c for c in group.children.values() if not c.threaded]
        return not (group.threaded or set(group.on) - THREADED or any(self.populated(c) for c in domains))

    def valid_domain(self, group: Group) -> bool:
        """Return whether a cgroup is, or belongs to, a domain that can hold anything (cgroup_is_valid_domain)."""
        while group.threaded and group.parent is not None:
            group = group.parent
        above = group.parent
        while above is not None:
            if above.threaded or (above.parent is not None and self.thread_root(above)):
                return False
            above = above.parent
        return True

    def _kind(self, group: Group) -> str:
        if group.threaded:
            return "threaded"
        if not self.valid_domain(group):
            return "domain invalid"
        return "domain threaded" if self.thread_root(group) else "domain"

    def _show(self) -> None:
        """Bring every file up to date; those that are right already are not touched."""
        for group in self.top.walk():
            folder = f"{self.root}/{group.path}".rstrip("/")
            have = self.controllers(group)
            files = {
                "cgroup.controllers": " ".join(have),
                "cgroup.subtree_control": " ".join(c for c in _CONTROLLERS if c in group.on),
                "cgroup.procs": "\n".join(str(p) for p in self._processes(group)),
                "cgroup.threads": "\n".join(str(t) for t, (_, at) in self.threads.items() if at is group),
            }
            if group.parent is None:
                files["cpuset.cpus.effective"] = cpusets.listed(cpusets.effective(self, group))
                files["cpuset.mems.effective"] = cpusets.listed(self.nodes)
            else:
                files["cgroup.type"] = self._kind(group)
                files |= cpu.files(group) if "cpu" in have else {}
                files |= cpusets.files(self, group) if "cpuset" in have else {}
                files |= {"io.max": io.listed(group)} if "io" in have else {}
            for controller in ("", *have):
                for name, text in _COUNTERS[controller].items():
                    files.setdefault(name, self._shown.get(f"{folder}/{name}", text).removesuffix("\n"))
            for name in set(os.listdir(folder)) - files.keys() - group.children.keys():
                os.unlink(f"{folder}/{name}")
                self._shown.pop(f"{folder}/{name}", None)
            for name, text in files.items():
                self._write(f"{folder}/{name}", text + "\n" if text or name.startswith("cpuset") else "")

    def _write(self, where: str, text: str) -> None:
        if self._shown.get(where) != text:
            with open(where, "w", encoding="utf-8") as file:
                file.write(text)
            if where.endswith(".effective"):
                os.chmod(where, 0o444)
            self._shown[where] = text

    def _processes(self, group: Group) -> Iterator[int]:
        """Yield the processes that a cgroup or, where it is a domain of threads, a threaded one below it holds."""
        for pid, home in self.home.items():
            at: Group = home
            while at.threaded and at.parent is not None:
                at = at.parent
            if at is group:
                yield pid


def _to_group(tree: FakeCgroups, group: Group, text: str, *, whole: bool) -> None:
    """Move a process, or one thread (cgroup_procs_write_start() and cgroup_migrate_vet_dst())."""
    words = text.strip()
    try:
        number = kstrtoll(words)
    except OSError:
        number = -1
    if number < 0:
        raise refuse(errno.EINVAL)
    number = number or os.getpid()
    if number not in tree.threads:
        raise refuse(errno.ESRCH)
    if not tree.valid_domain(group) and not group.threaded:
        raise refuse(errno.EOPNOTSUPP)
    free = group.parent is None or group.threaded or tree.may_be_thread_root(group)
    if group.on and not free:
        raise refuse(errno.EBUSY)
    if "cpuset" in tree.controllers(group) and not cpusets.effective(tree, group):
        raise refuse(errno.ENOSPC)
    owner = tree.threads[number][0]
    if whole:
        tree.home[owner] = group
    for tid in [t for t, (pid, _) in tree.threads.items() if (pid == owner if whole else t == number)]:
        tree.threads[tid] = owner, group


def _procs(tree: FakeCgroups, group: Group, text: str) -> None:
    _to_group(tree, group, text, whole=True)


def _threads(tree: FakeCgroups, group: Group, text: str) -> None:
    _to_group(tree, group, text, whole=False)


def _kind(tree: FakeCgroups, group: Group, text: str) -> None:
    """See cgroup_type_write() and cgroup_enable_threaded()."""
    if text.strip() != "threaded" or group.parent is None:
        raise refuse(errno.EINVAL)
    if group.threaded:
        return
    if tree.populated(group) or set(group.on) - THREADED or not (
        group.parent.threaded or tree.may_be_thread_root(group.parent) or tree.thread_root(group.parent)
    ):  # fmt: skip
        raise refuse(errno.EOPNOTSUPP)
    group.threaded = True


def _subtree(tree: FakeCgroups, group: Group, text: str) -> None:
    """See cgroup_subtree_control_write() and cgroup_vet_subtree_control_enable()."""
    switch: dict[str, bool] = {}
    for word in text.split():
        if word[0] not in "+-" or word[1:] not in _CONTROLLERS:
            raise refuse(errno.EINVAL)
        switch[word[1:]] = word[0] == "+"
    fresh = {c for c, on in switch.items() if on and c not in group.on}
    if fresh - set(tree.controllers(group)):
        raise refuse(errno.ENOENT)
    gone = {c for c, on in switch.items() if not on and c in group.on}
    if any(set(child.on) & gone for child in group.children.values()):
        raise refuse(errno.EBUSY)
    if fresh and group.parent is not None:
        if not tree.valid_domain(group):
            raise refuse(errno.EOPNOTSUPP)
        if fresh - THREADED:
            if tree.thread_root(group) or group.threaded:
                raise refuse(errno.EOPNOTSUPP)
            if tree.inside(group):
                raise refuse(errno.EBUSY)
        elif not (tree.may_be_thread_root(group) or group.threaded) and tree.inside(group):
            raise refuse(errno.EBUSY)
    group.on = [c for c in _CONTROLLERS if (c in group.on or c in fresh) and c not in gone]
    for child in group.children.values():
        for controller in gone:
            child.reset(controller)


_WRITERS: dict[str, Callable[[FakeCgroups, Group, str], None]] = {
    "cgroup.procs": _procs, "cgroup.threads": _threads, "cgroup.type": _kind, "cgroup.subtree_control": _subtree,
    "cpu.max": cpu.write_max, "cpu.max.burst": cpu.write_burst, "cpu.weight": cpu.write_weight,
    "cpu.idle": cpu.write_idle, "cpuset.cpus": cpusets.write_cpus, "cpuset.mems": cpusets.write_mems,
    "cpuset.cpus.partition": cpusets.write_partition, "io.max": io.write_max,
}  # fmt: skip
