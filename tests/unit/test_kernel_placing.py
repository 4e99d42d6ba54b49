"""The compiled placer and planner do what their numpy forms do, write by write, on hosts of every shape."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from hosts import hosts, table, topology
from hypothesis import given
from hypothesis import strategies as st

from foreshare.policies import kernel
from foreshare.policies.guard import Guard
from foreshare.policies.host import CACHE, Host, IntArray, Placement
from foreshare.policies.placement import BatchPlacer, Placer

if kernel.compiled is None:
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
    with pytest.raises(ValueError, match="array|placement"):
        kernel.compiled.place(layout, units, owner, cores, held, into.cpus.copy(), into.units, into.cpus)
