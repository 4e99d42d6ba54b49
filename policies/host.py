"""What is partitioned, and between whom: resources, topology, the VMs' contracts, and the arrays that decisions run on.

Shapes used everywhere: ``N`` VMs, ``R`` = 4 resources in the order of :class:`Resource`, ``C`` managed logical CPUs,
``Z`` zones. Amounts are counted in **units**, the smallest piece of a resource that can change hands on this host
(:class:`Pool` says how much one is). A *zone* is a NUMA node: its cores, the L3 domains in it and the memory behind it.
Every VM lives in one zone; IO bandwidth belongs to the whole host.

One host or many: a simulator runs copies of a host side by side, whose VMs have the same contracts but each a demand of
its own. Such a **batch** is a :class:`Host` with ``batch = (H,)``; what varies has (H, N, R) then, what is agreed stays
(N, R). Everything that judges counts axes from the end and works on either, so that what trains is what ships.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from .errors import CapacityError, InputError

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]


class Resource(IntEnum):
    """The four resources, in the order of every (N, R) array."""

    CPU = 0
    CACHE = 1
    MEMORY = 2
    IO = 3


CPU, CACHE, MEMORY, IO = (int(r) for r in Resource)
"""The same as plain integers: looking a member up in an IntEnum takes a microsecond, and a tick does it forty times."""
R = len(Resource)
RESOURCES = tuple(r.name.lower() for r in Resource)
WHOLE_HOST = -1
TARGET_MS = 100.0
"""Latency target of a VM whose owner names none."""


class Isolation(IntEnum):
    """How far a VM is kept from its neighbours.

    SHARED: slices of CPUs and, where it has none of its own, the ways that nobody owns. ISOLATED: whole physical cores
    and ways that nobody else touches. SECURITY: as ISOLATED, and its partition never moves: moving leaks demand.
    """

    SHARED = 0
    ISOLATED = 1
    SECURITY = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Pool:
    """One resource of one zone (or of the whole host): how many units there are and what one unit is."""

    resource: Resource
    zone: int
    """Zone index, or WHOLE_HOST."""
    units: int
    """Units that can be handed out; 0 where nothing can move."""
    unit: str
    """One unit, for people: "1/10 CPU", "way", "10 % MBA"."""
    unit_size: float
    """One unit in ``measure``: CPUs, bytes or bytes per second."""
    measure: str
    """"cpu", "B" or "B/s"."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Topology:
    """The hardware that foreshare may hand out. Index arrays are dense; ``cpu_id`` holds the kernel's numbers."""

    cpu_id: IntArray
    """(C,) the kernel's CPU numbers, ascending."""
    core: IntArray
    """(C,) physical core of each CPU, 0..K-1; SMT siblings share one."""
    zone: IntArray
    """(C,) zone of each CPU, 0..Z-1."""
    units_per_cpu: int
    """CPU units in one logical CPU."""
    pools: tuple[Pool, ...]
    """One for each zone and resource, and IO for the whole host."""
    ways: int = 0
    """Ways that can be handed out in each zone's L3 domains, the shared class's own left out; 0 where none can move."""
    way_bits: int = 0
    """Bits in a way mask. ``ways`` + ``shared_ways`` <= ``way_bits``."""
    shared_ways: int = 0
    """Ways, at the low end of the mask, that always stay with the shared class."""
    min_ways: int = 1
    """Fewest ways that a mask may have."""
    max_classes: int = 0
    """Cache classes (CLOSIDs), the shared one included; 0 where ways cannot move."""

    def __post_init__(self) -> None:
        for name in ("cpu_id", "core", "zone"):
            if getattr(self, name).shape != self.cpu_id.shape:
                raise InputError(f"topology: {name} has shape {getattr(self, name).shape}, cpu_id {self.cpu_id.shape}")

    @property
    def cpus(self) -> int:
        """C, the number of managed logical CPUs."""
        return len(self.cpu_id)

    @property
    def zones(self) -> int:
        """Z, the number of zones."""
        return int(self.zone.max()) + 1 if len(self.zone) else 0

    @property
    def threads_per_core(self) -> int:
        """SMT siblings in one core (the most found)."""
        return int(np.bincount(self.core).max()) if len(self.core) else 1

    def pool(self, resource: Resource, zone: int) -> Pool:
        """Return the pool that a VM of ``zone`` draws ``resource`` from. Raises InputError where there is none."""
        for p in self.pools:
            if p.resource == resource and p.zone in (zone, WHOLE_HOST):
                return p
        raise InputError(f"no {resource.name.lower()} pool in zone {zone}")

    def movable(self) -> BoolArray:
        """(R,) whether anything of each resource can change hands."""
        out = np.zeros(R, bool)
        for p in self.pools:
            out[p.resource] |= p.units > 0
        return out


