"""Sockets, NUMA nodes, cores and SMT siblings from sysfs, as the arrays that decisions run on.

Files: https://docs.kernel.org/admin-guide/cputopology.html and Documentation/ABI/stable/sysfs-devices-node.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np

from foreshare.policies.errors import HostError, InputError
from foreshare.policies.host import WHOLE_HOST, IntArray, Pool, Resource, Topology

from . import cpulist
from .roots import Roots, read_text

IO_UNITS = 100
MIN_QUOTA_US = 1000  # kernel/sched/core.c: min_cfs_quota_period is 1 ms, for the quota as for the period


@dataclass(frozen=True, kw_only=True, eq=False)
class CpuLayout:
    """The managed CPUs of this host. Index arrays are dense; ids are the kernel's."""

    cpu_id: IntArray
    """(C,) the kernel's CPU numbers, ascending."""
    core: IntArray
    """(C,) physical core, 0..K-1."""
    zone: IntArray
    """(C,) zone (NUMA node that has managed CPUs), 0..Z-1."""
    socket: IntArray
    """(C,) package, 0..S-1."""
    node_id: tuple[int, ...]
    """(Z,) the kernel's number of each zone's NUMA node."""
    online: frozenset[int]
    """Every online CPU, managed or not."""
    units_per_cpu: int

    def topology(self, io_bandwidth: float = 0.0) -> Topology:
        """Return the topology with its pools; ``io_bandwidth`` (bytes/s, all devices together) makes the IO pool.

        Cache and memory bandwidth have pools of no units: nothing here moves them.
        """
        pools: list[Pool] = []
        for z in range(len(self.node_id)):
            cpus = int((self.zone == z).sum())
            pools += [
                Pool(resource=Resource.CPU, zone=z, units=cpus * self.units_per_cpu, unit=unit_name(self.units_per_cpu),
                     unit_size=1 / self.units_per_cpu, measure="cpu"),
                Pool(resource=Resource.CACHE, zone=z, units=0, unit="way", unit_size=0.0, measure="B"),
                Pool(resource=Resource.MEMORY, zone=z, units=0, unit="B/s", unit_size=0.0, measure="B/s"),
            ]  # fmt: skip
        units = IO_UNITS if io_bandwidth > 0 else 0
        pools.append(
            Pool(resource=Resource.IO, zone=WHOLE_HOST, units=units, unit=f"1/{IO_UNITS} of the configured bandwidth",
                 unit_size=io_bandwidth / IO_UNITS, measure="B/s")
        )  # fmt: skip
        return Topology(
            cpu_id=self.cpu_id, core=self.core, zone=self.zone, units_per_cpu=self.units_per_cpu, pools=tuple(pools)
        )


def unit_name(units_per_cpu: int) -> str:
    """Return what one CPU unit is called."""
    return "CPU" if units_per_cpu == 1 else f"1/{units_per_cpu} CPU"


def discover(roots: Roots, *, cpus: frozenset[int] | None = None, units_per_cpu: int = 10) -> CpuLayout:
    """Return the online CPUs that are in ``cpus`` (None: all of them) and how they belong together.

    Raises HostError where sysfs names no CPU or none of ``cpus`` is online.
    """
    if units_per_cpu < 1:
        raise InputError(f"units_per_cpu must be at least 1, not {units_per_cpu}")
    base = f"{roots.sys}/devices/system"
    text = read_text(f"{base}/cpu/online")
    if text is None:
        raise HostError(f"{base}/cpu/online cannot be read: is sysfs mounted there?")
    online = cpulist.parse(text)
    managed = sorted(online if cpus is None else online & cpus)
    if not managed:
        asked = cpulist.form(cpus or ()) or "(none)"
        raise HostError(f"none of the CPUs {asked} is online on this host; online are {cpulist.form(online)}")
    node_of = _nodes(base)
    cores = [_siblings(base, cpu) for cpu in managed]
    sockets = [read_text(f"{base}/cpu/cpu{cpu}/topology/physical_package_id") or "0" for cpu in managed]
    nodes = [node_of.get(cpu, 0) for cpu in managed]
    node_id = tuple(sorted(set(nodes)))
    return CpuLayout(
        cpu_id=np.array(managed, np.int64), core=_dense(cores),
        zone=np.array([node_id.index(n) for n in nodes], np.int64),
        socket=_dense(sockets), node_id=node_id, online=online, units_per_cpu=units_per_cpu,
    )  # fmt: skip


def _siblings(base: str, cpu: int) -> str:
    # core_cpus_list is the name since Linux 5.3; thread_siblings_list the older one.
    for name in ("core_cpus_list", "thread_siblings_list"):
        text = read_text(f"{base}/cpu/cpu{cpu}/topology/{name}")
        if text:
            return text
    return str(cpu)


def _nodes(base: str) -> dict[int, int]:
    out: dict[int, int] = {}
    try:
        names = os.listdir(f"{base}/node")
    except OSError:
        return out  # a kernel without NUMA: one zone
    for name in names:
        if name.startswith("node") and name[4:].isdigit():
            for cpu in cpulist.parse(read_text(f"{base}/node/{name}/cpulist") or ""):
                out[cpu] = int(name[4:])
    return out


def _dense(keys: list[str]) -> IntArray:
    """Return a number for each key, in the order in which they first appear."""
    seen: dict[str, int] = {}
    return np.array([seen.setdefault(k, len(seen)) for k in keys], np.int64)
