"""Safeguards against what is measured: each fault injected. A VM's worst case is its reservation, within two ticks."""

from __future__ import annotations

import errno
from collections.abc import Callable

import numpy as np
import pytest
from fake_hal import FakeHal
from hosts import check_feasible, table, topology
from safeguarding import DT, RESERVED, Log, idle_reading, small_host

from foreshare.policies.decide import UNHURRIED, decide_tick
from foreshare.policies.host import CPU, IO, MEMORY, Host
from foreshare.policies.reading import Quality, Reading
from foreshare.policies.registry import make_mind
from foreshare.policies.trust import DOUBT_TICKS, FROZEN_TICKS, LENDER_KEEPS, LOST_TICKS
from foreshare.runtime.loop import ControlLoop, Tick


def missing(r: Reading) -> None:
    r.usage[0] = r.demand_low[0] = np.nan
    r.quality[0] = Quality.MISSING


def negative(r: Reading) -> None:
    r.usage[0] = -3.0


def impossible(r: Reading) -> None:
    r.usage[0] = r.demand_low[0] = 1e6


def infinite(r: Reading) -> None:
    r.usage[0] = r.demand_low[0] = np.inf


def frozen(r: Reading) -> None:
    r.usage[0] = r.demand_low[0] = 0.123


def lying(r: Reading) -> None:
    """More than it can have, together with what the others use."""
    r.usage[1:, CPU] = r.demand_low[1:, CPU] = 15.0 + r.usage[1:, CPU]
    r.usage[0] = r.demand_low[0] = [95.0, 0.5, 0.5, 0.5]


def standing_clock(r: Reading) -> None:
    r.dt_ns = 0


@pytest.mark.parametrize(
    ("spoil", "within"),
    [(missing, DOUBT_TICKS), (negative, DOUBT_TICKS), (impossible, DOUBT_TICKS), (infinite, DOUBT_TICKS),
     (frozen, FROZEN_TICKS + DOUBT_TICKS), (standing_clock, DOUBT_TICKS)],
)  # fmt: skip
def test_who_cannot_be_measured_has_its_reservation(spoil: Callable[[Reading], None], within: int) -> None:
    host = small_host()
    mind = make_mind("triage", host, UNHURRIED)
    for t in range(30):
        before = decide_tick(mind, idle_reading(host, t)).request.ask[0].copy()
    assert (before[[0, 2, 3]] < RESERVED[[0, 2, 3]]).all(), "it was idle"
    for t in range(30, 30 + within):
        reading = idle_reading(host, t)
        spoil(reading)
        decision = decide_tick(mind, reading)
    assert (decision.request.ask[0] >= RESERVED).all()
    assert (decision.placement.units[0] >= RESERVED).all()
    assert mind.trust.doubted_vms(reading.present)[0]
    for t in range(60, 120):
        decision = decide_tick(mind, idle_reading(host, t))
    assert not mind.trust.doubted_vms(reading.present).any(), "it makes sense again"
    assert (decision.request.ask[0, [0, 2, 3]] < RESERVED[[0, 2, 3]]).all()


def silent(resource: int) -> Callable[[Reading], None]:
    def spoil(r: Reading) -> None:
        r.usage[0, resource] = r.demand_low[0, resource] = 0.0

    return spoil


def old_and_near_its_limit(r: Reading) -> None:
    r.quality[0, MEMORY] = Quality.STALE
    r.limit[0, MEMORY] = 1.5 * r.usage[0, MEMORY]


def old(r: Reading) -> None:
    r.quality[0, MEMORY] = Quality.STALE
    r.limit[0, MEMORY] = 9.0


@pytest.mark.parametrize(
    ("spoil", "reserved", "believed_at_last"),
    [(silent(MEMORY), [CPU, MEMORY, IO], True), (silent(CPU), [CPU, MEMORY, IO], True), (silent(IO), [IO], True),
     (old_and_near_its_limit, [CPU, MEMORY, IO], False), (old, [MEMORY], False)],
)  # fmt: skip
def test_what_may_hide_a_burst_is_no_ground_to_lend_what_is_reserved(
    spoil: Callable[[Reading], None], reserved: list[int], believed_at_last: bool
) -> None:
    """A counter that says 0 beside others that count, and a bandwidth that was read ticks ago."""
    host = small_host()
    mind = make_mind("triage", host, UNHURRIED)
    for t in range(30):
        decide_tick(mind, idle_reading(host, t))
    others = [r for r in (CPU, MEMORY, IO) if r not in reserved]
    for t in range(30, 30 + LOST_TICKS - 1):
        reading = idle_reading(host, t)
        spoil(reading)
        decision = decide_tick(mind, reading)
        assert (decision.placement.units[0, reserved] >= RESERVED[reserved]).all()
        assert t < 50 or (decision.request.ask[0, others] < RESERVED[others]).all()
        assert (decision.request.ask[1:, CPU] < RESERVED[CPU]).all()
    for t in range(130, 145):
        reading = idle_reading(host, t)
        if believed_at_last:  # after LOST_TICKS a counter that says 0
            spoil(reading)
        decision = decide_tick(mind, reading)
    assert (decision.request.ask[0, [CPU, MEMORY, IO]] < RESERVED[[CPU, MEMORY, IO]]).all()


