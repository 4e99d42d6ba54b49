"""The linux backend: real cgroups, real threads, resctrl where there is one, one kernel."""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from foreshare.envs.hal.clock import MonotonicClock
from foreshare.envs.hal.protocol import Clock
from foreshare.envs.hal.spec import resolve
from foreshare.envs.hal.types import Plan, Receipt
from foreshare.policies.errors import HalError, HostError
from foreshare.policies.host import IntArray, Placement, Topology, VmTable
from foreshare.policies.reading import Reading

from . import claim, cookies
from .actuation import Writer
from .arrivals import Arrivals
from .cgroups import find_hierarchies
from .claim import Held, Taken
from .controls import VmControls
from .cpu_partitions import CpuPartitions
from .facts import vm_facts
from .freeze import Still
from .hotplug import without_offline
from .opening import Opener, lay_out, lease, lease_all, raise_descriptor_limit, refuse_nesting, while_opening
from .resctrl.describe import describe
from .resctrl.monitor import Monitor
from .resctrl.names import previous_groups
from .resctrl.offer import Offer, contracts, files_of, usable_offer, with_offer
from .resctrl.partitions import Partitions
from .resctrl.upkeep import Upkeep
from .restore import RestoreReport, restore
from .roots import Roots
from .spec import LinuxSpec
from .stays import tend
from .telemetry import Sampler
from .threads import VmThreads, schedstat_works
from .troubles import troubles_of


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
        self._hierarchies = find_hierarchies(self._roots)
        self._arrivals = Arrivals(spec.vms, spec.discovery, self._roots, self._hierarchies)
        self._specs = self._arrivals.specs
        self._layout, self._processors, self._devices = lay_out(spec, self._roots, self._hierarchies, self._arrivals)
        self._topology = self._layout.topology(sum(device.bandwidth_bytes for device in spec.io))
        self._offline: list[str] = []
        self._still = Still()
        self._taken: list[Taken | None] = []
        self._opener = Opener(spec, self._roots, self._hierarchies, self._layout, self._devices, not read_only)
        self._remember: Callable[[Mapping[str, object]], None] | None = None
        self._controls: list[VmControls] = []
        self._threads: list[VmThreads] = []
        self._doc: Mapping[str, Any] | None = None
        self._cookies = spec.core_scheduling == "auto" and not cookies.why_none()
        self._claimed = self._closed = False
        self._turn = 0
        self.partitions: Partitions | None = None
        """Cache ways and memory bandwidth, where there are any to hand out."""
        self._upkeep: Upkeep | None = None
        self._monitor: Monitor | None = None
        self.restored: RestoreReport | None = None
        """What close() put back."""
        self.why_no_resctrl = ""
        """Why cache ways and memory bandwidth have no units; empty where they have."""
        try:
            self._vms = resolve(self._specs, self._topology)
            offer = self._offer()
            self._whole = self._topology
            if not isinstance(offer, Offer):
                self.why_no_resctrl = offer
            refuse_nesting(spec.vms)
            raise_descriptor_limit(len(self._specs))
            for row, vm in enumerate(self._specs):
                controls, threads = self._opener.open(vm, self._arrivals.home(row))
                self._controls.append(controls)
                self._threads.append(threads)
            self._first = self._line = offer if isinstance(offer, Offer) else None
            if isinstance(offer, Offer):
                self._open_partitions(offer)
            self._writer = Writer(
                self._controls, self._threads, self._vms, self._topology, self._devices, spec.io, spec.period_us,
                self._clock, self._roots.pwrite,
            )  # fmt: skip
            self.cpu_partitions = CpuPartitions(self._controls, self._writer.apart, spec.cpu_partitions)
            self._sampler = Sampler(
                self._controls, self._threads, self._topology, self._devices, self._writer.limits, self._clock,
                waits=schedstat_works(self._roots), settle=self._writer.settle, pread=self._roots.pread,
            )  # fmt: skip
            self.read_back(Placement.empty(len(self._vms), self._topology.cpus))
        except OSError as error:
            self._release()
            raise HostError(while_opening(error)) from error
        except BaseException:
            self._release()
            raise

    @property
    def topology(self) -> Topology:
        """The hardware that may be handed out; another one of the same size when CPUs go offline or come back."""
        return self._topology

    @property
    def vms(self) -> VmTable:
        """The VMs' contracts; another table once a row that was kept free has a VM."""
        return self._vms

    @property
    def clock(self) -> Clock:
        """See Hal."""
        return self._clock

    @property
    def roots(self) -> Roots:
        """Where the kernel's file systems are."""
        return self._roots

    @property
    def trace(self) -> list[list[tuple[str, bytes]]] | None:
        """Where (path, payload) of each tick's writes go, for the floor measurement; None: nowhere. No payload: a read.

        A tick's are there after the next sample (or close), so that noting them costs apply next to nothing. Moves of
        affinity and of nested v1 cpusets are not noted, nor are locks.
        """
        self._writer.settle()
        return self._writer.trace

    @trace.setter
    def trace(self, into: list[list[tuple[str, bytes]]] | None) -> None:
        self._writer.settle()
        self._writer.trace = into
        if self.partitions is not None:
            self.partitions.noted = None if into is None else self._writer.others

    def placements(self) -> list[str]:
        """Return, for each VM, what keeps it on its CPUs: "cpuset" or "affinity"."""
        return ["cpuset" if vm.cpuset else "affinity" for vm in self._controls]

    def sample(self, reading: Reading) -> None:
        """Fill ``reading`` in place."""
        self._arrivals.follow(self._sampler.present, self._attach, self._arrived, self._renamed)
        if self._processors.changed():
            self._replan()
        if self._still.follow(self._arrivals.moving, self._vms, self._topology, self.read_back):
            self._replan()
        self._sampler.sample(reading)
        self._tend()
        if self.partitions is not None:
            self.partitions.dirty |= self._follow_cpus()
        if self._upkeep is not None and self.partitions is not None:
            self._upkeep.tend(self._sampler.present)
            if self.partitions.offer is not self._line:
                self._line = self.partitions.offer
                self._replan()
        if self._monitor is not None and self.partitions is not None:
            self._monitor.fill(reading, self.partitions)

    def extras(self) -> dict[str, dict[str, object]]:
        """Return slower facts by VM UUID: memory, NUMA, pressure, IO totals, threads. Not for the tick path."""
        return {
            uuid: vm_facts(vm, threads, self._hierarchies)
            for uuid, vm, threads in zip(self._vms.uuid, self._controls, self._threads, strict=True)
            if not vm.absent
        }

    def troubles(self) -> tuple[str, ...]:
        """See Complains."""
        return troubles_of(
            [vm.name for vm in self._specs], self._offline, self._taken, self._writer.shelter, self._arrivals,
            self.cpu_partitions, self.partitions, self._monitor,
        )  # fmt: skip

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
        lease_all(self._controls)
        held = self._held(self._controls, self._threads, self._vms)
        managed = {vm.cgroup for vm in self._controls if not vm.absent}
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
            raise HostError(while_opening(error)) from error
        remember(doc)
        self._doc, self._remember = doc, remember
        try:
            self._taken = claim.take(held, found, doc)
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
            text = str(error) if isinstance(error, HostError) else while_opening(error)
            if report.failed:
                raise HalError("take", "host", errno.EIO, f"{text}; and then: {report.failed[0]}") from error
            raise HostError(f"cannot take hold of the host: {text}") from error
        self._claimed = True

    def describe(self, plan: Plan) -> list[str]:
        """Return one line for each write of ``plan``."""
        lines = self._writer.describe(plan, self._roots.cgroup)
        return lines if self.partitions is None else describe(self.partitions, plan, lines)

    def apply(self, plan: Plan, deadline_ns: int, receipt: Receipt) -> None:
        """Write ``plan`` in order. Raises HalError before ``claim``."""
        if not self._claimed:
            raise HalError("apply to", "host", errno.EPERM, "claim comes first")
        self._writer.apply(plan, deadline_ns, receipt)
        self._writer.others.clear()  # what upkeep called is no part of it
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

    def _held(self, controls: list[VmControls], threads: list[VmThreads], table: VmTable) -> Held:
        s = self._spec
        return Held(controls, threads, table, self._layout, self._devices, s.period_us, self._cookies, s.memory_nodes)

    def _attach(self, row: int, cgroup: str) -> None:
        """Take hold of a VM that runs in another cgroup than before. Raises HostError, InputError, OSError.

        It starts on CPUs that no isolated VM owns; what it may have beyond that is for the next decision.
        """
        controls, threads = self._opener.open(self._specs[row], cgroup)
        try:
            if self._claimed:
                lease(controls)
                if self.partitions is not None:
                    self.partitions.refuse_foreign(set(threads.threads))
                held = self._held([controls], [threads], self._vms.take(np.array([row])))
                found = claim.collect(held, self._roots)
                doc = claim.replaced(self._doc or found, self._controls[row].cgroup, found)
                if self._remember is not None:
                    self._remember(doc)
                self._doc = doc
                self._taken[row] = claim.take(held, found, found)[0]
        except BaseException:
            threads.close()
            controls.close()
            raise
        self._writer.settle()
        for old in (self._threads[row], self._controls[row]):
            old.close()
        self._controls[row], self._threads[row] = controls, threads
        self._writer.bind(row)
        self._processors.allowed.above(cgroup)
        self._sampler.present[row] = False
        if self._claimed:
            apart = self._writer.apart & np.array(self._sampler.present)
            free = ~self._writer.limits.cpus[apart].any(axis=0) & self._processors.online
            if free.any():
                self._writer.confine(row, free)

    def _renamed(self) -> None:
        self._specs = self._arrivals.specs
        self._contract()

    def _contract(self) -> None:
        """Resolve what was asked for on the CPUs and ways that are there."""
        whole, table, said = contracts(self._specs, self._whole, self._first, self._line)
        self._topology, self._vms, self._offline = without_offline(whole, table, self._processors.online)
        self._offline += said + self._processors.lines()
        self._topology, self._vms = self._still.contract(self._topology, self._vms)

    def _replan(self) -> None:
        """Go on without CPUs that went offline, with those that came back, around VMs that are to be left alone."""
        self._contract()
        if self._claimed:
            self._writer.settle()
            self._writer.shelter.hotplug(self._processors.online, self._sampler.present)

    def _arrived(self, row: int) -> None:
        """Count a VM as there from now on."""
        self._sampler.restart(row)
        self.read_back(Placement.empty(len(self._vms), self._topology.cpus), np.array([row]))
        if self.partitions is not None and self._upkeep is not None:
            self._upkeep.welcome(row)

    def _tend(self) -> None:
        """Look after what no plan writes: some of the VMs each time."""
        if not self._claimed:
            return
        self.cpu_partitions.tend(self._sampler.present, self._writer.limits.cpus)
        self._turn += 1
        tend(self._turn, self._writer, self._controls, self._threads, self._taken, self._sampler.present)

    def _offer(self) -> Offer | str:
        """Return what resctrl offers, and give the topology and the VMs' contracts units of it."""
        most = int(np.bincount(self._vms.zone).max()) if len(self._vms) else 0
        offer = usable_offer(self._roots, self._layout, self._spec.resctrl, most, writable=not self._read_only)
        if isinstance(offer, Offer):
            self._topology = with_offer(self._topology, offer)
            self._vms = resolve(self._specs, self._topology)
        return offer

    def _open_partitions(self, offer: Offer) -> None:
        spec, files = self._spec.resctrl, files_of(self._roots)
        self.partitions = Partitions(files, offer, self._vms, self._threads, spec, self._clock)
        if offer.info.features and not self._read_only:
            self._monitor = Monitor(files, len(self._vms), round(spec.monitor_ms * 1e6), offer.info.features)
        self.partitions.state.here[:] = [not vm.absent for vm in self._controls]
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
        self._arrivals.close()
        self._processors.close()
        self._close_partitions()
        for threads in self._threads:
            threads.close()
        for controls in self._controls:
            controls.close()
        self._threads.clear()
        self._controls.clear()
