"""What passes between the loop and a backend besides readings: controls, plans, receipts."""

from __future__ import annotations

import errno
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from foreshare.policies.host import BoolArray, IntArray


class Control(IntEnum):
    """The knobs of one VM. Each write of a plan turns one knob of one VM."""

    CPUS = 0
    """Which logical CPUs it may run on."""
    CPU = 1
    """How much CPU time it may use (shared VMs; isolated ones own their cores and have no quota)."""
    WAYS = 2
    """Which cache ways it may fill; mask 0 puts it into the shared class."""
    MEMORY = 3
    """Memory bandwidth."""
    IO = 4
    """IO bandwidth."""


@dataclass(slots=True, eq=False)
class Plan:
    """Writes in the order in which they must happen: donors before receivers, so that any prefix of it is safe."""

    control: npt.NDArray[np.int8]
    """(K,) of :class:`Control`."""
    vm: IntArray
    """(K,) row of the VM."""
    value: IntArray
    """(K,) units for CPU, MEMORY and IO; a way mask for WAYS; a row of ``cpu_sets`` for CPUS."""
    cpu_sets: BoolArray
    """(M, C) sets of managed CPUs (by index), referred to by CPUS writes."""
    whole: bool = False
    """Its last write leaves every control where it should be; False: writes that had to wait are left out."""

    def __len__(self) -> int:
        return len(self.control)


@dataclass(slots=True)
class WriteFailure:
    """One write that the kernel refused."""

    index: int
    """Position in the plan."""
    errno: int
    text: str
    gone: bool = False
    """The VM is no longer there (ENOENT, ENODEV, ESRCH): not an error, drop it."""

    @property
    def deferred(self) -> bool:
        """Whether it was not refused but has to wait: no time was left, another tool holds a lock."""
        return self.errno in (errno.EAGAIN, errno.EWOULDBLOCK)


@dataclass(slots=True)
class Receipt:
    """What became of a plan."""

    done: int = 0
    """Writes attempted, from the start of the plan; those behind it did not fit into the budget."""
    system_calls: int = 0
    last_write_ns: int = 0
    """Monotonic time at which the last write returned; 0 if there was none."""
    failures: list[WriteFailure] = field(default_factory=list)

    def clear(self) -> None:
        """Make ready for the next plan."""
        self.done = self.system_calls = self.last_write_ns = 0
        self.failures.clear()


@dataclass(frozen=True, slots=True, kw_only=True)
class Capability:
    """What one host can do about one resource, for ``doctor`` and for whoever opens a backend."""

    measure: bool
    move: bool
    interface: str
    """Through which kernel interface it would be moved (or measured, if only that): "cgroup v1 cpuset + cpu"."""
    unit: str
    """One unit, for people; empty where nothing moves."""
    units: int
    why_not: str
    """Empty when it can be measured and moved; else one sentence that says what is missing and what would help."""
