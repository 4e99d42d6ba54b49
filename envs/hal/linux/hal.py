"""The linux backend: real cgroups, real threads, resctrl where there is one, one kernel."""

from __future__ import annotations

import errno
import fcntl
import os
import resource as rlimits
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from foreshare.envs.hal.clock import MonotonicClock
from foreshare.envs.hal.protocol import Clock
from foreshare.envs.hal.spec import VmSpec, resolve
from foreshare.envs.hal.types import Control, Plan, Receipt
from foreshare.policies.errors import HalError, HostError
from foreshare.policies.host import IntArray, Placement, Topology, VmTable
from foreshare.policies.reading import Reading

from . import claim, cpulist
from .actuation import Writer
from .cgroups import Cgroup, Hierarchies, find_hierarchies, split_path, threads_file
from .claim import Held
from .controls import VmControls, open_vm
from .facts import vm_facts
from .resctrl.describe import describe
from .resctrl.monitor import Monitor
from .resctrl.names import previous_groups
from .resctrl.offer import Offer, files_of, find_offer, with_offer
from .resctrl.partitions import Partitions
from .resctrl.upkeep import Upkeep
from .restore import RestoreReport, restore
from .roots import Roots
from .spec import LinuxSpec
from .telemetry import Sampler
from .threads import VmThreads, schedstat_works
from .topology import discover

_DESCRIPTORS_PER_VM = 32


