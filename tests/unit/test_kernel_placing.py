"""The compiled placer and planner do what their numpy forms do, write by write, on hosts of every shape."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from hosts import hosts, table, topology
from hypothesis import given
from hypothesis import strategies as st

from foreshare.envs.hal import Plan, Receipt
from foreshare.envs.hal.plan import advance, build_plan, compiled_plan
from foreshare.envs.hal.types import Control
from foreshare.envs.hal.virtual import HeldPlacement
from foreshare.policies import kernel
from foreshare.policies.guard import Guard
from foreshare.policies.host import CACHE, Host, IntArray, Placement
from foreshare.policies.placement import BatchPlacer, Placer

if kernel.compiled is None or compiled_plan is None:
    pytest.skip("nothing was compiled here: there is only one form", allow_module_level=True)


@contextmanager
def numpy_forms() -> Iterator[None]:
    kept, kernel.compiled = kernel.compiled, None
    try:
        yield
    finally:
        kernel.compiled = kept


def allocation(rng: np.random.Generator, host: Host, held: IntArray) -> IntArray:
    """What the guard lets out: sometimes a few VMs' change, sometimes everybody's."""
    ask = np.where(rng.random((len(host), 1)) < rng.choice([0.1, 1.0]), rng.exponential(25.0, host.shape), held)
    return Guard(host).admit(ask, ask, held)


def some(rng: np.random.Generator, host: Host) -> Host:
    """The same hardware with other VMs there."""
    return Host(host.topology, host.vms, rng.random(len(host)) < 0.7)


def reordered(rng: np.random.Generator, host: Host) -> tuple[Host, IntArray]:
    """The same VMs in other rows, one of them gone; the former row of each."""
    rows = rng.permutation(len(host))[: max(len(host) - 1, 0)]
    return Host(host.topology, host.vms.take(rows), host.active[rows]), rows


def same(one: Placement, other: Placement) -> None:
    for name in ("units", "cpus", "ways"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)


@given(host=hosts(), seed=st.integers(0, 2**32 - 1))
def test_placements_agree_tick_by_tick_as_vms_come_and_go(host: Host, seed: int) -> None:
    rng = np.random.default_rng(seed)
    fast, reference = Placer(host), Placer(host)
    held = host.reservation
    found = Placement.empty(len(host), host.topology.cpus)
    found.cpus[:] = rng.random(found.cpus.shape) < 0.5
    found.ways[:] = rng.integers(0, 2 ** max(host.topology.way_bits, 1), len(host)) if host.topology.ways else 0
    for placer in (fast, reference):
        placer.adopt(found)
    for tick in range(12):
        if tick in (4, 8):
            host, rows = (some(rng, host), np.arange(len(host))) if tick == 4 else reordered(rng, host)
            fast.rebind(host, rows)
            with numpy_forms():
                reference.rebind(host, rows)
            held = np.minimum(held[rows], host.cap)
        held = allocation(rng, host, held)
        got, wanted = (Placement.empty(len(host), host.topology.cpus) for _ in range(2))
        fast.place(held, got)
        with numpy_forms():
            reference.place(held, wanted)
        same(got, wanted)
        np.testing.assert_array_equal(fast.owner, reference.owner)


@given(host=hosts(), seed=st.integers(0, 2**32 - 1))
def test_ways_agree_in_a_batch(host: Host, seed: int) -> None:
    rng, batch = np.random.default_rng(seed), Host(host.topology, host.vms, host.active, (3,))
    fast, reference = BatchPlacer(batch), BatchPlacer(batch)
    units = np.broadcast_to(host.reservation, batch.shape).copy()
    for _ in range(8):
        units[rng.integers(3)] = allocation(rng, host, units[0])
        got, wanted = (Placement.empty(len(host), 0, (3,)) for _ in range(2))
        fast.place(units, got)
        with numpy_forms():
            reference.place(units, wanted)
        same(got, wanted)
        assert (np.bitwise_count(got.ways) == units[..., CACHE]).all()


@pytest.mark.parametrize("bad", ["short", "owner", "layout", "type"])
def test_what_is_no_placer_is_refused(bad: str) -> None:
    assert kernel.compiled is not None
    host = Host(topology(), table(3))
    placer, into = Placer(host), Placement.empty(3, host.topology.cpus)
    layout, units, owner = placer._layout.copy(), host.reservation.copy(), placer.owner
    if bad == "short":
        units = units[:-1]
    elif bad == "owner":
        owner[0] = 3
    elif bad == "layout":
        layout[-1] = 3
    else:
        owner = owner.astype(np.float64)  # type: ignore[assignment]
    cores, held = np.full(int(layout[2]), -1), np.zeros(3, np.int64)
    arrays = (layout, owner, cores, held, into.cpus.copy(), into.units, into.cpus, into.ways)
    with pytest.raises(ValueError, match=r"array|placement"):
        kernel.compiled.settle(kernel.Memo().held, arrays, units)


def same_plan(one: Plan, other: Plan) -> None:
    for name in ("control", "vm", "value", "cpu_sets"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
        assert getattr(one, name).dtype == getattr(other, name).dtype
    assert one.whole == other.whole


@given(host=hosts(), seed=st.integers(0, 2**32 - 1))
def test_plans_agree_write_by_write(host: Host, seed: int) -> None:
    """From whatever a plan that was cut off has left, to placements of VMs some of whom are not there."""
    rng = np.random.default_rng(seed)
    placer = Placer(host)
    state, target = (Placement.empty(len(host), host.topology.cpus) for _ in range(2))
    state.cpus[:], state.units[:] = True, 10_000 * host.movable
    held = host.reservation
    for tick in range(10):
        if tick % 3 == 0 and tick:
            host = some(rng, host)
            placer.rebind(host, np.arange(len(host)))
            held = np.minimum(held, host.cap)
        held = allocation(rng, host, held)
        placer.place(held, target)
        got = build_plan(host, state, target)
        with numpy_forms():
            wanted = build_plan(host, state, target)
        same_plan(got, wanted)
        advance(state, got, Receipt(done=int(rng.integers(0, len(got) + 1))), target, host)


@given(host=hosts(), seed=st.integers(0, 2**32 - 1))
def test_any_two_placements_lead_to_the_same_plan(host: Host, seed: int) -> None:
    """Sets that no placer would make: overlapping, empty, all over the place."""
    rng, n = np.random.default_rng(seed), len(host)
    states = []
    for _ in range(2):
        state = Placement.empty(n, host.topology.cpus)
        state.cpus[:] = rng.random(state.cpus.shape) < rng.choice([0.05, 0.3])
        state.units[:] = rng.integers(0, 5, state.units.shape)
        state.ways[:] = rng.integers(0, 2**6, n) * (rng.random(n) < 0.7)
        states.append(state)
    got = build_plan(host, *states)
    with numpy_forms():
        same_plan(got, build_plan(host, *states))


@given(host=hosts(), seed=st.integers(0, 2**32 - 1))
def test_controls_take_and_refuse_the_same_writes(host: Host, seed: int) -> None:
    rng, n, t = np.random.default_rng(seed), len(host), host.topology
    fast, reference = HeldPlacement(t, host.vms), HeldPlacement(t, host.vms)
    for controls in (fast, reference):
        controls.claimed = True
    for _ in range(3):
        count = int(rng.integers(0, 12)) if n else 0
        sets = rng.random((int(rng.integers(0, 4)), t.cpus)) < 0.3
        plan = Plan(
            rng.integers(0, len(Control), count).astype(np.int8), rng.integers(0, max(n, 1), count),
            np.where(rng.random(count) < 0.1, rng.choice([-1, 10**9, 2**40]), rng.integers(0, 8, count)), sets,
        )  # fmt: skip
        fast.present[:] = reference.present[:] = rng.random(n) < 0.9
        receipts = Receipt(), Receipt()
        fast.apply(plan, receipts[0], 7)
        with numpy_forms():
            reference.apply(plan, receipts[1], 7)
        assert receipts[0] == receipts[1]
        got = fast.in_force()
        with numpy_forms():
            np.testing.assert_array_equal(got, reference.in_force())
        for name in ("units", "cpus", "ways", "gained"):
            np.testing.assert_array_equal(getattr(fast, name), getattr(reference, name), err_msg=name)


def test_a_plan_for_nobody_is_refused() -> None:
    host = Host(topology(), table(3))
    controls = HeldPlacement(host.topology, host.vms)
    controls.claimed = True
    plan = Plan(np.zeros(1, np.int8), np.array([3]), np.array([0]), np.ones((1, host.topology.cpus), bool))
    with pytest.raises(ValueError, match="no VM"):
        controls.apply(plan, Receipt(), 0)
