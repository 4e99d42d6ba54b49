"""What each VM can be given and what that is worth over the horizon: (ways, service level) options, all VMs at once.

A service level is a number of requests per tick; with the ways it makes a need of CPU, memory and IO in whole units. An
option is worth the priority-weighted work that it lets finish in time, if it stays for the whole horizon. What it takes
is what can be used now: no more than there is to serve in the first tick. Who needs more for a burst that is still to
come gets it when it comes, and nobody is refused for the sake of units that would lie idle until then:

- first in first out, all in requests counted from now: ``D_k = min(arrived_k, D_{k-1} + rate_k)``, where ``due_k`` is
  what must be done by the end of tick ``k`` for nothing to be late, and in time is
  ``clip(D_k - due_{k-1}, 0, due_k - due_{k-1})`` of it (the complement of simulator/lateness.py's late requests);
- what is due in the next tick counts ``urgent_weight`` times: it cannot be decided again;
- later ticks are taken in steps (_STEPS), and work that is due after the horizon at two points in time, at the last
  rate;
- what is then still overdue, ``E`` requests, stands in front of all that comes later. Clearing it takes ``E / s`` ticks
  with ``s`` requests per tick to spare, and so long everything is late; a VM whose queue is beyond hope loses no more
  than it always does. So ``E`` costs ``T a E / (E + r T a)``: with ``a`` mean arrivals per tick and ``r`` the speed of
  recovery relative to ``a``, that is ``E / r`` while it is small, and ``T a``, all that comes in ``T`` ticks, at most.
  This is what makes an oracle stand by the VMs that it serves: who is in time has most to lose, who is nearly in time
  most to win, and who is far behind waits for a lull;
- ``rate_k`` is the bottleneck's. Units that are new to a VM are cold at first, as in simulator/host.py, so that a move
  costs what it loses; ``cpu_price`` and ``way_price`` are charged for it on top.

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

from .queues import Deadlines, Situation, deadlines
from .solve import IMPOSSIBLE

_MORE_WAYS = (0, 1, 2, 3, 4, 6, 9)
"""Ways above the fewest that a VM may have, as options; what it holds is one more."""
_DEADLINES = (0, 1, 3, 9)
"""Ticks by the end of which all that is due is done: service levels."""
_PARTS = (0.4, 0.7, 0.85, 1.0, 1.25)
"""Service levels relative to the one that makes everything in time."""
_STEPS = (1, 1, 1, 2, 2, 3)
"""Ticks that are taken together; the last step repeats in longer horizons."""
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
    lasting_ticks: float = 30.0
    """``T``: how long a VM that is behind is thought to stay so, at most."""
    recovery: float = 0.6
    """``r``: requests per tick by which a VM catches up, relative to its mean arrivals."""
    cpu_price: float = 0.02
    """Price of moving all CPU, relative to all the work that arrives in the horizon; what is cold is lost on top."""
    way_price: float = 0.12
    """Price of moving one way, relative to the work that arrives for the mean VM in the horizon. It comes on top of
    what the new owner loses while the way fills: ways are contiguous, so that a neighbour's may have to move with it,
    and a later decision may take it away before it has paid. A neighbour is one VM on a host of any size."""


class Menu(NamedTuple):
    """The options: N VMs with W ways and L service levels, flattened to O = W * L. Option 0 is the least of a VM."""

    value: FloatArray
    """(N, O)."""
    units: FloatArray
    """(R, N, O), whole numbers."""
    level: FloatArray
    """(L, N) requests per tick."""
    need: FloatArray
    """(R, W, N) unit-ticks of a request with these ways, once they are warm."""


def service_levels(d: Deadlines, held_rate: FloatArray) -> FloatArray:
    """Return (L, N) rates worth trying, requests per tick; row 0 is 0. ``held_rate``: what is held serves so many."""
    h = len(d.due)
    ticks = np.arange(1.0, h + 1)[:, None]
    required = np.maximum.accumulate(d.due / ticks, axis=0)
    all_in_time = np.maximum(required[-1], (d.due_beyond / (h + d.ticks_beyond)).max(axis=0))
    rows = [np.zeros(len(all_in_time))]
    rows += [required[min(k, h - 1)] for k in _DEADLINES]
    rows += [all_in_time * part for part in _PARTS]
    rows.append(d.arrived[0])
    rows.append(np.maximum(d.arrived[min(2, h - 1)] / min(3, h), all_in_time))
    rows.append(np.minimum(held_rate, d.arrived[0]))
    return np.stack(rows)


def way_options(host: Host, low: IntArray, held: FloatArray) -> tuple[IntArray, BoolArray]:
    """Return (W, N) ways to try and which of them are allowed; row 0 is the fewest, the last what is held."""
    fewest = low[:, CACHE]
    ways = np.empty((len(_MORE_WAYS) + 1, len(low)), np.int64)
    ways[:-1] = fewest + np.array(_MORE_WAYS)[:, None]
    ways[-1] = np.maximum(held[:, CACHE].astype(np.int64), fewest)
    least = host.topology.min_ways
    if least > 1:
        np.copyto(ways, least, where=(ways > 0) & (ways < least))
    allowed = ways <= np.maximum(host.cap[:, CACHE], fewest)
    allowed[1:-1] &= ways[1:-1] > ways[:-2]
    allowed[-1] &= (ways[:-1] != ways[-1]).all(axis=0)
    return np.where(allowed, ways, fewest), allowed


def make_menu(s: Situation, model: HostModel, shape: HostShape, host: Host, knobs: OracleKnobs, *, pays: bool) -> Menu:
    """Return every VM's options. ``pays``: moves cost what they lose to cold caches, and the prices of moves."""
    n = len(s.backlog)
    ways, allowed = way_options(host, s.low, s.held)
    d = deadlines(s, model.target_ticks)
    own = np.maximum(s.held[:, CACHE] - (s.cold[:, CACHE] if pays else 0.0), 0.0)
    now = np.where(s.held[:, CACHE] > 0.0, own, s.shared_ways)  # (N,) ways that the VM profits from so far
    profit = np.where(ways > 0, ways, s.shared_ways)  # (W, N)
    need = _need(model, profit, s.mix)
    held_rate = s.held[:, CPU] / np.maximum(_need(model, now[None], s.mix)[CPU, 0], _LITTLE)
    level = service_levels(d, held_rate)
    later = np.where(level > d.arrived[0], level, 0.0)
    np.minimum(level, d.arrived[0], out=level)

    units = np.empty((R, len(ways), len(level), n))
    for r in (CPU, MEMORY, IO):
        x = np.multiply(level, need[r, :, None, :], out=units[r])
        granule = host.granule[:, r]
        x -= _LITTLE
        if (granule > 1).any():
            x /= granule
            np.ceil(x, out=x)
            x *= granule
        else:
            np.ceil(x, out=x)
        np.maximum(x, s.low[:, r], out=x)
        np.minimum(x, host.cap[:, r], out=x)
    units[CACHE] = ways[:, None, :]

    per = 1.0 / np.maximum(need, 1e-12)
    most = np.minimum(s.threads, host.cap[:, CPU]) * per[CPU]
    for r in (MEMORY, IO):
        np.minimum(most, host.cap[:, r] * per[r], out=most)
    later = np.minimum(later, most[:, None, :])
    value = _worth(s, units, later, ways, now, profit, need, d, model, shape, knobs, pays=pays)
    weight = (1.0 + np.maximum(host.vms.priority, 0)) / np.maximum(model.rate, _LITTLE)
    value *= weight
    if pays:
        work = float((weight * s.arrivals.sum(axis=0)).sum())
        prices = {CPU: knobs.cpu_price / max(float(model.capacity[CPU]), 1.0), CACHE: knobs.way_price / max(n, 1)}
        for r, price in prices.items():
            moved = units[r] - s.held[:, r]
            np.maximum(moved, 0.0, out=moved)
            moved *= price * work
            value -= moved
    np.copyto(value, IMPOSSIBLE, where=~allowed[:, None, :])
    return Menu(
        np.ascontiguousarray(value.reshape(-1, n).T), np.ascontiguousarray(units.reshape(R, -1, n).swapaxes(1, 2)),
        level, need,
    )  # fmt: skip


