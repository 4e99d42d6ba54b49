"""What a user asks for a VM, in natural units, and its resolution into the units of one host.

What the user wrote (:class:`VmSpec`) and what the hardware made of it (:class:`~foreshare.policies.host.VmTable`) are
two types; :func:`resolve` is the only way from one to the other.
"""

from __future__ import annotations

import math
import uuid as uuid_module
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from foreshare.policies.errors import CapacityError, InputError
from foreshare.policies.host import TARGET_MS, Isolation, R, Resource, Topology, VmTable

_NAMESPACE = uuid_module.UUID("6f1d0b5e-6c57-4b0b-9a55-5f0e5ba5e000")
MAX_VMS = 4096
MOST_TARGET_MS = 600_000.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Amounts:
    """Amounts of the four resources. None: not said."""

    cpu: float | None = None
    """Logical CPUs' worth of time (1.5 is one and a half CPUs)."""
    cache: int | None = None
    """L3 ways."""
    memory: float | None = None
    """Bytes per second of memory bandwidth."""
    io: float | None = None
    """Bytes per second of IO bandwidth."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VmSpec:
    """One VM as its owner describes it."""

    name: str
    """For people."""
    cgroup: str = ""
    """Path below the cgroup root, without leading slash; empty on simulated hosts."""
    uuid: str = ""
    """Stable identity; derived from the cgroup (or the name) where the owner gives none."""
    priority: int = 0
    isolation: Isolation = Isolation.SHARED
    reservation: Amounts = Amounts()
    cap: Amounts = Amounts()
    zone: int | None = None
    """NUMA node to live in; None lets admission choose."""
    latency_target_ms: float | None = None
    """Within this its requests are to be done; None: TARGET_MS. Only learned policies look at it."""

    @property
    def identity(self) -> str:
        """The UUID, given or derived."""
        return self.uuid or str(uuid_module.uuid5(_NAMESPACE, self.cgroup or self.name))


def resolve(specs: Sequence[VmSpec], topology: Topology) -> VmTable:
    """Turn what users asked for into units: reservations rounded up, caps down.

    VMs that name no zone go, biggest CPU reservation first, to the zone with most CPU units left. Raises CapacityError
    where a VM fits into no zone, InputError for anything that cannot be an amount.
    """
    n = len(specs)
    if n > MAX_VMS:
        raise InputError(f"{n} VMs: the most that one host may have is {MAX_VMS}")
    reservation = np.zeros((n, R), np.int64)
    cap = np.zeros((n, R), np.int64)
    free = [topology.pool(Resource.CPU, z).units for z in range(max(topology.zones, 1))]
    zone = np.zeros(n, np.int64)

    def cpu_need(i: int) -> float:
        return specs[i].reservation.cpu or 0.0

    for i in sorted(range(n), key=lambda i: (-cpu_need(i), specs[i].identity)):
        s = specs[i]
        z = s.zone if s.zone is not None else int(np.argmax(free))
        if not 0 <= z < len(free):
            raise InputError(f"VM {s.name!r}: zone {z} does not exist, this host has zones 0 to {len(free) - 1}")
        zone[i] = z
        for r in Resource:
            pool = topology.pool(r, z)
            low, high = _amount(s, "reservation", r), _amount(s, "cap", r)
            if low is not None and high is not None and high < low:
                raise InputError(f"VM {s.name!r}: cap.{r.name.lower()} is below its reservation")
            # Ways are asked for in ways, whatever one holds.
            size = pool.unit_size if pool.units and r != Resource.CACHE else 1.0
            reservation[i, r] = math.ceil((low or 0.0) / size - 1e-9) if pool.units else 0
            cap[i, r] = pool.units if high is None else min(math.floor(high / size + 1e-9), pool.units)
            if reservation[i, r] > pool.units:
                raise CapacityError(
                    f"VM {s.name!r} reserves {reservation[i, r]} units ({pool.unit}) of {r.name.lower()};"
                    f" zone {z} has {pool.units}"
                )
        free[z] -= int(reservation[i, Resource.CPU])
    return VmTable(
        uuid=tuple(s.identity for s in specs),
        name=tuple(s.name for s in specs),
        priority=np.array([s.priority for s in specs], np.int64),
        isolation=np.array([s.isolation for s in specs], np.int64),
        zone=zone,
        reservation=reservation,
        cap=cap,
        target_ms=np.array([_target_ms(s) for s in specs], np.float64),
    )


def _target_ms(spec: VmSpec) -> float:
    value = TARGET_MS if spec.latency_target_ms is None else float(spec.latency_target_ms)
    if not 1.0 <= value <= MOST_TARGET_MS:
        raise InputError(f"VM {spec.name!r}: latency_target_ms must be from 1 to {MOST_TARGET_MS:g}, not {value}")
    return value


def _amount(spec: VmSpec, kind: str, r: Resource) -> float | None:
    value = getattr(getattr(spec, kind), r.name.lower())
    if value is None:
        return None
    if not math.isfinite(value) or value < 0:
        raise InputError(
            f"VM {spec.name!r}: {kind}.{r.name.lower()} must be a finite number of at least 0, not {value}"
        )
    return float(value)
