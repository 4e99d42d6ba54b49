"""From what the controls hold to what they should hold: the ordered writes, safe after each one.

Donors come before receivers: first every write that takes something away, then every write that gives. A plan that is
cut off at any point (a deadline, a kill) leaves capacity unused, never owned twice. Writes that no order can make safe
are left out; the next tick's plan has them when their donors are done.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from foreshare.policies import kernel
from foreshare.policies.host import CACHE, CPU, IO, MEMORY, BoolArray, Host, IntArray, Isolation, Placement

from .types import Control, Plan, Receipt

_CPUS, _WAYS = int(Control.CPUS), int(Control.WAYS)
_SHARED = int(Isolation.SHARED)
_COUNTED = np.array([CPU, MEMORY, IO])
_CONTROL_OF = np.array(
    [Control.CPU, -1, Control.MEMORY, Control.IO], np.int64
)  # by resource; ways have masks, not counts
compiled_plan = kernel.load("foreshare.envs.hal._plan")
"""The module of C functions (compiled/plan.c), or None; heeded as long as kernel.compiled is."""
_MOST_WRITES, _MOST_SETS = 7, 2
"""Of one VM in a plan: two sets of CPUs, two way masks, three amounts."""


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
    if kernel.compiled is not None and compiled_plan is not None:
        return Planner().build(host, current, target)
    take, give = _Writes([], [], []), _Writes([], [], [])
    sets: list[BoolArray] = []
    whole = bool(host.active.all())
    apart = host.vms.isolation != _SHARED
    if not whole:  # who is not there has no controls to write
        target = target.copy()
        for mine, theirs in ((target.units, current.units), (target.cpus, current.cpus), (target.ways, current.ways)):
            mine[~host.active] = theirs[~host.active]
    if host.movable[CPU]:
        whole &= _plan_cpus(current.cpus, target.cpus, apart, take, give, sets)
    change = target.units - current.units
    change[:, CACHE] = 0
    change[apart, CPU] = 0  # they own their cores, and have no quota
    if not host.movable.all():
        change[:, ~host.movable] = 0
    for writes, differs in ((take, change < 0), (give, change > 0)):
        row, r = differs.nonzero()
        if len(row):
            writes.control.append(_CONTROL_OF[r])
            writes.vm.append(row)
            writes.value.append(target.units[row, r])
    if host.movable[CACHE]:
        whole &= _plan_ways(host, current.ways, target.ways, take, give)
    controls = [*take.control, *give.control]
    if not controls:
        none = np.zeros(0, np.int64)
        return Plan(none.astype(np.int8), none, none, np.zeros((0, current.cpus.shape[1]), bool), whole)
    return Plan(
        np.concatenate(controls).astype(np.int8),
        np.concatenate([*take.vm, *give.vm]),
        np.concatenate([*take.value, *give.value]),
        np.concatenate(sets) if sets else np.zeros((0, current.cpus.shape[1]), bool),
        whole,
    )


class Planner:
    """Builds plans between the same two placements, tick by tick. A plan is valid until the next one is built."""

    def __init__(self) -> None:
        self.memo = kernel.Memo()
        self._host: Host | None = None
        self._ends: tuple[Placement, Placement] | None = None
        self._arrays: tuple[object, ...] = ()

    def build(self, host: Host, current: Placement, target: Placement) -> Plan:
        """See :func:`build_plan`."""
        if kernel.compiled is None or compiled_plan is None:
            return build_plan(host, current, target)
        ends = self._ends
        if ends is None or host is not self._host or ends[0] is not current or ends[1] is not target:
            self._bind(host, current, target)
        count, some, whole = compiled_plan.build(self.memo.held, self._arrays)
        return Plan(self._control[:count], self._vm[:count], self._value[:count], self._sets[:some], whole)

    def _bind(self, host: Host, current: Placement, target: Placement) -> None:
        n, cpus = current.cpus.shape
        self._host, self._ends = host, (current, target)
        self._control, self._vm = np.empty(_MOST_WRITES * n, np.int8), np.empty(_MOST_WRITES * n, np.int64)
        self._value, self._sets = np.empty_like(self._vm), np.empty((_MOST_SETS * n, cpus), bool)
        self._arrays = (
            np.array((n, cpus, host.topology.min_ways), np.int64), host.active, host.vms.isolation != _SHARED,
            host.vms.zone, host.movable, current.units, current.cpus, current.ways, target.units, target.cpus,
            target.ways, self._control, self._vm, self._value, self._sets, np.empty(n, np.int64),
        )  # fmt: skip


def _plan_cpus(
    old: BoolArray, new: BoolArray, apart: BoolArray, take: _Writes, give: _Writes, sets: list[BoolArray]
) -> bool:
    """CPU sets; return whether every set arrives.

    A shared VM's set is one write, unless it gains a CPU that an isolated VM has yet to leave; then, and for isolated
    VMs, it first shrinks to what stays and grows once all donors are through.
    """
    rows = (old != new).any(axis=1).nonzero()[0]
    if not len(rows):
        return True
    taken = old[apart].any(axis=0)  # CPUs that an isolated VM holds now
    was, will, apart_here = old[rows], new[rows], apart[rows]
    gains = will & ~was
    two_step = apart_here | (gains & taken).any(axis=1)
    if not two_step.any():
        sets.append(will)
        take.add(_CPUS, rows, np.arange(len(rows)))
        return True
    first = np.where(two_step[:, None], was & will, will)
    stays = first.any(axis=1)
    idle = ~stays & ~apart_here
    if idle.any():  # in between, a shared VM may be wherever no isolated VM is or shall be
        first[idle] = will[idle] & ~taken
        still = idle & ~first.any(axis=1)
        first[still] = ~taken & ~new[apart].any(axis=0)
        stays = first.any(axis=1)
    later = two_step & (first != will).any(axis=1)
    wanted = later.copy()
    # An isolated VM that has to leave all its CPUs at once goes straight to the new ones, if they are free by then.
    held = old.copy()
    held[rows[stays]] = first[stays]
    for i in (later & ~stays).nonzero()[0]:
        later[i] = not (will[i] & np.delete(held, rows[i], axis=0).any(axis=0)).any()
    # A receiver waits where somebody stays on what it is to get, because there was nowhere to go in the first step.
    stuck = ~stays & ~later
    if stuck.any():
        later &= ~(gains & was[stuck].any(axis=0)).any(axis=1)
    now = stays & (first != was).any(axis=1)
    # Who goes straight to his new CPUs leaves the old ones only then, and somebody may be waiting for those.
    order = np.concatenate([(later & ~stays).nonzero()[0], (later & stays).nonzero()[0]])
    sets.append(first[now])
    sets.append(will[order])
    shrinking = int(now.sum())
    take.add(_CPUS, rows[now], np.arange(shrinking))
    give.add(_CPUS, rows[order], shrinking + np.arange(len(order)))
    return bool((later == wanted).all() and not stuck.any())


def _plan_ways(host: Host, old: IntArray, new: IntArray, take: _Writes, give: _Writes) -> bool:
    """Way masks, each owner only into ways that nobody holds any more; return whether every mask arrives."""
    rows = (old != new).nonzero()[0]
    if not len(rows):
        return True
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
    return not pending


def advance(state: Placement, plan: Plan, receipt: Receipt, target: Placement, host: Host) -> None:
    """Bring ``state``, what the controls are believed to hold, up to date with the writes that were done."""
    done = receipt.done
    if plan.whole and done == len(plan) and not receipt.failures:
        state.copy_from(target)
        return
    ok = np.ones(done, bool)
    for failure in receipt.failures:
        if failure.index < done:
            ok[failure.index] = False
    control, vm, value = plan.control[:done], plan.vm[:done], plan.value[:done]
    for r in _COUNTED:
        at = (control == _CONTROL_OF[r]) & ok
        state.units[vm[at], r] = value[at]
    at = (control == _WAYS) & ok
    state.ways[vm[at]] = value[at]
    state.units[vm[at], CACHE] = np.bitwise_count(value[at].astype(np.uint64))
    at = (control == _CPUS) & ok
    state.cpus[vm[at]] = plan.cpu_sets[value[at]]
    apart = host.vms.isolation != _SHARED
    if apart.any():  # no write of its own: an isolated VM's CPU units follow its cores
        state.units[apart, CPU] = state.cpus[apart].sum(axis=1) * host.topology.units_per_cpu
