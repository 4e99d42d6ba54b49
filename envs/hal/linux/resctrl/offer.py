"""From what resctrl has to the pools, ways and classes of a topology, each with its reason where there is nothing."""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from foreshare.envs.hal.linux.roots import Roots
from foreshare.envs.hal.linux.topology import CpuLayout
from foreshare.envs.hal.spec import VmSpec, resolve
from foreshare.policies.errors import HostError
from foreshare.policies.host import CACHE, IntArray, Isolation, Resource, Topology, VmTable

from .files import DIRECTORY, Files, OsFiles, find_mount
from .info import MBA_STEP_BYTES, CacheInfo, ResctrlInfo, domain_of_cpus, mount_options, read_info, way_bytes
from .masks import longest_run
from .names import PQOS, GroupNames
from .others import Others
from .spec import ResctrlSpec

NO_BANDWIDTH = (
    "no interface tells what the memory of a NUMA node can do, so one unit has no size: give memory_bandwidth in the"
    " configuration's [host.resctrl] table"
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Offer:
    """What can be handed out through the mount at ``info.path``."""

    info: ResctrlInfo
    groups: int
    """Groups that we may make: the kernel's classes less the default one and other tools'."""
    domain_id: IntArray
    """(D,) ids of the L3 domains that were online when this was read, ascending."""
    domain_zone: IntArray
    """(D,) zone of each; -1: none of the managed CPUs is in it."""
    domain_of_cpu: IntArray
    """(C,) index of the domain that each managed CPU is in; -1: none that was online."""
    taken: int
    """Ways, as the kernel counts them, that other tools' groups keep and that are planned around."""
    first_way: int
    """Lowest bit of the ways that are planned with; others are other tools'."""
    bits: int
    """How many these are, in a row. Masks are counted from ``first_way`` on, everywhere but in the kernel's files."""
    ways: int
    """Of these, ways that VMs can own; 0: see ``why_no_ways``."""
    shared_ways: int
    way_bytes: float
    """Bytes behind one way of one domain."""
    memory_units: int
    """Units of memory bandwidth in a zone; 0: see ``why_no_memory``."""
    split: int
    """Intel: so many units make a step of the hardware, where there are more VMs than steps."""
    memory_unit_bytes: float
    why_no_ways: str
    why_no_memory: str

    def kernel_value(self, units: int) -> int:
        """Return what the kernel is told for ``units`` of bandwidth (a class's sum), and will read back; 0: no limit.

        The kernel rounds up to its step (bw_validate() in fs/resctrl/ctrlmondata.c), so do we.
        """
        b = self.info.bandwidth
        if b is None:
            return 0
        if units <= 0:
            return b.most
        if not b.percent:
            return min(units, b.most)
        value = -(-units * b.step // self.split)
        return min(max(-(-value // b.step) * b.step, b.minimum), b.most)

    def units_of(self, value: int) -> int:
        """Return the units that a kernel value stands for, at most the zone's."""
        b = self.info.bandwidth
        if b is None or value >= b.most:
            return self.memory_units
        units = value * self.split // b.step if b.percent else value
        return max(min(units, self.memory_units), 1)

    def around(self, taken: int, least: int) -> Offer:
        """Return the same without the ways ``taken`` by other tools; itself where less than ``least`` were left to own.

        One that has no ways has none later either: what depends on that is laid out once.
        """
        cache = self.info.cache
        if cache is None or not self.ways:
            return self
        first, bits, ways = _line(cache, self.shared_ways, taken)
        if ways < max(least, cache.min_bits):
            return self
        return dataclasses.replace(self, taken=taken, first_way=first, bits=bits, ways=ways)

    def kernel_mask(self, mask: int) -> int:
        """Return what the kernel calls ``mask``."""
        return mask << self.first_way

    def moved(self, mask: int, to: Offer) -> int:
        """Return ``mask`` as ``to`` counts its ways; what is not on that one's line is left out."""
        return self.kernel_mask(mask) >> to.first_way & ((1 << to.bits) - 1)

    def our_masks(self, masks: IntArray) -> IntArray:
        """Return masks as we count them, with the bit above them where the kernel's go beyond; negative ones stay."""
        inside = (1 << self.bits) - 1
        beyond = (masks & ~(inside << self.first_way)) != 0
        return np.where(masks < 0, masks, (masks >> self.first_way & inside) | beyond.astype(np.int64) << self.bits)

    @property
    def divides(self) -> bool:
        """Whether limits are amounts (AMD) of which a zone's domains have one each."""
        b = self.info.bandwidth
        zones = self.domain_zone[self.domain_zone >= 0]
        return b is not None and not b.percent and len(np.unique(zones)) < len(zones)

    @property
    def memory_unit(self) -> str:
        """One unit, for people."""
        b = self.info.bandwidth
        if b is None or not b.percent:
            return "1/8 GB/s"
        return f"{b.step / self.split:g} % MBA"


def usable_offer(
    roots: Roots, layout: CpuLayout, spec: ResctrlSpec, vms_per_zone: int, *, writable: bool
) -> Offer | str:
    """Return what :func:`find_offer` does, or why nothing of it can be used.

    ``writable``: it is to be written, not only looked at. Raises HostError where the configuration insists on it.
    """
    offer = find_offer(roots, layout, spec, vms_per_zone)
    if isinstance(offer, Offer) and not offer.ways and not offer.memory_units:
        offer = f"{offer.why_no_ways}; {offer.why_no_memory}"
    if isinstance(offer, Offer) and writable:
        offer = why_unwritable(roots, offer.info.path) or offer
    if not isinstance(offer, Offer) and spec.use == "require":
        raise HostError(f"cache ways and memory bandwidth cannot be handed out: {offer}")
    return offer


def find_offer(roots: Roots, layout: CpuLayout, spec: ResctrlSpec, vms_per_zone: int = 0) -> Offer | str:
    """Return what resctrl offers to the managed CPUs, or one sentence that says why nothing.

    ``vms_per_zone``: so many VMs must get at least two units of memory bandwidth each.
    """
    if spec.use == "off":
        return "resctrl is switched off in the configuration"
    files = files_of(roots)
    try:
        path = find_mount(roots, files)
        info = read_info(files, path, mount_options(roots))
        others = _other_groups(files, info, GroupNames(spec.prefix))
    except HostError as error:
        return str(error)
    if info.cache is None and info.bandwidth is None:
        return f"resctrl at {path} has neither L3 allocation nor memory bandwidth allocation"
    groups = info.closids - 1 - len(others)
    if groups < 1:
        return f"all {info.closids - 1} resctrl groups of this host are taken, by {', '.join(sorted(others)[:4])}"
    return _make(roots, layout, spec, info, groups, vms_per_zone, others)


def files_of(roots: Roots) -> Files:
    """Return the calls that resctrl is driven through on these roots."""
    return OsFiles() if roots.resctrl is None else roots.resctrl


def why_unwritable(roots: Roots, path: str) -> str:
    """Return why nothing can be moved through the mount at ``path``: it belongs to root, and nobody delegates it."""
    if roots.resctrl is not None or os.access(f"{path}/schemata", os.W_OK):
        return ""
    return f"no permission to write below {path}: run as root"


def _other_groups(files: Files, info: ResctrlInfo, names: GroupNames) -> dict[str, int]:
    """Return the ways that each group of another tool keeps for itself. Raises HostError."""
    # pqos' groups cannot be told from ours where its prefix is used; the claim looks at them again.
    pqos = names.prefix == PQOS
    others = Others(files, info.cache, lambda name: names.ours(name) or (pqos and name.startswith(PQOS)))
    try:
        top = files.open(info.path, DIRECTORY)
        try:
            others.list(top)
            return dict(others.kept)
        finally:
            others.close()
            files.close(top)
    except OSError as error:
        raise HostError(f"{info.path}: {error.strerror}") from error


def _make(
    roots: Roots, layout: CpuLayout, spec: ResctrlSpec, info: ResctrlInfo, groups: int, vms_per_zone: int,
    others: dict[str, int],
) -> Offer:  # fmt: skip
    of_cpu = domain_of_cpus(roots, layout.cpu_id)
    domains = np.array(info.domains, np.int64)
    zone = np.full(len(domains), -1, np.int64)
    twice = False
    for cpu, z in zip(layout.cpu_id.tolist(), layout.zone.tolist(), strict=True):
        here = of_cpu.get(cpu, info.domains[0] if len(domains) == 1 else -1)
        at = np.flatnonzero(domains == here)
        twice |= bool(len(at)) and zone[at[0]] not in (-1, z)
        zone[at] = z
    index = {int(d): k for k, d in enumerate(domains)}
    blind = sorted(set(layout.zone.tolist()) - set(zone.tolist()))
    why = ""
    if twice:
        why = "NUMA nodes share an L3 domain here (sub-NUMA clustering), so its ways cannot be divided node by node"
    elif blind:
        why = f"sysfs does not tell which L3 domain the CPUs of zone {blind[0]} belong to"
    ways, shared, why_ways = 0, 0, why
    first, bits = 0, info.cache.bits if info.cache is not None else 0
    taken = functools.reduce(operator.or_, others.values(), 0)
    if info.cache is None:
        why_ways = "resctrl is mounted, but has no L3 allocation"
    elif not why:
        shared = max(spec.shared_ways, info.cache.min_bits)
        first, left, ways = _line(info.cache, shared, taken)
        if groups < 2 or ways < info.cache.min_bits:
            ways, shared, first = 0, 0, 0
            theirs = f"; groups of other tools keep the ways {taken:x}" if taken else ""
            why_ways = f"only {groups} resctrl groups and {left} ways are left: nothing to divide{theirs}"
        else:
            bits = left
    b = info.bandwidth
    why_memory = why or (b.why_not if b is not None else "resctrl is mounted, but has no memory bandwidth allocation")
    units, split, unit_bytes = 0, 1, 0.0
    if not why_memory and spec.memory_bandwidth is None:
        why_memory = NO_BANDWIDTH
    elif not why_memory and b is not None and spec.memory_bandwidth is not None:
        if b.percent:
            steps = b.most // b.step
            split = max(1, math.ceil(2 * vms_per_zone / steps))
            units, unit_bytes = steps * split, spec.memory_bandwidth / (steps * split)
        else:
            units, unit_bytes = int(spec.memory_bandwidth // MBA_STEP_BYTES), MBA_STEP_BYTES
    return Offer(
        info=info, groups=groups, domain_id=domains, domain_zone=zone, taken=taken,
        domain_of_cpu=np.array([index.get(of_cpu.get(c, -1), -1) for c in layout.cpu_id.tolist()], np.int64),
        first_way=first, bits=bits, ways=ways, shared_ways=shared,
        way_bytes=way_bytes(roots, int(layout.cpu_id[0]), info.cache.bits) if info.cache else 0.0,
        memory_units=units, split=split, memory_unit_bytes=unit_bytes, why_no_ways=why_ways, why_no_memory=why_memory,
    )  # fmt: skip


def _line(cache: CacheInfo, shared: int, taken: int) -> tuple[int, int, int]:
    """Return (lowest bit, how many in a row, how many of them VMs can own) of the ways that are not ``taken``."""
    free = longest_run(((1 << cache.bits) - 1) & ~taken)
    first, left = max((free & -free).bit_length() - 1, 0), free.bit_count()
    return first, left, _ownable(left, shared, cache.shareable >> first & ((1 << left) - 1))


def _ownable(bits: int, shared: int, shareable: int) -> int:
    """Return how many ways above the shared ones can be owned without touching those that IO agents fill.

    Where avoiding those would leave less than half (MPAM calls all of them shareable), they are owned too.
    """
    clean = shareable >> shared
    below = (clean & -clean).bit_length() - 1 if clean else bits - shared
    return below if 2 * below >= bits - shared else bits - shared


def with_offer(topology: Topology, offer: Offer) -> Topology:
    """Return ``topology`` with the pools, ways and classes of ``offer``."""
    pools = []
    for p in topology.pools:
        if p.resource == Resource.CACHE:
            pools.append(dataclasses.replace(p, units=offer.ways, unit_size=offer.way_bytes))
        elif p.resource == Resource.MEMORY and offer.memory_units:
            size = offer.memory_unit_bytes
            pools.append(dataclasses.replace(p, units=offer.memory_units, unit=offer.memory_unit, unit_size=size))
        else:
            pools.append(p)
    cache = offer.info.cache
    if not offer.ways or cache is None:
        return dataclasses.replace(topology, pools=tuple(pools))
    return dataclasses.replace(
        topology, pools=tuple(pools), ways=offer.ways, way_bits=offer.bits, shared_ways=offer.shared_ways,
        min_ways=cache.min_bits, max_classes=offer.groups,
    )  # fmt: skip


def contracts(
    specs: Sequence[VmSpec], whole: Topology, first: Offer | None, now: Offer | None
) -> tuple[Topology, VmTable, list[str]]:
    """Return (topology, contracts, what is wrong in words) with the ways of ``now``; ``whole`` has those of ``first``.

    Another line of ways is another topology, even with as many.
    """
    if now is None or now is first:
        return whole, resolve(specs, whole), []
    topology = with_offer(whole, now)
    if now.ways >= whole.ways:
        return topology, resolve(specs, topology), []
    asked = resolve(specs, whole)
    vms = _fit(topology, asked)
    cut = "" if vms is asked else ", less than VMs reserve"
    return topology, vms, [f"resctrl groups of other tools keep the ways {now.taken:x}: VMs have {now.ways}{cut}"]


def _fit(topology: Topology, vms: VmTable) -> VmTable:
    """Return the contracts with reservations of ways cut to what is left, shared VMs' first and security's last.

    The largest is cut first. An isolated VM keeps ``min_ways``, which the caller has made sure that there are.
    """
    least, own = topology.min_ways, vms.reservation[:, CACHE].copy()
    floor = np.where(vms.isolation != Isolation.SHARED, least, 0)
    for zone in np.unique(vms.zone).tolist():
        for kind in Isolation:
            while _needed(own, floor, least)[vms.zone == zone].sum() > topology.ways:
                rows = np.flatnonzero((vms.zone == zone) & (vms.isolation == kind) & (own > floor)).tolist()
                if not rows:
                    break
                row = max(rows, key=lambda r: (int(own[r]), int(vms.rank[r])))
                own[row] = own[row] - 1 if own[row] > least else 0
    if (own == vms.reservation[:, CACHE]).all():
        return vms
    reservation = vms.reservation.copy()
    reservation[:, CACHE] = own
    return dataclasses.replace(vms, reservation=reservation)


def _needed(own: IntArray, floor: IntArray, least: int) -> IntArray:
    return np.where(own > 0, np.maximum(own, least), floor)
