"""Safeguards against hardware that does not do what it is told, and clocks that jump: each fault injected."""

from __future__ import annotations

import errno
import itertools

import numpy as np
import pytest
from fake_hal import FakeHal
from hosts import check_isolated, table, topology
from safeguarding import DT, RESERVED, Log, small_host

from foreshare.envs.hal import Plan, Receipt
from foreshare.envs.hal.types import Control
from foreshare.policies.allocators import WaterFilling
from foreshare.policies.decide import UNHURRIED, Mind
from foreshare.policies.forecast import LastValue
from foreshare.policies.host import CACHE, CPU, Host, IntArray, Placement
from foreshare.runtime.actuator import CALM, PATIENCE
from foreshare.runtime.loop import ControlLoop, LoopOptions, Tick
from foreshare.runtime.verify import CHUNK, Rounds


def taking_turns(tick: int) -> object:
    """Return demand of which half the VMs have much, the other half little, in turns: something moves every tick."""
    much = (np.arange(4) + tick) % 2
    return np.where(much, 60.0, 10.0)[:, None] * np.array([1.0, 0.0, 1.0, 1.0])


def looped(hal: FakeHal, host: Host, **options: int) -> tuple[ControlLoop, Log]:
    log = Log()
    return ControlLoop(hal, Mind(host, LastValue(host), WaterFilling(), UNHURRIED), LoopOptions(**options), [log]), log


def test_who_does_not_obey_is_reported_at_once_and_held_to_its_reservation_after_two_writes() -> None:
    host = small_host()
    hal = FakeHal(host, taking_turns)
    loop, log = looped(hal, host)
    loop.run(20)
    hal.refuse = lambda control, row: errno.EBUSY if row == 2 and control == Control.CPU else 0
    first = log.number
    loop.run(30)
    assert log.first("write-failed") - first <= 1
    assert log.rows("disobeys") == [2] and log.first("disobeys") - first <= 2 * PATIENCE  # tried in every other tick
    assert (loop.mind.decision.placement.units[2] == RESERVED).all()
    assert loop.counts.disobedient == 1
    hal.refuse = lambda control, row: 0
    loop.run(CALM + 5)
    assert log.rows("obeys") == [2]
    assert loop.mind.decision.placement.units[2, CPU] > RESERVED[CPU]


class Deaf(FakeHal):
    """Writes of amounts to VM 1 are accepted: they have no effect, or have it ``lag`` ticks later."""

    lag: int | None = None
    deaf = False

    def apply(self, plan: Plan, deadline_ns: int, receipt: Receipt) -> None:
        before = self.held.units[1].copy()
        super().apply(plan, deadline_ns, receipt)
        if self.deaf:
            wanted = self.held.units[1].copy()
            self.held.units[1] = before
            self.queue.append(wanted)
            if self.lag is not None and len(self.queue) > self.lag:
                self.held.units[1] = self.queue.pop(0)

    queue: list[IntArray]


@pytest.mark.parametrize("lag", [None, 3])
def test_a_write_without_effect_is_noticed_in_the_same_tick(lag: int | None) -> None:
    host = small_host()
    hal = Deaf(host, taking_turns)
    hal.queue = []
    loop, log = looped(hal, host)
    loop.run(20)
    hal.deaf, hal.lag = True, lag
    first = log.number
    loop.run(2 * PATIENCE)
    assert log.first("drift") - first <= 1 and set(log.rows("drift")) == {1}
    assert log.rows("disobeys") == [1]
    loop.run(20)
    assert (loop.mind.decision.placement.units[1] == RESERVED).all()
    assert (loop.controls.held.units == hal.held.units).all(), "it is believed what the kernel says"
    hal.deaf = False
    loop.run(CALM + 20)
    assert set(log.rows("obeys")) == {1}
    assert (hal.held.units[1] >= [10, 0, 9, 9]).all()


def test_a_plan_that_breaks_off_is_not_built_upon_until_it_has_been_read() -> None:
    host = Host(topology(), table(4, isolation=[1, 0, 0, 1]))

    class Breaks(FakeHal):
        broken = blind = False

        def apply(self, plan: Plan, deadline_ns: int, receipt: Receipt) -> None:
            if self.broken:
                self.held.apply(plan, Receipt(), 0)  # all of it was written, but nobody says so
                raise OSError(errno.EIO, "no idea")
            super().apply(plan, deadline_ns, receipt)

        def read_back(self, into: Placement, rows: IntArray | None = None) -> None:
            if self.blind:
                raise OSError(errno.EIO, "cannot read")
            super().read_back(into, rows)

    hal = Breaks(host, taking_turns)
    loop, _ = looped(hal, host)
    loop.run(20)
    hal.broken = True
    loop.run(1)
    hal.blind, hal.broken = True, False
    loop.run(8)
    plans = len(hal.plans)
    loop.run(8)
    assert len(hal.plans) == plans, "it wrote without knowing what is there"
    hal.blind = False
    loop.run(20)
    assert len(hal.plans) > plans
    check_isolated(host, hal.held_placement())
    assert (loop.controls.held.units == hal.held.units).all() and (loop.controls.held.cpus == hal.held.cpus).all()
    assert set(loop.counts.host_faults) == {"apply", "read-back"}
    assert loop.counts.ticks == 57


# -- verify


def test_suspects_wait_for_the_budget_and_nobody_for_ever() -> None:
    rounds = Rounds(64, 100)
    rounds.suspect(np.arange(64))
    read: list[int] = []
    for _ in range(10):
        clock = itertools.count()
        for rows in rounds.rows(lambda clock=clock: next(clock), 0):  # type: ignore[misc] # bound here
            read += rows.tolist()  # the budget is gone after the first batch
    assert len(read) < 100 and set(read) == set(range(64))
    rounds.suspect(np.arange(40))
    batches = list(rounds.rows(lambda: 0, 0))
    assert len(batches[0]) == 1 and all(len(rows) <= CHUNK for rows in batches)
    assert set(np.concatenate(batches).tolist()) >= set(range(40))


@pytest.mark.parametrize(("tick_ms", "within"), [(10, 100), (5, 200), (1000, 1), (400, 2)])
def test_all_of_the_state_is_read_back_once_a_second(tick_ms: int, within: int) -> None:
    host = small_host(8)
    hal = FakeHal(host)
    loop, _ = looped(hal, host, tick_ns=tick_ms * 1_000_000)
    loop.run(2)
    hal.verified.clear()
    loop.run(within)
    assert set(np.concatenate(hal.verified).tolist()) == set(range(8))


# -- time


def test_a_clock_that_goes_back_does_not_stop_the_ticks() -> None:
    host = small_host()
    hal = FakeHal(host)
    loop, log = looped(hal, host)
    clock = hal.clock

    def each(tick: Tick) -> None:
        if tick.number == 10:
            clock._now_ns -= 5 * 10**8  # type: ignore[attr-defined]

    log.each = each
    started = clock.now_ns()
    counts = loop.run(50)
    assert counts.ticks == 50 and counts.missed == 0
    assert clock.now_ns() - started < 50 * DT, "it waited until the clock had caught up"
    assert CACHE == 1
