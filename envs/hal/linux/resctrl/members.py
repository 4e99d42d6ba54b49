"""Who is in which group: threads moved one by one, never one whose number was reused, and monitoring groups with them.

A VM of a shared class has a monitoring group of its own inside it: its bandwidth stays its own, and moving that group
to another class (rename(2), since Linux 6.5) moves all of its threads in one call. Where RMIDs are scarce it does
without, and its threads are moved one by one.
"""

from __future__ import annotations

import contextlib
import errno
import os

from foreshare.envs.hal.linux.cgroups import GONE
from foreshare.envs.hal.linux.threads import Thread, VmThreads

from .groups import Group, Tree
from .names import vm_hex

MON_RETRY_NS = 1_000_000_000
"""The kernel looks for RMIDs that came free once a second (CQM_LIMBOCHECK_INTERVAL)."""


class Members:
    """The threads of all VMs, and the groups that they were put into."""

    def __init__(self, tree: Tree, threads: list[VmThreads], identities: tuple[str, ...]) -> None:
        self._tree, self.threads = tree, threads
        self._mon_name = [vm_hex(i) for i in identities]
        self._mon: list[int] = [-1] * len(threads)
        """Descriptor of each VM's tasks file in its monitoring group."""
        self._mon_retry_ns = [0] * len(threads)
        self._moved: list[dict[int, Thread]] = [{} for _ in threads]
        """Threads of each VM that are in ``_where``."""
        self._where: list[Group | None] = [None] * len(threads)
        self._rename_works = True
        self.moves = 0
        """Threads moved so far."""
        self.failed = ""
        """The latest move that was refused, in words."""

    def all_threads(self) -> set[int]:
        """Return the threads of all VMs."""
        return {tid for threads in self.threads for tid in threads.threads}

    def count(self, row: int) -> int:
        """Return how many threads a VM has."""
        return len(self.threads[row].threads)

    def monitored(self, row: int) -> bool:
        """Return whether a VM has a monitoring group of its own."""
        return self._mon[row] >= 0

    def mon_path(self, row: int, group: Group) -> str:
        """Return the path of a VM's monitoring files below the mount."""
        return f"{group.name}/mon_groups/{self._mon_name[row]}" if self._mon[row] >= 0 else group.name

    def give_monitor(self, row: int, group: Group, now_ns: int) -> bool:
        """Make the VM's monitoring group inside ``group``; return whether there is a new one.

        EBUSY and ENOSPC mean that RMIDs are out: the VM runs without monitoring and this is tried again a second later.
        """
        if self._mon[row] >= 0 or group.mon < 0 or now_ns < self._mon_retry_ns[row]:
            return False
        files, name = self._tree.files, self._mon_name[row]
        try:
            with contextlib.suppress(FileExistsError):
                files.mkdir(name, dir_fd=group.mon)
            self._mon[row] = files.open(f"{name}/tasks", os.O_RDWR, dir_fd=group.mon)
        except OSError as error:
            if error.errno not in (errno.EBUSY, errno.ENOSPC, *GONE):
                raise
            self._mon_retry_ns[row] = now_ns + MON_RETRY_NS
            return False
        self._moved[row].clear()
        return True

    def settle(self, row: int, group: Group) -> int:
        """Move every thread of a VM into ``group``, looking again until none is new; return how many were moved.

        Raises OSError (one of GONE) where the VM's cgroup is gone.
        """
        moved = 0
        for _ in range(8):
            self.threads[row].scan()
            now = self.follow(row, group, 1 << 30)
            if not now:
                break
            moved += now
        return moved

    def follow(self, row: int, group: Group, most: int) -> int:
        """Move threads that are not known to be in ``group``; return how many, at most ``most``."""
        moved, known, threads = 0, self._moved[row], self.threads[row]
        if self._where[row] is not group:
            known.clear()
            self._where[row] = group
        if known == threads.threads:
            return 0
        for tid in known.keys() - threads.threads.keys():
            del known[tid]
        for tid, thread in list(threads.threads.items()):
            if known.get(tid) is thread:
                continue
            if moved >= most:
                break
            if tid <= 0 or not threads.same(thread):  # 0 would move this very thread
                continue
            if self._move(tid, group, row):
                known[tid] = thread
                moved += 1
        self.moves += moved
        return moved

    def _move(self, tid: int, group: Group, row: int) -> bool:
        data = b"%d\n" % tid
        files = self._tree.files
        try:
            files.pwrite(group.tasks, data, 0)
            if self._mon[row] >= 0:
                files.pwrite(self._mon[row], data, 0)
            self.failed = ""
        except OSError as error:
            if error.errno != errno.ESRCH:  # it ended meanwhile: nothing to move
                self.failed = f"{group.name}/tasks: {self._tree.words(error)}"
            return False
        return True

    def change(self, row: int, old: Group, new: Group) -> int:
        """Move a VM from one group to another; return how many threads went along.

        Raises OSError (one of GONE) where one of the two was removed; the VM is then where the kernel put it.
        """
        name, files = self._mon_name[row], self._tree.files
        if self._mon[row] >= 0 and self._rename_works:
            try:
                files.rename(name, name, src_dir_fd=old.mon, dst_dir_fd=new.mon)
                self.moves += len(self._moved[row])
                self._where[row] = new
                return len(self._moved[row])
            except OSError as error:
                if error.errno not in (errno.EPERM, errno.EINVAL, errno.EOPNOTSUPP, errno.EEXIST):
                    raise
                # EEXIST: one is left there from a move that was cut off. Otherwise a kernel before 6.5.
                self._rename_works = error.errno == errno.EEXIST
        self.drop_monitor(row, old)
        return self.follow(row, new, 1 << 30)

    def drop_monitor(self, row: int, group: Group) -> None:
        """Remove a VM's monitoring group."""
        if self._mon[row] < 0:
            return
        self._tree.files.close(self._mon[row])
        self._mon[row] = -1
        try:
            self._tree.files.rmdir(self._mon_name[row], dir_fd=group.mon)
        except OSError as error:
            if error.errno not in GONE:
                raise

    def strayed(self, row: int, group: Group) -> int:
        """Compare with what the kernel lists; forget threads that are elsewhere, so that they are moved again."""
        there = self._tree.tasks_of(group.name)
        known = self._moved[row]
        lost = [tid for tid in known if tid not in there]
        for tid in lost:
            del known[tid]
        return len(lost)

    def forget(self, row: int) -> None:
        """Believe nothing about where a VM's threads are any more: its group is gone."""
        self._moved[row].clear()
        if self._mon[row] >= 0:
            self._tree.files.close(self._mon[row])
            self._mon[row] = -1

    def close(self) -> None:
        """Close every file."""
        for row in range(len(self._mon)):
            self.forget(row)
