"""Allocators answer feasibly, independent of the order of the VMs; the priority sort is the specification's."""

from __future__ import annotations

import numpy as np
import pytest
from hosts import hosts, table, topology
from hypothesis import given, settings
from hypothesis import strategies as st

from foreshare.policies.allocators import (
    Allocator,
    BacklogWaterFilling,
    Bayesian,
    Equal,
    Heracles,
    Parties,
    PrioritySort,
    Request,
    SmartHarvest,
    Static,
    Triage,
    WaterFilling,
)
from foreshare.policies.allocators.bayesian import BayesianKnobs
from foreshare.policies.allocators.heracles import HeraclesKnobs
from foreshare.policies.allocators.parties import PartiesKnobs
from foreshare.policies.allocators.priority_sort import ROTATE_TICKS
from foreshare.policies.allocators.smartharvest import SmartHarvestKnobs
from foreshare.policies.host import Host, Resource
from foreshare.policies.rounding import apportion, fill_extras, fill_level

ALLOCATORS = (
    Static,
    Equal,
    PrioritySort,
    WaterFilling,
    BacklogWaterFilling,
    Triage,
    Parties,
    Heracles,
    SmartHarvest,
    Bayesian,
)
STATEFUL = (Triage, Parties, Heracles, SmartHarvest, Bayesian)


def request(data: st.DataObject, host: Host) -> Request:
    n = len(host)
    ask = np.array([[data.draw(st.floats(0, 150)) for _ in range(4)] for _ in range(n)]).reshape(n, 4)
    ask = np.clip(ask, host.floor, host.cap)
    return Request(ask, ask.copy())


def busy(rng: np.random.Generator, host: Host) -> Request:
    """A request with usage, backlog and delays of any size."""
    size = host.cap.shape
    ask = np.clip(rng.exponential(40.0, size), host.floor, host.cap)
    need = np.clip(ask * rng.random(size), host.floor, host.cap)
    backlog = rng.exponential(30.0, size) * (rng.random(size) < 0.5)
    return Request(ask, need, need * rng.random(size), backlog, rng.exponential(3.0, len(host)))


def turned_request(asked: Request, order: np.ndarray) -> Request:
    return Request(
        asked.ask[order], asked.need[order], asked.usage[order], asked.backlog[order], asked.delay_ticks[order]
    )


def every_tick(kind: type[Allocator]) -> Allocator:
    """One that decides at every tick, so that a short run sees it at work."""
    if kind is Triage or kind not in STATEFUL:
        return kind()
    knobs = {Parties: PartiesKnobs, Heracles: HeraclesKnobs, SmartHarvest: SmartHarvestKnobs, Bayesian: BayesianKnobs}
    return kind(knobs[kind](period_ticks=1))  # type: ignore[call-arg]  # the Protocol says nothing of constructors


@pytest.mark.parametrize("kind", STATEFUL)
@settings(max_examples=30)
@given(data=st.data(), host=hosts(), seed=st.integers(0, 1000))
def test_a_history_keeps_the_rules(kind: type[Allocator], host: Host, data: st.DataObject, seed: int) -> None:
    """Over many ticks: feasible sums, nobody below zero, the order of the rows does not matter, VMs may vanish."""
    rng = np.random.default_rng(seed)
    order = np.array(data.draw(st.permutations(range(len(host)))), np.int64)
    other = Host(host.topology, host.vms.take(order))
    one, two = every_tick(kind), every_tick(kind)
    for tick in range(12):
        asked = busy(rng, host)
        kept = turned_request(asked, np.arange(len(host))).read_only()
        units = one.allocate(kept, host, tick)
        assert units.dtype == np.int64
        assert (units >= 0).all()
        for g in host.groups:
            assert (units[g.rows, g.cols].sum(axis=0) <= g.capacity).all()
        assert (two.allocate(turned_request(asked, order), other, tick) == units[order]).all()
    if len(host) > 1:
        fewer = Host(host.topology, host.vms.take(np.arange(len(host) - 1)))
        units = one.allocate(busy(rng, fewer), fewer, 12)
        assert units.shape == fewer.cap.shape
        for g in fewer.groups:
            assert (units[g.rows, g.cols].sum(axis=0) <= g.capacity).all()


@given(host=hosts(), seed=st.integers(0, 1000))
def test_triage_is_water_filling_where_all_fits(host: Host, seed: int) -> None:
    asked = busy(np.random.default_rng(seed), host)
    asked.ask[:] = np.minimum(asked.ask, host.reservation)
    assert (Triage().allocate(asked, host, 0) == BacklogWaterFilling().allocate(asked, host, 0)).all()


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
