"""The VMs' threads: who they are, how long they waited for a CPU, and how their affinity is set.

A descriptor of /proc/TID/schedstat stays bound to the thread that it was opened on: once that thread is dead, every
read fails with ESRCH, whoever has its number by then (fs/proc/base.c holds the struct pid). So differences never mix
two threads, and a successful read just before sched_setaffinity proves that the number still means the thread meant.
Threads for which no descriptor could be had are told apart by their start time (field 22 of /proc/TID/stat, proc(5)).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable

import numpy as np

from foreshare.policies.host import FloatArray, IntArray

from .cgroups import GONE, Cgroup, parse_tids, read_all, settled, threads_file
from .roots import Roots, read_text

RESCAN_TICKS = 10
"""Between two scans of a VM of which nothing seems to have changed."""
LOOK_TICKS = 4
"""Between two looks at whether something has: a new vCPU is met, and confined, within so many ticks and one."""
STIRRED_PER_TICK = 8
"""VMs that are scanned in one tick because something has changed; for the others it is a matter of RESCAN_TICKS."""
PROCESSES_PER_VM = 8
READS_PER_TICK = 256
DESCRIPTORS_PER_VM = 256
_DEAD_LINKS = 2  # proc_task_getattr() in fs/proc/base.c adds the threads to the two of any directory


class Thread:
    """One thread of a VM."""

    __slots__ = ("fd", "start", "tid", "wait_ns")

    def __init__(self, tid: int, fd: int, start: int) -> None:
        self.tid, self.fd, self.start = tid, fd, start
        self.wait_ns = -1
        """Run-queue wait at the last read; -1 before the first."""


def start_time(roots: Roots, tid: int) -> int | None:
    """Return a thread's start time in clock ticks since boot, or None where it is gone."""
    text = read_text(f"{roots.proc}/{tid}/stat")
    if text is None:
        return None
    # The name in parentheses may hold blanks and parentheses itself, so count from the last one.
    fields = text[text.rfind(")") + 1 :].split()
    return int(fields[19]) if len(fields) > 19 else None


