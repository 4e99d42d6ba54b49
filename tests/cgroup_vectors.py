"""What the kernel's cgroup v2 answers: one table, played against the tree of files and, in the lab, the real thing.

Every case begins with fresh cgroups ``t`` (which passes cpuset, cpu and io on), ``t/a`` and ``t/b``. A step is
(operation, path, payload, expected): the errno's name or "ok", then files and what they read afterwards. ``{me}`` is a
process that lives in the root, ``{disk}`` a whole disk; CPUs are 0 to 7, all online.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Step:
    """One call and what must come of it."""

    op: str
    """write, mkdir, rmdir, stale (open, rmdir, write), offline, online or read."""
    path: str
    data: str = ""
    result: str = "ok"
    reads: tuple[tuple[str, str], ...] = ()
    """(file, text) after the call; the text without trailing newline, or an errno's name."""


def w(path: str, data: str, result: str = "ok", **reads: str) -> Step:
    """Write; ``reads``: what the file itself reads (``now``), or t/a's or t/b's by name with "__" for "."."""
    return Step("write", path, data, result, _files(path, reads))


def _files(path: str, reads: dict[str, str]) -> tuple[tuple[str, str], ...]:
    out = []
    for key, text in reads.items():
        if key == "now":
            out.append((path, text))
        else:
            group, _, name = key.partition("__")
            out.append((f"{GROUPS[group]}/{name.replace('__', '.')}", text))
    return tuple(out)


def errno_name(error: OSError) -> str:
    """Return "EOPNOTSUPP" for the number that has two names."""
    return errno.errorcode[error.errno or 0].replace("ENOTSUP", "EOPNOTSUPP")


GROUPS = {"t": "t", "a": "t/a", "b": "t/b", "c": "t/a/c", "d": "t/b/d"}
CPU_MAX, WEIGHT, IDLE, CPUS, PARTITION, IO = (
    f"t/a/{name}" for name in ("cpu.max", "cpu.weight", "cpu.idle", "cpuset.cpus", "cpuset.cpus.partition", "io.max")
)

