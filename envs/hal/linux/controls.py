"""One VM's control files, opened and named, and the two dialects, cgroup v1 and v2, that they speak.

Formats: https://docs.kernel.org/admin-guide/cgroup-v2.html (cpu.max, cpuset.cpus, io.max, cpu.stat, io.stat),
https://docs.kernel.org/scheduler/sched-bwc.html (cpu.cfs_quota_us), and cpusets and blkio-controller of cgroup-v1.
Payloads end in a newline, as echo would write them; the kernel strips it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field

from foreshare.policies.errors import HostError

from .cgroups import DENIED, GONE, Cgroup, Hierarchies, parse_tids
from .roots import read_text

NO_LIMIT = -1
QUOTA_V1, PERIOD_V1, QUOTA_V2 = "cpu.cfs_quota_us", "cpu.cfs_period_us", "cpu.max"
READ_V1, WRITE_V1, IO_V2 = "blkio.throttle.read_bps_device", "blkio.throttle.write_bps_device", "io.max"


def first_line(data: bytes) -> bytes:
    """Return the bytes before the first newline."""
    return data.partition(b"\n")[0]


def quota_payload(version: int, quota_us: int, period_us: int) -> bytes:
    """Return what sets a quota; NO_LIMIT lifts it."""
    if version == 1:
        return b"%d\n" % quota_us
    return (b"max %d\n" % period_us) if quota_us == NO_LIMIT else (b"%d %d\n" % (quota_us, period_us))


def parse_quota(version: int, data: bytes, period_us: int) -> tuple[int, int]:
    """Return (quota_us or NO_LIMIT, period_us). v1 keeps the period in its own file, hence the argument."""
    words = first_line(data).split()
    if version == 1:
        return int(words[0]), period_us
    return (NO_LIMIT if words[0] == b"max" else int(words[0])), int(words[1])


def io_payload(version: int, device: str, rate: int | None) -> bytes:
    """Return what limits a device to ``rate`` bytes/s (None: no limit), in v1 for one direction, in v2 for both.

    0 lifts the limit in v1, and v2 refuses 0 and 1, so a rate is at least 1 or 2.
    """
    if version == 1:
        return b"%s %d\n" % (device.encode(), 0 if rate is None else max(rate, 1))
    word = b"max" if rate is None else b"%d" % max(rate, 2)
    return b"%s rbps=%s wbps=%s\n" % (device.encode(), word, word)


def parse_io_limit(version: int, data: bytes, device: bytes, key: bytes) -> int | None:
    """Return the limit of one device in bytes/s, None where there is none. ``key`` (v2): b"rbps" or b"wbps"."""
    for line in data.split(b"\n"):
        words = line.split()
        if not words or words[0] != device:
            continue
        if version == 1:
            return int(words[1]) or None
        for word in words[1:]:
            name, _, value = word.partition(b"=")
            if name == key:
                return None if value == b"max" else int(value)
    return None


def field_after(data: bytes, key: bytes) -> int:
    """Return the number behind ``key`` (with its blank or =), or -1 where it is not there."""
    at = data.find(key)
    if at < 0:
        return -1
    at += len(key)
    word = data[at : at + 24].split(None, 1)  # 2**64 has 20 digits
    return int(word[0]) if word and word[0].isdigit() else -1


@dataclass(slots=True)
class Knob:
    """One open control file."""

    fd: int
    path: str
    """Full path: for people and for the floor measurement."""
    version: int


@dataclass(slots=True)
class VmControls:
    """All files of one VM, opened once."""

    cgroup: str
    cpu: Cgroup
    quota: Knob
    usage_fd: int
    stat_fd: int
    """cpu.stat, which holds the throttled time (and in v2 the usage)."""
    pressure_fd: int
    """cpu.pressure, -1 where there is none."""
    period_fd: int
    """cpu.cfs_period_us of v1; -1 in v2, where cpu.max holds the period too."""
    groups: list[Cgroup] = field(default_factory=list)
    """Every directory that was opened, except those below the VM's."""
    cpuset: list[Knob] = field(default_factory=list)
    """cpuset.cpus of the VM and, in v1, of every cgroup below it, parents before children; empty: affinity."""
    cpuset_tree: list[Cgroup] = field(default_factory=list)
    io: list[tuple[Knob, int]] = field(default_factory=list)
    """(file, index of the device): v1 has a file for each direction, in v2 one file limits both."""
    io_group: Cgroup | None = None
    io_stat_fd: int = -1
    usage_unified: bool = False
    """v1: usage_fd is cpu.stat of the unified hierarchy, because the VM has no cpuacct cgroup (libvirt on a hybrid
    host makes none: to it, v2 always counts CPU time)."""
    cpuset_links: int = 0
    """Sum of st_nlink over the tree when it was opened; -1: it was changing."""

    @property
    def absent(self) -> bool:
        """Whether the VM is nowhere: nothing is open."""
        return not self.cgroup

    def close(self) -> None:
        """Close every descriptor."""
        knobs = [self.quota.fd, *(k.fd for k in self.cpuset), *{k.fd for k, _ in self.io}]
        for fd in {*knobs, self.usage_fd, self.stat_fd, self.pressure_fd, self.period_fd, self.io_stat_fd}:
            if fd >= 0:
                os.close(fd)
        for group in (*self.groups, *self.cpuset_tree):
            group.close()
        self.cpuset, self.io, self.cpuset_tree = [], [], []

    def reopen_cpuset(self) -> None:
        """Look again which cgroups are below the VM's (v1): a hot-plugged vCPU has a new one.

        Raises OSError where the VM is gone.
        """
        top = self.cpuset_tree[0]
        for group in self.cpuset_tree[1:]:
            group.close()
        for knob in self.cpuset[1:]:
            os.close(knob.fd)
        self.cpuset_tree, self.cpuset = [top], self.cpuset[:1]
        add_children(self, writable=True)

    def children_changed(self) -> bool:
        """Return whether a cgroup came or went below the VM's cpuset (v1) since it was opened. Raises OSError."""
        if not self.cpuset_tree or self.cpuset_tree[0].mount.version != 1:
            return False
        return sum(os.fstat(group.fd).st_nlink for group in self.cpuset_tree) != self.cpuset_links