@pytest.mark.parametrize("resource", [CPU, MEMORY, IO])
def test_a_lender_keeps_several_times_what_he_uses_and_does_not_flap(resource: int) -> None:
    """One VM wants all there is; another uses a tenth of its reservation, and lends most of the rest, steadily."""
    reserved = np.array([16, 0, 12, 12])
    host = Host(topology(), table(4, reservation=np.tile(reserved, (4, 1))))
    mind, rng = make_mind("triage", host, UNHURRIED), np.random.default_rng(3)
    held, given_out = host.reservation.copy(), []
    for t in range(80):
        r = idle_reading(host, t)
        r.wait_ns[:] = 0.0
        r.usage[0] = 0.1 * reserved * rng.uniform(0.9, 1.1, 4)
        r.usage[3] = held[3] * rng.uniform(0.97, 1.0, 4)
        r.limit[:] = held
        r.demand_low[:] = r.usage
        held = decide_tick(mind, r).placement.units.copy()
        given_out.append(held[0, resource])
    lately = np.array(given_out[40:])
    use = 0.1 * reserved[resource]
    assert (lately >= 0.9 * LENDER_KEEPS * use).all() and (lately < 0.8 * reserved[resource]).all()
    assert np.ptp(lately) <= 0.3 * LENDER_KEEPS * use + 1
    r.usage[0, resource] = 0.3 * reserved[resource]  # a burst that does not yet meet the limit
    assert (decide_tick(mind, r).placement.units[0, resource]) >= reserved[resource]


@pytest.mark.parametrize("spoil", [impossible, infinite, lying])
def test_who_claims_the_impossible_gets_its_reservation_and_no_more(spoil: Callable[[Reading], None]) -> None:
    host = small_host()
    mind = make_mind("triage", host, UNHURRIED)
    for t in range(30):
        decide_tick(mind, idle_reading(host, t))
    for t in range(30, 90):
        reading = idle_reading(host, t)
        spoil(reading)
        decision = decide_tick(mind, reading)
        check_feasible(host, decision.placement.units)
        if t >= 30 + DOUBT_TICKS:
            assert decision.request.ask[0, CPU] == RESERVED[CPU]
    if spoil is lying:  # those who tell the truth about the same pool are believed
        assert (decision.request.ask[1:, CPU] >= 15.0).all()
        assert (decision.placement.units[1:, CPU] >= 15).all()


def test_who_is_silent_for_long_is_forecast_at_its_reservation() -> None:
    host = small_host()
    mind = make_mind("triage", host, UNHURRIED)
    for t in range(30):
        reading = idle_reading(host, t)
        reading.usage[0, CPU] = reading.demand_low[0, CPU] = 30.0 + 0.01 * t
        busy = decide_tick(mind, reading).request.ask[0, CPU]
    assert busy >= 30.0
    asks = []
    for t in range(30, 30 + LOST_TICKS + 2):
        reading = idle_reading(host, t)
        missing(reading)
        asks.append(float(decide_tick(mind, reading).request.ask[0, CPU]))
    assert min(asks[:50]) >= 30.0, "a gap costs it nothing"
    assert asks[-1] == RESERVED[CPU], "but the forecast expires"


def test_a_constant_that_follows_the_clock_is_no_frozen_counter() -> None:
    """Where the clock ticks evenly (a simulator) a rate may well stay the same; and 0 is always the same."""
    host = small_host()
    mind = make_mind("triage", host, UNHURRIED)
    for _ in range(60):
        reading = idle_reading(host, 0)
        reading.dt_ns = DT
        reading.usage[1] = reading.demand_low[1] = 0.0
        decide_tick(mind, reading)
    assert not mind.trust.doubted_vms(reading.present).any()
    for t in range(60):
        reading = idle_reading(host, t)
        reading.usage[1] = reading.demand_low[1] = 0.0
        reading.usage[2], reading.quality[2] = 8.0, Quality.CENSORED  # at its limit
        decide_tick(mind, reading)
    assert not mind.trust.doubted_vms(reading.present).any()


def test_a_host_without_a_sample_keeps_everybody_at_least_at_the_reservation() -> None:
    host = small_host()

    class Blind(FakeHal):
        def sample(self, reading: Reading) -> None:
            super().sample(reading)
            if 20 <= self.samples < 40:
                raise OSError(errno.EIO, "no counters")

    hal = Blind(host, lambda tick: [0.5, 0.0, 0.5, 0.5])
    log = Log()
    loop = ControlLoop(hal, make_mind("triage", host, UNHURRIED), observers=[log])

    def each(tick: Tick) -> None:
        if 22 <= hal.samples < 40:
            assert (hal.held.units >= host.reservation).all()

    log.each = each
    counts = loop.run(60)
    assert counts.ticks == 60 and counts.host_faults == {"sample": 20}
    assert log.rows("distrusted") == [0, 1, 2, 3] == log.rows("trusted")
