"""A linux host of made-up files: sysfs with L3 caches and /proc for the VMs' threads are plain, cgroup v2 and resctrl
refuse what the kernel refuses.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from foreshare.envs.hal.linux.cgroup_fake import FakeCgroups
from foreshare.envs.hal.linux.hal import LinuxHal
from foreshare.envs.hal.linux.resctrl.fake import INTEL, FakeResctrl, Hardware
from foreshare.envs.hal.linux.resctrl.spec import ResctrlSpec
from foreshare.envs.hal.linux.roots import Roots
from foreshare.envs.hal.linux.spec import IoDevice, LinuxSpec
from foreshare.envs.hal.spec import VmSpec
from foreshare.envs.hal.types import Control, Plan, Receipt
from foreshare.policies.host import Isolation
from foreshare.policies.reading import Reading

TICK_NS = 10_000_000
DISK = IoDevice(device="8:0", bandwidth_bytes=1e9)


class HandClock:
    """A clock that moves when told."""

    def __init__(self) -> None:
        self.t_ns = 1_000_000_000

    def now_ns(self) -> int:
        return self.t_ns

    def sleep_until(self, t_ns: int) -> None:
        self.t_ns = max(self.t_ns, t_ns)


class KilledError(BaseException):
    """The process dies here: nothing that handles errors sees it."""


class FakeHost:
    """Files of ``n`` VMs with ``threads`` threads each; the last argument picks which are isolated."""

    def __init__(
        self, root: Path, hardware: Hardware = INTEL, *, n: int = 4, threads: int = 2, isolated: Iterable[int] = (),
        zones: Callable[[int], int | None] = lambda i: None, security: Iterable[int] = (),
    ) -> None:  # fmt: skip
        self.root, self.n = root, n
        self.clock = HandClock()
        self.fake = FakeResctrl(hardware, path=f"{root}/sys/fs/resctrl", writer=1)
        self.cgroups = FakeCgroups(f"{root}/cg")
        self.put({"sys/devices/system/cpu/online": "0-7", "sys/dev/block/8:0/size": "1",
                  "proc/self/mountinfo": f"24 17 0:21 / {root}/cg rw - cgroup2 cg rw", "proc/self/schedstat": "5 6 7",
                  "proc/sys/kernel/random/boot_id": "boot-1"})  # fmt: skip
        for node, cpus in ((0, "0-3"), (1, "4-7")):
            self.put({f"sys/devices/system/node/node{node}/cpulist": cpus})
        for domain, cpus_here in hardware.domains.items():
            for cpu in cpus_here:
                base = f"sys/devices/system/cpu/cpu{cpu}"
                self.put({f"{base}/cache/index3/level": "3", f"{base}/cache/index3/id": str(domain),
                          f"{base}/cache/index3/size": f"{hardware.cache_bytes >> 10}K",
                          f"{base}/topology/core_cpus_list": str(cpu)})  # fmt: skip
        self.tids: list[list[int]] = []
        for i in range(n):
            self.cgroups.mkdir(f"vm{i}")
            self.cgroups.put(f"vm{i}", "cpu.stat", "usage_usec 1000\nthrottled_usec 0\n")
            self.tids.append([])
            for k in range(threads):
                self.born(i, 1000 + 100 * i + k)
        self.specs = tuple(
            VmSpec(name="../../etc\n" if i == 0 else f"vm{i}", cgroup=f"vm{i}", zone=zones(i),
                   isolation=Isolation.SECURITY if i in set(security) else
                   Isolation.ISOLATED if i in set(isolated) else Isolation.SHARED)
            for i in range(n)
        )  # fmt: skip

    def put(self, files: dict[str, str]) -> None:
        for name, text in files.items():
            (self.root / name).parent.mkdir(parents=True, exist_ok=True)
            (self.root / name).write_text(text + "\n")

    def die_at(self, operation: int) -> None:
        """Raise KilledError from the ``operation``-th operation on resctrl from now on, until :meth:`live`."""
        left = operation

        def die(what: str, path: str) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise KilledError

        self.fake.before = die

    def live(self) -> None:
        """Let operations on resctrl be again."""
        self.fake.before = lambda what, path: None

    def born(self, vm: int, tid: int, start: int = 5) -> None:
        self.put({f"proc/{tid}/stat": f"{tid} (x) S " + " ".join(["0"] * 18 + [str(start)] + ["0"] * 5),
                  f"proc/{tid}/schedstat": "1 2 3"})  # fmt: skip
        self.fake.alive.add(tid)
        self.tids[vm].append(tid)
        self.cgroups.spawn(f"vm{vm}", tid)

    def die(self, vm: int, tid: int) -> None:
        self.tids[vm].remove(tid)
        self.cgroups.exit(tid)

    def vanish(self, vm: int) -> None:
        """End a VM and remove its cgroup."""
        for tid in list(self.tids[vm]):
            self.die(vm, tid)
        self.cgroups.rmdir(f"vm{vm}")

    def set_online(self, cpus: str) -> None:
        self.put({"sys/devices/system/cpu/online": cpus})

    @property
    def roots(self) -> Roots:
        return Roots(
            cgroup=f"{self.root}/cg", sys=f"{self.root}/sys", proc=f"{self.root}/proc", resctrl=self.fake,
            pwrite=self.cgroups.pwrite, pread=self.cgroups.pread,
        )  # fmt: skip

    def open(
        self, *, memory: float | None = 100e9, read_only: bool = False, io: tuple[IoDevice, ...] = (), **fields: object
    ) -> LinuxHal:
        """Open a backend; ``fields`` are ResctrlSpec's."""
        spec = ResctrlSpec(memory_bandwidth=memory, **fields)  # type: ignore[arg-type]  # by name
        return LinuxHal(LinuxSpec(vms=self.specs, resctrl=spec, io=io), self.roots, self.clock, read_only=read_only)

    def groups(self) -> set[str]:
        return set(self.fake.kernel.groups)

    def tasks(self, group: str) -> set[int]:
        return {int(t) for t in self.fake.text(f"{group}/tasks").split()}

    def masks(self, group: str) -> dict[int, int]:
        line = next(x for x in self.fake.text(f"{group}/schemata").splitlines() if x.strip().startswith("L3:"))
        return {int(p.split("=")[0]): int(p.split("=")[1], 16) for p in line.partition(":")[2].split(";")}

    def bandwidth(self, group: str) -> dict[int, int]:
        line = next(x for x in self.fake.text(f"{group}/schemata").splitlines() if x.strip().startswith("MB:"))
        return {int(p.split("=")[0]): int(p.split("=")[1]) for p in line.partition(":")[2].split(";")}