TABLE: dict[str, list[Step]] = {
    "cpu.max": [
        Step("read", CPU_MAX, reads=((CPU_MAX, "max 100000"),)),
        w(CPU_MAX, "5000 10000\n", now="5000 10000"),
        w(CPU_MAX, "7000\n", now="7000 10000"),
        w(CPU_MAX, "7001\n", now="7001 10000"),
        w(CPU_MAX, "max\n", now="max 10000"),
        w(CPU_MAX, "max 20000\n", now="max 20000"),
        w(CPU_MAX, "  5000   10000  \n", now="5000 10000"),
        w(CPU_MAX, "6000 10000", now="6000 10000"),
        w(CPU_MAX, "6000 10000 junk\n", now="6000 10000"),
        w(CPU_MAX, "6500x 10000\n", now="6500 10000"),
        w(CPU_MAX, "6600 junk\n", now="6600 10000"),
        w(CPU_MAX, "999 10000\n", "EINVAL", now="6600 10000"),
        w(CPU_MAX, "1000 10000\n", now="1000 10000"),
        w(CPU_MAX, "0 10000\n", "EINVAL"),
        w(CPU_MAX, "-1 10000\n", "EINVAL"),
        w(CPU_MAX, "-1\n", "EINVAL"),
        w(CPU_MAX, "maximum 10000\n", "EINVAL"),
        w(CPU_MAX, "MAX 10000\n", "EINVAL"),
        w(CPU_MAX, "nan 10000\n", "EINVAL"),
        w(CPU_MAX, "\n", "EINVAL"),
        w(CPU_MAX, "5000 999\n", "EINVAL"),
        w(CPU_MAX, "5000 1000\n", now="5000 1000"),
        w(CPU_MAX, "5000 1000001\n", "EINVAL"),
        w(CPU_MAX, "5000 1000000\n", now="5000 1000000"),
        w(CPU_MAX, "5000 -10000\n", now="5000 1000000"),
        w(CPU_MAX, "17592186044415 10000\n", "ok", now="17592186044415 10000"),
        w(CPU_MAX, "17592186044416 10000\n", "EINVAL"),
        w(CPU_MAX, "18446744073709551616 10000\n", "EINVAL"),
        w("t/cpu.max", "2000 10000\n"),
        w(CPU_MAX, "9000 10000\n", now="9000 10000"),  # above its parent's: v2 takes the least on the way
    ],
    "cpu.max.burst": [
        w("t/a/cpu.max.burst", "1\n", "ok", now="1"),
        w(CPU_MAX, "5000 10000\n"),
        w("t/a/cpu.max.burst", "5001\n", "EINVAL", now="1"),
        w("t/a/cpu.max.burst", "5000\n", now="5000"),
        w(CPU_MAX, "4000 10000\n", "EINVAL", now="5000 10000"),
        w("t/a/cpu.max.burst", "0\n", now="0"),
        w(CPU_MAX, "4000 10000\n", now="4000 10000"),
    ],
    "cpu.weight and cpu.idle": [
        w(WEIGHT, "1\n", now="1"),
        w(WEIGHT, "10000\n", now="10000"),
        w(WEIGHT, "77\n", now="77"),
        w(WEIGHT, "0\n", "ERANGE", now="77"),
        w(WEIGHT, "10001\n", "ERANGE"),
        w(WEIGHT, "-1\n", "EINVAL"),
        w(WEIGHT, "x\n", "EINVAL"),
        w(WEIGHT, "\n", "EINVAL"),
        w(WEIGHT, " 5\n", "EINVAL"),
        w(WEIGHT, "5 \n", "EINVAL"),
        w(WEIGHT, "0x10\n", now="16"),
        w(WEIGHT, "010\n", now="8"),
        w(WEIGHT, "18446744073709551616\n", "ERANGE"),
        w(IDLE, "2\n", "EINVAL", now="0"),
        w(IDLE, "-1\n", "EINVAL"),
        w(IDLE, "yes\n", "EINVAL"),
        w(IDLE, "1\n", now="1", a__cpu__weight="1"),
        w(WEIGHT, "100\n", "EINVAL"),
        w(IDLE, "1\n", now="1"),
        w(IDLE, "0\n", now="0", a__cpu__weight="100"),
        w(WEIGHT, "50\n", now="50"),
    ],
    "cpuset.cpus": [
        Step("read", CPUS, reads=((CPUS, ""), ("t/a/cpuset.cpus.effective", "0-7"))),
        w(CPUS, "0-3\n", now="0-3", a__cpuset__cpus__effective="0-3"),
        w(CPUS, "1,0,3\n", now="0-1,3"),
        w(CPUS, "0-6:1/2\n", now="0,2,4,6"),
        w(CPUS, " 2-3 \n", now="2-3"),
        w(CPUS, "2, 3\n", now="2-3"),
        w(CPUS, "3-2\n", "EINVAL", now="2-3"),
        w(CPUS, "x\n", "EINVAL"),
        w(CPUS, "-1\n", "EINVAL"),
        w(CPUS, "0-\n", "EINVAL"),
        w(CPUS, "8\n", "ERANGE"),
        w(CPUS, "0-8\n", "ERANGE", now="2-3"),
        w(CPUS, "9999\n", "ERANGE"),
        w(CPUS, "\n", now="", a__cpuset__cpus__effective="0-7"),
        w("t/a/cpuset.cpus.effective", "0\n", "EINVAL"),
        w("t/cpuset.cpus", "0-1\n", a__cpuset__cpus__effective="0-1"),
        w(CPUS, "1-5\n", now="1-5", a__cpuset__cpus__effective="1"),
        w(CPUS, "4-5\n", now="4-5", a__cpuset__cpus__effective="0-1"),  # none of them: as the parent
    ],
    "cpuset.cpus of a VM that runs": [
        w("t/a/cgroup.procs", "{me}\n"),
        w(CPUS, "\n", now=""),
        w(CPUS, "2-3\n", now="2-3"),
        w(CPUS, "\n", "ENOSPC", now="2-3", a__cpuset__cpus__effective="2-3"),
        w(CPUS, "4-5\n", now="4-5"),
        w("cgroup.procs", "{me}\n"),
        w(CPUS, "\n", now=""),
    ],
    "hot-plug": [
        w(CPUS, "2-3\n"),
        w("t/b/cpuset.cpus", "3\n"),
        Step("offline", "3", reads=((CPUS, "2-3"), ("t/a/cpuset.cpus.effective", "2"),
                                    ("t/b/cpuset.cpus.effective", "0-2,4-7"), ("t/b/cpuset.cpus", "3"))),
        w(CPUS, "1,3\n", now="1,3", a__cpuset__cpus__effective="1"),
        w(CPUS, "3\n", now="3"),
        Step("online", "3", reads=(("t/a/cpuset.cpus.effective", "3"), ("t/b/cpuset.cpus.effective", "3"))),
    ],
    "cpuset.mems": [
        w("t/a/cpuset.mems", "0\n", now="0", a__cpuset__mems__effective="0"),
        w("t/a/cpuset.mems", "0-1\n", now="0-1"),
        w("t/a/cpuset.mems", "7\n", "EINVAL"),
        w("t/a/cpuset.mems", "99999\n", "ERANGE"),
        w("t/a/cpuset.mems", "\n", now="", a__cpuset__mems__effective="0-1"),
    ],
    "partitions": [
        Step("read", PARTITION, reads=((PARTITION, "member"),)),
        w(PARTITION, "bogus\n", "EINVAL"),
        w(PARTITION, "root\n", now="root invalid (cpuset.cpus and cpuset.cpus.exclusive are empty)"),
        w(PARTITION, "member\n", now="member"),
        w("t/cpuset.cpus", "0-5\n"),
        w("t/cpuset.cpus.partition", "root\n", now="root", t__cpuset__cpus__effective="0-5"),
        Step("read", "x", reads=(("cpuset.cpus.effective", "6-7"),)),
        w(PARTITION, "root\n", now="root invalid (cpuset.cpus and cpuset.cpus.exclusive are empty)"),
        w(PARTITION, "member\n"),
        w(CPUS, "0-1\n"),
        w(PARTITION, "root\n", now="root", t__cpuset__cpus__effective="2-5", a__cpuset__cpus__effective="0-1"),
        w(PARTITION, "isolated\n", now="isolated", t__cpuset__cpus__effective="2-5"),
        w("t/b/cpuset.cpus", "2-3\n"),
        w("t/b/cpuset.cpus.partition", "isolated\n", now="isolated", t__cpuset__cpus__effective="4-5"),
        w(CPUS, "0\n", now="0", a__cpuset__cpus__partition="isolated", t__cpuset__cpus__effective="1,4-5"),
        w(CPUS, "0-1\n", now="0-1", t__cpuset__cpus__effective="4-5"),
        w(CPUS, "1-2\n", now="1-2", a__cpuset__cpus__partition="isolated invalid",
          b__cpuset__cpus__partition="isolated invalid",
          t__cpuset__cpus__effective="0-5"),
        w(PARTITION, "member\n", now="member"),
        w("t/b/cpuset.cpus.partition", "member\n", now="member"),
        w(CPUS, "0-1\n"),
        w(PARTITION, "root\n", now="root"),
        w("t/cpuset.cpus.partition", "member\n", now="member",
          a__cpuset__cpus__partition="root invalid (Parent is not a partition root)"),
        Step("read", "x", reads=(("cpuset.cpus.effective", "0-7"),)),
    ],
    "a member's cpuset and a sibling's partition": [
        w("t/cpuset.cpus", "0-5\n"),
        w("t/cpuset.cpus.partition", "root\n", now="root"),
        w(CPUS, "0-1\n"),
        w("t/b/cpuset.cpus", "1-2\n"),
        w(PARTITION, "root\n", now="root invalid (Cpu list in cpuset.cpus not exclusive)",
          b__cpuset__cpus__partition="member"),
        w("t/b/cpuset.cpus", "2-3\n"),
        w(PARTITION, "member\n"),
        w(PARTITION, "root\n", now="root"),
        w("t/b/cpuset.cpus", "1-2\n", now="1-2", a__cpuset__cpus__partition="root invalid",
          b__cpuset__cpus__effective="1-2"),
        w("t/b/cpuset.cpus", "2\n", now="2", a__cpuset__cpus__partition="root invalid"),
        w(PARTITION, "member\n"),
        w(CPUS, "6-7\n", now="6-7"),
        w(PARTITION, "root\n", now="root invalid (Invalid cpu list in cpuset.cpus.exclusive)"),
        w(CPUS, "0\n", now="0", a__cpuset__cpus__partition="root"),
        w(PARTITION, "member\n", now="member"),
        w(CPUS, "0-5\n", now="0-5"),
        w("t/b/cpuset.cpus", "\n", now=""),
        w("t/b/cgroup.procs", "{me}\n"),
        w(PARTITION, "root\n", now="root invalid (Parent unable to distribute cpu downstream)"),
    ],
    "a partition with processes and hot-plug": [
        w("t/cpuset.cpus", "2-3\n"),
        w("t/cpuset.cpus.partition", "root\n", now="root"),
        w("t/cpuset.cpus", "3\n", now="3", t__cpuset__cpus__partition="root"),
        w("t/a/cgroup.procs", "{me}\n"),
        Step("offline", "3", result="EBUSY",
             reads=(("t/cpuset.cpus.partition", "root"), ("t/a/cpuset.cpus.effective", "3"))),
    ],
    "a partition below one that is none": [
        w("t/cpuset.cpus", "0-5\n"),
        w(CPUS, "0-1\n"),
        w(PARTITION, "root\n", now="root invalid (Invalid cpu list in cpuset.cpus.exclusive)"),
        w("t/cpuset.cpus.partition", "root\n", now="root", a__cpuset__cpus__partition="root"),
        w("t/cpuset.cpus", "2-5\n", now="2-5", a__cpuset__cpus__partition="root", t__cpuset__cpus__effective="2-5"),
    ],
    "a partition that takes everything": [
        w("t/cpuset.cpus", "0-1\n"),
        w("t/cpuset.cpus.partition", "root\n", now="root"),
        w(CPUS, "0-1\n"),
        w(PARTITION, "root\n", now="root", t__cpuset__cpus__effective="", b__cpuset__cpus__effective=""),
        w("t/b/cgroup.procs", "{me}\n", "ENOSPC"),
    ],
    "a partition and hot-plug": [
        w("t/cpuset.cpus", "2-3\n"),
        w("t/cpuset.cpus.partition", "root\n", now="root"),
        Step("offline", "3", reads=(("t/cpuset.cpus.partition", "root"), ("t/cpuset.cpus.effective", "2"))),
        Step("online", "3", reads=(("t/cpuset.cpus.partition", "root"), ("t/cpuset.cpus.effective", "2-3"))),
    ],
    "subtree_control": [
        Step("read", "t", reads=(("t/cgroup.subtree_control", "cpuset cpu io"),
                                 ("t/a/cgroup.controllers", "cpuset cpu io"),
                                 ("t/a/cgroup.subtree_control", ""))),
        w("t/a/cgroup.subtree_control", "+memory\n", "ENOENT"),
        w("t/a/cgroup.subtree_control", "+nothing\n", "EINVAL"),
        w("t/a/cgroup.subtree_control", "cpu\n", "EINVAL"),
        w("t/a/cgroup.subtree_control", "\n", "ok"),
        Step("mkdir", "t/a/c", reads=(("t/a/c/cpu.max", "ENOENT"), ("t/a/c/cgroup.controllers", ""))),
        w("t/a/c/cpu.max", "5000 10000\n", "ENOENT"),
        w("t/a/cgroup.subtree_control", "+cpu\n", now="cpu", c__cpu__max="max 100000", c__cpuset__cpus="ENOENT"),
        w("t/a/cgroup.subtree_control", "+cpu +cpuset\n", now="cpuset cpu"),
        w("t/cgroup.subtree_control", "-cpu\n", "EBUSY", now="cpuset cpu io"),
        w("t/a/cgroup.subtree_control", "-cpu -cpuset\n", now="", c__cpu__max="ENOENT"),
        w("t/a/cgroup.subtree_control", "-cpu\n", now=""),
        w("t/a/cgroup.subtree_control", "+cpu -cpu\n", now=""),
    ],
    "no internal processes": [
        w("t/a/cgroup.procs", "{me}\n", a__cgroup__procs="{me}", a__cgroup__threads="{me}"),
        w("t/a/cgroup.subtree_control", "+io\n", "EBUSY", now=""),
        w("t/a/cgroup.subtree_control", "+cpu\n", now="cpu", a__cgroup__type="domain threaded"),
        Step("mkdir", "t/a/c", reads=(("t/a/c/cgroup.type", "domain invalid"), ("t/a/c/cgroup.procs", ""))),
        w("t/a/c/cgroup.procs", "{me}\n", "EOPNOTSUPP"),
        w("t/a/c/cgroup.type", "threaded\n", now="threaded"),
        w("t/a/c/cgroup.threads", "{me}\n", c__cgroup__threads="{me}", a__cgroup__threads="", a__cgroup__procs="{me}"),
        w("cgroup.procs", "{me}\n"),
        Step("rmdir", "t/a/c"),
        w("t/a/cgroup.subtree_control", "-cpu +io\n", now="io", a__cgroup__type="domain"),
        w("t/a/cgroup.procs", "{me}\n", "EBUSY"),
        w("t/cgroup.procs", "{me}\n", "EBUSY"),
        w("t/a/cgroup.subtree_control", "-io\n"),
        w("t/a/cgroup.procs", "{me}\n"),
        Step("rmdir", "t/a", result="EBUSY"),
        w("cgroup.procs", "{me}\n"),
    ],
    "cgroup.procs": [
        w("t/a/cgroup.procs", "2147483647\n", "ESRCH"),
        w("t/a/cgroup.procs", "-1\n", "EINVAL"),
        w("t/a/cgroup.procs", "x\n", "EINVAL"),
        w("t/a/cgroup.procs", "{me} {me}\n", "EINVAL"),
        w("t/a/cgroup.procs", " {me} \n", a__cgroup__procs="{me}"),
        w("cgroup.procs", "{me}\n", a__cgroup__procs=""),
    ],
    "io.max": [
        Step("read", IO, reads=((IO, ""),)),
        w(IO, "{disk} rbps=1000\n", now="{disk} rbps=1000 wbps=max riops=max wiops=max"),
        w(IO, "{disk} wbps=2000\n", now="{disk} rbps=1000 wbps=2000 riops=max wiops=max"),
        w(IO, "{disk} rbps=max riops=5\n", now="{disk} rbps=max wbps=2000 riops=5 wiops=max"),
        w(IO, "{disk}\n", now="{disk} rbps=max wbps=2000 riops=5 wiops=max"),
        w(IO, "{disk} wbps=max rbps=3000 rbps=4000\n", now="{disk} rbps=4000 wbps=max riops=5 wiops=max"),
        w(IO, "{disk} rbps=9 nonsense=4\n", "EINVAL", now="{disk} rbps=4000 wbps=max riops=5 wiops=max"),
        w(IO, "{disk} rbps=0\n", "ERANGE"),
        w(IO, "{disk} rbps=1\n", "EINVAL"),
        w(IO, "{disk} rbps=2\n", now="{disk} rbps=2 wbps=max riops=5 wiops=max"),
        w(IO, "{disk} rbps=-5\n", "EINVAL"),
        w(IO, "{disk} rbps=x\n", "EINVAL"),
        w(IO, "{disk} rbps\n", "EINVAL"),
        w(IO, "{disk} 5\n", "EINVAL"),
        w(IO, "{disk} rbps=7x\n", now="{disk} rbps=7 wbps=max riops=5 wiops=max"),
        w(IO, "{disk} riops=99999999999\n", now="{disk} rbps=7 wbps=max riops=max wiops=max"),
        w(IO, "{disk}\n{disk} rbps=8\n", "EINVAL"),
        w(IO, "250:77 rbps=1000\n", "ENODEV"),
        w(IO, "sda rbps=1000\n", "EINVAL"),
        w(IO, "\n", "EINVAL"),
        w(IO, "{disk} rbps=max\n", now=""),
    ],
    "directories": [
        Step("mkdir", "t/a", result="EEXIST"),
        Step("mkdir", "t/x\ny", result="EINVAL"),
        Step("mkdir", "t/nobody/x", result="ENOENT"),
        Step("mkdir", "t/a/cpu.max", result="EEXIST"),
        Step("mkdir", "t/a/c"),
        Step("rmdir", "t/a", result="EBUSY"),
        Step("rmdir", "t/nobody", result="ENOENT"),
        Step("stale", "t/a/c/cgroup.procs", "{me}\n", "ENODEV"),
        Step("stale", "t/b/cpu.max", "5000 10000\n", "ENODEV"),
        Step("read", "t", reads=(("t/b/cpu.max", "ENOENT"),)),
        Step("mkdir", "t/b", reads=(("t/b/cpu.max", "max 100000"),)),
        w("cpuset.cpus", "0\n", "ENOENT"),
        w("cpu.max", "5000 10000\n", "ENOENT"),
    ],
}  # fmt: skip