class VmThreads:
    """The threads of one VM: those of its cgroup and of every cgroup below it."""

    def __init__(self, roots: Roots, top: Cgroup, *, confined: bool = False) -> None:
        self._roots = roots
        self._top = top
        self._confined = confined
        self.stray: list[Thread] = []
        """Where affinity confines the VM: threads that a rescan found and nobody has confined yet."""
        self._nodes: list[Cgroup] = [top]
        self.threads: dict[int, Thread] = {}
        self._processes: dict[int, int] = {}
        """Descriptors of /proc/PID/task, whose st_nlink counts the process's threads."""
        self._links: list[int] = []
        """st_nlink of the cgroups, then of the processes, as of the latest scan; 0: not known."""

    @property
    def nodes(self) -> tuple[Cgroup, ...]:
        """The VM's cgroup and all below it, as of the latest scan, open."""
        return tuple(self._nodes)

    def scan(self) -> list[Thread]:
        """Bring the membership up to date; return the threads that are new.

        Raises OSError (one of GONE) where the VM's own cgroup is no longer there.
        """
        links = self._count()
        if links[: len(self._nodes)] != self._links[: len(self._nodes)] or not self._links:
            self._close_children()
            self._nodes = self._top.walk()
            links = self._count()
        self._links = links  # before the threads are listed: what comes meanwhile is seen as a change afterwards
        tids = settled(self._list)
        fresh: list[Thread] = []
        for tid in [t for t in self.threads if t not in tids]:
            self._forget(self.threads.pop(tid))
        for tid in tids:
            if tid not in self.threads:
                thread = self._meet(tid)
                if thread is not None:
                    self.threads[tid] = thread
                    fresh.append(thread)
        if fresh or not self._processes:
            self._follow_processes()
        return fresh

    def stirred(self) -> bool:
        """Return whether threads or cgroups came or went since the latest scan.

        One system call for each cgroup and process. It does not see one thread replaced by another, or a process that
        joins: the regular scan does.
        """
        return self._count() != self._links

    def rescan(self) -> None:
        """Scan, and keep what is new for the next :meth:`confine`. Raises OSError as :meth:`scan` does."""
        fresh = self.scan()
        if self._confined:
            self.stray += fresh

    def wait_ns(self) -> int | None:
        """Return how long all threads known at the last call and now waited for a CPU between the two calls.

        None where no thread could be compared.
        """
        total, compared, dead = 0, 0, None
        for thread in self.threads.values():
            if thread.fd < 0:
                continue
            try:
                data = os.pread(thread.fd, 64, 0)
            except OSError:
                dead = [thread] if dead is None else [*dead, thread]
                continue
            wait = _wait_in(data)
            if thread.wait_ns >= 0 and wait >= thread.wait_ns:
                total += wait - thread.wait_ns
                compared += 1
            thread.wait_ns = wait
        if dead is not None:
            for thread in dead:
                self._forget(self.threads.pop(thread.tid))
        return total if compared else None

    def same(self, thread: Thread) -> bool:
        """Return whether the thread still lives, its number therefore still means it."""
        if thread.fd < 0:
            return start_time(self._roots, thread.tid) == thread.start
        try:
            os.pread(thread.fd, 64, 0)
        except OSError:
            return False
        return True

    def confine(self, cpus: Iterable[int], only: Iterable[Thread] | None = None) -> int:
        """Keep the threads (or only some) on ``cpus``; return the number of system calls.

        Threads born meanwhile by one that was not confined yet are found by listing again until nothing is new. Raises
        OSError where the kernel refuses a living thread.
        """
        calls = 0
        self.stray.clear()
        todo = list(self.threads.values()) if only is None else list(only)
        while todo:
            for thread in todo:
                calls += 2
                if not self.same(thread):
                    continue
                try:
                    os.sched_setaffinity(thread.tid, cpus)
                except OSError as error:
                    if error.errno != errno.ESRCH:
                        raise
            calls += 1
            todo = self.scan()
        return calls

    def affinity(self) -> dict[int, frozenset[int]]:
        """Return the CPUs of every living thread."""
        out: dict[int, frozenset[int]] = {}
        for thread in self.threads.values():
            try:
                out[thread.tid] = frozenset(os.sched_getaffinity(thread.tid))
            except OSError as error:
                if error.errno != errno.ESRCH:
                    raise
        return out

    def close(self) -> None:
        """Close every descriptor but the VM's own directory."""
        for thread in self.threads.values():
            self._forget(thread)
        self.threads.clear()
        for fd in self._processes.values():
            os.close(fd)
        self._processes.clear()
        self._close_children()

    def _count(self) -> list[int]:
        fds = [node.fd for node in self._nodes]
        return [os.fstat(fd).st_nlink for fd in (*fds, *self._processes.values())]

    def _follow_processes(self) -> None:
        """Keep an eye on the processes that the threads belong to."""
        pids: set[int] = set()
        for node in self._nodes:
            pids.update(
                parse_tids(node.read("cgroup.procs") or b"")
            )  # none where the cgroup is threaded: one above has
        before = list(self._processes)
        for pid in [p for p, fd in self._processes.items() if p not in pids or os.fstat(fd).st_nlink <= _DEAD_LINKS]:
            os.close(self._processes.pop(pid))
        for pid in sorted(pids - self._processes.keys())[: PROCESSES_PER_VM - len(self._processes)]:
            try:
                fd = os.open(f"{self._roots.proc}/{pid}/task", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except OSError:
                continue  # it ended, or /proc hides it
            self._processes[pid] = fd
        if list(self._processes) != before:  # what threads they had when those were listed is not known
            self._links[len(self._nodes) :] = [0] * len(self._processes)

    def _meet(self, tid: int) -> Thread | None:
        start = start_time(self._roots, tid)
        if start is None:
            return None
        if len(self.threads) >= DESCRIPTORS_PER_VM:
            return Thread(tid, -1, start)
        try:
            fd = os.open(f"{self._roots.proc}/{tid}/schedstat", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            return None if error.errno in GONE and start_time(self._roots, tid) is None else Thread(tid, -1, start)
        try:
            first = _wait_in(os.pread(fd, 64, 0))
        except OSError:
            os.close(fd)
            return None  # it ended between the two calls
        thread = Thread(tid, fd, start)
        thread.wait_ns = first
        return thread

    @staticmethod
    def _forget(thread: Thread) -> None:
        if thread.fd >= 0:
            os.close(thread.fd)
            thread.fd = -1

    def _list(self) -> list[int]:
        name = threads_file(self._top.mount)
        out: list[int] = []
        for node in self._nodes:
            try:
                # Opened anew each time: v1 keeps answering from the list that it made at the first read of a descriptor
                # (cgroup_pidlist_start() in kernel/cgroup/cgroup-v1.c).
                fd = node.open_file(name, os.O_RDONLY)
                try:
                    out += parse_tids(read_all(fd))
                finally:
                    os.close(fd)
            except OSError as error:
                # A child that is gone is somebody else's business; EOPNOTSUPP: a v2 cgroup in an invalid domain.
                if node is self._top and error.errno in GONE:
                    raise
        return out

    def _close_children(self) -> None:
        for node in self._nodes:
            if node is not self._top:
                node.close()
        self._nodes = [self._top]


class AbsentThreads(VmThreads):
    """Those of a VM that is not there: none."""

    def __init__(self) -> None:
        self.threads, self.stray, self._nodes, self._processes, self._links = {}, [], [], {}, []

    def scan(self) -> list[Thread]:
        """See VmThreads."""
        return []

    def confine(self, cpus: Iterable[int], only: Iterable[Thread] | None = None) -> int:
        """Raise OSError (ENOENT): there is nobody to confine."""
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))

    def close(self) -> None:
        """See VmThreads."""


