"""What a user says about finding VMs, and what is found."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from foreshare.envs.hal.spec import Amounts
from foreshare.policies.errors import InputError

MOST_SPARE = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class DiscoverySpec:
    """Where to look for VMs that are named by their UUID. Raises InputError."""

    libvirt: str = "qemu:///system"
    """URI of the libvirt that runs them; empty: do not ask it."""
    processes: bool = True
    """Look among the processes for QEMU started with ``-uuid`` too."""
    all_domains: bool = False
    """Manage every domain that libvirt knows at the start, also those that nobody names."""
    reservation: Amounts = field(default_factory=Amounts)
    """What each of those is promised."""
    spare: int = 0
    """Rows kept free for VMs that nobody names and that start later: domains, and QEMU processes with ``processes``."""
    wait: bool = False
    """Wait for a VM whose configured cgroup is not there yet; otherwise that is an error."""
    timeout_ms: float = 2000.0
    """A call of libvirt that takes longer is given up, with the process that made it."""

    def __post_init__(self) -> None:
        if not 0 <= self.spare <= MOST_SPARE:
            raise InputError(f"discovery can keep 0 to {MOST_SPARE} rows free, not {self.spare}")
        if not (math.isfinite(self.timeout_ms) and 10 <= self.timeout_ms <= 60_000):
            raise InputError(f"discovery's timeout must be 10 to 60000 ms, not {self.timeout_ms}")


@dataclass(frozen=True, slots=True)
class Domain:
    """One VM as libvirt describes it."""

    uuid: str
    name: str
    """For people."""
    number: int
    """libvirt's id of this run of it; -1: it does not run."""
    vcpus: int
    disks: tuple[str, ...]
    """Files and devices behind its disks."""
    nics: tuple[str, ...]
    """The host's ends of its network interfaces."""
    moving: bool = False
    """It migrates, or is being saved: a job of libvirt's is at work on it."""


@dataclass(frozen=True, slots=True)
class Found:
    """All that is known at one moment."""

    version: int = 0
    """Grows with every change."""
    homes: Mapping[str, str] = field(default_factory=dict)
    """By UUID: cgroup of the VMs that run, as a configuration would name it."""
    domains: tuple[Domain, ...] = ()
    trouble: str = ""
    """Why libvirt does not answer; empty if it does or is not asked."""
    asked: bool = False
    """libvirt has answered, or given up, at least once; likewise the process table."""
