"""From what the controls hold to what they should hold: the ordered writes, safe after each one.

Donors come before receivers: first every write that takes something away, then every write that gives. A plan that is
cut off at any point (a deadline, a kill) leaves capacity unused, never owned twice. Writes that no order can make safe
are left out; the next tick's plan has them when their donors are done.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from foreshare.policies.host import CACHE, CPU, IO, MEMORY, BoolArray, Host, IntArray, Isolation, Placement

from .types import Control, Plan, Receipt

_CPUS, _CPU, _WAYS = int(Control.CPUS), int(Control.CPU), int(Control.WAYS)
_COUNTED = ((_CPU, CPU), (int(Control.MEMORY), MEMORY), (int(Control.IO), IO))
_SHARED = int(Isolation.SHARED)


@dataclass(slots=True)
class _Writes:
    """Writes of one phase, gathered control by control."""

    control: list[IntArray]
    vm: list[IntArray]
    value: list[IntArray]

    def add(self, control: int, vm: IntArray, value: IntArray) -> None:
        if len(vm):
            self.control.append(np.full(len(vm), control, np.int64))
            self.vm.append(vm)
            self.value.append(value)


def build_plan(host: Host, current: Placement, target: Placement) -> Plan:
    """Return the writes that lead from ``current`` to ``target``; empty where nothing differs.

    Both must be feasible on their own: counts within capacity, CPUs and ways of isolated VMs nobody else's.
    """
    take, give = _Writes([], [], []), _Writes([], [], [])
    sets: list[BoolArray] = []
    apart = host.vms.isolation != _SHARED
    if not host.active.all():  # who is not there has no controls to write
        target = target.copy()
        for mine, theirs in ((target.units, current.units), (target.cpus, current.cpus), (target.ways, current.ways)):
            mine[~host.active] = theirs[~host.active]
    if host.movable[CPU]:
        _plan_cpus(current.cpus, target.cpus, apart, take, give, sets)
    for control, r in _COUNTED:
        if host.movable[r]:
            old, new = current.units[:, r], target.units[:, r]
            differs = old != new
            if control == _CPU:
                differs &= ~apart  # they own their cores, and have no quota
            less = np.flatnonzero(differs & (new < old))
            take.add(control, less, new[less])
            more = np.flatnonzero(differs & (new > old))
            give.add(control, more, new[more])
    if host.movable[CACHE]:
        _plan_ways(host, current.ways, target.ways, apart, take, give)
    controls = [*take.control, *give.control]
    if not controls:
        none = np.zeros(0, np.int64)
        return Plan(none.astype(np.int8), none, none, np.zeros((0, current.cpus.shape[1]), bool))
    return Plan(
        np.concatenate(controls).astype(np.int8),
        np.concatenate([*take.vm, *give.vm]),
        np.concatenate([*take.value, *give.value]),
        np.vstack(sets) if sets else np.zeros((0, current.cpus.shape[1]), bool),
    )


def _plan_cpus(
    old: BoolArray, new: BoolArray, apart: BoolArray, take: _Writes, give: _Writes, sets: list[BoolArray]
) -> None:
    """CPU sets. A set that both loses and gains is written twice where an isolated VM is on either side."""
    differs = (old != new).any(axis=1)
    if not differs.any():
        return
    taken = old[apart].any(axis=0)  # CPUs that an isolated VM holds now
    granted = new[apart].any(axis=0)  # CPUs that an isolated VM shall hold
    gains = new & ~old
    # Shared VMs may move in one write, unless they gain a CPU that an isolated VM has yet to leave.
    waits = (gains & taken).any(axis=1) & ~apart
    one_step = differs & ~apart & ~waits
    two_step = differs & (apart | waits)
    first = np.where(one_step[:, None], new, old & new)
    # A shared VM in between may stay where it is as long as no isolated VM is to come there.
    common = ~taken & ~granted
    empty = two_step & ~first.any(axis=1) & ~apart
    if empty.any():
        first[empty] = new[empty] & ~taken
        still = empty & ~first.any(axis=1)
        first[still] = common
    possible = first.any(axis=1)
    step1 = np.flatnonzero(differs & possible & (first != old).any(axis=1))
    step2 = two_step & (first != new).any(axis=1)
    # An isolated VM that has to leave all its CPUs at once goes straight to the new ones, if they are free by then.
    held = np.where((differs & possible)[:, None], first, old)
    for row in np.flatnonzero(step2 & ~possible):
        others = np.delete(held, row, axis=0).any(axis=0)
        step2[row] = not (new[row] & others).any()
    # A receiver waits where somebody stays on what it is to get (he could not be moved in the first step).
    stuck = np.flatnonzero(differs & ~possible & ~step2)
    if len(stuck):
        blocked = held[stuck].any(axis=0)
        step2 &= ~(gains & blocked).any(axis=1)
    base = sum(len(s) for s in sets)
    receivers = np.flatnonzero(step2)
    sets.append(first[step1])
    sets.append(new[receivers])
    take.add(_CPUS, step1, base + np.arange(len(step1)))
    give.add(_CPUS, receivers, base + len(step1) + np.arange(len(receivers)))


def _plan_ways(host: Host, old: IntArray, new: IntArray, apart: BoolArray, take: _Writes, give: _Writes) -> None:
    """Way masks: shrink to what stays, then grow, each owner only into ways that nobody holds any more."""
    rows = np.flatnonzero(old != new)
    if not len(rows):
        return
    least, zone = host.topology.min_ways, host.vms.zone
    now = old.copy()
    kept = old & new
    kept[np.bitwise_count(kept) < least] = 0
    # Leaving for the shared class, or shrinking without moving all of it, needs nobody's leave.
    shrink = rows[(new[rows] == 0) | ((kept[rows] != 0) & (kept[rows] != old[rows]))]
    take.add(_WAYS, shrink, kept[shrink])
    now[shrink] = kept[shrink]
    pending = [int(r) for r in rows if now[r] != new[r]]
    order: list[int] = []
    while pending:
        ready = [
            r for r in pending
            if not (new[r] & np.bitwise_or.reduce(now[(zone == zone[r]) & (np.arange(len(now)) != r)], initial=0))
        ]  # fmt: skip
        if not ready:
            break  # owners in a ring: the next tick, when one of them has been moved aside
        now[ready[0]] = new[ready[0]]
        order.append(ready[0])
        pending.remove(ready[0])
    if order:
        grow = np.array(order, np.int64)
        give.add(_WAYS, grow, new[grow])


def advance(state: Placement, plan: Plan, receipt: Receipt) -> None:
    """Bring ``state``, what the controls are believed to hold, up to date with the writes that were done."""
    done = receipt.done
    ok = np.ones(done, bool)
    for failure in receipt.failures:
        if failure.index < done:
            ok[failure.index] = False
    control, vm, value = plan.control[:done], plan.vm[:done], plan.value[:done]
    for kind, r in _COUNTED:
        at = (control == kind) & ok
        state.units[vm[at], r] = value[at]
    at = (control == _WAYS) & ok
    state.ways[vm[at]] = value[at]
    state.units[vm[at], CACHE] = np.bitwise_count(value[at].astype(np.uint64))
    at = (control == _CPUS) & ok
    state.cpus[vm[at]] = plan.cpu_sets[value[at]]


def settle(state: Placement, host: Host) -> None:
    """Take over counts that have no write of their own: an isolated VM's CPU units follow its cores."""
    apart = host.vms.isolation != _SHARED
    if apart.any():
        units = state.cpus[apart].sum(axis=1) * host.topology.units_per_cpu
        state.units[apart, CPU] = units
