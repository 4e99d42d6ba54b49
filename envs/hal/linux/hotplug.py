"""CPUs that go offline and come back: what is left is handed out anew, and nobody is left where he must not be.

A v2 cpuset keeps the CPUs that it was told; one of which none is online falls back to its parent's CPUs, isolated VMs'
among them (compute_effective_cpumask() and hotplug_update_tasks() in kernel/cgroup/cpuset.c). v1 takes a CPU out of
every cpuset and does not put it back. Nothing is assumed of a CPU that left: should it return, all is planned anew.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable

import numpy as np

from foreshare.envs.hal.types import Control, Plan
from foreshare.policies.errors import CapacityError, InputError
from foreshare.policies.host import CPU, BoolArray, Host, IntArray, Isolation, Pool, Resource, Topology, VmTable

from . import cpulist
from .allowed import Allowed
from .roots import Roots

SCATTERED_TICKS = 500


class Processors:
    """Which of the managed CPUs are online, and not other programs' alone."""

    def __init__(self, roots: Roots, cpu_id: IntArray, allowed: Allowed) -> None:
        self._ids, self.allowed = cpu_id.tolist(), allowed
        self.online: BoolArray = np.ones(len(self._ids), bool)
        """(C,); replaced when it changes."""
        self.kept: frozenset[int] = frozenset()
        """CPUs that are online and other programs' alone."""
        try:
            self._fd = os.open(f"{roots.sys}/devices/system/cpu/online", os.O_RDONLY | os.O_CLOEXEC)
            self._texts = os.pread(self._fd, 4096, 0), *allowed.texts()
        except OSError:
            self._fd = -1

    def changed(self) -> bool:
        """Look; return whether a managed CPU went or came. One system call, and one for each cgroup above VMs."""
        if self._fd < 0:
            return False
        try:
            texts = os.pread(self._fd, 4096, 0), *self.allowed.texts()
            if texts == self._texts:
                return False
            there = cpulist.parse(texts[0].decode("ascii", "replace"))
            theirs = self.allowed.cpus(texts[1:])
        except (OSError, InputError):
            return False
        self._texts = texts
        self.kept = there.intersection(self._ids) - (there if theirs is None else theirs)
        there -= self.kept
        online = np.array([cpu in there for cpu in self._ids], bool)
        same, self.online = bool((online == self.online).all()), online
        return not same

    def lines(self) -> list[str]:
        """Return a line about CPUs that are kept from us."""
        who = "are kept by a cpuset of another program: they count as offline"
        return [f"CPUs {cpulist.form(self.kept)} {who}"] if self.kept else []

    def close(self) -> None:
        """Close the files; closing twice is fine."""
        self.allowed.close()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class Shelter:
    """Keeps VMs of whose CPUs none is left where no isolated VM is.

    For everybody else such a VM stays where it was put: ``cpus`` (N, C) are what each was given. ``put`` moves a VM
    without any note there and returns whether the kernel took it.
    """

    def __init__(self, cpus: BoolArray, apart: BoolArray, put: Callable[[int, BoolArray], bool]) -> None:
        self._cpus, self._apart, self._put = cpus, apart, put
        self._online: BoolArray = np.ones(cpus.shape[1], bool)
        self.some_offline = False
        self.homeless: dict[int, bytes] = {}
        """Their rows, and where they are meanwhile (C booleans; empty: not moved yet)."""
        self.scattered: dict[int, int] = {}
        """Rows of VMs that had no CPU left: for so many ticks their threads may yet turn up elsewhere (cgroup v1)."""

    def hotplug(self, online: BoolArray, present: list[bool]) -> None:
        """Take note of the managed CPUs (C,) that are online now."""
        self._online, self.some_offline = online.copy(), not online.all()
        for row in np.flatnonzero(present).tolist():
            if not (self._cpus[row] & online).any():
                self.homeless.setdefault(row, b"")
                self.scattered[row] = SCATTERED_TICKS
            elif self.homeless.pop(row, None) is not None:
                self._put(row, self._cpus[row].copy())
        self.make_way()

    def can_run(self, row: int, cpus: BoolArray) -> bool:
        """Return whether a VM finds a CPU online among ``cpus``, which it is given; if not, it is sheltered."""
        if (cpus & self._online).any():
            self.homeless.pop(row, None)
            return True
        self._cpus[row] = cpus
        self.homeless.setdefault(row, b"")
        self.make_way()
        return False

    def make_way(self, plan: Plan | None = None) -> None:
        """Keep the homeless off the CPUs that isolated VMs have, or are given by ``plan``."""
        if not self.homeless:
            return
        owners = [row for row in np.flatnonzero(self._apart).tolist() if row not in self.homeless]
        taken = self._cpus[owners].any(axis=0)
        if plan is not None:
            given = (plan.control == Control.CPUS) & np.isin(plan.vm, owners)
            taken |= plan.cpu_sets[plan.value[given]].any(axis=0)
        free = self._online & ~taken
        free = free if free.any() else self._online
        for row, where in self.homeless.items():
            if where != free.tobytes() and self._put(row, free):
                self.homeless[row] = free.tobytes()

    def troubles(self, names: list[str]) -> list[str]:
        """Return a line for each VM that is where it should not be."""
        return [f"VM {names[row]!r} has no CPU left: it runs where no isolated VM does" for row in self.homeless]


