"""The facts that each part of a recording carries about its host, as JSON: units, topology, contracts, clock anchor."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from foreshare.policies.errors import InputError, TraceError
from foreshare.policies.host import RESOURCES, TARGET_MS, Host, Isolation, Pool, R, Resource, Topology, VmTable

from .spec import MAX_VMS

FORMAT_VERSION = 1
MAX_METADATA_BYTES = 8 << 20


def recording_metadata(
    topology: Topology,
    vms: VmTable,
    *,
    hal: str,
    tick_ns: int,
    boot_id: str,
    monotonic_ns: int,
    utc_ns: int,
) -> dict[str, Any]:
    """Return the facts that every part carries, as JSON values. VM names stay out of it."""
    t = topology
    return {
        "version": FORMAT_VERSION,
        "hal": hal,
        "tick_ns": tick_ns,
        "boot_id": boot_id,
        "anchor": {"monotonic_ns": monotonic_ns, "utc_ns": utc_ns},
        "topology": {
            "cpu_id": t.cpu_id.tolist(), "core": t.core.tolist(), "zone": t.zone.tolist(),
            "units_per_cpu": t.units_per_cpu, "ways": t.ways, "way_bits": t.way_bits, "shared_ways": t.shared_ways,
            "min_ways": t.min_ways, "max_classes": t.max_classes,
            "pools": [
                {"resource": RESOURCES[p.resource], "zone": p.zone, "units": p.units, "unit": p.unit,
                 "unit_size": p.unit_size, "measure": p.measure}
                for p in t.pools
            ],
        },
        "vms": [
            {"uuid": vms.uuid[i], "priority": int(vms.priority[i]),
             "isolation": Isolation(int(vms.isolation[i])).name.lower(), "zone": int(vms.zone[i]),
             "reservation": vms.reservation[i].tolist(), "cap": vms.cap[i].tolist(),
             "target_ms": float(vms.target_ms[i])}
            for i in range(len(vms))
        ],
    }  # fmt: skip


@dataclass(frozen=True, kw_only=True, eq=False)
class RecordedHost:
    """What the metadata of a recording say."""

    topology: Topology
    vms: VmTable
    hal: str
    tick_ns: int
    boot_id: str
    monotonic_ns: int
    utc_ns: int


def parse_metadata(raw: bytes, path: str) -> RecordedHost:
    """Return the facts in the JSON of the part at ``path``. Raises TraceError."""
    if len(raw) > MAX_METADATA_BYTES:
        raise TraceError(f"{path}: its metadata are too large")
    try:
        m = json.loads(raw)
        if m["version"] != FORMAT_VERSION:
            raise TraceError(f"{path}: format version {m['version']!r}, this foreshare reads {FORMAT_VERSION}")
        t, vms = m["topology"], m["vms"]
        n = len(vms)
        if n > MAX_VMS:
            raise TraceError(f"{path}: names {n} VMs, the most is {MAX_VMS}")
        pools = tuple(
            Pool(
                resource=Resource[p["resource"].upper()], zone=int(p["zone"]), units=int(p["units"]),
                unit=str(p["unit"]), unit_size=float(p["unit_size"]), measure=str(p["measure"]),
            )
            for p in t["pools"]
        )  # fmt: skip
        topology = Topology(
            cpu_id=np.array(t["cpu_id"], np.int64), core=np.array(t["core"], np.int64),
            zone=np.array(t["zone"], np.int64), pools=pools,
            **{k: int(t[k]) for k in ("units_per_cpu", "ways", "way_bits", "shared_ways", "min_ways", "max_classes")},
        )  # fmt: skip
        table = VmTable(
            uuid=tuple(str(v["uuid"]) for v in vms),
            name=tuple(str(v["uuid"])[:8] for v in vms),
            priority=np.array([v["priority"] for v in vms], np.int64).reshape(n),
            isolation=np.array([Isolation[v["isolation"].upper()] for v in vms], np.int64).reshape(n),
            zone=np.array([v["zone"] for v in vms], np.int64).reshape(n),
            reservation=np.array([v["reservation"] for v in vms], np.int64).reshape(n, R),
            cap=np.array([v["cap"] for v in vms], np.int64).reshape(n, R),
            target_ms=np.array([v.get("target_ms", TARGET_MS) for v in vms], np.float64).reshape(n),
        )
        host = RecordedHost(
            topology=topology, vms=table, hal=str(m["hal"]), tick_ns=int(m["tick_ns"]), boot_id=str(m["boot_id"]),
            monotonic_ns=int(m["anchor"]["monotonic_ns"]), utc_ns=int(m["anchor"]["utc_ns"]),
        )  # fmt: skip
        Host(topology, table)  # the contracts must make sense together
        if host.tick_ns <= 0 or any(p.units < 0 for p in pools):
            raise TraceError(f"{path}: its metadata hold a negative amount")
    except TraceError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError, InputError) as e:
        raise TraceError(f"{path}: its metadata do not describe a host ({type(e).__name__}: {e})") from e
    return host