def absent_vm(hierarchies: Hierarchies) -> VmControls:
    """Return the controls of a VM that is not there. Raises HostError where no VM could be."""
    mount = hierarchies.of("cpu")
    return VmControls("", Cgroup(mount, "", -1), Knob(-1, "", mount.version), -1, -1, -1, -1)


def open_vm(
    cgroup: str, name: str, hierarchies: Hierarchies, *, devices: list[str], use_cpuset: bool, writable: bool
) -> VmControls:
    """Open everything that one VM is measured and moved by. Raises HostError with the first thing that is missing."""
    opened: list[Cgroup] = []
    fds: list[int] = []
    try:
        return _open_vm(cgroup, hierarchies, devices, use_cpuset, writable, opened, fds)
    except HostError as error:
        for fd in fds:
            os.close(fd)
        for group in opened:
            group.close()
        raise HostError(f"VM {name!r}: {error}") from error


def _open_vm(
    cgroup: str, hierarchies: Hierarchies, devices: list[str], use_cpuset: bool, writable: bool,
    opened: list[Cgroup], fds: list[int],
) -> VmControls:  # fmt: skip
    groups: dict[str, Cgroup] = {}

    def group(controller: str) -> Cgroup:
        mount = hierarchies.of(controller)
        if mount.path not in groups:
            groups[mount.path] = Cgroup.open(mount, cgroup)
            opened.append(groups[mount.path])
        return groups[mount.path]

    def read(at: Cgroup, name: str) -> int:
        fds.append(open_or_explain(at, name, os.O_RDONLY))
        return fds[-1]

    def knob(at: Cgroup, name: str) -> Knob:
        fds.append(open_or_explain(at, name, os.O_RDWR if writable else os.O_RDONLY))
        return Knob(fds[-1], f"{at.where}/{name}", at.mount.version)

    cpu = group("cpu")
    one = cpu.mount.version == 1
    quota = knob(cpu, QUOTA_V1 if one else QUOTA_V2)
    stat = read(cpu, "cpu.stat")
    usage, unified = (_usage_v1(hierarchies, cgroup, group, read)) if one else (stat, False)
    pressure = read(cpu, "cpu.pressure") if cpu.has("cpu.pressure") else -1
    period = read(cpu, PERIOD_V1) if one else -1
    vm = VmControls(cgroup, cpu, quota, usage, stat, pressure, period, usage_unified=unified)
    if use_cpuset:
        top = group("cpuset")
        vm.cpuset_tree.append(top)
        vm.cpuset.append(knob(top, "cpuset.cpus"))
        try:
            add_children(vm, writable=writable)
        finally:
            fds += [k.fd for k in vm.cpuset[1:]]
            opened += vm.cpuset_tree[1:]
    if devices:
        # The v1 controller is called blkio, the same one in v2 io.
        block = group("blkio" if "blkio" in hierarchies.controllers else "io")
        vm.io_group = block
        if block.mount.version == 1:
            vm.io_stat_fd = read(block, "blkio.throttle.io_service_bytes_recursive")
            pair = knob(block, READ_V1), knob(block, WRITE_V1)
            vm.io += [(file, d) for d in range(len(devices)) for file in pair]
        else:
            vm.io_stat_fd = read(block, "io.stat")
            both = knob(block, IO_V2)
            vm.io += [(both, d) for d in range(len(devices))]
    vm.groups = list(groups.values())
    return vm


def _usage_v1(
    hierarchies: Hierarchies, cgroup: str, group: Callable[[str], Cgroup], read: Callable[[Cgroup, str], int]
) -> tuple[int, bool]:
    """Return (file that counts CPU time, whether it is the unified hierarchy's cpu.stat). Raises HostError."""
    try:
        return read(group("cpuacct"), "cpuacct.usage"), False
    except HostError as missing:
        if hierarchies.unified is None:
            raise
        try:
            other = Cgroup.open(hierarchies.unified, cgroup)
        except HostError:
            raise missing from None
        try:
            return read(other, "cpu.stat"), True
        finally:
            other.close()


