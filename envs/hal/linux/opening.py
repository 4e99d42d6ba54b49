"""Opening VMs: their control files and threads, checked, with one line for whatever the host lacks."""

from __future__ import annotations

import errno
import fcntl
import os
import resource as rlimits
from dataclasses import dataclass

from foreshare.envs.hal.spec import VmSpec
from foreshare.policies.errors import HostError

from . import claim, cpulist
from .allowed import Allowed
from .arrivals import Arrivals
from .cgroups import Cgroup, Hierarchies, split_path, threads_file
from .controls import VmControls, absent_vm, open_vm
from .hotplug import Processors
from .roots import Roots
from .spec import LinuxSpec
from .threads import AbsentThreads, VmThreads
from .topology import CpuLayout, discover

_DESCRIPTORS_PER_VM = 32


def lay_out(
    spec: LinuxSpec, roots: Roots, hierarchies: Hierarchies, arrivals: Arrivals
) -> tuple[CpuLayout, Processors, list[str]]:
    """Return the managed CPUs, whoever watches them, and the numbers of the IO devices. Raises HostError, InputError.

    Where that fails, nobody looks for VMs any more.
    """
    allowed = Allowed(hierarchies, arrivals.all_homes)
    try:
        layout = discover(roots, cpus=allowed.among(spec.cpus), units_per_cpu=spec.units_per_cpu)
        devices = [device.number(roots) for device in spec.io]
        if len(set(devices)) < len(devices):
            raise HostError("the same IO device is configured twice")
        return layout, Processors(roots, layout.cpu_id, allowed), devices
    except BaseException:
        allowed.close()
        arrivals.close()
        raise


@dataclass(frozen=True, slots=True)
class Opener:
    """Opens the VMs of one host."""

    spec: LinuxSpec
    roots: Roots
    hierarchies: Hierarchies
    layout: CpuLayout
    devices: list[str]
    writable: bool

    def open(self, vm: VmSpec, cgroup: str) -> tuple[VmControls, VmThreads]:
        """Open a VM that lives in ``cgroup``; "": it is not there. Raises HostError, InputError for a hostile path."""
        if not cgroup:
            return absent_vm(self.hierarchies), AbsentThreads()
        use_cpuset = self.spec.placement == "cpuset" or (
            self.spec.placement == "auto" and _cpuset_works(cgroup, self.hierarchies)
        )
        controls = open_vm(
            cgroup, vm.name, self.hierarchies, devices=self.devices, use_cpuset=use_cpuset, writable=self.writable
        )
        try:
            if use_cpuset:
                self._check_cpuset(vm, controls)
            threads = VmThreads(self.roots, controls.cpu, confined=not use_cpuset)
            threads.scan()
        except BaseException:
            controls.close()
            raise
        return controls, threads

    def _check_cpuset(self, vm: VmSpec, controls: VmControls) -> None:
        top = controls.cpuset_tree[0]
        if top.mount.version == 2:
            return
        if not (top.read("cpuset.mems") or b"").strip():
            claim.memory_nodes_above(top)
        parent = top.path.rpartition("/")[0]
        if not parent:
            return
        above = Cgroup.open(top.mount, parent)
        try:
            has = cpulist.parse((above.read("cpuset.cpus") or b"").decode())
        finally:
            above.close()
        needed = frozenset(int(c) for c in self.layout.cpu_id)
        if not needed <= has:
            raise HostError(
                f"VM {vm.name!r}: the cpuset {parent} above it has CPUs {cpulist.form(has) or '(none)'}, managed are"
                f" {cpulist.form(needed)}: widen {above.where}/cpuset.cpus or manage fewer CPUs"
            )


def _cpuset_works(cgroup: str, hierarchies: Hierarchies) -> bool:
    """Return whether a cpuset would bind the VM: it has one, and in v1 its threads, if any, are in it."""
    try:
        cpuset = Cgroup.open(hierarchies.of("cpuset"), cgroup)
    except HostError:
        return False
    try:
        if not cpuset.has("cpuset.cpus"):
            return False
        if cpuset.mount.version == 2 or any(g.read("tasks") for g in cpuset.walk()):
            return True
        cpu = Cgroup.open(hierarchies.of("cpu"), cgroup)
        try:
            return not any(g.read(threads_file(g.mount)) for g in cpu.walk())
        finally:
            cpu.close()
    except HostError:
        return True  # no cpu cgroup: opening the VM says so, in better words
    finally:
        cpuset.close()


def refuse_nesting(vms: tuple[VmSpec, ...]) -> None:
    """Raise HostError where two VMs share a cgroup, or one is inside another."""
    paths: dict[tuple[str, ...], str] = {}
    for vm in vms:
        if not vm.cgroup:
            continue
        parts = split_path(vm.cgroup)
        if parts in paths:
            raise HostError(f"VMs {paths[parts]!r} and {vm.name!r} name the same cgroup {vm.cgroup}")
        paths[parts] = vm.name
    for parts, name in paths.items():
        for depth in range(1, len(parts)):
            if parts[:depth] in paths:
                raise HostError(f"the cgroup of VM {name!r} lies inside that of VM {paths[parts[:depth]]!r}")


def raise_descriptor_limit(vms: int) -> None:
    """Allow as many open files as the hard limit does: the default soft limit of 1024 is for select()."""
    soft, hard = rlimits.getrlimit(rlimits.RLIMIT_NOFILE)
    if soft != rlimits.RLIM_INFINITY and soft < 1024 + vms * _DESCRIPTORS_PER_VM:
        rlimits.setrlimit(rlimits.RLIMIT_NOFILE, (hard, hard))


def while_opening(error: OSError) -> str:
    """Return an error in words."""
    where = f"{os.fsdecode(error.filename)}: " if error.filename else ""
    if error.errno == errno.EMFILE:
        return "too many open files: raise the limit (ulimit -n) for this many VMs"
    return f"{where}{error.strerror}"


def lease(vm: VmControls) -> None:
    """Lock a VM's cgroup directory for as long as it is open here. Raises HostError where another foreshare has it."""
    try:
        fcntl.flock(vm.cpu.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise HostError(f"another foreshare manages the cgroup {vm.cgroup}") from error
    except OSError as error:
        if error.errno not in (errno.ENOTSUP, errno.EINVAL, errno.ENOLCK):
            raise HostError(while_opening(error)) from error


def lease_all(vms: list[VmControls]) -> None:
    """Lock the VMs' cgroup directories (flock), for as long as they are open here. Raises HostError.

    The runtime has a lease of its own, but two that keep their state in different places would not meet there.
    """
    for vm in vms:
        if not vm.absent:
            lease(vm)
