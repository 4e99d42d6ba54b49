"""After every single write of any plan no unit belongs to two isolated VMs; the whole plan leads where it should."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hosts import apart, check_isolated, hosts
from hypothesis import given
from hypothesis import strategies as st

from foreshare.envs.hal import Plan, Receipt
from foreshare.envs.hal.plan import advance, build_plan
from foreshare.policies.guard import Guard
from foreshare.policies.host import Host, Placement, Resource
from foreshare.policies.placement import Placer


def allocations(data: st.DataObject, host: Host, count: int) -> list[np.ndarray]:
    guard, held, out = Guard(host), host.reservation.copy(), []
    for _ in range(count):
        ask = np.array([[data.draw(st.floats(0, 150)) for _ in range(4)] for _ in range(len(host))]).reshape(-1, 4)
        held = guard.admit(ask, ask, held)
        out.append(held)
    return out


def prefix(plan: Plan, k: int) -> Receipt:
    return Receipt(done=k)


def check_counts(host: Host, state: Placement) -> None:
    for g in host.groups:
        for j, r in enumerate(list(Resource)[g.cols]):
            if r != Resource.CPU:
                assert state.units[g.rows, r].sum() <= g.capacity[j]
    quota = ~apart(host)
    for zone in range(max(host.topology.zones, 1)):
        here = host.vms.zone == zone
        cores = host.topology.core[state.cpus[here & ~quota].any(axis=0)] if (here & ~quota).any() else []
        used = len(np.unique(cores)) * host.topology.threads_per_core * host.topology.units_per_cpu
        total = state.units[here & quota, Resource.CPU].sum() + used
        assert total <= host.topology.pool(Resource.CPU, zone).units


@given(host=hosts(), data=st.data())
def test_every_prefix_of_every_plan_is_safe(host: Host, data: st.DataObject) -> None:
    placer, state = Placer(host), Placement.empty(len(host), host.topology.cpus)
    target = Placement.empty(len(host), host.topology.cpus)
    first = True
    for units in allocations(data, host, 4):
        placer.place(units, target)
        check_isolated(host, target)
        for _ in range(
            2
        ):  # cut somewhere, as a deadline or a kill would, then the next tick's plan for the same target
            plan = build_plan(host, state, target)
            if not first:
                step_by_step = replace(plan, whole=False)
                for k in range(len(plan) + 1):
                    between = state.copy()
                    advance(between, step_by_step, prefix(plan, k), target, host)
                    check_isolated(host, between)
                    check_counts(host, between)
                    if k:
                        done = between.cpus[plan.vm[:k]]
                        assert done.any(axis=1).all(), "somebody has no CPU at all"
                if plan.whole:
                    assert (between.cpus == target.cpus).all()
                    assert (between.ways == target.ways).all()
                    assert (between.units == target.units).all()
            cut = data.draw(st.integers(0, len(plan)))
            advance(state, plan, prefix(plan, cut), target, host)
        for _ in range(3):
            plan = build_plan(host, state, target)
            advance(state, plan, prefix(plan, len(plan)), target, host)
        assert not len(build_plan(host, state, target)), "the plan does not converge"
        assert (state.cpus == target.cpus).all()
        assert (state.ways == target.ways).all()
        assert (state.units == target.units).all()
        first = False


@given(host=hosts(), data=st.data())
def test_a_foreign_start_converges(host: Host, data: st.DataObject) -> None:
    """As found: everybody may run anywhere without limit. One plan leads out of that, donors first."""
    n = len(host)
    state = Placement.empty(n, host.topology.cpus)
    state.cpus[:] = True
    state.units[:] = 10_000 * host.movable
    state.units[:, Resource.CACHE] = 0
    placer, target = Placer(host), Placement.empty(n, host.topology.cpus)
    placer.adopt(state)
    placer.place(allocations(data, host, 1)[0], target)
    for _ in range(3):
        plan = build_plan(host, state, target)
        advance(state, plan, prefix(plan, len(plan)), target, host)
    assert (state.cpus == target.cpus).all()
    assert (state.units == target.units).all()


@given(host=hosts(), data=st.data())
def test_counts_are_placed_and_moves_are_few(host: Host, data: st.DataObject) -> None:
    placer, target = Placer(host), Placement.empty(len(host), host.topology.cpus)
    before: np.ndarray | None = None
    old: np.ndarray | None = None
    for units in allocations(data, host, 3):
        placer.place(units, target)
        assert (target.units == units).all(), "the placer could not place a feasible allocation"
        assert (np.bitwise_count(target.ways) == units[:, Resource.CACHE]).all()
        width = host.topology.way_bits
        assert all(w >> width == 0 for w in target.ways.tolist())
        runs = [bin(w)[2:].strip("0") for w in target.ways.tolist() if w]
        assert all(set(r) == {"1"} for r in runs), "ways must be contiguous"
        owner = placer.owner
        if before is not None and old is not None and not apart(host).any():
            moved = int(((before != owner) & (owner >= 0)).sum())
            assert moved == int(np.maximum(units - old, 0)[:, Resource.CPU].sum()), "more units moved than had to"
        before, old = owner, units
