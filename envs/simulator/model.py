"""A scenario as the arrays that the simulator computes with, and as the topology and contracts that policies see.

Needs are in **unit-ticks**: the units of a resource that serving one request per tick keeps busy. One division by a
need then turns an allocation into requests per tick, for every resource alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from foreshare.envs.hal.spec import VmSpec
from foreshare.policies.errors import CapacityError
from foreshare.policies.host import (
    WHOLE_HOST,
    FloatArray,
    IntArray,
    Isolation,
    Pool,
    R,
    Resource,
    Topology,
    VmTable,
)

from .cache import miss_ratio, ways_needed
from .life import most_vcpus
from .scenario import HostShape, Scenario
from .workloads import mean_io_factor
from .zones import ZoneSums, homes

STREAM_MISS = 0.95
"""Miss ratio of streaming workloads, at least."""
RATES = (Resource.CPU, Resource.MEMORY, Resource.IO)


def topology_of(host: HostShape) -> Topology:
    """Return the topology of a simulated host, CPUs numbered zone by zone and core by core."""
    cpus = host.cores * host.threads_per_core
    per_cpu = host.units_per_cpu
    index = np.arange(cpus, dtype=np.int64)
    unit = "CPU" if per_cpu == 1 else f"1/{per_cpu} CPU"
    pools = []
    for z in range(host.zones):
        pools += [
            Pool(resource=Resource.CPU, zone=z, units=cpus * per_cpu // host.zones, unit=unit, unit_size=1 / per_cpu,
                 measure="cpu"),
            Pool(resource=Resource.CACHE, zone=z, units=host.ways - host.shared_ways, unit="way",
                 unit_size=host.way_bytes, measure="B"),
            Pool(resource=Resource.MEMORY, zone=z, units=host.memory_units // host.zones, unit=host.memory_unit,
                 unit_size=host.memory_unit_bytes, measure="B/s"),
        ]  # fmt: skip
    pools.append(
        Pool(resource=Resource.IO, zone=WHOLE_HOST, units=host.io_units, unit=host.io_unit,
             unit_size=host.io_unit_bytes, measure="B/s")
    )  # fmt: skip
    return Topology(
        cpu_id=index, core=index // host.threads_per_core, zone=index * host.zones // cpus, units_per_cpu=per_cpu,
        pools=tuple(pools), ways=host.ways - host.shared_ways, way_bits=host.ways, shared_ways=host.shared_ways,
        min_ways=host.min_ways, max_classes=host.classes,
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class HostModel:
    """Constants of one host, (N,) or (N, R) float64. ``Simulator`` broadcasts them over its hosts."""

    topology: Topology
    vms: VmTable
    capacity: FloatArray
    """(R,) units that exist on the whole host; ways include the shared class's."""
    home: FloatArray
    """(N, R) units that exist where each VM lives: in its zone, of IO on the host."""
    rate: FloatArray
    """(N,) mean requests per tick."""
    base: FloatArray
    """(N, R) unit-ticks of a request: CPU without misses, memory if every access missed, IO; cache column 0."""
    stall: FloatArray
    miss: FloatArray
    """(4, N) parameters of the miss-ratio curve: none, all, half_ways, steepness."""
    need_ways: FloatArray
    """(N,) ways at which more would hardly help."""
    fill_ways: FloatArray
    """(N,) ways that the VM fills if it gets them."""
    inflate: FloatArray
    """(N,) what the counters show relative to what is used: above 1 for VMs that lie."""
    threads: FloatArray
    """(N,) units of CPU that the VM's vCPUs can use at once, at the start."""
    target_ticks: IntArray
    isolated: FloatArray
    """(N,) 1 for VMs with cores of their own."""
    request_spread: FloatArray
    """(N,) ``1 + cv^2`` of a request's work where requests come at random, 0 where work flows evenly (requests.py)."""

    def need_at(self, misses: FloatArray, mix: FloatArray | float = 1.0) -> FloatArray:
        """Return the (..., N, R) unit-ticks of a request at a miss ratio (..., N); cache column 0."""
        need = np.array(np.broadcast_to(self.base, (*misses.shape, R)))
        need[..., Resource.CPU] *= 1.0 + self.stall * misses
        need[..., Resource.MEMORY] *= misses
        need *= mix
        return need