def plan(*entries: tuple[Control, int, int], cpus: int = 8) -> Plan:
    """Return a plan of writes that need no CPU sets."""
    control, vm, value = zip(*entries, strict=True)
    return Plan(
        np.array(control, np.int8), np.array(vm, np.int64), np.array(value, np.int64), np.zeros((0, cpus), bool)
    )


def apply(hal: LinuxHal, *entries: tuple[Control, int, int]) -> Receipt:
    """Apply writes and return the receipt."""
    receipt = Receipt()
    hal.apply(plan(*entries, cpus=hal.topology.cpus), 0, receipt)
    return receipt


def claim(hal: LinuxHal) -> dict[str, Any]:
    """Claim the host and return what was to be remembered, as it comes back from a file."""
    docs: list[str] = []
    hal.claim(lambda doc: docs.append(json.dumps(doc)))
    out = json.loads(docs[0])
    assert isinstance(out, dict)
    return out


def tick(host: FakeHost, hal: LinuxHal, times: int = 1) -> Reading:
    """Let so many ticks pass, each with a reading; return the newest."""
    reading = Reading.empty(len(hal.vms))
    for _ in range(times):
        host.clock.t_ns += TICK_NS
        hal.sample(reading)
    return reading


def descriptors() -> int:
    """Return how many real descriptors this process has open."""
    return len(os.listdir("/proc/self/fd"))
