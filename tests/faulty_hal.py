"""A host on which everything may fail: every call with every errno that it may return, every reading in every way.

What it never does is to break what a backend promises (envs/hal/protocol.py, envs/hal/linux/actuation.py): a write that
fails changes nothing, and after a write of CPUs or ways that failed the plan stops, unless the VM is gone. Writes of
amounts may succeed without effect, or take effect a tick later.
"""

from __future__ import annotations

import errno

import numpy as np
from fake_hal import FakeHal
from hosts import apart

from foreshare.envs.hal import Plan, Receipt
from foreshare.envs.hal.types import Control, WriteFailure
from foreshare.envs.hal.virtual import VirtualClock
from foreshare.policies.errors import HalError
from foreshare.policies.host import CACHE, CPU, IO, MEMORY, Host, IntArray, Placement
from foreshare.policies.reading import Quality, Reading

READ = [errno.EACCES, errno.EAGAIN, errno.EBADF, errno.EINTR, errno.EINVAL, errno.EIO, errno.EISDIR, errno.ENODEV,
        errno.ENOENT, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EOPNOTSUPP, errno.EPERM]  # fmt: skip
"""pread(2), openat(2), and what kernfs, cgroup and resctrl files add."""
WRITE = [errno.EACCES, errno.EAGAIN, errno.EBADF, errno.EBUSY, errno.EDQUOT, errno.EFBIG, errno.EINTR, errno.EINVAL,
         errno.EIO, errno.ENOMEM, errno.ENOSPC, errno.EOPNOTSUPP, errno.EPERM, errno.EPIPE, errno.ERANGE]  # fmt: skip
"""pwrite(2) and sched_setaffinity(2) on VMs that are there."""
GONE = [errno.ENOENT, errno.ENODEV, errno.ESRCH]
_COLUMN = {int(Control.CPU): CPU, int(Control.MEMORY): MEMORY, int(Control.IO): IO}
_CPU, _WAYS = int(Control.CPU), int(Control.WAYS)


