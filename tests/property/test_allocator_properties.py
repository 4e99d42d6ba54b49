"""Allocators answer feasibly, independent of the order of the VMs; the priority sort is the specification's."""

from __future__ import annotations

import numpy as np
import pytest
from hosts import hosts, table, topology
from hypothesis import given
from hypothesis import strategies as st

from foreshare.policies.allocators import Allocator, Equal, PrioritySort, Request, Static, WaterFilling
from foreshare.policies.allocators.priority_sort import ROTATE_TICKS
from foreshare.policies.host import Host, Resource
from foreshare.policies.rounding import apportion, fill_extras, fill_level

ALLOCATORS = (Static, Equal, PrioritySort, WaterFilling)


def request(data: st.DataObject, host: Host) -> Request:
    n = len(host)
    ask = np.array([[data.draw(st.floats(0, 150)) for _ in range(4)] for _ in range(n)]).reshape(n, 4)
    ask = np.clip(ask, host.floor, host.cap)
    return Request(ask, ask.copy())


@pytest.mark.parametrize("kind", ALLOCATORS)
@given(data=st.data(), host=hosts(), tick=st.integers(0, 100))
def test_within_capacity_and_equivariant(kind: type[Allocator], host: Host, data: st.DataObject, tick: int) -> None:
    asked = request(data, host)
    units = kind().allocate(asked, host, tick)
    assert units.shape == host.cap.shape
    assert (units >= 0).all()
    for g in host.groups:
        assert (units[g.rows, g.cols].sum(axis=0) <= g.capacity).all()
    order = np.array(data.draw(st.permutations(range(len(host)))), np.int64)
    other = Host(host.topology, host.vms.take(order))
    turned = kind().allocate(Request(asked.ask[order], asked.need[order]), other, tick)
    assert (turned == units[order]).all()


def reference_priority_sort(asked: Request, host: Host, tick: int) -> tuple[np.ndarray, np.ndarray]:
    """The specification, a VM at a time: available = capacity - grants - reservations of those not yet served."""
    n = len(host)
    ask = np.minimum(np.ceil(asked.ask / host.granule - 1e-9) * host.granule, host.cap).astype(int)
    order = sorted(range(n), key=lambda i: (-host.vms.priority[i], (host.vms.rank[i] - tick // ROTATE_TICKS) % n))
    got = np.zeros((n, 4), int)
    refused = np.zeros(n, bool)
    for position, i in enumerate(order):
        fits = True
        for r in (Resource.CPU, Resource.MEMORY, Resource.IO):
            zone = int(host.vms.zone[i])
            near = [j for j in range(n) if r == Resource.IO or host.vms.zone[j] == zone]
            available = (
                host.topology.pool(r, zone).units
                - sum(got[j, r] for j in order[:position] if j in near)
                - sum(host.reservation[j, r] for j in order[position + 1 :] if j in near)
            )
            fits &= ask[i, r] <= max(available, host.reservation[i, r]) or not host.movable[r]
        refused[i] = not fits
        got[i] = ask[i] if fits else host.reservation[i]
    return got, refused


@given(host=hosts(), data=st.data(), tick=st.integers(0, 200))
def test_priority_sort_is_the_specification(host: Host, data: st.DataObject, tick: int) -> None:
    asked = request(data, host)
    sort = PrioritySort()
    units = sort.allocate(asked, host, tick)
    expected, refused = reference_priority_sort(asked, host, tick)
    assert (sort.refused == refused).all()
    columns = [Resource.CPU, Resource.MEMORY, Resource.IO]
    assert (units[:, columns] == expected[:, columns]).all()


def test_ties_take_turns() -> None:
    """Two VMs that cannot both have what they want have it in turns."""
    host = Host(topology(cores=4), table(2, reservation=np.tile([5, 0, 1, 1], (2, 1))))
    asked = Request(np.tile([35.0, 0, 1, 1], (2, 1)), np.tile([35.0, 0, 1, 1], (2, 1)))
    sort = PrioritySort()
    winners = {int(sort.allocate(asked, host, t)[:, Resource.CPU].argmax()) for t in range(0, 4 * ROTATE_TICKS)}
    assert winners == {0, 1}


@given(data=st.data(), n=st.integers(1, 20), c=st.integers(1, 4))
def test_fill_level_is_max_min_fair(data: st.DataObject, n: int, c: int) -> None:
    numbers = st.floats(0, 100)
    a = np.array([[data.draw(numbers) for _ in range(c)] for _ in range(n)])
    b = np.array([[data.draw(numbers) for _ in range(c)] for _ in range(n)])
    low, high = np.minimum(a, b), np.maximum(a, b)
    capacity = np.array([data.draw(st.floats(float(low[:, j].sum()), float(low[:, j].sum()) + 200)) for j in range(c)])
    x = fill_level(low, high, capacity)
    assert (x >= low - 1e-9).all()
    assert (x <= high + 1e-9).all()
    assert (x.sum(axis=0) <= capacity + 1e-6).all()
    for j in range(c):
        if high[:, j].sum() > capacity[j]:
            assert x[:, j].sum() == pytest.approx(capacity[j], abs=1e-6), "work conserving"
            level = np.where((x[:, j] > low[:, j] + 1e-6) & (x[:, j] < high[:, j] - 1e-6), x[:, j], np.nan)
            assert not np.nanmax(np.append(level, -np.inf)) - np.nanmin(np.append(level, np.inf)) > 1e-6


@given(data=st.data(), n=st.integers(0, 20), c=st.integers(1, 4))
def test_filling_from_zero_is_a_special_case(data: st.DataObject, n: int, c: int) -> None:
    numbers = st.one_of(st.floats(0, 100), st.sampled_from([0.0, 5.0]))
    extra = np.array([[data.draw(numbers) for _ in range(c)] for _ in range(n)]).reshape(n, c)
    room = np.array([data.draw(st.floats(0, 300)) for _ in range(c)])
    expected = fill_level(np.zeros_like(extra), extra, room)
    assert fill_extras(extra, room) == pytest.approx(expected, abs=1e-6)


@given(data=st.data(), n=st.integers(1, 20))
def test_apportion_keeps_the_sum(data: st.DataObject, n: int) -> None:
    granule = np.array([[data.draw(st.sampled_from([1, 1, 10, 20]))] for _ in range(n)])
    x = np.array([[data.draw(st.floats(0, 80))] for _ in range(n)])
    capacity = np.array([int(np.ceil(x.sum()))])
    out = apportion(x, granule, capacity, np.arange(n))
    assert out.sum() <= capacity[0]
    assert (np.abs(out - x) < granule + 1e-6).all()
    assert (out % granule == 0).all()
