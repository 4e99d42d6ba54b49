"""What a learned policy sees: every feature declared once, with unit, bounds, source and default.

Observation spaces, the encoder, the documentation and the schema hash that travels with every model derive from
:data:`VM_FEATURES` and :data:`HOST_FEATURES`. Amounts are relative, so that one model serves any host: to the VM's fair
share (capacity over VMs), or of capacity. Values are clipped to their bounds; what is not known has its default.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from .decide import Mind
from .host import RESOURCES, FloatArray, Isolation, R

VERSION = 1
Float32Array = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True)
class Feature:
    """One number of an observation."""

    name: str
    unit: str
    low: float
    high: float
    default: float
    source: str
    """Where it comes from, for people."""


def _each(prefix: str, unit: str, high: float, source: str) -> tuple[Feature, ...]:
    return tuple(
        Feature(name=f"{prefix}_{r}", unit=unit, low=0.0, high=high, default=0.0, source=source) for r in RESOURCES
    )


_FAIR = "log(1 + multiples of a fair share)"
VM_FEATURES: tuple[Feature, ...] = (
    *_each("ask", _FAIR, 6.0, "what the VM should get to be on time (Request.ask)"),
    *_each("need", _FAIR, 6.0, "what it is expected to use (Request.need)"),
    *_each("held", _FAIR, 6.0, "what was decided for it in the tick before"),
    *_each("reservation", _FAIR, 6.0, "what it is always given back"),
    *_each("backlog", _FAIR, 6.0, "work queued now (Request.backlog)"),
    *_each("load", "1", 2.0, "need over held: above 1 it is short"),
    Feature(name="delay", unit="log(1 + ticks)", low=0.0, high=6.0, default=0.0, source="queueing delay (Request)"),
    Feature(name="trend", unit="fair shares a tick", low=-2.0, high=2.0, default=0.0, source="change of the CPU need"),
    Feature(name="priority", unit="1", low=0.0, high=1.0, default=0.0, source="rank of the priority on this host"),
    Feature(name="fits", unit="1", low=-2.0, high=1.0, default=1.0,
            source="room left, as a share of capacity, at the scarcest resource once every VM ahead has what it asks"),
    Feature(name="isolated", unit="1", low=0.0, high=1.0, default=0.0, source="owns whole cores"),
)  # fmt: skip
HOST_FEATURES: tuple[Feature, ...] = (
    *_each("asked", "1", 4.0, "sum of asks over capacity"),
    *_each("needed", "1", 4.0, "sum of needs over capacity"),
    Feature(name="vms", unit="log(1 + VMs)", low=0.0, high=9.0, default=0.0, source="VMs that are there"),
    Feature(name="mean_delay", unit="log(1 + ticks)", low=0.0, high=6.0, default=0.0, source="mean queueing delay"),
)
F, G = len(VM_FEATURES), len(HOST_FEATURES)
_VM_LOW, _VM_HIGH = (np.array([getattr(f, k) for f in VM_FEATURES], np.float32) for k in ("low", "high"))
_HOST_LOW, _HOST_HIGH = (np.array([getattr(f, k) for f in HOST_FEATURES], np.float32) for k in ("low", "high"))


def schema_hash() -> str:
    """Return the identity of this set of features; a model made for another one is refused."""
    document = {"version": VERSION, "vm": [asdict(f) for f in VM_FEATURES], "host": [asdict(f) for f in HOST_FEATURES]}
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:16]


class Encoder:
    """Turns what a mind knows before it decides into arrays. Remembers the last need for the trend, by UUID."""

    def __init__(self, mind: Mind) -> None:
        self._mind = mind
        self._uuids: tuple[str, ...] = ()
        self._last = np.zeros(0)

    def encode(self) -> tuple[Float32Array, Float32Array]:
        """Return fresh (N, F) and (G,) float32; call it once a tick, after forecast_tick()."""
        mind = self._mind
        host, q = mind.host, mind.request
        n = len(host)
        fair, capacity = _fair_shares(mind)
        if self._uuids != host.vms.uuid:
            known = dict(zip(self._uuids, self._last.tolist(), strict=True))
            self._last = np.array([known.get(u, q.need[i, 0]) for i, u in enumerate(host.vms.uuid)])
            self._uuids = host.vms.uuid
        vms = np.empty((n, F))
        blocks = (q.ask, q.need, mind.held, host.reservation, q.backlog)
        for i, block in enumerate(blocks):
            np.log1p(np.maximum(block, 0.0) / fair, out=vms[:, i * R : (i + 1) * R])
        at = len(blocks) * R
        vms[:, at : at + R] = q.need / np.maximum(mind.held, 1.0)
        vms[:, at + R] = np.log1p(q.delay_ticks)
        vms[:, at + R + 1] = (q.need[:, 0] - self._last) / fair[0]
        self._last = q.need[:, 0].copy()
        priority = host.vms.priority
        order = np.lexsort((host.vms.rank, -priority))
        vms[:, at + R + 2] = (priority[:, None] > priority[None, :]).mean(axis=1) if n else 0.0
        ahead = np.empty((n, R))
        ahead[order] = np.cumsum(q.ask[order], axis=0) - q.ask[order]
        room = 1.0 - ahead / np.maximum(capacity, 1.0)
        vms[:, at + R + 3] = room[:, host.movable].min(axis=1) if host.movable.any() and n else 1.0
        vms[:, at + R + 4] = host.vms.isolation != Isolation.SHARED
        whole = np.empty(G)
        whole[:R] = q.ask.sum(axis=0) / np.maximum(capacity, 1.0)
        whole[R : 2 * R] = q.need.sum(axis=0) / np.maximum(capacity, 1.0)
        whole[2 * R] = np.log1p(np.count_nonzero(host.active))
        whole[2 * R + 1] = np.log1p(q.delay_ticks.mean()) if n else 0.0
        return (
            np.clip(np.nan_to_num(vms), _VM_LOW, _VM_HIGH).astype(np.float32),
            np.clip(np.nan_to_num(whole), _HOST_LOW, _HOST_HIGH).astype(np.float32),
        )


def bounds() -> tuple[tuple[Float32Array, Float32Array], tuple[Float32Array, Float32Array]]:
    """Return (low, high) of the VM features (F,) and of the host features (G,)."""
    return (_VM_LOW.copy(), _VM_HIGH.copy()), (_HOST_LOW.copy(), _HOST_HIGH.copy())


def _fair_shares(mind: Mind) -> tuple[FloatArray, FloatArray]:
    """Return (R,) a VM's fair share of the whole host and (R,) its capacity, in units."""
    capacity = np.zeros(R)
    for pool in mind.host.topology.pools:
        capacity[pool.resource] += pool.units
    return np.maximum(capacity / max(len(mind.host), 1), 1e-6), capacity