def add_children(vm: VmControls, *, writable: bool) -> None:
    """Open the cpusets below a VM's own, in v1 only.

    v1: a cpuset cannot lose a CPU that a child has (EBUSY, kernel/cgroup/cpuset-v1.c), so children are written too. An
    empty child holds nothing and stays empty. v2 narrows children by itself (cpuset.cpus.effective).
    """
    top = vm.cpuset_tree[0]
    if top.mount.version != 1:
        return
    found = top.walk()
    links = [os.fstat(group.fd).st_nlink for group in found]
    # A directory has two links and one more for each below it: -1 where one came or went between walk and count.
    vm.cpuset_links = links[0] if sum(links) == 3 * len(found) - 1 else -1
    for child, count in zip(found[1:], links[1:], strict=True):
        held = child.read("cpuset.cpus")
        if held is None or not held.strip():
            child.close()
            continue
        try:
            fd = child.open_file("cpuset.cpus", os.O_RDWR if writable else os.O_RDONLY)
        except OSError as error:
            child.close()
            if error.errno in GONE:
                continue
            raise HostError(f"{child.where}/cpuset.cpus cannot be opened: {error.strerror}") from error
        vm.cpuset_links += count if vm.cpuset_links >= 0 else 0
        vm.cpuset_tree.append(child)
        vm.cpuset.append(Knob(fd, f"{child.where}/cpuset.cpus", 1))


def write_cpus(vm: VmControls, new: bytes, union: bytes, held: bytes) -> int:
    """Set the CPUs of a VM's cpuset and all below it; return the number of system calls. Raises OSError.

    v1: a child's CPUs must be among its parent's at every moment, so the tree first grows from above to ``union`` (what
    is held and what is new) and then shrinks from below to ``new``.
    """
    knobs, pwrite = vm.cpuset, vm.cpu.mount.pwrite
    if len(knobs) == 1:
        pwrite(knobs[0].fd, new, 0)
        return 1
    calls = 0
    if union != held:
        for knob in knobs:
            pwrite(knob.fd, union, 0)
            calls += 1
    if new != union or not calls:
        for knob in reversed(knobs):
            pwrite(knob.fd, new, 0)
            calls += 1
    return calls


def gather(vm: VmControls, nodes: Iterable[Cgroup]) -> None:
    """Put threads of a VM back into its v1 cpuset; ``nodes`` are its cpu cgroups, which they never left.

    A v1 cpuset of which the last CPU goes offline is emptied: the kernel moves its threads to the one above
    (cgroup_transfer_tasks() in kernel/cgroup/cpuset-v1.c) and never back. Raises OSError.
    """
    if not vm.cpuset or vm.cpuset[0].version != 1 or vm.cpu.mount.path == vm.cpuset_tree[0].mount.path:
        return
    top = vm.cpuset_tree[0]
    places = {group.path.removeprefix(top.path): group for group in vm.cpuset_tree}
    inside = {tid for group in vm.cpuset_tree for tid in parse_tids(group.read("tasks") or b"")}
    for node in nodes:
        place = places.get(node.path.removeprefix(vm.cpu.path), top)
        for tid in parse_tids(node.read("tasks") or b""):
            if tid not in inside:
                with suppress(ProcessLookupError):
                    place.write("tasks", b"%d\n" % tid)


def missing_above(vm: VmControls) -> str:
    """Return what a v1 cpuset above the VM's lacks, "" where it is not that.

    v1 takes a CPU that goes offline out of every cpuset and does not put it back, and a cpuset can have no CPU that the
    one above it lacks (EACCES). That one belongs to somebody else.
    """
    if not vm.cpuset or vm.cpuset[0].version != 1:
        return ""
    top = vm.cpuset_tree[0]
    above = f"{top.mount.path}/{top.path.rpartition('/')[0]}".rstrip("/")
    has = read_text(f"{above}/cpuset.cpus")
    return (
        ""
        if has is None
        else f"the cpuset above it has only CPUs {has}: write what it should have to {above}/cpuset.cpus"
    )


def open_or_explain(at: Cgroup, name: str, flags: int) -> int:
    """Open a file of a cgroup. Raises HostError with one line that says what would help."""
    try:
        return at.open_file(name, flags)
    except OSError as error:
        if error.errno in DENIED:
            why = f"no permission to write {at.where}/{name}: run as root or have the cgroup delegated"
        elif error.errno in GONE and at.mount.version == 2:
            controller = name.partition(".")[0]
            parent = at.where.rpartition("/")[0]
            why = (
                f"cgroup {at.path} has no {name}: enable the {controller} controller for it"
                f" (echo +{controller} > {parent}/cgroup.subtree_control)"
            )
        elif error.errno in GONE:
            why = f"{at.where} has no {name}: this kernel was built without it"
        else:
            why = f"{at.where}/{name} cannot be opened: {error.strerror}"
        raise HostError(why) from error