class Machine(Protocol):
    """What a table is played on."""

    root: str
    pwrite: Callable[[int, bytes, int], int]

    def mkdir(self, path: str) -> None: ...

    def rmdir(self, path: str) -> None: ...

    def hotplug(self, cpu: int, online: bool) -> None: ...


class Player:
    """Plays steps on the files below ``machine.root``."""

    def __init__(self, machine: Machine, me: int, disk: str) -> None:
        self.machine, self.me, self.disk = machine, str(me), disk

    def fill(self, text: str) -> str:
        return text.replace("{me}", self.me).replace("{disk}", self.disk)

    def text(self, path: str) -> str:
        try:
            with open(f"{self.machine.root}/{path}", encoding="utf-8") as file:
                return file.read().removesuffix("\n").rstrip(" ")
        except OSError as error:
            return errno_name(error)

    def call(self, step: Step) -> str:
        machine, where = self.machine, f"{self.machine.root}/{step.path}"
        try:
            if step.op in ("write", "stale"):
                fd = os.open(where, os.O_WRONLY)
                try:
                    if step.op == "stale":
                        machine.rmdir(step.path.rpartition("/")[0])
                    machine.pwrite(fd, self.fill(step.data).encode(), 0)
                finally:
                    os.close(fd)
            elif step.op == "mkdir":
                machine.mkdir(step.path)
            elif step.op == "rmdir":
                machine.rmdir(step.path)
            elif step.op in ("offline", "online"):
                machine.hotplug(int(step.path), step.op == "online")
        except OSError as error:
            return errno_name(error)
        return "ok"

    def differences(self, steps: list[Step]) -> list[str]:
        """Play ``steps`` with fresh groups; return one line for each answer that is not the table's."""
        out: list[str] = []
        for group in ("t", "t/a", "t/b"):
            self.machine.mkdir(group)
            if group == "t":
                self.call(w("t/cgroup.subtree_control", "+cpuset +cpu +io"))
        try:
            for i, step in enumerate(steps):
                checks = [("result", step.result, self.call(step))]
                checks += [(file, self.fill(text), self.text(file)) for file, text in step.reads]
                out += [
                    f"step {i} {step.op} {step.path} {step.data!r}: {what}: the table says {said!r}, found {found!r}"
                    for what, said, found in checks
                    if said != found
                ]
        finally:
            self.call(w("cgroup.procs", "{me}\n"))
            for group in ("t/a/c", "t/b/d", "t/a", "t/b", "t"):
                if os.path.isdir(f"{self.machine.root}/{group}"):
                    self.machine.rmdir(group)
        return out
