"""What each VM can be given and what that is worth over the horizon: (ways, service level) options, all VMs at once.

A service level is a number of requests per tick; with the ways it makes a need of CPU, memory and IO in whole units. An
option is worth the priority-weighted work that it lets finish in time, if it stays for the whole horizon:

- first in first out, all in requests counted from now: ``D_k = min(arrived_k, D_{k-1} + rate_k)``, where ``due_k`` is
  what must be done by the end of tick ``k`` for nothing to be late, and in time is
  ``clip(D_k - due_{k-1}, 0, due_k - due_{k-1})`` of it (the complement of simulator/lateness.py's late requests);
- what is due in the next tick counts ``urgent_weight`` times: it cannot be decided again;
- work that is due after the horizon is followed, at the last rate, at a few points in time;
- ``rate_k`` is the bottleneck's. Units that are new to a VM are cold at first, as in simulator/host.py, so that a move
  costs what it loses; ``move_price`` is charged for it on top.

A VM's weight is its priority's over its mean rate, as V weighs shares of requests, not requests.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from foreshare.envs.simulator.cache import miss_ratio
from foreshare.envs.simulator.model import HostModel
from foreshare.envs.simulator.scenario import HostShape
from foreshare.policies.host import CACHE, CPU, IO, MEMORY, BoolArray, FloatArray, Host, IntArray, R

from .solve import IMPOSSIBLE

_MORE_WAYS = (0, 1, 2, 3, 4, 6, 9, 13)
"""Ways above the fewest that a VM may have, as options."""
_DEADLINES = (0, 1, 2, 4, 9)
"""Ticks by the end of which all that is due is done: service levels."""
_PARTS = (0.3, 0.5, 0.7, 0.85, 1.0, 1.25)
"""Service levels relative to the one that makes everything in time."""
_BEYOND = 4
"""Points in time after the horizon at which lateness is looked at."""
_TRICKLE = 0.05  # as TRICKLE_UNITS of the simulator
_LITTLE = 1e-9


@dataclass(frozen=True, kw_only=True, slots=True)
class OracleKnobs:
    """What an oracle's objective is made of."""

    horizon_ticks: int = 10
    urgent_weight: float = 10.0
    """Weight of work that would be late in the next tick, relative to work that has more time."""
    beyond_weight: float = 0.5
    """Weight of work that is due after the horizon."""
    late_weight: float = 0.005
    """Weight of any work done, late or not."""
    move_price: float = 0.1
    """Price of moving the whole of a resource, relative to all the work that arrives in the horizon."""


class Situation(NamedTuple):
    """What is true of N VMs when the decision takes effect, at the start of "tick 0"."""

    backlog: FloatArray
    """(N,) requests."""
    past: FloatArray
    """(P, N) arrivals of the ticks before, the newest last; P is at least the longest target."""
    arrivals: FloatArray
    """(H, N) arrivals of the horizon."""
    mix: FloatArray
    """(N, R) need of a request relative to its usual need."""
    held: FloatArray
    """(N, R) units commanded last."""
    cold: FloatArray
    """(N, R) of these, units that are not worth anything yet."""
    shared_ways: FloatArray
    """(N,) ways that each VM would profit from in the shared class."""
    low: IntArray
    """(N, R) units that each VM must be given: min(reservation, demand), in whole granules."""
    threads: FloatArray
    """(N,) units of CPU that the VM can use at once."""


class Menu(NamedTuple):
    """The options: N VMs with W ways and L service levels, flattened to O = W * L. Option 0 is the least of a VM."""

    value: FloatArray
    """(N, O)."""
    units: IntArray
    """(N, O, R)."""
    need: FloatArray
    """(N, O, R) unit-ticks of a request with these ways, once they are warm."""


class Deadlines(NamedTuple):
    """Positions in each VM's queue, requests counted from now, (K, N) for the K ticks of the horizon."""

    arrived: FloatArray
    due: FloatArray
    late: FloatArray
    """(N,) what is late already."""
    due_beyond: FloatArray
    """(M, N) due at some ticks after the horizon."""
    ticks_beyond: FloatArray
    """(M, N) how many ticks after the horizon."""


