"""What backends without hardware share: a clock that jumps, and a record of what each VM was given.

:class:`HeldPlacement` refuses what a kernel would refuse, so that a plan which works here works there.
"""

from __future__ import annotations

import errno
import os

import numpy as np

from foreshare.policies import kernel
from foreshare.policies.errors import HalError
from foreshare.policies.host import BoolArray, FloatArray, IntArray, Isolation, Placement, Resource, Topology, VmTable
from foreshare.policies.reading import Quality, Reading

from .plan import compiled_plan
from .types import Control, Plan, Receipt, WriteFailure

_COLUMN = {Control.CPU: Resource.CPU, Control.MEMORY: Resource.MEMORY, Control.IO: Resource.IO}


def blank(reading: Reading) -> None:
    """Mark every value of ``reading`` as missing."""
    reading.usage[:] = reading.demand_low[:] = reading.limit[:] = np.nan
    reading.wait_ns[:] = np.nan
    reading.quality[:] = Quality.MISSING


class VirtualClock:
    """Time that passes only when somebody sleeps."""

    def __init__(self, start_ns: int) -> None:
        self._now_ns = start_ns

    def now_ns(self) -> int:
        """Return the virtual time, nanoseconds."""
        return self._now_ns

    def sleep_until(self, t_ns: int) -> None:
        """Jump to ``t_ns``; time never goes back."""
        self._now_ns = max(self._now_ns, t_ns)