@dataclass(frozen=True, kw_only=True, eq=False)
class VmTable:
    """The VMs' contracts, one row each. Rows may stand in any order: answers follow the rows, ties follow ``rank``."""

    uuid: tuple[str, ...]
    name: tuple[str, ...]
    """For people only; may hold anything, so it never enters a path or a label."""
    priority: IntArray
    """(N,) higher is more important."""
    isolation: IntArray
    """(N,) of :class:`Isolation`."""
    zone: IntArray
    """(N,) home zone."""
    reservation: IntArray
    """(N, R) units that the VM is always given back at once."""
    cap: IntArray
    """(N, R) units that the VM may never exceed."""
    target_ms: FloatArray = field(default_factory=lambda: np.zeros(0))
    """(N,) latency within which the VM's requests are to be done; TARGET_MS where its owner says nothing."""
    still: BoolArray = field(default_factory=lambda: np.zeros(0, bool))
    """(N,) VMs that hold exactly their reservation for now (one that migrates: what it had); default: none."""
    rank: IntArray = field(init=False)
    """(N,) position by UUID: breaks ties, whatever order the rows have."""

    def __post_init__(self) -> None:
        n = len(self.uuid)
        if not len(self.target_ms):
            object.__setattr__(self, "target_ms", np.full(n, TARGET_MS))
        if not len(self.still):
            object.__setattr__(self, "still", np.zeros(n, bool))
        if len(set(self.uuid)) != n:
            raise InputError("two VMs have the same UUID")
        for name, shape in (
            ("priority", (n,)),
            ("isolation", (n,)),
            ("zone", (n,)),
            ("reservation", (n, R)),
            ("cap", (n, R)),
            ("target_ms", (n,)),
            ("still", (n,)),
        ):
            if getattr(self, name).shape != shape:
                raise InputError(f"VM table: {name} has shape {getattr(self, name).shape}, expected {shape}")
        rank = np.empty(n, np.int64)
        rank[np.argsort(np.array(self.uuid, dtype=np.str_), kind="stable")] = np.arange(n)
        object.__setattr__(self, "rank", rank)

    def __len__(self) -> int:
        return len(self.uuid)

    def take(self, rows: IntArray) -> VmTable:
        """Return the table with only ``rows``, in that order."""
        return VmTable(
            uuid=tuple(self.uuid[i] for i in rows), name=tuple(self.name[i] for i in rows),
            priority=self.priority[rows], isolation=self.isolation[rows], zone=self.zone[rows],
            reservation=self.reservation[rows], cap=self.cap[rows], target_ms=self.target_ms[rows],
            still=self.still[rows],
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Group:
    """VMs and resources that draw on the same pools. Allocators solve each group on its own.

    A one-zone host has one group that is a view of everything; with Z zones there are Z for CPU, cache and memory and
    one for IO.
    """

    rows: slice | IntArray
    cols: slice
    capacity: IntArray
    """(columns,) units."""

    def block(self, array: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        """Return ``array`` (N, R) cut to this group: a view where the rows are a slice."""
        return array[self.rows, self.cols]


@dataclass(frozen=True, eq=False)
class Host:
    """A topology and the VMs on it, checked, with every bound as an (N, R) array in units.

    Raises CapacityError when the reservations, raised to what an active VM needs at least, exceed a pool.
    """

    topology: Topology
    vms: VmTable
    active: BoolArray = field(default_factory=lambda: np.ones(0, bool))
    """(N,) VMs that are there; the others hold nothing and are owed nothing. Default: all."""
    batch: tuple[int, ...] = ()
    """How many copies of this host are decided about side by side: () for one, (H,) for a batch."""
    movable: BoolArray = field(init=False)
    """(R,) resources that have units."""
    granule: IntArray = field(init=False)
    """(N, R) units change hands in multiples of this: whole cores for isolated VMs."""
    floor: IntArray = field(init=False)
    """(N, R) fewest units an active VM may hold: nobody ever has zero CPU, memory or IO bandwidth."""
    reservation: IntArray = field(init=False)
    """(N, R) reservations, at least ``floor``, in granules; 0 where nothing moves."""
    cap: IntArray = field(init=False)
    """(N, R) caps, at least ``reservation``, in granules; 0 where nothing moves."""
    groups: tuple[Group, ...] = field(init=False)
    coarse: IntArray = field(init=False)
    """Rows whose CPU comes in whole cores; every other granule is one unit."""

    def __post_init__(self) -> None:
        t, v = self.topology, self.vms
        n = len(v)
        put = object.__setattr__
        movable = t.movable()
        put(self, "movable", movable)
        if not len(self.active):
            put(self, "active", np.ones(n, bool))
        if self.active.shape != (n,):
            raise InputError(f"host: active has shape {self.active.shape}, expected {(n,)}")
        here = self.active[:, None]
        if n and (v.zone.min() < 0 or v.zone.max() >= max(t.zones, 1)):
            raise InputError("a VM names a zone that the host does not have")
        apart = v.isolation != Isolation.SHARED
        granule = np.ones((n, R), np.int64)
        granule[apart, Resource.CPU] = t.units_per_cpu * t.threads_per_core
        floor = np.ones((n, R), np.int64)
        floor[:, Resource.CACHE] = np.where(apart, t.min_ways, 0)
        floor[:, Resource.CPU] = granule[:, Resource.CPU]
        floor *= movable & here
        reservation = _ceil_to(np.maximum(v.reservation, floor), granule) * (movable & here)
        if t.min_ways > 1:
            own = reservation[:, Resource.CACHE]
            own[(own > 0) & (own < t.min_ways)] = t.min_ways
        size = np.array([[t.pool(r, int(z)).units for r in Resource] for z in v.zone], np.int64).reshape(n, R)
        cap = np.minimum(np.maximum(v.cap, reservation), np.maximum(size, reservation))
        cap = np.maximum(cap // granule * granule, reservation) * (movable & here)
        narrow = cap[:, Resource.CACHE]
        narrow[narrow < t.min_ways] = 0  # no mask is that small: such a VM can only be in the shared class
        fixed = v.still | (v.isolation == Isolation.SECURITY)
        cap[fixed] = reservation[fixed]
        for name, value in (("granule", granule), ("floor", floor), ("reservation", reservation), ("cap", cap)):
            value.setflags(write=False)
            put(self, name, value)
        put(self, "groups", _groups(t, v))
        put(self, "coarse", np.flatnonzero(granule[:, CPU] > 1))
        self._check()

    def _check(self) -> None:
        t = self.topology
        for g in self.groups:
            need = np.asarray(g.block(self.reservation)).sum(axis=0)
            for j, r in enumerate(list(Resource)[g.cols]):
                if need[j] > g.capacity[j]:
                    zone = int(self.vms.zone[g.rows][0])
                    p = t.pool(r, zone)
                    raise CapacityError(
                        f"reservations of {r.name.lower()} need {need[j]} units ({p.unit}) in zone {zone},"
                        f" it has {p.units}"
                        " (every VM holds at least one unit, isolated VMs whole cores)"
                    )
        own = int((self.reservation[:, Resource.CACHE] > 0).sum())
        if t.max_classes and own > t.max_classes - 1:
            raise CapacityError(
                f"{own} VMs reserve ways of their own, the hardware has {t.max_classes - 1} classes for them"
            )

    def __len__(self) -> int:
        return len(self.vms)

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, R) or (H, N, R): the shape of what varies."""
        return (*self.batch, len(self.vms), R)


def entitled_units(ask: FloatArray, host: Host) -> IntArray:
    """Return what each VM must be given, whatever is proposed, if it asks for ``ask`` (..., N, R).

    That is ``min(ask, reservation)`` in whole granules, at least the floor; NaN counts as the reservation.
    """
    wanted = np.fmin(ask, host.reservation)  # fmin passes over NaN
    wanted -= 1e-9
    np.ceil(wanted, out=wanted)
    need: IntArray = wanted.astype(np.int64)
    np.maximum(need, host.floor, out=need)
    if len(host.coarse):
        granule = host.granule[host.coarse, CPU]
        need[..., host.coarse, CPU] = -(-need[..., host.coarse, CPU] // granule) * granule
    if host.topology.min_ways > 1:
        own = need[..., CACHE]
        own[(own > 0) & (own < host.topology.min_ways)] = host.topology.min_ways
    return need


def _ceil_to(x: IntArray, step: IntArray) -> IntArray:
    return -(-x // step) * step


def _groups(t: Topology, v: VmTable) -> tuple[Group, ...]:
    def size(resource: Resource, zone: int) -> int:
        return t.pool(resource, zone).units

    if t.zones <= 1:
        return (Group(rows=slice(None), cols=slice(0, R), capacity=np.array([size(r, 0) for r in Resource], np.int64)),)
    near = [Resource.CPU, Resource.CACHE, Resource.MEMORY]
    out = [
        Group(rows=np.flatnonzero(v.zone == z), cols=slice(0, len(near)),
              capacity=np.array([size(r, z) for r in near], np.int64))
        for z in range(t.zones) if (v.zone == z).any()
    ]  # fmt: skip
    io = np.array([size(Resource.IO, 0)], np.int64)
    return (*out, Group(rows=slice(None), cols=slice(int(Resource.IO), R), capacity=io))


@dataclass(slots=True, eq=False)
class Placement:
    """What every VM holds: unit counts, and which CPUs and ways. One VM a row; buffers are reused by their owner."""

    units: IntArray
    """(N, R) units."""
    cpus: BoolArray
    """(N, C) whether the VM may run on each managed CPU (index, not kernel number); (N, 0) in a batch: not tracked."""
    ways: IntArray
    """(N,) bit mask of the VM's own ways; 0 means the shared class."""

    @classmethod
    def empty(cls, n: int, cpus: int, batch: tuple[int, ...] = ()) -> Placement:
        """Return a placement in which nobody holds anything."""
        return cls(
            np.zeros((*batch, n, R), np.int64), np.zeros((n, 0 if batch else cpus), bool),
            np.zeros((*batch, n), np.int64),
        )  # fmt: skip

    def copy_from(self, other: Placement) -> None:
        """Take over every value of ``other`` (same shapes)."""
        self.units[:] = other.units
        self.cpus[:] = other.cpus
        self.ways[:] = other.ways

    def copy(self) -> Placement:
        """Return an independent copy."""
        return Placement(self.units.copy(), self.cpus.copy(), self.ways.copy())