def _wait_in(schedstat: bytes) -> int:
    """Return the second of "run_ns wait_ns slices" (https://docs.kernel.org/scheduler/sched-stats.html)."""
    return int(schedstat.split(b" ", 2)[1])


class RunQueueWait:
    """How long the VMs' threads waited, under a bound on reads in each tick.

    Where the VMs have more threads than READS_PER_TICK, they take turns; who was not read has no value for that tick.
    """

    def __init__(self, vms: list[VmThreads], *, rescan_ticks: int = RESCAN_TICKS, reads: int = READS_PER_TICK) -> None:
        self._vms = vms
        self._period = rescan_ticks
        self._reads = reads
        self._tick = self._next = 0
        self._last_ns: IntArray = np.zeros(len(vms), np.int64)

    def sample(self, now: Callable[[], int], dt_ns: int, present: list[bool], out: FloatArray) -> None:
        """Fill ``out`` (N,) with nanoseconds of waiting in the last ``dt_ns``; NaN where unknown."""
        out.fill(np.nan)
        n = len(self._vms)
        left = self._reads
        for step in range(n):
            i = (self._next + step) % n
            if not present[i]:
                continue
            if left <= 0:
                self._next = i
                break
            left -= len(self._vms[i].threads)
            t = now()
            wait = self._vms[i].wait_ns()
            since, self._last_ns[i] = t - int(self._last_ns[i]), t
            if wait is not None and dt_ns and since > 0:
                out[i] = wait * (dt_ns / since)

    def restart(self, row: int) -> None:
        """Forget when a VM was read: it is another run of it."""
        self._last_ns[row] = 0

    def rescan(self, present: list[bool]) -> list[int]:
        """Bring a tenth of the VMs up to date, and some that changed; return the rows of those that are gone."""
        gone = []
        rows = list(range(self._tick % self._period, len(self._vms), self._period))
        look = range(self._tick % LOOK_TICKS, len(self._vms), LOOK_TICKS)
        rows += [i for i in look if present[i] and self._vms[i].stirred()][:STIRRED_PER_TICK]
        for i in rows:
            if present[i]:
                try:
                    self._vms[i].rescan()
                except OSError as error:
                    if error.errno not in GONE:
                        raise
                    gone.append(i)
        self._tick += 1
        return gone


def schedstat_works(roots: Roots) -> bool:
    """Return whether the kernel keeps run-queue times: without CONFIG_SCHED_INFO every number is 0."""
    text = read_text(f"{roots.proc}/self/schedstat")
    return text is not None and not text.startswith("0 ")
