"""Turning plans into writes: one tight loop over open descriptors and bytes that were formatted long ago.

Budget: at most three times the bare system calls (a quota write took 2.9 us at the median, a cpuset write 2.5 to 5.5 us
on Linux 6.18), so nothing is formatted, allocated or looked up by name for a write that has been seen before.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable
from itertools import repeat

import numpy as np

from foreshare.envs.hal.protocol import Clock
from foreshare.envs.hal.types import Control, Plan, Receipt, WriteFailure
from foreshare.policies.errors import HostError
from foreshare.policies.host import BoolArray, Isolation, Placement, Resource, Topology, VmTable

from . import cpulist
from .cgroups import GONE
from .controls import (
    NO_LIMIT,
    VmControls,
    first_line,
    io_payload,
    missing_above,
    parse_io_limit,
    parse_quota,
    quota_payload,
    write_cpus,
)
from .describe import describe_writes
from .hotplug import Shelter
from .restore import put_bandwidth
from .spec import IoDevice
from .telemetry import Limits
from .threads import VmThreads
from .topology import IO_UNITS

_CPUS, _CPU, _IO = int(Control.CPUS), int(Control.CPU), int(Control.IO)


class Writer:
    """Writes plans and reads controls back. Knows what each control holds, as far as anybody does."""

    def __init__(
        self, vms: list[VmControls], threads: list[VmThreads], table: VmTable, topology: Topology,
        devices: list[str], io: tuple[IoDevice, ...], period_us: int, clock: Clock,
        pwrite: Callable[[int, bytes, int], int] = os.pwrite,
    ) -> None:  # fmt: skip
        self._pwrite = pwrite
        n, most = len(vms), topology.cpus * topology.units_per_cpu
        self._vms, self._threads, self._clock = vms, threads, clock
        self._upc, self._period_us, self._devices = topology.units_per_cpu, period_us, [d.encode() for d in devices]
        self._rates = [d.bandwidth_bytes / IO_UNITS for d in io]
        self._lists = cpulist.CpuLists(topology.cpu_id)
        self._ids = topology.cpu_id
        self._width = topology.cpus
        self._top, self._io_units = most, topology.pool(Resource.IO, 0).units
        unit_us = period_us // self._upc
        tables = {v: [quota_payload(v, max(u, 1) * unit_us, period_us) for u in range(most + 1)] for v in (1, 2)}
        free = {v: [quota_payload(v, NO_LIMIT, period_us)] * (most + 1) for v in (1, 2)}
        apart = table.isolation != Isolation.SHARED
        self._quota_payloads = [(free if apart[i] else tables)[vm.quota.version] for i, vm in enumerate(vms)]
        self.apart: BoolArray = apart
        """(N,) VMs that own whole cores."""
        self._io_tables = {
            v: [[io_payload(v, d, int(rate * max(u, 1))) for u in range(IO_UNITS + 1)]
                for d, rate in zip(devices, self._rates, strict=True)] for v in (1, 2)
        }  # fmt: skip
        self._io_writes: list[list[tuple[int, list[bytes]]]] = [[] for _ in vms]
        self._quota_fds = [-1] * n
        self._paths: dict[int, str] = {}
        self._quota_read: dict[tuple[int, bytes, bytes], tuple[float, int]] = {}
        self._unsettled: tuple[list[int], list[int], list[int], bytes, list[int]] | None = None
        self._untraced: list[tuple[list[int], list[bytes], int]] = []
        self._period_lost: set[int] = set()
        """Rows whose period somebody else changed: seen when reading back, mended soon (v2) or with the next quota."""
        self.limits = Limits(np.full(n, np.inf), np.ones((n, topology.cpus), bool), np.full(n, np.inf))
        self._by_affinity: list[int] = []
        self.shelter = Shelter(self.limits.cpus, apart, self._put)
        self.trace: list[list[tuple[str, bytes]]] | None = None
        self.others: list[tuple[str, bytes]] = []
        """Calls of the same tick that somebody else made: they come behind ours in the trace."""
        for row in range(n):
            self.bind(row)

    def bind(self, row: int) -> None:
        """Write to the files that a VM has now."""
        vm = self._vms[row]
        self._io_writes[row] = [(knob.fd, self._io_tables[knob.version][d]) for knob, d in vm.io]
        self._quota_fds[row] = vm.quota.fd
        self._period_lost.discard(row)
        self.shelter.homeless.pop(row, None)
        self._paths |= {k.fd: k.path for k in (vm.quota, *vm.cpuset[:1], *(k for k, _ in vm.io))}
        self._by_affinity = [r for r, other in enumerate(self._vms) if not other.cpuset and not other.absent]
        self.limits.quota[row] = self.limits.io[row] = np.inf
        self.limits.cpus[row] = True

    def tend_children(self, row: int) -> None:
        """Look for cgroups that appeared below a VM's cpuset (v1: a hot-plugged vCPU has one) and move them along.

        Raises OSError.
        """
        vm = self._vms[row]
        if vm.children_changed():
            self.settle()
            vm.reopen_cpuset()
            data = self._lists.payload(self.limits.cpus[row].tobytes())
            write_cpus(vm, data, data, b"")

    def tend_period(self, row: int) -> None:
        """Write a shared VM's quota again where its period (v2) was found to be another. Raises OSError."""
        units, knob = self.limits.quota[row], self._vms[row].quota
        if row in self._period_lost and knob.version == 2 and np.isfinite(units):
            self._period_lost.discard(row)
            self._pwrite(knob.fd, self._quota_payloads[row][min(max(int(units), 1), self._top)], 0)

    def confine(self, row: int, cpus: BoolArray) -> None:
        """Keep a VM on ``cpus`` (C,), outside any plan. Raises OSError."""
        self.settle()
        if self._vms[row].cpuset:
            self.limits.cpus[row] |= cpus
        self._move_all(row, cpus, cpus.tobytes())

    def _put(self, row: int, cpus: BoolArray) -> bool:
        """Keep a VM on ``cpus`` without any note in ``limits``; return whether the kernel took it."""
        kept = self.limits.cpus[row].copy()
        try:
            self._move_all(row, cpus, cpus.tobytes())
        except OSError:
            return False  # it is gone, or reading it back says more
        finally:
            self.limits.cpus[row] = kept
        return True

    def apply(self, plan: Plan, deadline_ns: int, receipt: Receipt) -> None:
        """Write ``plan`` (see :class:`~foreshare.envs.hal.protocol.Actuation`).

        A VM that is gone fails as such and the plan goes on. After any other failure of a CPUS write the plan stops:
        what comes behind may hand out a core that was not given back. Other failures concern amounts, which no
        isolation hangs on, and the plan goes on.
        """
        receipt.clear()
        self.settle()
        self.shelter.make_way(plan)
        now, deadline = self._clock.now_ns, deadline_ns or 1 << 62
        controls, rows, values = plan.control.tolist(), plan.vm.tolist(), plan.value.tolist()
        raw_sets = plan.cpu_sets.tobytes()
        count, done, calls = len(controls), 0, 0
        while done < count and now() <= deadline:
            # Entries that are one plain write are gathered first and then written in a row: going back and forth
            # between Python and the kernel for each of them costs both their caches.
            fds, datas, owners, end = self._gather(controls, rows, values, raw_sets, done)
            sent, stopped = self._send(fds, datas, owners, controls, rows, deadline, receipt)
            calls += sent
            if self.trace is not None:
                self._untraced.append((fds, datas, sent))
            done = end if sent == len(fds) else owners[sent]
            if stopped:
                done = owners[sent - 1] + 1
                break
            if sent < len(fds) or done == count or now() > deadline:
                break
            try:
                calls += self._write_slowly(controls[done], rows[done], values[done], raw_sets)
            except OSError as error:
                if self._failed(error, done, controls[done], rows[done], receipt):
                    done += 1
                    break
            done += 1
        receipt.last_write_ns = now() if calls else 0
        receipt.done, receipt.system_calls = done, calls
        if count:
            # Worked into ``limits`` and the trace later: this is the timed part.
            self._unsettled = controls[:done], rows[:done], values[:done], raw_sets, [f.index for f in receipt.failures]
        self._confine_strays(receipt)

    def _gather(
        self, controls: list[int], rows: list[int], values: list[int], raw_sets: bytes, start: int
    ) -> tuple[list[int], list[bytes], list[int], int]:
        """Return (descriptors, payloads, plan entry of each, first entry not among them), from entry ``start`` on."""
        quota_fds, quotas, io_writes, vms = self._quota_fds, self._quota_payloads, self._io_writes, self._vms
        payload, width, top, lost = self._lists.payload, self._width, self._top, self._period_lost
        fds: list[int] = []
        datas: list[bytes] = []
        owners: list[int] = []
        for k in range(start, len(controls)):
            control, row, value = controls[k], rows[k], values[k]
            if control == _CPU:
                if row in lost and vms[row].quota.version == 1:
                    return fds, datas, owners, k
                fds.append(quota_fds[row])
                datas.append(quotas[row][value if 0 < value <= top else min(max(value, 1), top)])
                owners.append(k)
            elif control == _CPUS:
                knobs = vms[row].cpuset
                if len(knobs) != 1 or self.shelter.some_offline:
                    return fds, datas, owners, k
                fds.append(knobs[0].fd)
                datas.append(payload(raw_sets[value * width : (value + 1) * width]))
                owners.append(k)
            elif control == _IO:
                value = value if 0 < value <= IO_UNITS else min(max(value, 1), IO_UNITS)
                for fd, table in io_writes[row]:
                    fds.append(fd)
                    datas.append(table[value])
                    owners.append(k)
        return fds, datas, owners, len(controls)

    def _send(
        self, fds: list[int], datas: list[bytes], owners: list[int], controls: list[int], rows: list[int],
        deadline: int, receipt: Receipt,
    ) -> tuple[int, bool]:  # fmt: skip
        """Write in order until the deadline; return (how many were attempted, whether a failure forbids to go on)."""
        now, sent = self._clock.now_ns, 0
        while sent < len(fds):
            try:
                for _ in map(self._pwrite, fds[sent:], datas[sent:], repeat(0)):
                    sent += 1
                    if now() > deadline:
                        return sent, False
            except OSError as error:
                k = owners[sent]
                sent += 1
                if self._failed(error, k, controls[k], rows[k], receipt):
                    return sent, True
                if now() > deadline:
                    break
        return sent, False

    def _failed(self, error: OSError, index: int, control: int, row: int, receipt: Receipt) -> bool:
        """Note a failure; return whether what comes behind it may not be written."""
        gone = error.errno in GONE or self._vms[row].absent
        receipt.failures.append(WriteFailure(index, error.errno or 0, self._explain(control, row, error), gone))
        return control == _CPUS and not gone

    def _write_slowly(self, control: int, row: int, value: int, raw_sets: bytes) -> int:
        """Write an entry that is more than one plain write; return the number of system calls. Raises OSError."""
        if control == _CPUS:
            key = raw_sets[value * self._width : (value + 1) * self._width]
            cpus = np.frombuffer(key, bool)
            return self._move_all(row, cpus, key) if self.shelter.can_run(row, cpus) else 1
        self._period_lost.discard(row)
        put_bandwidth(self._vms[row].cpu, NO_LIMIT, self._period_us)
        self._pwrite(self._quota_fds[row], self._quota_payloads[row][min(max(value, 1), self._top)], 0)
        return 5

    def read_back(self, into: Placement, present: list[bool], rows: Iterable[int]) -> None:
        """Fill ``into`` with what the controls hold. A VM that is gone, or a file that fails, leaves its values."""
        self.settle()
        for row in rows:
            vm = self._vms[row]
            if not present[row]:
                continue
            try:
                self._read_cpus(row, vm)
                into.cpus[row] = self.limits.cpus[row]
                quota = self._read_quota(row, vm)
                self.limits.quota[row] = quota
                if quota == np.inf or (self.apart[row] and quota >= self._top):
                    quota = int(self.limits.cpus[row].sum()) * self._upc
                into.units[row, Resource.CPU] = quota
                into.units[row, [Resource.CACHE, Resource.MEMORY]] = 0
                into.ways[row] = 0
                if not vm.io:
                    into.units[row, Resource.IO] = 0
                if vm.io:
                    io = self._read_io(vm)
                    self.limits.io[row] = io
                    into.units[row, Resource.IO] = min(io, self._io_units)
            except OSError as error:
                if error.errno in GONE:
                    present[row] = False

    def describe(self, plan: Plan, root: str) -> list[str]:
        """Return one line for each write, with paths below ``root``."""
        return describe_writes(plan, root, self._vms, self._threads, self._lists, self._quota_payloads, self._io_writes)

    def _move_all(self, row: int, new: BoolArray, key: bytes) -> int:
        """Move a VM whose CPUs are more than one file: its threads one by one, or a v1 cpuset with others below it."""
        vm, held = self._vms[row], self.limits.cpus[row]
        if not vm.cpuset:
            ids = self._ids[new].tolist()
            if not ids:
                raise OSError(errno.EINVAL, "an affinity without CPUs")
            calls = self._threads[row].confine(ids)
            held[:] = new
            return calls
        data, union = self._lists.payload(key), self._lists.payload((held | new).tobytes())
        calls = 0
        try:
            calls = write_cpus(vm, data, union, self._lists.payload(held.tobytes()))
        except OSError as error:
            # EBUSY: a child that we do not know has some of the CPUs; EACCES: one has more than its parent, since
            # somebody else wrote it, or it was elsewhere for want of CPUs; GONE: one that we know went away. So look at
            # the tree again and grow it first, from what it has.
            if error.errno not in (errno.EBUSY, errno.EACCES) and error.errno not in GONE:
                raise
            try:
                vm.reopen_cpuset()
            except HostError as refused:
                raise OSError(errno.EACCES, str(refused)) from refused
            there = self._lists.row(first_line(os.pread(vm.cpuset[0].fd, 4096, 0)))[0]
            calls = 2 + write_cpus(vm, data, self._lists.payload((there | new).tobytes()), b"")
        held[:] = new
        return calls

    def _confine_strays(self, receipt: Receipt) -> None:
        """Confine what a rescan found. Where the kernel refuses, they stay strays and the next tick tries again."""
        for row in self._by_affinity:
            threads = self._threads[row]
            if threads.stray:
                self.settle()
                found = list(threads.stray)
                try:
                    receipt.system_calls += threads.confine(self._ids[self.limits.cpus[row]].tolist(), found)
                except OSError as error:
                    if error.errno not in GONE:
                        threads.stray += found

    def settle(self) -> None:
        """Work what the last plan wrote into ``limits``."""
        if self._unsettled is None:
            return
        if self.trace is not None:
            paths, batches = self._paths, self._untraced
            pairs = (pair for fds, datas, n in batches for pair in zip(fds[:n], datas[:n], strict=True))
            self.trace.append([*((paths[fd], data) for fd, data in pairs), *self.others])
        self._untraced = []
        controls, rows, values, raw_sets, failed = self._unsettled
        self._unsettled = None
        control, row, value = np.array(controls, np.int64), np.array(rows, np.int64), np.array(values, np.int64)
        ok = np.ones(len(control), bool)
        ok[failed] = False
        at = ok & (control == _CPU)
        units = np.clip(value[at], 1, self._top)
        self.limits.quota[row[at]] = np.where(self.apart[row[at]], np.inf, units)
        at = ok & (control == _CPUS)
        if at.any():
            self.limits.cpus[row[at]] = np.frombuffer(raw_sets, bool).reshape(-1, self._width)[value[at]]
        if self._io_units:
            at = ok & (control == _IO)
            self.limits.io[row[at]] = np.clip(value[at], 1, IO_UNITS)

    def _read_quota(self, row: int, vm: VmControls) -> float:
        data = os.pread(vm.quota.fd, 64, 0)
        period = os.pread(vm.period_fd, 32, 0) if vm.period_fd >= 0 else b""
        key = (vm.quota.version, data, period)
        found, period_us = self._quota_read.get(key, (0.0, 0))
        if not period_us:
            quota_us, period_us = parse_quota(vm.quota.version, data, int(first_line(period) or 0))
            found = np.inf if quota_us == NO_LIMIT else float(quota_us * self._upc // max(period_us, 1))
            if len(self._quota_read) > 1 << 14:
                self._quota_read.clear()
            self._quota_read[key] = found, period_us
        if period_us != self._period_us:
            self._period_lost.add(row)
        else:
            self._period_lost.discard(row)
        return found

    def _read_cpus(self, row: int, vm: VmControls) -> None:
        meanwhile = self.shelter.homeless.get(row)
        if vm.cpuset:
            data = first_line(os.pread(vm.cpuset[0].fd, 4096, 0))
            if meanwhile and self._lists.row(data)[0].tobytes() == meanwhile:
                return
            if data.strip() or vm.cpuset[0].version == 1:
                self.limits.cpus[row] = self._lists.row(data)[0]
            else:  # v2: nothing said means what the parent has
                self.limits.cpus[row] = True
            return
        masks = self._threads[row].affinity()
        if masks:
            found = np.isin(self._ids, list(frozenset[int]().union(*masks.values())))
            if found.tobytes() != meanwhile:
                self.limits.cpus[row] = found

    def _read_io(self, vm: VmControls) -> float:
        least = np.inf
        for knob, d in vm.io:
            data = os.pread(knob.fd, 1 << 14, 0)
            for key in (b"rbps", b"wbps")[: knob.version]:
                rate = parse_io_limit(knob.version, data, self._devices[d], key)
                if rate is not None:
                    # Rounded: the bytes were cut to whole ones when they were written.
                    least = min(least, float(round(rate / self._rates[d])))
        return least

    def _explain(self, control: int, row: int, error: OSError) -> str:
        vm = self._vms[row]
        where = vm.quota.path if control == _CPU else vm.cpuset[0].path if control == _CPUS and vm.cpuset else vm.cgroup
        lost = missing_above(vm) if control == _CPUS and error.errno == errno.EACCES else ""
        return f"{where}: {lost or error.strerror}"
