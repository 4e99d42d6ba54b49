"""Isolated VMs' cores taken from everybody else on the host too: cpuset partitions of cgroup v2.

A shared VM never runs on an isolated VM's cores because its cpuset says so; what is no VM of ours still may. A cpuset
that is a partition takes its CPUs out of its parent. The kernel accepts the write and may read "root invalid (reason)"
afterwards, or later, when a hot-plug or a sibling breaks it (Documentation/admin-guide/cgroup-v2.rst,
cpuset.cpus.partition), so what counts is what is read back. Slow, hence never part of a plan.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from foreshare.policies.host import BoolArray

from .controls import VmControls, first_line

PartitionMode = Literal["off", "root", "isolated"]
FILE = "cpuset.cpus.partition"
TURN_TICKS = 10
RETRY_TICKS = 500


class CpuPartitions:
    """Makes and watches the partitions of one host's isolated VMs."""

    def __init__(self, controls: list[VmControls], apart: BoolArray, mode: PartitionMode) -> None:
        self._controls, self._mode = controls, mode
        self._rows: list[int] = np.flatnonzero(apart).tolist() if mode != "off" else []
        self._tick = 0
        self._again = dict.fromkeys(self._rows, 0)
        self.why_not = dict.fromkeys(self._rows, "")
        """By row: why a VM has no partition, in the kernel's words; empty where it has one, or none was tried yet."""
        self.breaches = 0
        """Partitions that were valid and became invalid."""
        self._valid: set[int] = set()

    def tend(self, present: list[bool], cpus: BoolArray) -> None:
        """Look after some of the VMs; ``cpus`` (N, C) are those that each may use now."""
        self._tick += 1
        for row in self._rows[self._tick % TURN_TICKS :: TURN_TICKS]:
            vm = self._controls[row]
            if not present[row] or not vm.cpuset or vm.cpuset[0].version == 1:
                self.why_not[row] = "" if not present[row] else "cgroup v1 has no partitions"
                continue
            state = self._state(vm)
            if state == "member" and self._tick >= self._again[row] and self._alone(row, present, cpus):
                self._write(row, self._mode)
                state = self._state(vm)
            if state == self._mode:
                self._valid.add(row)
                self.why_not[row] = ""
            elif "invalid" in state:
                self.breaches += row in self._valid
                self._valid.discard(row)
                self.why_not[row] = state
                self._again[row] = self._tick + RETRY_TICKS
                self._write(row, "member")  # half a partition bounds its neighbours and protects nobody

    def _alone(self, row: int, present: list[bool], cpus: BoolArray) -> bool:
        """Return whether a VM has CPUs of its own and leaves some to others."""
        others = np.array(present)
        others[row] = False
        return bool(cpus[row].any() and not cpus[row].all() and not (cpus[others] & cpus[row]).any())

    def _state(self, vm: VmControls) -> str:
        data = vm.cpuset_tree[0].read(FILE)
        return "not there" if data is None else first_line(data).decode("ascii", "replace").strip()

    def _write(self, row: int, state: str) -> None:
        try:
            self._controls[row].cpuset_tree[0].write(FILE, state.encode() + b"\n")
        except OSError as error:
            self.why_not[row] = f"{FILE}: {error.strerror}"
            self._again[row] = self._tick + RETRY_TICKS
