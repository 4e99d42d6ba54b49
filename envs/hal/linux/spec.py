"""What a user says about a linux host: which VMs, which CPUs, which disks."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from typing import Literal

from foreshare.envs.hal.spec import VmSpec
from foreshare.policies.errors import HostError, InputError

from .cpu_partitions import PartitionMode
from .discovery.spec import DiscoverySpec
from .memory_nodes import MemoryNodes
from .resctrl.spec import ResctrlSpec
from .roots import Roots
from .topology import MIN_QUOTA_US

PlacementMode = Literal["auto", "cpuset", "affinity"]
CoreScheduling = Literal["off", "auto"]


@dataclass(frozen=True, kw_only=True, slots=True)
class IoDevice:
    """One block device whose bandwidth is shared out."""

    device: str
    """"254:0", or a path such as "/dev/vda". A whole disk: the kernel limits no partitions."""
    bandwidth_bytes: float
    """Bytes per second in each direction: io.max and blkio.throttle limit reads and writes apart."""

    def number(self, roots: Roots) -> str:
        """Return "MAJ:MIN". Raises HostError where there is no such disk, InputError where the bandwidth is none."""
        if not math.isfinite(self.bandwidth_bytes) or self.bandwidth_bytes <= 0:
            raise InputError(f"IO device {self.device}: bandwidth must be above 0 bytes/s, not {self.bandwidth_bytes}")
        major, colon, minor = self.device.partition(":")
        if colon and major.isdigit() and minor.isdigit():
            number = f"{int(major)}:{int(minor)}"
        elif self.device.startswith("/"):
            try:
                status = os.stat(self.device)
            except OSError as error:
                raise HostError(f"IO device {self.device}: {error.strerror}") from error
            number = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
        else:
            raise InputError(f"IO device {self.device!r} is neither MAJ:MIN nor a path such as /dev/vda")
        known = f"{roots.sys}/dev/block/{number}"
        if not os.path.isdir(known):
            raise HostError(f"IO device {self.device}: the kernel has no block device {number}")
        if os.path.exists(f"{known}/partition"):
            raise HostError(f"IO device {self.device} is a partition; limits work on the whole disk: name that")
        return number


@dataclass(frozen=True, kw_only=True, slots=True)
class LinuxSpec:
    """A host as its owner describes it; :class:`~foreshare.envs.hal.linux.hal.LinuxHal` makes it real."""

    vms: tuple[VmSpec, ...]
    cpus: frozenset[int] | None = None
    """CPUs that may be handed out; None: every online one."""
    placement: PlacementMode = "auto"
    """What keeps VMs on their CPUs: cpuset, sched_setaffinity of each thread, or cpuset where it works."""
    cpu_partitions: PartitionMode = "off"
    """Whether isolated VMs' cpusets (v2) become partitions, so that nothing else on the host runs on their cores."""
    core_scheduling: CoreScheduling = "off"
    """Whether isolated VMs each get a core-scheduling cookie of their own: off, or auto where the kernel can."""
    memory_nodes: MemoryNodes = "auto"
    """Whether isolated VMs' memory is bound to their zone's NUMA node when they are taken in; see memory_nodes.py."""
    io: tuple[IoDevice, ...] = ()
    units_per_cpu: int = 10
    discovery: DiscoverySpec = field(default_factory=DiscoverySpec)
    """How VMs without a ``cgroup`` are found by their ``uuid``; nobody is asked where there are none."""
    resctrl: ResctrlSpec = field(default_factory=ResctrlSpec)
    """How cache ways and memory bandwidth are driven."""
    period_us: int = 10_000
    """Quota period. One unit is then period_us / units_per_cpu of quota, at least the kernel's minimum of 1 ms."""

    def __post_init__(self) -> None:
        if not MIN_QUOTA_US <= self.period_us <= 1_000_000:
            raise InputError(f"period_us must be 1000 to 1000000 (the kernel's limits), not {self.period_us}")
        if self.units_per_cpu < 1 or self.period_us % self.units_per_cpu:
            raise InputError(f"units_per_cpu must divide period_us ({self.period_us}); {self.units_per_cpu} does not")
        if self.period_us // self.units_per_cpu < MIN_QUOTA_US:
            raise InputError(
                f"one CPU unit would be {self.period_us // self.units_per_cpu} us of quota in {self.period_us} us; the"
                f" kernel's least is {MIN_QUOTA_US}: take fewer units_per_cpu or a longer period_us"
            )
        if self.cpu_partitions not in ("off", "root", "isolated"):
            raise InputError(f"cpu_partitions must be off, root or isolated, not {self.cpu_partitions!r}")
        if self.core_scheduling not in ("off", "auto"):
            raise InputError(f"core_scheduling must be off or auto, not {self.core_scheduling!r}")
        if self.memory_nodes not in ("off", "auto", "bind"):
            raise InputError(f"memory_nodes must be off, auto or bind, not {self.memory_nodes!r}")
        if self.placement not in ("auto", "cpuset", "affinity"):
            raise InputError(f"placement must be auto, cpuset or affinity, not {self.placement!r}")