def _need(model: HostModel, ways: FloatArray, mix: FloatArray) -> FloatArray:
    """Return (R, W, N) unit-ticks of a request with (W, N) ways; like HostModel.need_at, resources first."""
    misses = miss_ratio(ways, *model.miss)
    need = np.empty((R, *ways.shape))
    need[:] = (model.base * mix).T[:, None, :]
    need[CPU] *= 1.0 + model.stall * misses
    need[MEMORY] *= misses
    return need


def _worth(
    s: Situation, units: FloatArray, later: FloatArray, ways: IntArray, now: FloatArray, profit: FloatArray,
    need: FloatArray, d: Deadlines, model: HostModel, shape: HostShape, knobs: OracleKnobs, *, pays: bool,
) -> FloatArray:  # fmt: skip
    """Return what options are worth in requests, (W, L, N), not weighted by priority yet.

    ``now`` (N,): ways that VMs profit from so far; ``profit`` (W, N): those of the options, which make ``need``;
    ``later`` (W, L, N): requests per tick from the second tick on where that is more than ``units`` serve.
    """
    h = len(d.due)
    w = shape.warm_ticks
    usable = np.maximum(units[CPU], _TRICKLE)
    bandwidth = [np.maximum(units[r], _TRICKLE) for r in (MEMORY, IO)]
    cold: FloatArray | None = None
    new = np.zeros(ways.shape)
    if pays and w.cpu:
        cold = units[CPU] - s.held[:, CPU]
        np.maximum(cold, 0.0, out=cold)
        cold *= shape.cold_cpu
        cold += np.minimum(s.cold[:, CPU], units[CPU])
    if pays and w.cache:
        new = np.maximum(ways - s.held[:, CACHE], 0.0) + np.minimum(s.cold[:, CACHE], ways)
    settled = max(w.cpu if cold is not None else 0, s.ways_after + (w.cache if pays else 0))

    done = np.zeros(units.shape[1:])
    value = np.zeros_like(done)
    rate, part, overdue = np.empty_like(done), np.empty_like(done), np.empty_like(done)
    before, k, step = d.late, 0, 0
    constant = False
    while k < h:
        length = min(_STEPS[min(step, len(_STEPS) - 1)], h - k)
        if not constant:
            middle = k + 0.5 * (length - 1)
            if middle < s.ways_after:
                there = _need(model, now[None], s.mix)
            elif middle < settled and w.cache and new.any():
                left = max(1.0 - (middle - s.ways_after) / w.cache, 0.0)
                there = _need(model, np.where(ways > 0, np.maximum(ways - left * new, 0.0), profit), s.mix)
            else:
                there = need
            per = (1.0 / np.maximum(there, 1e-12))[:, :, None, :]
            if cold is not None and middle < w.cpu:
                np.multiply(cold, middle / w.cpu - 1.0, out=rate)
                rate += usable
                np.maximum(rate, _TRICKLE, out=rate)
                np.minimum(rate, s.threads, out=rate)
            else:
                np.minimum(usable, s.threads, out=rate)
            rate *= per[CPU]
            for amount, r in zip(bandwidth, (MEMORY, IO), strict=True):
                np.multiply(amount, per[r], out=part)
                np.minimum(rate, part, out=rate)
            constant = middle >= settled
        if step:
            np.maximum(rate, later, out=rate)
        if length > 1:
            np.multiply(rate, length, out=part)
            done += part
        else:
            done += rate
        k, step = k + length, step + 1
        np.minimum(done, d.arrived[k - 1], out=done)
        np.minimum(done, d.due[k - 1], out=part)
        part -= before
        np.maximum(part, 0.0, out=part)
        if step == 1 and knobs.urgent_weight != 1.0:
            part *= knobs.urgent_weight
        value += part
        before = d.due[k - 1]
    for due, after in zip(d.due_beyond, d.ticks_beyond, strict=True):
        np.multiply(rate, after, out=part)
        part += done
        np.minimum(part, due, out=part)
        np.subtract(due, part, out=overdue)  # that of the last one stays
        part -= before
        np.maximum(part, 0.0, out=part)
        part *= knobs.beyond_weight
        value += part
        before = due
    most = knobs.lasting_ticks * model.rate
    np.add(overdue, knobs.recovery * most + _LITTLE, out=part)
    overdue *= most
    overdue /= part
    value -= overdue
    return value