class FaultyHal(FakeHal):
    """See the module. ``rate``: how likely each kind of fault is, in each tick (or for each write)."""

    def __init__(self, host: Host, seed: int, rate: float = 0.01) -> None:
        super().__init__(host, lambda tick: 5.0)
        self.host, self.rate = host, rate
        self.clock = self.time = VirtualClock(10**9)
        self.rng = np.random.default_rng(seed)
        self.faults = 0
        self.overlaps = 0
        """Writes that made two VMs share what one of them has to itself; must stay 0."""
        self._level = np.full((len(host), 4), 5.0)
        self._late: list[tuple[int, int, int]] = []
        self._deaf = np.zeros(len(host), np.int64)
        """(N,) until which sample writes of amounts have no effect."""
        self._last: Reading | None = None
        self._apart = apart(host)

    def _happens(self, factor: float = 1.0) -> bool:
        hit = bool(self.rng.random() < factor * self.rate)
        self.faults += hit
        return hit

    def _raise(self, op: str, codes: list[int]) -> None:
        code = int(self.rng.choice(codes))
        if self.rng.random() < 0.5:
            raise OSError(code, "injected")
        raise HalError(op, "file", code, "injected")

    def sample(self, reading: Reading) -> None:
        rng, n = self.rng, len(self.vms)
        if self._happens(0.3):  # forward by up to ten seconds, or back by up to one
            self.time._now_ns = max(1, self.clock.now_ns() + int(rng.integers(-(10**9), 10**10)))
        for row in np.flatnonzero(rng.random(n) < 0.2 * self.rate):
            self.present[row] = not self.present[row]
            self.faults += 1
            if self.present[row]:  # a new VM: as found, it may run anywhere
                self.held.units[row] = self.held._pool[row] * [1, 0, 1, 1]
                self.held.cpus[row], self.held.ways[row] = True, 0
        self.held.present[:] = self.present
        late, self._late = self._late, []
        for row, column, value in late:
            if self.present[row] and not (column == CPU and self._apart[row]):
                self.held.units[row, column] = value
        if self._happens():
            self.samples += 1
            self._raise("sample", READ)
        moving = rng.random(n) < 0.2
        self._level[moving] = rng.uniform(0, 40, (int(moving.sum()), 1)) * [1.0, 0.1, 0.5, 0.6]
        self.demand = lambda tick: self._level
        super().sample(reading)
        self._lie(reading)

    def _lie(self, reading: Reading) -> None:
        """Let values vanish, stand still, or be impossible; let the clock of the reading stand or run wild."""
        rng = self.rng
        reading.dt_ns += int(rng.integers(-(10**5), 10**5))
        if self._happens(3):
            hit = rng.random(reading.usage.shape) < 0.3
            reading.usage[hit] = reading.demand_low[hit] = np.nan
            reading.quality[hit] = Quality.MISSING
        if self._happens():
            hit = rng.random(reading.usage.shape) < 0.2
            reading.usage[hit] = rng.choice([-1.0, np.inf, -np.inf, 1e30, 1e9, 1e300])
        if self._happens():
            reading.demand_low[rng.random(reading.usage.shape) < 0.2] = rng.choice([-1.0, np.inf, 1e30, np.nan])
        if self._happens():
            reading.wait_ns[:] = rng.choice([np.nan, -1.0, 1e18, np.inf])
        if self._happens() and self._last is not None:
            reading.usage[:], reading.demand_low[:] = self._last.usage, self._last.demand_low
            reading.quality[:] |= np.uint8(rng.choice([0, int(Quality.STALE)]))
        if self._happens():
            reading.quality[:] = rng.integers(0, 16, reading.quality.shape)
        if self._happens():
            reading.dt_ns = int(rng.choice([0, -5, 1, 10**15]))
        self._last = reading.copy()

    def _overlapping(self) -> int:
        """Count the pairs of present VMs of which one is apart and shares a core or a way with the other."""
        held = self.held
        shared = held.cpus.astype(np.int64) @ held.cpus.T.astype(np.int64) > 0  # one thread a core here
        shared |= (held.ways[:, None] & held.ways[None, :] != 0) & (self.vms.zone[:, None] == self.vms.zone[None, :])
        shared &= self._apart[:, None] & self.present[:, None] & self.present[None, :]
        np.fill_diagonal(shared, False)
        return int(shared.sum())

    def apply(self, plan: Plan, deadline_ns: int, receipt: Receipt) -> None:
        receipt.clear()
        rng = self.rng
        breaks = int(rng.integers(0, len(plan) + 1)) if self._happens() else -1
        stops = int(rng.integers(0, len(plan) + 1)) if self._happens(3) else -1  # out of time
        shared = self._overlapping()
        for i in range(len(plan)):
            if i == breaks:
                self._raise("apply", WRITE)
            if i == stops:
                return
            control, row = int(plan.control[i]), int(plan.vm[i])
            receipt.done = i + 1
            if not self.present[row]:
                receipt.failures.append(WriteFailure(i, int(rng.choice(GONE)), "gone", True))
                continue
            if self._happens():
                receipt.failures.append(WriteFailure(i, int(rng.choice(WRITE)), "injected"))
                if control not in _COLUMN:
                    return
                continue
            value = int(plan.value[i])
            if control in _COLUMN:
                if self._happens(0.2):
                    self._deaf[row] = self.samples + int(rng.integers(1, 30))
                if self.samples < self._deaf[row]:
                    continue
                if self._happens():
                    self._late.append((row, _COLUMN[control], value))
                    continue
                if control != _CPU or not self._apart[row]:
                    self.held.units[row, _COLUMN[control]] = value
                continue
            if control == _WAYS:
                self.held.ways[row], self.held.units[row, CACHE] = value, value.bit_count()
            else:
                self.held.cpus[row] = plan.cpu_sets[value]
                if self._apart[row]:
                    self.held.units[row, CPU] = int(plan.cpu_sets[value].sum()) * self.topology.units_per_cpu
            now = self._overlapping()
            self.overlaps += now > shared
            shared = now

    def read_back(self, into: Placement, rows: IntArray | None = None) -> None:
        if rows is not None and self._happens(0.5):
            self._raise("read_back", READ)
        every = np.arange(len(self.vms)) if rows is None else rows
        self.held.read_back(into, every[self.held.present[every]])
