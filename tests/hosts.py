"""Hosts of any shape for tests, and hypothesis strategies that draw them."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from foreshare.policies.host import (
    WHOLE_HOST,
    BoolArray,
    Host,
    IntArray,
    Isolation,
    Placement,
    Pool,
    Resource,
    Topology,
    VmTable,
)  # fmt: skip


def topology(
    *, zones: int = 1, cores: int = 8, threads: int = 1, units_per_cpu: int = 10, ways: int = 10, shared_ways: int = 1,
    memory: int = 80, io: int = 100, min_ways: int = 1, classes: int = 16,
) -> Topology:  # fmt: skip
    """Return a host of ``zones`` x ``cores`` x ``threads``."""
    c = zones * cores * threads
    core = np.arange(c) // threads
    zone = core // cores
    pools: list[Pool] = []
    for z in range(zones):
        pools += [
            Pool(resource=Resource.CPU, zone=z, units=cores * threads * units_per_cpu, unit="1/10 CPU",
                 unit_size=1 / units_per_cpu, measure="cpu"),
            Pool(resource=Resource.CACHE, zone=z, units=ways, unit="way", unit_size=1.0, measure="way"),
            Pool(resource=Resource.MEMORY, zone=z, units=memory, unit="GB/s", unit_size=1e9, measure="B/s"),
        ]  # fmt: skip
    pools.append(Pool(resource=Resource.IO, zone=WHOLE_HOST, units=io, unit="50 MB/s", unit_size=5e7, measure="B/s"))
    return Topology(
        cpu_id=np.arange(c), core=core, zone=zone, units_per_cpu=units_per_cpu, pools=tuple(pools), ways=ways,
        way_bits=ways + shared_ways, shared_ways=shared_ways, min_ways=min_ways, max_classes=classes if ways else 0,
    )  # fmt: skip


def table(
    n: int, *, isolation: list[int] | None = None, zone: list[int] | None = None, priority: list[int] | None = None,
    reservation: IntArray | None = None, cap: IntArray | None = None,
) -> VmTable:  # fmt: skip
    """Return contracts for ``n`` VMs; by default all shared, equal, with small reservations."""
    return VmTable(
        uuid=tuple(f"{i:08x}-0000-4000-8000-000000000000" for i in range(n)),
        name=tuple(f"vm{i}" for i in range(n)),
        priority=np.array(priority if priority is not None else [0] * n, np.int64),
        isolation=np.array(isolation if isolation is not None else [0] * n, np.int64),
        zone=np.array(zone if zone is not None else [0] * n, np.int64),
        reservation=reservation if reservation is not None else np.tile([2, 0, 1, 1], (n, 1)).reshape(n, 4),
        cap=cap if cap is not None else np.full((n, 4), 10_000),
    )


@st.composite
def hosts(draw: st.DrawFn, *, max_vms: int = 12) -> Host:
    """Draw a feasible host: any mix of zones, threads, isolation, priorities, reservations and caps."""
    zones = draw(st.integers(1, 2))
    threads = draw(st.integers(1, 2))
    t = topology(
        zones=zones, cores=draw(st.integers(4, 10)), threads=threads, ways=draw(st.sampled_from([0, 6, 11])),
        memory=draw(st.sampled_from([0, 40])), io=draw(st.sampled_from([0, 50])), min_ways=draw(st.integers(1, 2)),
        classes=draw(st.sampled_from([4, 16])),
    )  # fmt: skip
    n = draw(st.integers(0, max_vms))
    zone = [draw(st.integers(0, zones - 1)) for _ in range(n)]
    isolation = []
    for z in zone:  # at most two apart in a zone, so that every pool can hold all floors
        apart = sum(i > 0 for i, y in zip(isolation, zone, strict=False) if y == z)
        free = apart < 2 and sum(i > 0 for i in isolation) < t.max_classes - 1 + 100 * (t.max_classes == 0)
        isolation.append(draw(st.sampled_from([0, 0, 1, 2])) if free else 0)
    reservation = np.zeros((n, 4), np.int64)
    left = {(z, r): t.pool(r, z).units // 2 for z in range(zones) for r in Resource}
    for i, z in enumerate(zone):
        for r in (Resource.CPU, Resource.MEMORY, Resource.IO):
            key = (0 if r == Resource.IO else z, r)
            reservation[i, r] = draw(st.integers(0, max(left[key] // 3, 0)))
            left[key] -= int(reservation[i, r])
    cap = np.array([[draw(st.integers(0, 120)) for _ in range(4)] for _ in range(n)], np.int64).reshape(n, 4)
    v = table(
        n, isolation=isolation, zone=zone, priority=[draw(st.integers(-2, 3)) for _ in range(n)],
        reservation=reservation, cap=cap,
    )  # fmt: skip
    return Host(t, v)


def check_feasible(host: Host, units: IntArray) -> None:
    """Fail unless ``units`` is an allocation that the guard may let out."""
    assert units.shape == host.cap.shape
    assert (units >= host.floor).all()
    assert (units <= host.cap).all()
    assert (units % host.granule == 0).all()
    for g in host.groups:
        assert (units[g.rows, g.cols].sum(axis=0) <= g.capacity).all()
    if host.topology.max_classes:
        ways = units[:, Resource.CACHE]
        assert (ways > 0).sum() <= host.topology.max_classes - 1
        assert ((ways == 0) | (ways >= host.topology.min_ways)).all()


def apart(host: Host) -> BoolArray:
    """Return (N,) which VMs own whole cores and ways."""
    return np.asarray(host.vms.isolation != Isolation.SHARED)


def check_isolated(host: Host, state: Placement) -> None:
    """Fail if any CPU, core or way of an isolated VM is somebody else's too."""
    t, mine = host.topology, apart(host)
    cores = np.zeros((len(host), int(t.core.max()) + 1), bool)
    for row in range(len(host)):
        cores[row, t.core[state.cpus[row]]] = True
    owners = cores.sum(axis=0)
    for row in np.flatnonzero(mine):
        assert (owners[cores[row]] == 1).all(), f"VM {row} shares a core"
    for row in np.flatnonzero(mine):
        for other in range(len(host)):
            if other != row and host.vms.zone[other] == host.vms.zone[row]:
                assert not state.ways[row] & state.ways[other], f"VMs {row} and {other} share a way"
