"""What the VMs do, from counters that the host keeps: CPU time, throttling, run-queue wait, IO bytes.

Every file is open already; a sample is one pread for each. os.pread allocates a small bytes object, which measured
faster than os.preadv into a buffer and cutting it. Counters become rates in numpy, all VMs at once.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from foreshare.envs.hal.protocol import Clock
from foreshare.policies.host import BoolArray, FloatArray, IntArray, Resource, Topology
from foreshare.policies.reading import Quality, Reading

from .cgroups import GONE
from .controls import VmControls, field_after
from .threads import RunQueueWait, VmThreads

_USAGE, _THROTTLED, _READ, _WRITTEN, _STALL = range(5)
_NEAR_LIMIT = 0.95
_RESET, _CENSORED = np.uint8(Quality.RESET), np.uint8(Quality.CENSORED)
_CPU, _IO = int(Resource.CPU), int(Resource.IO)


@dataclass(slots=True, eq=False)
class Limits:
    """What the controls allow now, as last written or read back."""

    quota: FloatArray
    """(N,) CPU units; inf where there is no quota."""
    cpus: BoolArray
    """(N, C) managed CPUs that each VM may run on."""
    io: FloatArray
    """(N,) IO units; inf where there is no limit."""


class Sampler:
    """Reads all VMs once a tick."""

    def __init__(
        self, vms: list[VmControls], threads: list[VmThreads], topology: Topology, devices: list[str], limits: Limits,
        clock: Clock, *, waits: bool, settle: Callable[[], None],
        pread: Callable[[int, int, int], bytes] = os.pread,
    ) -> None:  # fmt: skip
        n = len(vms)
        self._vms, self._clock, self._limits = vms, clock, limits
        self._units_per_cpu = topology.units_per_cpu
        self._most = float(topology.cpus * topology.units_per_cpu)
        io = topology.pool(Resource.IO, 0)
        self._io_unit = io.unit_size if io.units else 0.0
        self._waits, self._settle, self._pread = waits, settle, pread
        self._queue = RunQueueWait(threads)
        self.present = [not vm.absent for vm in vms]
        self._last_ns = 0
        self._then: IntArray = np.full((n, 5), -1, np.int64)
        self._then_ns: IntArray = np.zeros(n, np.int64)
        self._wait: FloatArray = np.full(n, np.nan)
        v1, v2 = (b"\n%s Read ", b"\n%s Write "), (b"\n%s rbytes=", b" wbytes=")
        self._io_keys: dict[int, list[tuple[bytes, bytes]]] = {
            1: [(v1[0] % d.encode(), v1[1] % d.encode()) for d in devices],
            2: [(v2[0] % d.encode(), v2[1]) for d in devices],
        }

    def sample(self, reading: Reading) -> None:
        """Fill ``reading`` (see :class:`~foreshare.policies.reading.Reading`)."""
        self._settle()
        now = self._clock.now_ns
        t = now()
        reading.t_ns, reading.dt_ns = t, t - self._last_ns if self._last_ns else 0
        first, self._last_ns = not self._last_ns, t
        rows: list[list[int]] = []
        times: list[int] = []
        for i, vm in enumerate(self._vms):
            rows.append(self._read(i, vm) if self.present[i] else [-1] * 5)
            times.append(now())  # each VM has its own moment: 64 of them take a good part of a millisecond to read
        cur = np.array(rows, np.int64).reshape(len(rows), 5)
        at = np.array(times, np.int64)
        self._queue.sample(now, reading.dt_ns, self.present, self._wait)
        if not self._waits:
            self._wait.fill(np.nan)
        self._rates(reading, cur, at, first)
        self._then, self._then_ns = cur, at
        for i in self._queue.rescan(self.present):
            self.present[i] = False
        reading.present[:] = self.present

    def restart(self, row: int) -> None:
        """Start anew with a VM that lives elsewhere now: rates begin with its second reading."""
        self._then[row] = -1
        self._queue.restart(row)
        self.present[row] = True

    def _rates(self, reading: Reading, cur: IntArray, at: IntArray, first: bool) -> None:
        then = self._then
        known = (cur >= 0) & (then >= 0)
        delta = np.where(known, cur - then, 0).astype(np.float64)
        reset = known & (delta < 0)
        good = known & ~reset
        delta[~good] = np.nan
        dt = np.where(at > self._then_ns, at - self._then_ns, np.nan).astype(np.float64)
        if first:
            dt[:] = np.nan
        usage, low, limit, quality = reading.usage, reading.demand_low, reading.limit, reading.quality
        usage.fill(np.nan)
        low.fill(np.nan)
        limit.fill(np.nan)
        quality.fill(Quality.MISSING)
        reading.wait_ns[:] = self._wait
        self._cpu(reading, delta, dt, reset)
        if self._io_unit:
            # Reads and writes are limited apart, so a VM stands where its busier direction does.
            rate = np.fmax(delta[:, _READ], delta[:, _WRITTEN]) * 1e9 / dt / self._io_unit
            usage[:, _IO] = low[:, _IO] = rate
            limit[:, _IO] = self._limits.io
            found = ~np.isnan(rate)
            quality[found, _IO] = Quality.OK
            quality[reset[:, _READ] | reset[:, _WRITTEN], _IO] |= _RESET
            quality[found & (rate >= _NEAR_LIMIT * self._limits.io), _IO] |= _CENSORED

    def _cpu(self, reading: Reading, delta: FloatArray, dt: FloatArray, reset: BoolArray) -> None:
        per_cpu = self._units_per_cpu
        limits = self._limits
        limit = np.minimum(limits.quota, limits.cpus.sum(axis=1) * per_cpu)
        used = delta[:, _USAGE] / dt * per_cpu
        # A throttled thread also counts as waiting in schedstat (seen on Linux 6.18: both grew by the same), so the two
        # are not added: the larger one is what is known at least. The stall time of cpu.pressure stands in where
        # schedstat is not kept.
        waited = np.fmax(np.fmax(reading.wait_ns, delta[:, _THROTTLED]), delta[:, _STALL])
        waited[np.isnan(waited)] = 0.0
        reading.usage[:, _CPU] = used
        reading.demand_low[:, _CPU] = np.minimum(used + waited / dt * per_cpu, np.fmax(self._most, used))
        reading.limit[:, _CPU] = limit
        found = ~np.isnan(used)
        quality = reading.quality[:, _CPU]
        quality[found] = Quality.OK
        quality[reset[:, _USAGE]] |= _RESET
        throttled = np.nan_to_num(delta[:, _THROTTLED]) > 0
        quality[found & ((used >= _NEAR_LIMIT * limit) | throttled)] |= _CENSORED

    def _read(self, i: int, vm: VmControls) -> list[int]:
        out, pread = [-1, -1, -1, -1, -1], self._pread
        try:
            stat = pread(vm.stat_fd, 1024, 0)
            if vm.quota.version == 1:
                if vm.usage_unified:
                    usage_us = field_after(pread(vm.usage_fd, 1024, 0), b"usage_usec ")
                    out[_USAGE] = usage_us * 1000 if usage_us >= 0 else -1
                else:
                    out[_USAGE] = int(pread(vm.usage_fd, 32, 0))
                out[_THROTTLED] = field_after(stat, b"throttled_time ")
            else:
                usage_us, throttled_us = field_after(stat, b"usage_usec "), field_after(stat, b"throttled_usec ")
                out[_USAGE] = usage_us * 1000 if usage_us >= 0 else -1
                out[_THROTTLED] = throttled_us * 1000 if throttled_us >= 0 else -1
            if not self._waits and vm.pressure_fd >= 0:
                stall_us = field_after(pread(vm.pressure_fd, 128, 0), b" total=")
                out[_STALL] = stall_us * 1000 if stall_us >= 0 else -1
            if vm.io_group is not None:
                data = b"\n" + pread(vm.io_stat_fd, 1 << 14, 0)
                out[_READ], out[_WRITTEN] = self._io_bytes(vm.io_group.mount.version, data)
        except OSError as error:
            # Any other error leaves the values missing for this tick; the next one asks again.
            if error.errno in GONE:
                self.present[i] = False
        return out

    def _io_bytes(self, version: int, data: bytes) -> tuple[int, int]:
        """Return bytes read and written on all devices together; a device that is not listed has seen none."""
        read = written = 0
        for first, second in self._io_keys[version]:
            at = data.find(first)
            if at >= 0:
                read += max(field_after(data[at : at + 200], first), 0)
            if version == 1:
                written += max(field_after(data, second), 0)
            elif at >= 0:
                written += max(field_after(data[at : at + 200], second), 0)
        return read, written