class HeldPlacement:
    """The controls of N VMs as numbers. As found, nobody is limited and all share the cache."""

    def __init__(self, topology: Topology, vms: VmTable) -> None:
        n = len(vms)
        self._topology, self._vms = topology, vms
        self._pool: IntArray = np.array(
            [[topology.pool(r, int(z)).units for r in Resource] for z in vms.zone], np.int64
        ).reshape(n, len(Resource))
        self._isolated: BoolArray = vms.isolation != Isolation.SHARED
        self.units: IntArray = np.zeros((n, len(Resource)), np.int64)
        """(N, R): the CPU quota of shared VMs, the CPUs of isolated ones, ways owned, bandwidths."""
        self.cpus: BoolArray = np.zeros((n, topology.cpus), bool)
        self.ways: IntArray = np.zeros(n, np.int64)
        self.present: BoolArray = np.ones(n, bool)
        self.gained: IntArray = np.zeros((n, len(Resource)), np.int64)
        """(N, R) units that the newest plan gave to VMs which did not hold them; whoever takes note sets it to 0."""
        self.claimed = False
        self._head = np.array(
            (n, topology.cpus, topology.min_ways, topology.way_bits, topology.units_per_cpu), np.int64
        )
        self._before = np.zeros(n, np.int64)
        self.reset()

    def reset(self) -> None:
        """Put everything back as it was found."""
        self.units[:] = self._pool
        self.units[:, Resource.CACHE] = 0
        self.cpus[:] = True
        self.ways[:] = 0
        self.gained[:] = 0
        self.claimed = False

    def apply(self, plan: Plan, receipt: Receipt, now_ns: int) -> None:
        """Carry out a whole plan at ``now_ns``; the last write to a knob wins. Raises HalError before ``claim``."""
        if not self.claimed:
            raise HalError("apply", "plan", errno.EPERM, "the controls have not been claimed")
        count = receipt.done = receipt.system_calls = len(plan)
        if not count:
            return
        receipt.last_write_ns = now_ns
        if kernel.compiled is not None and compiled_plan is not None:
            refused = np.empty(count, bool)
            if compiled_plan.carry_out(
                self._head, self._pool, self._isolated, self.present, plan.control, plan.vm, plan.value, plan.cpu_sets,
                self.units, self.cpus, self.ways, self.gained, refused, self._before,
            ):  # fmt: skip
                self._note(plan, refused, receipt)
            return
        refused = self._refused(plan)
        if refused.any():
            self._note(plan, refused, receipt)
        self._carry_out(plan, ~refused)

    def _note(self, plan: Plan, refused: BoolArray, receipt: Receipt) -> None:
        """Put refused writes into the receipt."""
        gone = ~self.present[plan.vm]
        for i in np.flatnonzero(refused):
            code = errno.ENOENT if gone[i] else errno.EINVAL
            receipt.failures.append(WriteFailure(int(i), code, os.strerror(code), bool(gone[i])))

    def _carry_out(self, plan: Plan, keep: BoolArray) -> None:
        control, vm, value = plan.control[keep], plan.vm[keep], plan.value[keep]
        # Numpy assigns repeated indices in order: the last write of a VM's knob is the one that stays.
        for knob, column in _COLUMN.items():
            chosen = control == knob
            if knob == Control.CPU:
                chosen &= ~self._isolated[vm]  # they own their cores and have no quota
            self.units[vm[chosen], column] = value[chosen]
        chosen = control == Control.WAYS
        if chosen.any():
            rows = vm[chosen]
            before = self.ways[rows]
            self.ways[rows] = value[chosen]
            after = self.ways[rows]
            self.units[rows, Resource.CACHE] = np.bitwise_count(after)
            self.gained[rows, Resource.CACHE] = np.bitwise_count(after & ~before)
        chosen = control == Control.CPUS
        if chosen.any():
            rows = vm[chosen]
            held = self.cpus[rows]
            self.cpus[rows] = plan.cpu_sets[value[chosen]]
            now = self.cpus[rows]
            per_cpu = self._topology.units_per_cpu
            own = self._isolated[rows]
            self.units[rows[own], Resource.CPU] = now[own].sum(axis=1) * per_cpu
            self.gained[rows[own], Resource.CPU] = (now[own] & ~held[own]).sum(axis=1) * per_cpu

    def in_force(self) -> FloatArray:
        """Return (N, R) the units that the controls let VMs have: a quota buys no more than the CPUs of its set."""
        out = np.empty(self.units.shape)
        if kernel.compiled is not None and compiled_plan is not None:
            compiled_plan.in_force(self._head, self.present, self.units, self.cpus, out)
            return out
        np.multiply(self.units, self.present[:, None], out=out)
        within = self.cpus.sum(axis=1) * self._topology.units_per_cpu
        np.minimum(out[:, Resource.CPU], within, out=out[:, Resource.CPU])
        return out

    def _refused(self, plan: Plan) -> BoolArray:
        """Return (K,) the writes that a kernel would refuse."""
        t = self._topology
        control, vm, value = plan.control, plan.vm, plan.value
        refused = ~self.present[vm] | (value < 0)
        amounts = (control != Control.WAYS) & (control != Control.CPUS)
        column = np.where(control == Control.CPU, Resource.CPU, control - 1)  # MEMORY and IO are one on
        column[~amounts] = 0
        refused |= amounts & (value > self._pool[vm, column])
        ways = control == Control.WAYS
        if ways.any():
            low = np.maximum(value, 0) & -np.maximum(value, 0)
            broken = (value & (value + low)) != 0  # a gap: adding the lowest bit must clear the run
            few = (value != 0) & (np.bitwise_count(np.maximum(value, 0)) < t.min_ways)
            refused |= ways & (broken | few | (value >> t.way_bits != 0))
        sets = control == Control.CPUS
        if sets.any():
            index = np.where(sets & (value < len(plan.cpu_sets)), value, -1)
            empty = ~plan.cpu_sets[index].any(axis=1) if len(plan.cpu_sets) else np.ones(len(plan), bool)
            refused |= sets & ((index < 0) | empty)
        return np.asarray(refused)

    def read_back(self, into: Placement, rows: IntArray | None = None) -> None:
        """Copy what the controls hold into ``rows`` of ``into`` (all if None)."""
        at: slice | IntArray = slice(None) if rows is None else rows
        into.units[at] = self.units[at]
        into.cpus[at] = self.cpus[at]
        into.ways[at] = self.ways[at]

    def describe(self, plan: Plan) -> list[str]:
        """Return one line for each write of ``plan``, for people."""
        out = []
        for control, vm, value in zip(plan.control, plan.vm, plan.value, strict=True):
            name = self._vms.name[vm]
            match Control(int(control)):
                case Control.CPUS:
                    cpus = self._topology.cpu_id[plan.cpu_sets[value]]
                    what = f"CPUs {','.join(str(c) for c in cpus)}"
                case Control.WAYS:
                    what = f"ways {value:#x}" if value else "the shared class's ways"
                case knob:
                    pool = self._topology.pool(_COLUMN[knob], int(self._vms.zone[vm]))
                    what = f"{pool.resource.name.lower()} {value} x {pool.unit}"
            out.append(f"give {name!r} {what}")
        return out
