"""decide_tick survives any policy and any reading; its answer follows the VMs, whatever order their rows have."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hosts import check_feasible, check_isolated, hosts, table, topology
from hypothesis import given, settings
from hypothesis import strategies as st

from foreshare.policies.allocators import PrioritySort, Request, WaterFilling
from foreshare.policies.decide import Decision, Mind, decide_tick
from foreshare.policies.forecast import Ewma, Forecast, Forecaster, LastValue
from foreshare.policies.host import CACHE, FloatArray, Host, Isolation
from foreshare.policies.reading import Quality, Reading
from foreshare.policies.registry import POLICIES, make_mind

SECURITY = int(Isolation.SECURITY)


class Answers:
    """A policy that answers what it was made with."""

    name = "answers"

    def __init__(self, answer: Callable[[Request, Host], Any]) -> None:
        self.answer = answer

    def allocate(self, request: Request, host: Host, tick: int) -> Any:
        return self.answer(request, host)


def never_late(mind: Mind) -> Mind:
    counter = itertools.count()
    mind.clock_ns = lambda: next(counter)
    return mind


def reading_of(usage: FloatArray, *, quality: int = 0) -> Reading:
    r = Reading.empty(len(usage))
    r.dt_ns = 10_000_000
    r.usage[:] = r.demand_low[:] = usage
    r.quality[:] = np.where(np.isnan(usage), Quality.MISSING, quality)
    return r


def demand_of(demand: FloatArray) -> Reading:
    """Return a reading of VMs that want more ways than they can fill."""
    r = reading_of(demand)
    r.usage[:, CACHE] = np.minimum(demand[:, CACHE], 2.0)
    return r


class Nasty(np.ndarray):
    """An array that breaks when it is looked at."""

    def __array_ufunc__(self, *args: Any, **keys: Any) -> Any:
        raise RuntimeError("do not touch")


class Shapeless:
    """Raises for a mere look at its shape."""

    @property
    def shape(self) -> tuple[int, ...]:
        raise RuntimeError("no shape")


def leave(request: Request, host: Host) -> Any:
    raise SystemExit(3)


def scribble(request: Request, host: Host) -> Any:
    request.ask[:] = np.nan
    request.need[:] = 1e30
    return np.array(host.cap)


def recurse(request: Request, host: Host) -> Any:
    return recurse(request, host)


UNUSABLE: dict[str, Callable[[Request, Host], Any]] = {
    "none": lambda q, h: None,
    "text": lambda q, h: "everything",
    "list": lambda q, h: [[1] * 4] * len(h),
    "flat": lambda q, h: np.zeros(len(h) * 4 + 1),
    "transposed": lambda q, h: np.zeros((4, len(h) + 1)),
    "nan": lambda q, h: np.full(h.cap.shape, np.nan),
    "one-inf": lambda q, h: np.where(np.arange(h.cap.size).reshape(h.cap.shape) == 1, -np.inf, 1.0),
    "bool": lambda q, h: np.ones(h.cap.shape, bool),
    "complex": lambda q, h: np.ones(h.cap.shape, complex),
    "object": lambda q, h: np.full(h.cap.shape, None),
    "unsigned": lambda q, h: np.full(h.cap.shape, 2**64 - 1, np.uint64),
    "long-double": lambda q, h: np.full(h.cap.shape, np.longdouble("1e4000")),
    "masked": lambda q, h: np.ma.masked_all(h.cap.shape),
    "nasty": lambda q, h: np.ones(h.cap.shape).view(Nasty),
    "shapeless": lambda q, h: Shapeless(),
    "raises": lambda q, h: {}["missing"],
    "divides": lambda q, h: 1 // 0,
    "exits": leave,
    "scribbles": scribble,
    "recurses": recurse,
}
ODD: dict[str, Callable[[Request, Host], Any]] = {
    "zeros": lambda q, h: np.zeros(h.cap.shape),
    "negative": lambda q, h: np.full(h.cap.shape, -(2**63)),
    "most": lambda q, h: np.full(h.cap.shape, 2**63 - 1),
    "huge": lambda q, h: np.full(h.cap.shape, 1e300),
    "half": lambda q, h: np.full(h.cap.shape, 0.5, np.float16),
    "small-ints": lambda q, h: np.full(h.cap.shape, -128, np.int8),
    "fortran": lambda q, h: np.asfortranarray(np.full(h.cap.shape, 7)),
    "broadcast": lambda q, h: np.broadcast_to(np.int64(9), h.cap.shape),
    "the-cap-itself": lambda q, h: h.cap,
}


def mixed_host() -> Host:
    reservation = np.array([[20, 2, 20, 20], [10, 2, 10, 10], [5, 0, 5, 5], [1, 0, 1, 1], [0, 0, 0, 0]])
    return Host(
        topology(), table(5, isolation=[SECURITY, 1, 0, 0, 0], priority=[0, 1, 2, -1, 0], reservation=reservation)
    )


def check(host: Host, decision: Decision, mind: Mind) -> None:
    check_feasible(host, mind.held)
    check_feasible(host, decision.placement.units)
    check_isolated(host, decision.placement)


@pytest.mark.parametrize("name", [*UNUSABLE, *ODD])
def test_no_policy_makes_it_raise_or_leave_the_feasible(name: str) -> None:
    host = mixed_host()
    mind = never_late(Mind(host, LastValue(host), Answers((UNUSABLE | ODD)[name])))
    twin = never_late(Mind(host, LastValue(host), PrioritySort()))
    mind.warm_up()
    rng = np.random.default_rng(1)
    for _ in range(30):
        reading = reading_of(rng.uniform(0, 60, (5, 4)))
        reading.usage /= 20.0  # more than there is nobody can use
        decision, other = decide_tick(mind, reading), decide_tick(twin, reading)
        check(host, decision, mind)
        assert decision.by_policy == (name in ODD)
        assert bool(decision.fault) != decision.by_policy
        assert (decision.request.ask == other.request.ask).all(), "the policy reached into the request"
        if name in UNUSABLE:  # then the tick is the priority sort's, to the unit
            assert (decision.placement.units == other.placement.units).all()
            assert (decision.throttled == other.throttled).all()


@pytest.mark.parametrize("name", [*POLICIES, *ODD])
@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
def test_security_class_vms_never_move(name: str, busy: bool) -> None:
    host = mixed_host()
    mind = make_mind(name, host) if name in POLICIES else Mind(host, Ewma(host), Answers(ODD[name]))
    never_late(mind)
    rng = np.random.default_rng(2)
    first: tuple[Any, ...] | None = None
    for tick in range(60):
        usage = rng.uniform(0, 200, (5, 4))
        usage[0] = rng.uniform(0, 500, 4) if busy else 0.0
        reading = reading_of(usage)
        reading.present[0] = tick % 7 != 3
        decision = decide_tick(mind, reading)
        check(host, decision, mind)
        mine = decision.placement
        state = (mine.units[0].tolist(), mine.cpus[0].tolist(), int(mine.ways[0]))
        first = first or state
        assert state == first, "its partition moved: that leaks what others demand"
        assert state[0] == host.reservation[0].tolist()


@given(host=hosts(), data=st.data())
@settings(max_examples=40)
def test_any_readings_give_feasible_ticks(host: Host, data: st.DataObject) -> None:
    mind = never_late(make_mind(data.draw(st.sampled_from(sorted(POLICIES))), host))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    values = np.array([np.nan, np.inf, -np.inf, 0.0, -5.0, 1e30, 1.0, 20.0, 90.0])
    for _ in range(12):
        reading = reading_of(rng.choice(values, (len(host), 4)))
        reading.demand_low[:] = rng.choice(values, (len(host), 4))
        reading.quality[:] = rng.integers(0, 16, (len(host), 4))
        reading.present[:] = rng.random(len(host)) < 0.8
        decision = decide_tick(mind, reading)
        check_feasible(host, mind.held)
        check_isolated(host, decision.placement)
        assert np.isfinite(decision.forecast.mean).all() and np.isfinite(decision.forecast.upper).all()


@given(host=hosts(max_vms=8), data=st.data())
@settings(max_examples=30)
def test_permuting_the_rows_permutes_fifty_ticks(host: Host, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(POLICIES)))
    order = np.array(data.draw(st.permutations(range(len(host)))), np.int64)
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    other = Host(host.topology, host.vms.take(order))
    one, two = never_late(make_mind(name, host)), never_late(make_mind(name, other))
    for tick in range(50):
        usage = rng.uniform(0, rng.choice([5.0, 60.0]), (len(host), 4))
        usage[rng.random(usage.shape) < 0.1] = np.nan
        a, b = decide_tick(one, reading_of(usage)), decide_tick(two, reading_of(usage[order]))
        assert (b.placement.units == a.placement.units[order]).all(), f"units differ in tick {tick}"
        assert (b.placement.cpus == a.placement.cpus[order]).all(), f"CPUs differ in tick {tick}"
        assert (b.placement.ways == a.placement.ways[order]).all(), f"ways differ in tick {tick}"
        assert (b.contended == a.contended[order]).all() and (b.throttled == a.throttled[order]).all()


@pytest.mark.parametrize("name", list(POLICIES))
def test_a_host_without_vms_is_judged(name: str) -> None:
    host = Host(topology(), table(0))
    mind = never_late(make_mind(name, host))
    for _ in range(3):
        decision = decide_tick(mind, reading_of(np.zeros((0, 4))))
    assert decision.placement.units.shape == (0, 4) and decision.by_policy


@pytest.mark.parametrize("name", list(POLICIES))
def test_rebinding_keeps_history_by_uuid(name: str) -> None:
    host = mixed_host()
    mind, twin = never_late(make_mind(name, host)), never_late(make_mind(name, host))
    rng = np.random.default_rng(5)
    order = np.array([3, 0, 4, 2, 1])
    for _ in range(20):
        usage = rng.uniform(0, 30, (5, 4))
        decide_tick(mind, reading_of(usage))
        decide_tick(twin, reading_of(usage))
    mind.rebind(Host(host.topology, host.vms.take(order)))
    for _ in range(20):
        usage = rng.uniform(0, 30, (5, 4))
        turned, straight = decide_tick(mind, reading_of(usage[order])), decide_tick(twin, reading_of(usage))
        assert (turned.forecast.mean == straight.forecast.mean[order]).all()
        assert (turned.placement.units == straight.placement.units[order]).all()
        assert (turned.placement.cpus == straight.placement.cpus[order]).all()
        assert (turned.placement.ways == straight.placement.ways[order]).all()


def test_rebinding_drops_who_left_and_takes_in_who_came() -> None:
    host = mixed_host()
    mind = never_late(make_mind("forecast", host))
    for _ in range(10):
        before = decide_tick(mind, demand_of(np.full((5, 4), 12.0))).placement.copy()
    less = Host(host.topology, host.vms.take(np.array([2, 0, 3])))
    mind.rebind(less)
    after = decide_tick(mind, demand_of(np.full((3, 4), 12.0)))
    check(less, after, mind)
    assert (after.placement.cpus[1] == before.cpus[0]).all() and after.placement.ways[1] == before.ways[0]
    assert (after.placement.cpus[0] & before.cpus[2]).any(), "it stayed where it was"
    mind.rebind(host)
    again = decide_tick(mind, reading_of(np.full((5, 4), np.nan)))
    check(host, again, mind)
    fresh = [1, 4]  # never seen: forecast at their reservation
    assert (again.forecast.mean[fresh] == host.reservation[fresh]).all()
    assert (again.forecast.mean[0] == 12.0).all()


# -- forecasters

FORECASTERS: list[Callable[[Host], Forecaster]] = [LastValue, Ewma]


@pytest.mark.parametrize("make", FORECASTERS)
def test_censoring_raises_the_estimate_until_demand_is_found(make: Callable[[Host], Forecaster]) -> None:
    host = Host(topology(ways=0), table(1))
    mind = never_late(Mind(host, make(host), WaterFilling()))
    demand, had = np.array([[70.0, 0.0, 60.0, 90.0]]), mind.held.astype(float)
    seen: list[float] = []
    for _ in range(40):  # what it uses is what it has; the kernel says only that it hit the limit
        usage = np.minimum(demand, had)
        reading = reading_of(usage)
        reading.quality[:] = np.where(demand > had, int(Quality.CENSORED), 0)
        had = decide_tick(mind, reading).placement.units.astype(float)
        seen.append(float(had[0, 0]))
    assert (np.diff(seen[: int(np.argmax(np.array(seen) >= 70)) + 1]) >= 0).all()
    assert (had >= np.minimum(demand, host.cap)).all()
    assert seen.index(next(s for s in seen if s >= 70)) < 25


@pytest.mark.parametrize("make", FORECASTERS)
def test_missing_values_hold_and_widen_within_bounds(make: Callable[[Host], Forecaster]) -> None:
    host = Host(topology(), table(2))
    forecaster, out = make(host), Forecast.empty(2)
    for tick in range(50):
        forecaster.update(reading_of(np.full((2, 4), 10.0 + tick % 3)), out)
    mean, margin = out.mean.copy(), out.upper - out.mean
    half = np.full((2, 4), 11.0)
    half[0] = np.nan
    for _ in range(10):
        forecaster.update(reading_of(half), out)
        assert (out.mean[0] == mean[0]).all()
        assert (out.upper[0] - out.mean[0] >= margin[0] - 1e-9).all()
        margin = out.upper - out.mean
    if make is Ewma:
        assert (out.upper[0] - out.mean[0] > 1.4 * (out.upper[1] - out.mean[1])).all()
    for _ in range(20_000):  # more than three minutes without a value: nothing may overflow
        forecaster.update(reading_of(half), out)
    assert np.isfinite(out.upper).all()
    for _ in range(200):
        forecaster.update(reading_of(np.full((2, 4), 11.0)), out)
    assert np.allclose(out.mean, 11.0) and (out.upper < 12.0).all(), "it never recovered"


@pytest.mark.parametrize("make", FORECASTERS)
@given(data=st.data())
@settings(max_examples=40)
def test_no_reading_gets_nan_out_or_stays(make: Callable[[Host], Forecaster], data: st.DataObject) -> None:
    host = Host(topology(), table(2))
    forecaster, out = make(host), Forecast.empty(2)
    value = st.one_of(st.floats(-1e300, 1e300), st.sampled_from([np.nan, np.inf, -np.inf, 0.0, 1e300]))
    for _ in range(6):
        reading = reading_of(np.array(data.draw(st.lists(value, min_size=8, max_size=8))).reshape(2, 4))
        reading.demand_low[:] = np.array(data.draw(st.lists(value, min_size=8, max_size=8))).reshape(2, 4)
        reading.quality[:] = data.draw(st.integers(0, 15))
        forecaster.update(reading, out)
        assert np.isfinite(out.mean).all() and np.isfinite(out.upper).all()
    for _ in range(40):
        forecaster.update(reading_of(np.full((2, 4), 3.0)), out)
    assert np.isfinite(out.upper).all()


@pytest.mark.parametrize("quality", [Quality.CENSORED, Quality.MISSING, Quality.STALE])
def test_who_may_want_more_than_is_seen_asks_for_the_reservation(quality: Quality) -> None:
    reserved = np.tile([20, 0, 10, 10], (2, 1))
    host = Host(topology(cores=8), table(2, reservation=reserved))
    mind = Mind(host, LastValue(host), WaterFilling())
    reading = reading_of(np.array([[2.0, 0.0, 1.0, 1.0]] * 2))
    reading.quality[0, 3] = quality  # at one limit nothing is known of the rest of what the requests need
    units = decide_tick(mind, reading).placement.units
    assert (mind.request.ask[0] >= reserved[0]).all() and (units[0] >= reserved[0]).all()
    assert mind.request.ask[1, 0] < reserved[1, 0]


def test_memory_bandwidth_that_is_read_in_rounds_is_no_doubt() -> None:
    reserved = np.tile([20, 0, 10, 10], (2, 1))
    host = Host(topology(cores=8), table(2, reservation=reserved))
    mind = Mind(host, LastValue(host), WaterFilling())
    reading = reading_of(np.array([[2.0, 0.0, 1.0, 1.0]] * 2))
    reading.quality[:, 2] = Quality.STALE
    decide_tick(mind, reading)
    assert (mind.request.ask[:, 0] < 20).all()


def test_a_queue_that_cannot_be_seen_brings_the_reservation_back() -> None:
    reserved = np.tile([20, 0, 10, 10], (2, 1))
    host = Host(topology(cores=8), table(2, reservation=reserved))
    mind = make_mind("triage", host)
    still = np.array([[2.0, 0.0, 1.0, 1.0]] * 2)
    for _ in range(20):
        decide_tick(mind, reading_of(still))
    assert (mind.request.ask[:, 0] < 20).all()
    still[0, 0] = 0.0  # a counter that stands still says nothing
    decide_tick(mind, reading_of(still))
    assert (mind.request.ask[0] >= reserved[0]).all()
    assert mind.request.ask[1, 0] < 20