def without_offline(whole: Topology, vms: VmTable, online: BoolArray) -> tuple[Topology, VmTable, list[str]]:
    """Return (topology, contracts, what is wrong in words) of a host of which the CPUs ``online`` (C,) are left.

    No array changes its length: a CPU that is offline is a core by itself in a zone of its own, where no VM lives.
    Where reservations do not fit any more, shared VMs' are cut in proportion, to one unit at least. A zone that has not
    even room for those and for the isolated VMs' cores stays as it was: there is nothing to plan in it.
    """
    said: list[str] = []
    usable, reservation = online.copy(), vms.reservation.copy()
    for zone in np.unique(whole.zone[~online]).tolist():
        here = whole.zone == zone
        lost = cpulist.form(whole.cpu_id[here & ~online].tolist())
        fits = _fit(_cut(whole, usable), vms, zone, reservation)
        if fits is None:
            usable |= here
            said.append(f"CPUs {lost} of zone {zone} are offline, and its VMs do not fit into what is left")
        else:
            cut = "; reservations of CPU are cut to what is left" if fits else ""
            said.append(f"CPUs {lost} of zone {zone} are offline{cut}")
    topology = whole if usable.all() else _cut(whole, usable)
    table = vms if (reservation == vms.reservation).all() else dataclasses.replace(vms, reservation=reservation)
    try:
        Host(topology, table)
    except CapacityError as error:
        return whole, vms, [*said, str(error)]
    return topology, table, said


def _cut(whole: Topology, usable: BoolArray) -> Topology:
    away = np.flatnonzero(~usable)
    if not len(away):
        return whole
    zone, core = whole.zone.copy(), whole.core.copy()
    nowhere = whole.zones
    zone[away] = nowhere
    core[away] = int(core.max()) + 1 + np.arange(len(away))
    core = np.unique(core, return_inverse=True)[1].astype(np.int64)
    pools = [
        dataclasses.replace(p, units=int((zone == p.zone).sum()) * whole.units_per_cpu) if p.resource == CPU else p
        for p in whole.pools
    ]
    pools += [
        Pool(resource=p.resource, zone=nowhere, units=0, unit=p.unit, unit_size=p.unit_size, measure=p.measure)
        for p in whole.pools if p.zone == 0 and p.resource != Resource.IO
    ]  # fmt: skip
    return dataclasses.replace(whole, core=core, zone=zone, pools=tuple(pools))


def _fit(topology: Topology, vms: VmTable, zone: int, reservation: IntArray) -> bool | None:
    """Cut CPU reservations of ``zone`` in place where need be; return whether it was, None where nothing helps."""
    here = topology.zone == zone
    size = np.bincount(topology.core)
    per_core = topology.units_per_cpu * topology.threads_per_core
    whole = int((size[np.unique(topology.core[here])] == topology.threads_per_core).sum())
    apart = (vms.zone == zone) & (vms.isolation != Isolation.SHARED)
    shared = np.flatnonzero((vms.zone == zone) & ~apart)
    cores = int((-(-np.maximum(reservation[apart, CPU], 1) // per_core)).sum())
    left = int(here.sum()) * topology.units_per_cpu - cores * per_core
    if cores > whole or left < len(shared):
        return None
    owed = np.maximum(reservation[shared, CPU], 1)
    if owed.sum() <= left:
        return False
    reservation[shared, CPU] = 1 + (owed - 1) * (left - len(shared)) // int((owed - 1).sum())
    return True
