"""What a learned policy sees: every feature declared once, with unit, bounds, source and default.

Observation spaces, the encoder, the documentation and the schema hash that travels with every model derive from
:data:`VM_FEATURES` and :data:`HOST_FEATURES`. Amounts are relative, so that one model serves any host: to the VM's fair
share (capacity over VMs), or of capacity. Values are clipped to their bounds; what is not known has its default.

One look says little of a VM whose load comes in bursts. Of what changes from tick to tick a policy therefore also sees
``lately_*``, its mean ``m`` with exponential weights over about LATELY_TICKS ticks, and ``swing_*``, the mean of
``|x - m|`` over the same time: the memory that a network without a state of its own has. What a VM needed at most is
remembered for longer, MOST_FALL a tick: one that wakes shows little of what it is about to need.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from types import ModuleType

import numpy as np
import numpy.typing as npt

from . import kernel
from .allocators.base import former_rows
from .axes import largest, total
from .deadlines import STEPS, ticks_to_target
from .decide import Mind
from .forecast import carry
from .host import CPU, IO, MEMORY, RESOURCES, FloatArray, Host, Isolation, R

VERSION = 4
LATELY_TICKS = 20
MOST_FALL = 0.002
"""By this share of it, what a VM needed at most is forgotten in a tick: half of it in 3.5 s."""
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


_RATE = "log(1 + multiples of the mean need)"
_FAIR = "log(1 + multiples of a fair share)"
_NOW: tuple[Feature, ...] = (
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
    Feature(name="target", unit="log(ticks)", low=0.0, high=4.2, default=2.3, source="latency target (VmTable)"),
    Feature(name="slack", unit="targets", low=-2.0, high=1.0, default=1.0, source="1 - queueing delay / target"),
    *(
        Feature(name=f"due_{k}", unit=_RATE, low=0.0, high=4.0, default=0.0, source=f"to be done by then: {where}")
        for k, where in [*((str(k), f"within {k} ticks") for k in STEPS), ("all", "all that is queued, by the target")]
    ),
    Feature(name="rate", unit="log(multiples of the mean need)", low=-3.0, high=3.0, default=-3.0,
            source="least rate at which everything queued is in time (deadlines.py)"),
    Feature(name="overdue", unit="log(1 + ticks of need)", low=0.0, high=6.0, default=0.0, source="late already"),
    Feature(name="hidden", unit="log(1 + ticks)", low=0.0, high=6.0, default=0.0,
            source="since all that it has queued could be seen"),
    Feature(name="weight", unit="log", low=-3.0, high=3.0, default=0.0,
            source="1 + priority over the mean of that: what a late request costs"),
    Feature(name="over", unit="log(1 + fair shares)", low=0.0, high=6.0, default=0.0,
            source="held beyond the reservation at the resource where that is most"),
    Feature(name="served", unit="1", low=0.0, high=1.0, default=1.0,
            source="held over asked, at the resource where that is least"),
    Feature(name="short", unit="1", low=-1.0, high=1.0, default=0.0,
            source="what is asked beyond the capacity of the scarcest resource, over that capacity"),
    Feature(name="seen_rate", unit="log(multiples of the mean need)", low=-3.0, high=3.0, default=-3.0,
            source="rate, where all that is queued can be seen; else 0"),
    Feature(name="short_rate", unit="log(multiples of the mean need)", low=-3.0, high=3.0, default=0.0,
            source="rate times short"),
    Feature(name="below", unit="log", low=0.0, high=6.0, default=0.0,
            source="what it needed at most lately over what it needs now, in shares of the host's CPU, memory and IO"),
    Feature(name="standby", unit="log", low=0.0, high=6.0, default=0.0,
            source="the same, as far as what nobody asks for is enough to hold all VMs ready for it"),
)  # fmt: skip
_KEPT = (
    "need_cpu", "need_memory", "need_io", "held_cpu", "held_memory", "held_io", "ask_cache", "load_cpu", "load_memory",
    "load_io", "backlog_cpu", "delay", "fits", "slack", "due_all", "rate", "overdue", "hidden", "served", "short",
    "seen_rate", "short_rate",
)  # fmt: skip
"""Of these there are means and swings."""


def remembered_of(name: str) -> str:
    """Return the name of the feature of which ``name`` is the mean or the swing; its own if it is neither."""
    return name.removeprefix("lately_").removeprefix("swing_")


def _remembered() -> tuple[Feature, ...]:
    kept = [next(f for f in _NOW if f.name == name) for name in _KEPT]
    means = [replace(f, name=f"lately_{f.name}", source=f"mean of {f.name} over about {LATELY_TICKS} ticks")
             for f in kept]  # fmt: skip
    swings = [
        replace(f, name=f"swing_{f.name}", low=0.0, high=f.high - f.low, default=0.0,
                source=f"how far {f.name} was from that mean, in the mean over the same time")
        for f in kept
    ]  # fmt: skip
    return (*means, *swings)


VM_FEATURES: tuple[Feature, ...] = (*_NOW, *_remembered())
HOST_FEATURES: tuple[Feature, ...] = (
    *_each("asked", "1", 4.0, "sum of asks over capacity"),
    *_each("needed", "1", 4.0, "sum of needs over capacity"),
    *_each("pressed", "1", 4.0, "sum of needs at the rates that are in time, over capacity"),
    Feature(name="vms", unit="log(1 + VMs)", low=0.0, high=9.0, default=0.0, source="VMs that are there"),
    Feature(name="mean_delay", unit="log(1 + ticks)", low=0.0, high=6.0, default=0.0, source="mean queueing delay"),
)
F, G = len(VM_FEATURES), len(HOST_FEATURES)
_LEAST_RATE = 0.05
_TINY = 1e-9
_DEADLINES = 7 + len(STEPS) + 1  # target, slack, due, rate, overdue, hidden, weight, over
_AMOUNTS = 5  # ask, need, held, reservation, backlog
_LOAD, _AFTER = _AMOUNTS * R, (_AMOUNTS + 1) * R
_LATELY = len(_NOW)
_KEPT_AT = np.array([[f.name for f in _NOW].index(name) for name in _KEPT], np.int64)
_GAIN = np.float32(1.0 / LATELY_TICKS)
_VM_BOUNDS, _HOST_BOUNDS = (
    tuple(np.array([getattr(f, k) for f in features], np.float32) for k in ("low", "high", "default"))
    for features in (VM_FEATURES, HOST_FEATURES)
)
_BOUNDS = np.concatenate([*_VM_BOUNDS, *_HOST_BOUNDS])


def schema_hash() -> str:
    """Return the identity of this set of features; a model made for another one is refused."""
    document = {"version": VERSION, "vm": [asdict(f) for f in VM_FEATURES], "host": [asdict(f) for f in HOST_FEATURES]}
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:16]


class Encoder:
    """Turns what a mind knows before it decides into arrays. Remembers by UUID what it needs of the ticks before."""

    def __init__(self, mind: Mind, tick_ms: float = 10.0) -> None:
        self._mind, self._tick_ms = mind, tick_ms
        mind.follow_deadlines(tick_ms)
        self._host: Host | None = None
        self._last = np.zeros(0)
        self._hidden = np.zeros(0)
        self._most = np.zeros(0)
        self._log_rate: FloatArray = np.zeros(0)
        self._lately: Float32Array = np.zeros((0, 2 * len(_KEPT)), np.float32)

    def encode(self) -> tuple[Float32Array, Float32Array]:
        """Return fresh (N, F) and (G,) float32, in a batch (H, N, F) and (H, G).

        Call it once a tick, after forecast_tick().
        """
        mind, q = self._mind, self._mind.request
        host = mind.host
        self.bind(host)
        n = len(host)
        if kernel.compiled is not None:
            return self._encode_compiled(kernel.compiled)
        # Logarithms of float32 cost less than those of float64.
        blocks = (q.ask, q.need, mind.held, self._reservation, q.backlog)
        amounts = np.concatenate(blocks, axis=-1, dtype=np.float32, casting="unsafe")
        amounts *= self._scale
        np.maximum(amounts, 0.0, out=amounts)
        amounts += 1.0
        np.log(amounts, out=amounts)
        vms = np.empty((*q.ask.shape[:-1], F), np.float32)
        vms[..., :_LOAD] = amounts
        vms[..., _LOAD:_AFTER] = q.need / np.maximum(mind.held, 1.0)
        vms[..., _AFTER] = np.log1p(q.delay_ticks)
        need = q.need[..., 0]
        vms[..., _AFTER + 1] = (need - self._last) * self._per_fair[0]
        np.copyto(self._last, need)
        vms[..., _AFTER + 2] = self._priority
        vms[..., _AFTER + 3] = self._fits(q.ask)
        vms[..., _AFTER + 4] = self._isolated
        rate = self._encode_deadlines(vms[..., _AFTER + 5 :])
        whole = np.empty((*q.ask.shape[:-2], G), np.float32)
        whole[..., :R] = total(q.ask) * self._per_capacity
        self._encode_scarcity(vms[..., _AFTER + 5 + _DEADLINES : _LATELY], whole)
        self._encode_sleep(vms[..., _LATELY - 2 : _LATELY], whole)
        whole[..., R : 2 * R] = total(q.need) * self._per_capacity
        whole[..., 2 * R : 3 * R] = total(q.need * rate[..., None]) * self._per_capacity
        whole[..., 3 * R] = self._count
        whole[..., 3 * R + 1] = np.log1p(q.delay_ticks.sum(axis=-1) / max(n, 1))
        _within(vms[..., :_LATELY], *(bound[:_LATELY] for bound in _VM_BOUNDS))
        vms[..., _LATELY:] = self._remember(vms[..., _KEPT_AT])
        return vms, _within(whole, *_HOST_BOUNDS)

    def _remember(self, now: Float32Array) -> Float32Array:
        """Take in what is seen now (..., N, K); return means and swings (..., N, 2 K), which change with the next."""
        mean, swing = np.split(self._lately, 2, axis=-1)
        new = np.isnan(mean)
        off = now - mean
        mean += _GAIN * off
        swing += _GAIN * (np.abs(off) - swing)
        np.copyto(mean, now, where=new)
        swing[new] = 0.0
        return self._lately

    def arrays(self) -> tuple[object, ...]:
        """Return what the compiled form works with, for the VMs that it is bound to; see :meth:`bind`."""
        mind, q, d = self._mind, self._mind.request, self._mind.deadlines
        return (
            self._constants, self._order, _BOUNDS, q.ask, q.need, q.backlog, q.delay_ticks, mind.held,
            mind.forecast.unsure, d.overdue, d.rates, d.rate, self._last, self._hidden, self._most, _KEPT_AT,
            self._lately,
        )  # fmt: skip

    def _encode_compiled(self, compiled: ModuleType) -> tuple[Float32Array, Float32Array]:
        shape = self._mind.host.shape
        vms, whole = np.empty((*shape[:-1], F), np.float32), np.empty((*shape[:-2], G), np.float32)
        compiled.encode(self._tables, self._hosts, *self.arrays(), vms, whole)
        return vms, whole

    def _encode_deadlines(self, out: Float32Array) -> FloatArray:
        """Fill what has to do with targets (..., N, columns); return the rates (..., N), multiples of the need."""
        mind, q, d = self._mind, self._mind.request, self._mind.deadlines
        rate = d.rate
        out[..., 0] = np.log(d.target)
        out[..., 1] = 1.0 - q.delay_ticks / d.target
        steps = len(d.rates)
        rates = d.rates.T if d.rates.ndim == 2 else np.moveaxis(d.rates, 0, -1)
        out[..., 2 : 2 + steps] = np.log1p(rates)
        self._log_rate = np.clip(np.log(np.maximum(rate, _LEAST_RATE)), -3.0, 3.0)
        out[..., 2 + steps] = self._log_rate
        out[..., 3 + steps] = np.log1p(d.overdue)
        self._hidden += 1.0
        self._hidden *= mind.forecast.unsure
        out[..., 4 + steps] = np.log1p(self._hidden)
        out[..., 5 + steps] = self._weight
        over = np.maximum(mind.held - self._reservation, 0.0) * self._per_fair
        out[..., 6 + steps] = np.log1p(largest(over[..., (CPU, MEMORY, IO)]))
        return rate

    def _encode_scarcity(self, out: Float32Array, whole: Float32Array) -> None:
        """Fill columns (..., N, 4): how short the host is of what is asked, and what that means for rates."""
        mind, ask = self._mind, self._mind.request.ask
        gates = (CPU, MEMORY, IO)
        short = np.clip(whole[..., gates].max(axis=-1, initial=0.0) - 1.0, -1.0, 1.0)[..., None]
        share = mind.held[..., gates] / np.maximum(ask[..., gates], 1e-6)
        rate = self._log_rate
        out[..., 0] = np.minimum(-largest(-share), 1.0)
        out[..., 1] = short
        out[..., 2] = np.where(mind.forecast.unsure, 0.0, rate)
        out[..., 3] = rate * short

    def _encode_sleep(self, out: Float32Array, whole: Float32Array) -> None:
        """Fill the last columns (..., N, 2): how far a VM is below the most that it needed lately."""
        need, gates = self._mind.request.need, (CPU, MEMORY, IO)
        size = np.zeros(need.shape[:-1])
        for r in gates:
            size += need[..., r] * self._per_capacity[r]
        self._most *= 1.0 - MOST_FALL
        np.fmax(self._most, size, out=self._most)  # not for what is no number
        grown = self._most / np.maximum(size, _TINY)
        out[..., 0] = np.log(grown)
        grown -= 1.0
        share: FloatArray = np.ones(need.shape[:-2])
        for r in gates:
            room = np.maximum(1.0 - whole[..., r].astype(np.float64), 0.0)
            wanted = (need[..., r] * grown).sum(axis=-1) * self._per_capacity[r]
            np.minimum(share, np.divide(room, wanted, out=np.ones_like(share), where=wanted > room), out=share)
        out[..., 1] = np.log1p(grown * share[..., None])

    def bind(self, host: Host) -> None:
        """Work out what changes only with the VMs."""
        if host is self._host:
            return
        rows = former_rows(self._host, host)
        fresh: FloatArray = np.zeros(host.shape[:-1])
        self._hidden = carry(self._hidden, rows, fresh, axis=-1) if self._host is not None else fresh
        self._most = carry(self._most, rows, fresh * 0.0, axis=-1) if self._host is not None else fresh * 0.0
        need = self._mind.request.need[..., 0]
        self._last = carry(self._last, rows, need, axis=-1) if self._host is not None else need.copy()
        nothing = np.full((*host.shape[:-1], 2 * len(_KEPT)), np.nan, np.float32)
        self._lately = carry(self._lately, rows, nothing) if self._host is not None else nothing
        self._host = host
        capacity = np.zeros(R)
        for pool in host.topology.pools:
            capacity[pool.resource] += pool.units
        self._per_fair = 1.0 / np.maximum(capacity / max(len(host), 1), 1e-6)
        self._scale = np.tile(self._per_fair, _AMOUNTS).astype(np.float32)
        self._reservation = np.broadcast_to(host.reservation, host.shape)
        self._per_capacity = 1.0 / np.maximum(capacity, 1.0)
        priority = host.vms.priority
        self._order = np.lexsort((host.vms.rank, -priority))
        self._back = np.argsort(self._order)
        self._per_movable = self._per_capacity * host.movable
        self._tables, self._hosts = kernel.tables(host), kernel.hosts_in(host)
        self._priority = (priority[:, None] > priority[None, :]).mean(axis=1) if len(host) else np.zeros(0)
        weight = 1.0 + np.maximum(priority, 0)
        self._weight = np.log(weight / max(float(weight.mean()), 1.0)) if len(host) else weight * 0.0
        self._isolated = host.vms.isolation != Isolation.SHARED
        self._count = np.log1p(np.count_nonzero(host.active))
        target = ticks_to_target(host, self._tick_ms)
        self._constants = np.concatenate([  # view_t of compiled/see.h
            self._per_fair, self._per_capacity, self._per_movable, [self._count], self._priority, self._weight, target,
            np.log(target), self._isolated,
        ])  # fmt: skip

    def _fits(self, ask: FloatArray) -> FloatArray | float:
        """Return (..., N) the room left at the scarcest resource once every VM ahead has what it asks."""
        host = self._mind.host
        if not len(host) or not host.movable.any():
            return 1.0
        ordered = ask.take(self._order, axis=-2)
        ahead = (ordered.cumsum(axis=-2) - ordered).take(self._back, axis=-2)
        ahead *= self._per_capacity
        return np.asarray(1.0 - largest(ahead[..., host.movable]))


def _within(out: Float32Array, low: Float32Array, high: Float32Array, default: Float32Array) -> Float32Array:
    """Bring values within their bounds, in place, the default where there is none; return them."""
    np.minimum(np.maximum(out, low, out=out), high, out=out)
    np.copyto(out, default, where=np.isnan(out))
    return out


def bounds() -> tuple[tuple[Float32Array, Float32Array], tuple[Float32Array, Float32Array]]:
    """Return (low, high) of the VM features (F,) and of the host features (G,)."""
    (vm_low, vm_high, _), (host_low, host_high, _) = _VM_BOUNDS, _HOST_BOUNDS
    return (vm_low.copy(), vm_high.copy()), (host_low.copy(), host_high.copy())
