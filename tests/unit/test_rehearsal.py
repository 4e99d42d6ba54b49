"""Before a tick the loop gets up early and judges once more for nothing: that changes nothing but the caches."""

from __future__ import annotations

import numpy as np
from fake_hal import FakeHal
from hosts import table, topology

from foreshare.envs.hal.simulated import SimulatedHal
from foreshare.envs.simulator.scenario import load_scenario
from foreshare.policies.decide import UNHURRIED, decide_tick
from foreshare.policies.host import Host
from foreshare.policies.reading import Reading
from foreshare.policies.registry import make_mind
from foreshare.runtime.loop import ControlLoop, LoopOptions
from foreshare.runtime.policy_process import PolicyProcess, ProcessOptions
from foreshare.runtime.rehearsal import FIRST_NS, Rehearsal


class Clock:
    """Time passes when somebody sleeps, or works."""

    def __init__(self) -> None:
        self.ns = 1_000_000_000
        self.slept: list[int] = []

    def now_ns(self) -> int:
        self.ns += 100
        return self.ns

    def sleep_until(self, t_ns: int) -> None:
        self.slept.append(t_ns)
        self.ns = max(self.ns, t_ns)


def test_it_begins_as_much_earlier_as_it_takes_and_ends_on_time() -> None:
    clock, tick = Clock(), 10_000_000
    rehearsal = Rehearsal(clock, tick)

    def take(ns: int) -> None:
        clock.ns += ns

    for k, ns in enumerate([300_000, 900_000, *[400_000] * 600]):
        due = 2_000_000_000 + k * tick
        before = rehearsal.lead_ns
        rehearsal.until(due, lambda ns=ns: take(ns))  # type: ignore[misc]
        assert clock.slept[-1] == due - before, "it sleeps once, and not again"
        assert clock.ns >= due or ns > before
        assert clock.ns < due + max(ns - before, 0) + 10_000, "late by no more than it took longer"
        assert rehearsal.lead_ns < FIRST_NS or k
    assert 400_000 < rehearsal.lead_ns < 450_000


def test_where_it_is_too_late_it_is_left_out_and_it_takes_no_more_than_its_share() -> None:
    clock, tick, done = Clock(), 5_000_000, []
    rehearsal = Rehearsal(clock, tick)
    rehearsal.until(clock.ns + 100_000, lambda: done.append(1))
    assert not done
    for k in range(5):
        due = clock.ns + tick
        rehearsal.until(due, lambda: setattr(clock, "ns", clock.ns + 3_000_000))
        assert rehearsal.lead_ns == 1_000_000, k


def test_a_rehearsal_changes_no_decision() -> None:
    """Two minds, the same readings, VMs that go meanwhile: one rehearses before every tick."""
    hal = SimulatedHal(load_scenario("mixed"), seed=3)
    host = Host(hal.topology, hal.vms)
    plain, rehearsing = make_mind("triage", host, UNHURRIED), make_mind("triage", host, UNHURRIED)
    reading = Reading.empty(len(host))
    for tick in range(60):
        hal.clock.sleep_until(hal.clock.now_ns() + 10_000_000)
        rehearsing.rehearse(reading)
        hal.sample(reading)
        got, wanted = decide_tick(rehearsing, reading), decide_tick(plain, reading)
        for name in ("units", "cpus", "ways"):
            a, b = getattr(got.placement, name), getattr(wanted.placement, name)
            np.testing.assert_array_equal(a, b, err_msg=f"{name} in tick {tick}")
        if tick == 30:
            host = Host(host.topology, host.vms, np.arange(len(host)) != 2)
            plain.rebind(host)
            rehearsing.rebind(host)


def test_the_loop_rehearses_and_is_still_on_time() -> None:
    host = Host(topology(), table(4))
    plain, early = (FakeHal(host, lambda tick: np.full((4, 4), 3.0 + tick % 5)) for _ in range(2))
    for hal, rehearse in ((plain, False), (early, True)):
        loop = ControlLoop(hal, make_mind("triage", host, UNHURRIED), LoopOptions(rehearse=rehearse))
        if rehearse:  # virtual time stands still while it is waited for
            loop._rehearsal.until = lambda t_ns, rehearse: rehearse()  # type: ignore[union-attr, method-assign]
        loop.run(30)
        assert loop.counts.ticks == 30
    assert (plain.held.units == early.held.units).all() and (plain.held.cpus == early.held.cpus).all()


def test_a_policy_in_its_process_rehearses_and_answers_as_ever() -> None:
    host = Host(topology(), table(4))
    mind, called = make_mind("triage", host, UNHURRIED), make_mind("triage", host, UNHURRIED)
    mind.asker = PolicyProcess({"registry": "triage"}, host, ProcessOptions())
    hal = FakeHal(host, lambda tick: np.full((4, 4), 3.0 + tick % 5))
    reading = Reading.empty(4)
    try:
        mind.asker.rehearse()  # nobody is there yet
        mind.warm_up()
        for _ in range(10):
            hal.clock.sleep_until(hal.clock.now_ns() + 10_000_000)
            mind.rehearse(reading)
            hal.sample(reading)
            a, b = decide_tick(mind, reading), decide_tick(called, reading)
            assert a.by_policy and not a.fault_kind
            np.testing.assert_array_equal(a.placement.units, b.placement.units)
    finally:
        mind.close()
