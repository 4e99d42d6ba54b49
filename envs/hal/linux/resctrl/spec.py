"""What a user says about cache ways and memory bandwidth."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from foreshare.policies.errors import InputError

from .names import GroupNames

UseMode = Literal["auto", "off", "require"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ResctrlSpec:
    """How resctrl is driven. Raises InputError."""

    use: UseMode = "auto"
    """auto: where it is mounted and something is left; require: refuse to start otherwise."""
    prefix: str = "foreshare-"
    memory_bandwidth: float | None = None
    """Bytes per second of one NUMA node's memory; None: memory bandwidth is not moved, for nothing tells what it is."""
    shared_ways: int = 1
    """Ways that no VM ever owns."""
    quarantine_ms: float = 0.0
    """How long a way that leaves an isolated VM rests with nobody."""
    moves_per_s: int = 200
    """Most threads that change their class in a second, where there are more VMs than classes."""
    confine_host: bool = False
    """Keep everything that is no VM of ours out of the VMs' ways too: narrows the default group, a file not ours."""
    monitor_ms: float = 100.0
    """Time between two readings of the kernel's monitoring files."""

    def __post_init__(self) -> None:
        GroupNames(self.prefix)
        if self.use not in ("auto", "off", "require"):
            raise InputError(f"resctrl must be auto, off or require, not {self.use!r}")
        b = self.memory_bandwidth
        if b is not None and not (math.isfinite(b) and b > 0):
            raise InputError(f"memory_bandwidth must be above 0 bytes/s, not {b}")
        if not 1 <= self.shared_ways <= 31:
            raise InputError(f"shared_ways must be 1 to 31, not {self.shared_ways}")
        if not 0 <= self.quarantine_ms <= 60_000:
            raise InputError(f"quarantine_ms must be 0 to 60000, not {self.quarantine_ms}")
        if not 1 <= self.moves_per_s <= 1_000_000 or not 10 <= self.monitor_ms <= 10_000:
            raise InputError("moves_per_s must be 1 to 1000000, monitor_ms 10 to 10000")