class LinuxHal:
    """A :class:`~foreshare.envs.hal.protocol.Hal` over the cgroups that ``spec`` names.

    Opening it writes nothing. ``read_only`` needs no right to write and refuses ``claim``: for recording and dry runs.
    Raises HostError with one line for whatever the host lacks, CapacityError for promises that it cannot hold.
    """

    name = "linux"

    def __init__(
        self, spec: LinuxSpec, roots: Roots | None = None, clock: Clock | None = None, *, read_only: bool = False
    ) -> None:
        self._roots = roots or Roots()
        self._clock: Clock = clock or MonotonicClock()
        self._spec, self._read_only = spec, read_only
        self._layout = discover(self._roots, cpus=spec.cpus, units_per_cpu=spec.units_per_cpu)
        self._devices = [device.number(self._roots) for device in spec.io]
        if len(set(self._devices)) < len(self._devices):
            raise HostError("the same IO device is configured twice")
        self._topology = self._layout.topology(sum(device.bandwidth_bytes for device in spec.io))
        self._vms = resolve(spec.vms, self._topology)
        offer = self._offer()
        self.why_no_resctrl = "" if isinstance(offer, Offer) else offer
        """Why cache ways and memory bandwidth have no units; empty where they have."""
        _refuse_nesting(spec.vms)
        _raise_descriptor_limit(len(spec.vms))
        self._hierarchies = find_hierarchies(self._roots)
        self._controls: list[VmControls] = []
        self._threads: list[VmThreads] = []
        self._doc: Mapping[str, Any] | None = None
        self._claimed = self._closed = False
        self.partitions: Partitions | None = None
        """Cache ways and memory bandwidth, where there are any to hand out."""
        self._upkeep: Upkeep | None = None
        self._monitor: Monitor | None = None
        self.restored: RestoreReport | None = None
        """What close() put back."""
        try:
            for vm in spec.vms:
                self._open(vm)
            if isinstance(offer, Offer):
                self._open_partitions(offer)
            self._writer = Writer(
                self._controls, self._threads, self._vms, self._topology, self._devices, spec.io, spec.period_us,
                self._clock,
            )  # fmt: skip
            self._sampler = Sampler(
                self._controls, self._threads, self._topology, self._devices, self._writer.limits, self._clock,
                waits=schedstat_works(self._roots), settle=self._writer.settle,
            )  # fmt: skip
            self.read_back(Placement.empty(len(self._vms), self._topology.cpus))
        except OSError as error:
            self._release()
            raise HostError(_while_opening(error)) from error
        except BaseException:
            self._release()
            raise

    @property
    def topology(self) -> Topology:
        """The hardware that may be handed out."""
        return self._topology

    @property
    def vms(self) -> VmTable:
        """The VMs' contracts."""
        return self._vms

    @property
    def clock(self) -> Clock:
        """The kernel's monotonic clock."""
        return self._clock

    @property
    def roots(self) -> Roots:
        """Where the kernel's file systems are."""
        return self._roots

    @property
    def trace(self) -> list[list[tuple[str, bytes]]] | None:
        """Where (path, payload) of each tick's writes go, for the floor measurement; None: nowhere.

        A tick's are there after the next sample (or close), so that noting them costs apply next to nothing. Moves of
        affinity and of nested v1 cpusets are not noted.
        """
        self._writer.settle()
        return self._writer.trace

    @trace.setter
    def trace(self, into: list[list[tuple[str, bytes]]] | None) -> None:
        self._writer.settle()
        self._writer.trace = into

    def placements(self) -> list[str]:
        """Return, for each VM, what keeps it on its CPUs: "cpuset" or "affinity"."""
        return ["cpuset" if vm.cpuset else "affinity" for vm in self._controls]

    def sample(self, reading: Reading) -> None:
        """Fill ``reading`` in place."""
        self._sampler.sample(reading)
        if self.partitions is not None:
            self.partitions.dirty |= self._follow_cpus()
        if self._upkeep is not None:
            self._upkeep.tend(self._sampler.present)
        if self._monitor is not None and self.partitions is not None:
            self._monitor.fill(reading, self.partitions)

    def extras(self) -> dict[str, dict[str, object]]:
        """Return slower facts by VM UUID: memory, NUMA, pressure, IO totals, threads. Not for the tick path."""
        return {
            uuid: vm_facts(vm, threads, self._hierarchies)
            for uuid, vm, threads in zip(self._vms.uuid, self._controls, self._threads, strict=True)
        }

    def claim(
        self, remember: Callable[[Mapping[str, object]], None], previous: Mapping[str, object] | None = None
    ) -> None:
        """Remember every value that may be written, then set what stays. Raises HostError; nothing is half-claimed.

        Where even undoing it was refused, it raises HalError: what was remembered is still needed.

        ``previous``: what a process that was killed had remembered; its values are the originals.
        """
        if self._read_only:
            raise HostError("this host was opened for reading only")
        if self._claimed:
            return
        self._lease()
        held = Held(
            self._controls, self._threads, self._vms, self._layout, self._devices, self._spec.period_us
        )  # fmt: skip
        managed = {vm.cgroup for vm in self._controls}
        try:
            found = self._collect(held)
            doc, left_over = claim.adopt(found, previous or {}, managed)
            if left_over["items"]:
                report = restore(left_over, self._roots)
                if report.failed:
                    raise HostError(f"what an earlier run left behind cannot be put back: {report.failed[0]}")
                # What was put back may show in what we found: threads get wider masks with their cpuset.
                found = self._collect(held)
                doc, _ = claim.adopt(found, previous or {}, managed)
        except OSError as error:
            raise HostError(_while_opening(error)) from error
        remember(doc)
        self._doc = doc
        try:
            claim.take(held, found, doc)
            if self.partitions is not None:
                self.partitions.take(previous_groups(previous or {}))
                if self._monitor is not None:
                    self._monitor.watch(self.partitions)
                    self._monitor.start()
            self.read_back(Placement.empty(len(self._vms), self._topology.cpus))
        except (OSError, HostError) as error:
            self._close_partitions()
            report = restore(doc, self._roots)
            self._doc = None
            text = str(error) if isinstance(error, HostError) else _while_opening(error)
            if report.failed:
                raise HalError("take", "host", errno.EIO, f"{text}; and then: {report.failed[0]}") from error
            raise HostError(f"cannot take hold of the host: {text}") from error
        self._claimed = True

    def describe(self, plan: Plan) -> list[str]:
        """Return one line for each write of ``plan``."""
        lines = self._writer.describe(plan, self._roots.cgroup)
        if self.partitions is not None:
            entries = zip(plan.control.tolist(), plan.vm.tolist(), plan.value.tolist(), strict=True)
            for k, (control, row, value) in enumerate(entries):
                if control in (Control.WAYS, Control.MEMORY):
                    lines[k] = describe(self.partitions, control, row, value) or lines[k]
        return lines

    def apply(self, plan: Plan, deadline_ns: int, receipt: Receipt) -> None:
        """Write ``plan`` in order. Raises HalError before ``claim``."""
        if not self._claimed:
            raise HalError("apply to", "host", errno.EPERM, "claim comes first")
        self._writer.apply(plan, deadline_ns, receipt)
        if self.partitions is not None and self._upkeep is not None and not self._upkeep.down:
            self.partitions.apply(plan, self._sampler.present, deadline_ns, receipt, moved=self._follow_cpus())

    def read_back(self, into: Placement, rows: IntArray | None = None) -> None:
        """Fill ``rows`` of ``into`` (all if None) with what the controls hold now."""
        wanted = range(len(self._controls)) if rows is None else rows.tolist()
        self._writer.read_back(into, self._sampler.present, wanted)
        if self.partitions is not None:
            self.partitions.read_back(into, self._sampler.present, wanted)

    def close(self) -> None:
        """Put the host back and close every file. Raises HalError, once all is done, for what could not be put back."""
        if self._closed:
            return
        self._writer.settle()
        self._close_partitions()
        try:
            if self._doc is not None:
                self.restored = restore(self._doc, self._roots)
        finally:
            self._release()
        if self.restored is not None and self.restored.failed:
            more = len(self.restored.failed) - 1
            text = self.restored.failed[0] + (f" (and {more} more)" if more else "")
            raise HalError("restore", "host", errno.EIO, text)

    def _follow_cpus(self) -> bool:
        """Tell the partitions where the VMs run, where that counts; return whether limits change with it."""
        if self.partitions is None or not self.partitions.state.bandwidth.divides:
            return False
        self._writer.settle()
        return self.partitions.state.bandwidth.follow(self._writer.limits.cpus)

    def _open(self, vm: VmSpec) -> None:
        use_cpuset = self._spec.placement == "cpuset" or (
            self._spec.placement == "auto" and _cpuset_works(vm, self._hierarchies)
        )
        controls = open_vm(
            vm.cgroup, vm.name, self._hierarchies, devices=self._devices, use_cpuset=use_cpuset,
            writable=not self._read_only,
        )  # fmt: skip
        self._controls.append(controls)
        if use_cpuset:
            self._check_cpuset(vm, controls)
        threads = VmThreads(self._roots, controls.cpu, confined=not use_cpuset)
        self._threads.append(threads)
        threads.scan()

    def _lease(self) -> None:
        """Lock the VMs' cgroup directories (flock), for as long as they are open here.

        The runtime has a lease of its own, but two that keep their state in different places would not meet there.
        """
        for vm in self._controls:
            try:
                fcntl.flock(vm.cpu.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise HostError(f"another foreshare manages the cgroup {vm.cgroup}") from error
            except OSError as error:
                if error.errno not in (errno.ENOTSUP, errno.EINVAL, errno.ENOLCK):
                    raise HostError(_while_opening(error)) from error

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
        needed = frozenset(int(c) for c in self._layout.cpu_id)
        if not needed <= has:
            raise HostError(
                f"VM {vm.name!r}: the cpuset {parent} above it has CPUs {cpulist.form(has) or '(none)'}, managed are"
                f" {cpulist.form(needed)}: widen {above.where}/cpuset.cpus or manage fewer CPUs"
            )

    def _offer(self) -> Offer | str:
        """Return what resctrl offers, and give the topology and the VMs' contracts units of it."""
        spec = self._spec.resctrl
        most = int(np.bincount(self._vms.zone).max()) if len(self._vms) else 0
        offer = find_offer(self._roots, self._layout, spec, most)
        if isinstance(offer, Offer) and not offer.ways and not offer.memory_units:
            offer = f"{offer.why_no_ways}; {offer.why_no_memory}"
        if isinstance(offer, Offer):
            self._topology = with_offer(self._topology, offer)
            self._vms = resolve(self._spec.vms, self._topology)
        elif spec.use == "require":
            raise HostError(f"cache ways and memory bandwidth cannot be handed out: {offer}")
        return offer

    def _open_partitions(self, offer: Offer) -> None:
        spec, files = self._spec.resctrl, files_of(self._roots)
        self.partitions = Partitions(files, offer, self._vms, self._threads, spec, self._clock)
        if offer.info.features and not self._read_only:
            self._monitor = Monitor(files, len(self._vms), round(spec.monitor_ms * 1e6), offer.info.features)
        self._upkeep = Upkeep(self.partitions, self._roots, self._monitor)

    def _collect(self, held: Held) -> dict[str, Any]:
        found = claim.collect(held, self._roots)
        if self.partitions is not None:
            found["items"].append(self.partitions.remember())
        return found

    def _close_partitions(self) -> None:
        if self._monitor is not None:
            self._monitor.close()
        if self._upkeep is not None:
            self._upkeep.close()
        if self.partitions is not None:
            self.partitions.close()
        self.partitions = self._upkeep = self._monitor = None

    def _release(self) -> None:
        self._closed, self._claimed = True, False
        self._close_partitions()
        for threads in self._threads:
            threads.close()
        for controls in self._controls:
            controls.close()
        self._threads.clear()
        self._controls.clear()


def _cpuset_works(vm: VmSpec, hierarchies: Hierarchies) -> bool:
    """Return whether a cpuset would bind the VM: it has one, and in v1 its threads, if any, are in it."""
    try:
        cpuset = Cgroup.open(hierarchies.of("cpuset"), vm.cgroup)
    except HostError:
        return False
    try:
        if not cpuset.has("cpuset.cpus"):
            return False
        if cpuset.mount.version == 2 or any(g.read("tasks") for g in cpuset.walk()):
            return True
        cpu = Cgroup.open(hierarchies.of("cpu"), vm.cgroup)
        try:
            return not any(g.read(threads_file(g.mount)) for g in cpu.walk())
        finally:
            cpu.close()
    except HostError:
        return True  # no cpu cgroup: opening the VM says so, in better words
    finally:
        cpuset.close()


def _refuse_nesting(vms: tuple[VmSpec, ...]) -> None:
    paths: dict[tuple[str, ...], str] = {}
    for vm in vms:
        parts = split_path(vm.cgroup)
        if parts in paths:
            raise HostError(f"VMs {paths[parts]!r} and {vm.name!r} name the same cgroup {vm.cgroup}")
        paths[parts] = vm.name
    for parts, name in paths.items():
        for depth in range(1, len(parts)):
            if parts[:depth] in paths:
                raise HostError(f"the cgroup of VM {name!r} lies inside that of VM {paths[parts[:depth]]!r}")


def _raise_descriptor_limit(vms: int) -> None:
    """Allow as many open files as the hard limit does: the default soft limit of 1024 is for select()."""
    soft, hard = rlimits.getrlimit(rlimits.RLIMIT_NOFILE)
    if soft != rlimits.RLIM_INFINITY and soft < 1024 + vms * _DESCRIPTORS_PER_VM:
        rlimits.setrlimit(rlimits.RLIMIT_NOFILE, (hard, hard))


def _while_opening(error: OSError) -> str:
    where = f"{os.fsdecode(error.filename)}: " if error.filename else ""
    if error.errno == errno.EMFILE:
        return "too many open files: raise the limit (ulimit -n) for this many VMs"
    return f"{where}{error.strerror}"