def build_model(scenario: Scenario, *, tick_ms: float) -> HostModel:
    """Resolve a scenario. Raises CapacityError where its VMs cannot all have what they need at least."""
    h, shapes = scenario.host, scenario.vm
    n = len(shapes)
    topology = topology_of(h)
    tick_s = tick_ms / 1000.0
    capacity = np.array([topology.pool(r, 0).units for r in Resource], np.float64)
    capacity[Resource.CACHE] = h.ways
    home = np.broadcast_to(capacity, (n, R)).copy()
    capacity[:] = capacity * [h.zones, h.zones, h.zones, 1]
    zone = homes(h, shapes)
    neighbours = np.bincount(zone, minlength=h.zones)[zone]
    here = ZoneSums(zone, h.zones)

    def column(name: str) -> FloatArray:
        return np.array([getattr(v, name) for v in shapes], np.float64).reshape(n)

    # CPU time with the sibling busy; while it is not, a request takes less (siblings.py).
    speed = h.smt_yield / 2.0 if h.threads_per_core == 2 else 1.0
    base = np.zeros((n, R))
    base[:, Resource.CPU] = column("cpu_ms") / 1000.0 / tick_s / speed * h.units_per_cpu
    base[:, Resource.MEMORY] = column("access_kb") * 1000.0 / tick_s / h.memory_unit_bytes
    base[:, Resource.IO] = column("io_kb") * 1000.0 / tick_s / h.io_unit_bytes
    curve = [[getattr(v.miss, k) for v in shapes] for k in ("none", "all", "half_ways", "steepness")]
    miss = np.array(curve, np.float64).reshape(4, n)
    stall = column("stall")
    # A stream is read once: it misses whatever it holds, and fills whatever it gets.
    stream = np.array([v.workload.kind == "streaming" for v in shapes], bool).reshape(n)
    miss[:2, stream] = np.maximum(miss[:2, stream], STREAM_MISS)
    miss[1, stream] = miss[0, stream]
    need_ways = np.where(stream, 0.0, ways_needed(miss[2], miss[3], float(h.ways)))
    at_equal_share = miss_ratio(h.ways / np.maximum(neighbours, 1), *miss)

    per_request = base.copy()
    per_request[:, Resource.CPU] *= 1.0 + stall * at_equal_share
    per_request[:, Resource.MEMORY] *= at_equal_share
    mean_io = np.array([mean_io_factor(v.workload, tick_ms) for v in shapes]).reshape(n)
    per_request[:, Resource.IO] *= mean_io
    rate = column("cpus") / np.maximum(per_request[:, Resource.CPU], 1e-300)
    mean = rate[:, None] * per_request
    busiest = float((here.totals(mean[None])[0] / home).max(initial=0.0))
    entitled = mean * column("reserve")[:, None]
    share = entitled / np.maximum(here.totals(entitled[None])[0], 1e-300)
    rate = rate * (scenario.load / busiest) if busiest else rate

    table = _contracts(scenario, topology, share, zone)
    threads = np.minimum(column("vcpus") * h.units_per_cpu, home[:, Resource.CPU])
    return HostModel(
        topology=topology, vms=table, capacity=capacity, home=home, rate=rate, base=base, stall=stall, miss=miss,
        need_ways=need_ways, fill_ways=np.where(stream, float(h.ways), need_ways),
        inflate=np.array([v.workload.inflate if v.workload.kind == "inflator" else 1.0 for v in shapes]).reshape(n),
        threads=threads,
        target_ticks=np.maximum(np.round(column("target_ms") / tick_ms), 1).astype(np.int64),
        isolated=(table.isolation != Isolation.SHARED).astype(np.float64),
        request_spread=np.array([(1.0 + v.request_cv**2) * (v.arrivals == "poisson") for v in shapes]).reshape(n),
    )  # fmt: skip


def _contracts(scenario: Scenario, topology: Topology, share: FloatArray, zone: IntArray) -> VmTable:
    """Return the VM table; ``share`` (N, R) is each VM's share of what is reserved where it lives, ``zone`` (N,)."""
    h, shapes = scenario.host, scenario.vm
    n = len(shapes)
    isolation = np.array([v.isolation for v in shapes], np.int64).reshape(n)
    apart = isolation != Isolation.SHARED
    units = np.array([topology.pool(r, 0).units for r in Resource], np.int64)
    core = h.units_per_cpu * h.threads_per_core
    granule = np.ones((n, R), np.int64)
    granule[apart, Resource.CPU] = core
    reservation = np.maximum(np.floor(share * scenario.reserved * units / granule).astype(np.int64), 1) * granule
    own = np.array([v.own_ways for v in shapes], np.int64).reshape(n)
    reservation[:, Resource.CACHE] = np.where(apart, np.maximum(own, h.min_ways), own)
    for pool in topology.pools:
        r = pool.resource
        here = slice(None) if pool.zone == WHOLE_HOST or h.zones == 1 else zone == pool.zone
        need = int(reservation[here, r].sum())
        if need > pool.units:
            raise CapacityError(
                f"scenario {scenario.name!r} with {n} VMs: reservations of {r.name.lower()} need {need} units"
                f" ({pool.unit}), the {'host' if h.zones == 1 else 'zone'} has {pool.units}"
            )
    cap = np.broadcast_to(units, (n, R)).copy()
    threads = np.array([most_vcpus(v) for v in shapes], np.int64).reshape(n) * h.units_per_cpu
    threads = np.where(apart, -(-threads // core) * core, threads)
    cap[:, Resource.CPU] = np.minimum(np.maximum(threads, reservation[:, Resource.CPU]), units[Resource.CPU])
    return VmTable(
        uuid=tuple(VmSpec(name=v.name).identity for v in shapes), name=tuple(v.name for v in shapes),
        priority=np.array([v.priority for v in shapes], np.int64).reshape(n), isolation=isolation,
        zone=zone, reservation=reservation, cap=cap,
        target_ms=np.array([v.target_ms for v in shapes], np.float64).reshape(n),
    )  # fmt: skip