def deadlines(situation: Situation, target: IntArray) -> Deadlines:
    """Return what is due when. ``target``: (N,) ticks; requests of tick s are in time up to the end of s + target."""
    s = situation
    p, h = len(s.past), len(s.arrivals)
    total = np.zeros((p + h + 1, len(target)))  # before tick j - P; entries before the start are 0
    np.cumsum(np.concatenate([s.past, s.arrivals]), axis=0, out=total[1:])
    done = total[p] - s.backlog
    columns = np.arange(len(target))

    def at(ticks: IntArray) -> FloatArray:
        """Return the queue position of all that is due by the end of ``ticks`` (J, N)."""
        return np.asarray(np.maximum(total[np.clip(p + ticks - target + 1, 0, p + h), columns] - done, 0.0))

    k = np.arange(-1, h)[:, None]
    due = at(np.broadcast_to(k, (h + 1, len(target))))
    m = -(-target * np.arange(1, _BEYOND + 1)[:, None] // _BEYOND)
    return Deadlines(total[p + 1 :] - done, due[1:], due[0], at(h - 1 + m), m.astype(np.float64))


def service_levels(d: Deadlines) -> FloatArray:
    """Return (N, L) rates worth trying, requests per tick; column 0 is 0."""
    h = len(d.due)
    ticks = np.arange(1.0, h + 1)[:, None]
    required = np.maximum.accumulate(d.due / ticks, axis=0)
    all_in_time = np.maximum(required[-1], (d.due_beyond / (h + d.ticks_beyond)).max(axis=0))
    columns = [np.zeros(len(all_in_time))]
    columns += [required[min(k, h - 1)] for k in _DEADLINES]
    columns += [all_in_time * part for part in _PARTS]
    columns.append(d.arrived[0])
    columns.append(np.maximum(d.arrived[min(2, h - 1)] / min(3, h), all_in_time))
    return np.stack(columns, axis=1)


def way_options(host: Host, low: IntArray) -> tuple[IntArray, BoolArray]:
    """Return (N, W) ways to try and which of them are allowed; column 0 is the fewest."""
    fewest = low[:, CACHE]
    ways = fewest[:, None] + np.array(_MORE_WAYS)
    least = host.topology.min_ways
    ways = np.where((ways > 0) & (ways < least), least, ways)
    allowed = ways <= np.maximum(host.cap[:, CACHE], fewest)[:, None]
    allowed[:, 1:] &= ways[:, 1:] > ways[:, :-1]
    return np.where(allowed, ways, fewest[:, None]), allowed


def make_menu(s: Situation, model: HostModel, shape: HostShape, host: Host, knobs: OracleKnobs, *, pays: bool) -> Menu:
    """Return every VM's options. ``pays``: moves cost what they lose to cold caches, and ``move_price``."""
    n, h = len(s.backlog), len(s.arrivals)
    ways, allowed = way_options(host, s.low)
    d = deadlines(s, model.target_ticks)
    level = service_levels(d)
    mix = s.mix[:, None, :]
    profit = np.where(ways > 0, ways, s.shared_ways[:, None])  # (N, W)
    need = _need(model, profit, mix)

    units = np.empty((n, ways.shape[1], level.shape[1], R), np.int64)
    exact = level[:, None, :, None] * need[:, :, None, :]
    granule = host.granule[:, None, None, :]
    np.copyto(units, np.ceil(exact / granule - _LITTLE) * granule, casting="unsafe")
    np.clip(units, s.low[:, None, None, :], host.cap[:, None, None, :], out=units)
    units[..., CACHE] = ways[:, :, None]

    usable = np.maximum(units.astype(np.float64), _TRICKLE)
    cpu = np.minimum(usable[..., CPU], s.threads[:, None, None])[..., None]  # (N, W, L, 1)
    ticks = np.arange(h, dtype=np.float64)
    need_k = need[:, :, None, :]  # (N, W, H or 1, R)
    if pays:
        w = shape.warm_ticks
        warming = np.maximum(1.0 - ticks / max(w.cpu, 1), 0.0) * (w.cpu > 0)
        gained = np.maximum(units[..., CPU] - s.held[:, None, None, CPU], 0.0)
        cold = gained * shape.cold_cpu + np.minimum(s.cold[:, None, None, CPU], units[..., CPU])
        cpu = np.maximum(usable[..., CPU, None] - cold[..., None] * warming, _TRICKLE)
        np.minimum(cpu, s.threads[:, None, None, None], out=cpu)
        filling = np.maximum(1.0 - ticks / max(w.cache, 1), 0.0) * (w.cache > 0)
        new = np.maximum(ways - s.held[:, None, CACHE], 0.0) + np.minimum(s.cold[:, None, CACHE], ways)
        if new.any() and filling.any():
            warm = np.where(ways > 0, ways - new, profit)[..., None] + new[..., None] * (1.0 - filling)
            need_k = _need(model, np.maximum(warm, 0.0), s.mix[:, None, None, :])
    rate = _rates(cpu, usable, need_k)  # (N, W, L, H)
    value = _in_time(rate.reshape(n, -1, rate.shape[-1]), d, h, knobs)
    weight = (1.0 + np.maximum(host.vms.priority, 0)) / np.maximum(model.rate, _LITTLE)
    value *= weight[:, None]
    flat = units.reshape(n, -1, R)
    if pays and knobs.move_price:
        scale = knobs.move_price * float((weight * s.arrivals.sum(axis=0)).sum())
        moved = np.maximum(flat - s.held[:, None, :], 0.0) / np.maximum(model.capacity, 1.0)
        value -= scale * moved[..., CPU] + scale * moved[..., CACHE]
    value[~np.repeat(allowed, level.shape[1], axis=1)] = IMPOSSIBLE
    return Menu(value, flat, np.repeat(need, level.shape[1], axis=1))


def _need(model: HostModel, ways: FloatArray, mix: FloatArray) -> FloatArray:
    """Return (N, ..., R) unit-ticks of a request with (N, ...) ways; like HostModel.need_at, VMs first."""
    extra = (1,) * (ways.ndim - 1)
    misses = miss_ratio(ways, *(p.reshape(-1, *extra) for p in model.miss))
    need = np.empty((*ways.shape, R))
    need[:] = model.base.reshape(-1, *extra, R)
    need[..., CPU] *= 1.0 + model.stall.reshape(-1, *extra) * misses
    need[..., MEMORY] *= misses
    need *= mix
    return need


def _rates(cpu: FloatArray, usable: FloatArray, need: FloatArray) -> FloatArray:
    """Return the bottleneck's (N, W, L, H or 1) requests per tick; ``need`` (N, W, H or 1, R)."""
    per = 1.0 / np.maximum(need, 1e-12)
    rate = cpu * per[:, :, None, :, CPU]
    for r in (MEMORY, IO):
        np.minimum(rate, usable[..., r, None] * per[:, :, None, :, r], out=rate)
    return np.asarray(rate)


def _in_time(rate: FloatArray, d: Deadlines, horizon: int, knobs: OracleKnobs) -> FloatArray:
    """Return the weighted requests (N, O) that rates (N, O, H or 1) finish in time."""
    done = np.zeros(rate.shape[:2])
    value = np.zeros_like(done)
    part = np.empty_like(done)
    before = d.late
    for k in range(horizon):  # ticks, not VMs
        done += rate[..., min(k, rate.shape[2] - 1)]
        np.minimum(done, d.arrived[k][:, None], out=done)
        np.subtract(done, before[:, None], out=part)
        np.clip(part, 0.0, (d.due[k] - before)[:, None], out=part)
        value += part * knobs.urgent_weight if k == 0 else part
        before = d.due[k]
    value += knobs.late_weight * done
    for due, after in zip(d.due_beyond, d.ticks_beyond, strict=True):
        np.multiply(rate[..., -1], after[:, None], out=part)
        part += done
        part -= before[:, None]
        np.clip(part, 0.0, (due - before)[:, None], out=part)
        value += knobs.beyond_weight * part
        before = due
    return value
