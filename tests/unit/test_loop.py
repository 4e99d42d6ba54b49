"""The loop keeps absolute time, believes the kernel, and outlives its policy, its writes and its VMs."""

from __future__ import annotations

import errno
import gc
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from fake_hal import FakeHal
from hosts import check_feasible, check_isolated, table, topology

from foreshare.envs.hal.simulated import SimulatedHal
from foreshare.envs.hal.types import Control
from foreshare.envs.simulator.scenario import load_scenario
from foreshare.policies.allocators import Request, WaterFilling
from foreshare.policies.decide import DecideOptions, Mind
from foreshare.policies.forecast import LastValue
from foreshare.policies.host import Host, IntArray, Placement
from foreshare.policies.presence import GONE_TICKS
from foreshare.policies.registry import make_mind
from foreshare.runtime.loop import ControlLoop, LoopOptions, Tick
from foreshare.runtime.runlog import STAGES

TICK = 10_000_000


class Log:
    """Keeps what an observer is told."""

    def __init__(self) -> None:
        self.events: list[tuple[str, int, str]] = []
        self.ticks: list[tuple[int, int, int]] = []
        self.each: Callable[[Tick], None] = lambda tick: None

    def on_event(self, kind: str, vm: int, text: str) -> None:
        self.events.append((kind, vm, text))

    def on_tick(self, tick: Tick) -> None:
        self.ticks.append((tick.number, tick.t_ns, tick.missed))
        self.each(tick)

    def kinds(self, kind: str) -> list[int]:
        return [vm for k, vm, _ in self.events if k == kind]


class Scripted(WaterFilling):
    """Water-filling, but for the ticks in which it does as it is told."""

    def __init__(self, script: Callable[[int], object]) -> None:
        self.script = script

    def allocate(self, request: Request, host: Host, tick: int) -> IntArray:
        answer = self.script(tick)
        return super().allocate(request, host, tick) if answer is None else answer  # type: ignore[return-value] # the point


def small_host(n: int = 4, isolation: list[int] | None = None) -> Host:
    return Host(topology(), table(n, isolation=isolation))


def looped(hal: FakeHal, host: Host, policy: WaterFilling | None = None, **options: int) -> tuple[ControlLoop, Log]:
    log = Log()
    mind = Mind(host, LastValue(host), policy or WaterFilling(), DecideOptions(expires_ticks=0))
    counter = iter(range(10**9))
    mind.clock_ns = lambda: next(counter)  # judged by what it answers, not by how busy this machine is
    return ControlLoop(hal, mind, LoopOptions(**options), [log]), log


def believes_truth(loop: ControlLoop, hal: FakeHal) -> None:
    here = loop.host.active
    assert (loop.controls.held.units[here] == hal.held.units[here]).all()
    assert (loop.controls.held.cpus[here] == hal.held.cpus[here]).all()
    assert (loop.controls.held.ways[here] == hal.held.ways[here]).all()


def flapping(n: int) -> Callable[[int], object]:
    """Demand that moves between the halves of ``n`` VMs every tick."""

    def demand(tick: int) -> object:
        high = (np.arange(n) + tick) % 2
        return np.where(high, 40.0, 1.0)[:, None] * np.array([1.0, 0.1, 0.4, 0.5])

    return demand


@pytest.fixture(autouse=True)
def collector() -> Iterator[None]:
    yield
    assert gc.isenabled() and not gc.get_freeze_count()


# -- time


def test_ticks_start_at_absolute_times() -> None:
    host = small_host()
    hal = FakeHal(host)
    hal.tick_takes_ns = lambda tick: 3_000_000 + tick * 10_000  # drifts, if the loop slept for a while instead
    loop, log = looped(hal, host)
    counts = loop.run(50)
    assert (counts.ticks, counts.missed) == (50, 0)
    times = np.array([t for _, t, _ in log.ticks])
    assert (np.diff(times) == TICK).all()
    assert hal.sampled_at[1:] == times.tolist()
    assert [n for n, _, _ in log.ticks] == list(range(50))


@pytest.mark.parametrize(
    ("takes", "missed"), [(0.99, 0), (1.0, 0), (1.5, 1), (2.0, 1), (2.000001, 2), (3.7, 3), (100.2, 100)]
)
def test_an_overrun_costs_the_ticks_it_ran_into(takes: float, missed: int) -> None:
    """Fault 37."""
    host = small_host()
    hal = FakeHal(host)
    hal.tick_takes_ns = lambda tick: round(takes * TICK) if tick == 5 else 0  # sample 0 is the warm-up
    loop, log = looped(hal, host)
    counts = loop.run(110)
    assert (counts.ticks, counts.missed) == (110 - missed, missed)
    times = np.array([t for _, t, _ in log.ticks])
    assert ((times - times[0]) % TICK == 0).all(), "the grid moved"
    assert times[5] - times[4] == (1 + missed) * TICK
    assert [m for _, _, m in log.ticks][-1] == missed


def test_stop_ends_it_and_no_ticks_are_none() -> None:
    host = small_host()
    hal = FakeHal(host)
    loop, log = looped(hal, host)
    assert loop.run(None, lambda: len(log.ticks) >= 7).ticks == 7
    assert loop.run(5, lambda: True).ticks == 7


# -- policies that fail


def hang(tick: int) -> object:
    raise RuntimeError("no idea")


@pytest.mark.parametrize(
    "answer",
    [
        hang, lambda tick: np.full((4, 4), np.nan), lambda tick: np.zeros((3, 4), np.int64), lambda tick: "all",
        lambda tick: np.full((4, 4), np.inf), lambda tick: np.zeros((4, 4), complex), lambda tick: [],
    ],
    ids=["raises", "nan", "shape", "text", "inf", "complex", "list"],
)  # fmt: skip
def test_a_failing_policy_costs_only_its_ticks(answer: Callable[[int], object]) -> None:
    """Fault 30."""
    host = small_host()
    hal = FakeHal(host, flapping(4))
    bad = {10, 11, 30}
    loop, log = looped(hal, host, Scripted(lambda tick: answer(tick) if tick in bad else None))
    log.each = lambda tick: check_feasible(host, tick.decision.placement.units)
    counts = loop.run(50)
    assert (counts.ticks, counts.by_fallback, counts.by_policy) == (50, 3, 47)
    assert log.kinds("fallback") == [-1] * 3
    assert all(text for kind, _, text in log.events if kind == "fallback")
    believes_truth(loop, hal)


def test_a_late_policy_loses_its_tick() -> None:
    """Fault 32."""
    host = small_host()
    hal = FakeHal(host)
    now = 0

    def slow(tick: int) -> None:
        nonlocal now
        now += 600_001 if tick == 3 else 600_000

    loop, log = looped(hal, host, Scripted(slow))
    loop.mind.clock_ns = lambda: now
    counts = loop.run(10)
    assert (counts.by_fallback, counts.by_policy) == (1, 9)
    assert "late: 600 us" in next(text for kind, _, text in log.events if kind == "fallback")


# -- writes that have to wait, fail, or are undone


@pytest.mark.parametrize("per_tick", [1, 3])
def test_deferred_writes_drain_and_are_counted(per_tick: int) -> None:
    host = small_host(6, isolation=[1, 0, 0, 0, 1, 0])
    hal = FakeHal(host, lambda tick: [10.0, 2.0, 4.0, 5.0])
    hal.writes_per_tick = per_tick
    loop, log = looped(hal, host)
    log.each = lambda tick: check_isolated(host, hal.held_placement()) if tick.number > 40 else None
    counts = loop.run(60)
    first = hal.plans[0]
    assert len(first) > per_tick
    assert counts.deferred >= len(first) - per_tick
    assert counts.deferred_longest >= -(-len(first) // per_tick) - 1 - len(host)
    assert len(hal.plans) < 50, "the writes never drained"
    believes_truth(loop, hal)
    assert (hal.held.units == loop.mind.decision.placement.units).all()


def test_the_longest_wait_is_of_one_vm_without_a_break() -> None:
    host = Host(topology(ways=0, memory=0), table(1))
    hal = FakeHal(host, lambda tick: 5.0 + 5.0 * tick)  # another amount to write every tick
    blocked = {*range(10, 14), *range(16, 19)}
    loop, log = looped(hal, host)
    hal.writes_per_tick = None

    def each(tick: Tick) -> None:
        hal.writes_per_tick = 0 if tick.number + 1 in blocked else None

    log.each = each
    counts = loop.run(30)
    assert counts.deferred_longest == 4


def test_the_budget_ends_a_plan() -> None:
    host = small_host()
    hal = FakeHal(host, flapping(4))
    hal.write_ns = 300_000
    loop, _ = looped(hal, host, apply_budget_ns=1_000_000)
    loop.run(5)  # the very first plan has no budget
    loop.reset_figures()
    counts = loop.run(40)
    assert counts.deferred
    assert counts.writes <= 40 * 4  # the fourth starts at 0.9 ms, a fifth would at 1.2 ms
    assert counts.missed == 0


def test_a_write_that_finds_a_lock_held_is_deferred_not_failed() -> None:
    """Fault 14."""
    host = small_host()
    hal = FakeHal(host, flapping(4))
    hal.refuse = lambda c, row: errno.EWOULDBLOCK if 5 <= hal.samples < 9 and c == Control.CPU else 0
    loop, log = looped(hal, host)
    log.each = lambda tick: believes_truth(loop, hal)
    counts = loop.run(20)
    assert counts.failed == 0 and log.kinds("write-failed") == []
    assert counts.deferred > 4 and counts.deferred_longest > 0
    assert counts.writes == sum(len(plan) for plan in hal.plans) - counts.deferred


def test_a_vm_that_refused_a_write_is_read_back_in_the_same_tick() -> None:
    host = small_host()
    hal = FakeHal(host, flapping(4))
    refused: list[int] = []

    def refuse(control: int, row: int) -> int:
        if control == Control.CPU and hal.samples == 7:
            refused.append(row)
            hal.held.units[row, 0] = 1  # and it does not hold what it did
            return errno.EIO
        return 0

    hal.refuse = refuse
    loop, log = looped(hal, host, verify_ticks=1000)
    log.each = lambda tick: believes_truth(loop, hal)
    loop.run(12)
    assert refused and set(log.kinds("drift")) >= set(refused)


@pytest.mark.parametrize("control", [Control.CPU, Control.MEMORY, Control.IO, Control.WAYS, Control.CPUS])
def test_a_refused_write_is_not_believed_and_is_tried_again(control: Control) -> None:
    host = small_host(4, isolation=[1, 0, 0, 0])
    hal = FakeHal(host, flapping(4))
    failing = True
    hal.refuse = lambda c, row: errno.EINVAL if failing and c == control else 0
    loop, log = looped(hal, host)
    log.each = lambda tick: believes_truth(loop, hal)
    counts = loop.run(20)
    assert counts.failed and set(log.kinds("write-failed")) <= set(range(4))
    assert not counts.drift
    failing = False
    before = counts.failed
    hal.demand = lambda tick: 5.0
    loop.run(20)
    assert loop.counts.failed == before
    assert (hal.held.units == loop.mind.decision.placement.units).all()
    assert (hal.held.cpus == loop.mind.decision.placement.cpus).all()


def test_drift_is_found_within_a_round_and_rewritten() -> None:
    """Fault 25."""
    host = small_host(5)
    hal = FakeHal(host)
    loop, log = looped(hal, host, verify_ticks=10)

    def meddle(tick: Tick) -> None:
        if tick.number == 20:
            hal.held.units[3, 0] = 77
            hal.held.cpus[1] = False
            hal.held.cpus[1, 7] = True

    log.each = meddle
    loop.run(20 + 12)
    assert sorted(log.kinds("drift")) == [1, 3]
    assert loop.counts.drift == 2
    assert (hal.held.units == loop.mind.decision.placement.units).all()
    assert (hal.held.cpus == loop.mind.decision.placement.cpus).all()


@pytest.mark.parametrize(("n", "verify_ticks"), [(1, 100), (5, 100), (64, 100), (7, 2), (7, 1), (100, 30), (3, 1000)])
def test_every_vm_is_verified_within_its_round(n: int, verify_ticks: int) -> None:
    host = Host(topology(cores=32, memory=100), table(n, reservation=np.ones((n, 4), np.int64) * [1, 0, 0, 0]))
    hal = FakeHal(host)
    loop, _ = looped(hal, host, verify_ticks=verify_ticks)
    loop.run(3)
    hal.verified.clear()
    loop.run(verify_ticks)
    assert set(np.concatenate(hal.verified).tolist()) == set(range(n))


# -- VMs that come and go


def test_a_vanished_vm_is_released_and_taken_back() -> None:
    host = small_host(4, isolation=[0, 1, 0, 0])
    hal = FakeHal(host, lambda tick: 60.0)
    loop, log = looped(hal, host)
    loop.run(10)
    held_before = hal.held.units.copy()
    hal.present[1] = False
    loop.run(GONE_TICKS - 1)
    assert not log.kinds("gone"), "too early"
    assert loop.host.active.all()
    loop.run(1)
    assert log.kinds("gone") == [1]
    assert not loop.controls.held.units[1].any() and not loop.controls.held.cpus[1].any()
    loop.run(10)
    assert hal.held.units[0, 0] + hal.held.units[2, 0] + hal.held.units[3, 0] > held_before[[0, 2, 3], 0].sum()
    assert not loop.counts.failed, "a VM that is gone is no failed write"
    hal.held.units[1], hal.held.cpus[1], hal.held.ways[1] = [80, 0, 80, 100], True, 0  # a new cgroup, no limits
    hal.present[1] = True
    loop.run(1)
    assert log.kinds("returned") == [1]
    assert loop.host.active.all()
    believes_truth(loop, hal)
    loop.run(20)
    believes_truth(loop, hal)
    check_isolated(host, hal.held_placement())
    assert (hal.held.units[1] >= host.reservation[1]).all()


def test_all_vms_may_go_and_come_back() -> None:
    host = small_host(3)
    hal = FakeHal(host)
    loop, log = looped(hal, host)
    loop.run(5)
    hal.present[:] = False
    loop.run(50)
    assert log.kinds("gone") == [0, 1, 2]
    hal.present[:] = True
    loop.run(20)
    believes_truth(loop, hal)
    check_feasible(host, hal.held.units)


@pytest.mark.parametrize("n", [0, 1])
def test_zero_vms_and_one(n: int) -> None:
    """Fault 52."""
    host = small_host(n)
    hal = FakeHal(host, lambda tick: 30.0)
    loop, _ = looped(hal, host)
    counts = loop.run(200)
    assert (counts.ticks, counts.by_policy) == (200, 200)
    believes_truth(loop, hal)
    if n:
        assert hal.held.units[0, 0] >= 30


def test_demand_above_capacity_keeps_reservations() -> None:
    """Fault 52."""
    host = small_host(6)
    hal = FakeHal(host, lambda tick: 1e6)
    loop, log = looped(hal, host)
    log.each = lambda tick: check_feasible(host, tick.decision.placement.units)
    loop.run(60)
    assert (hal.held.units >= host.reservation).all()
    assert loop.meter.contentions == 6


# -- the collector, and the simulated host


def test_the_collector_rests_during_a_run_and_is_put_back() -> None:
    host = small_host()
    hal = FakeHal(host)
    loop, log = looped(hal, host)
    loop.run(5)
    assert hal.gc_enabled == [True, *[False] * 5]  # the first one is the warm-up

    def fail(tick: Tick) -> None:
        raise ValueError("an observer broke")

    log.each = fail
    with pytest.raises(ValueError, match="an observer broke"):
        loop.run(5)
    assert gc.isenabled()
    gc.disable()
    try:
        log.each = lambda tick: None
        loop.run(2)
        assert not gc.isenabled(), "it was off before"
    finally:
        gc.enable()


@pytest.mark.parametrize(("scenario", "policy"), [("mixed", "forecast"), ("churn", "priority")])
def test_the_simulated_host_runs_as_believed(scenario: str, policy: str) -> None:
    hal = SimulatedHal(load_scenario(scenario, vms=16), seed=3)
    host = Host(hal.topology, hal.vms)
    log = Log()
    loop = ControlLoop(hal, make_mind(policy, host), LoopOptions(verify_ticks=10), [log])
    seen = Placement.empty(len(host), host.topology.cpus)

    def each(tick: Tick) -> None:
        hal.read_back(seen)
        check_isolated(host, seen)
        here = loop.host.active
        assert (seen.units[here] == tick.held.units[here]).all()

    log.each = each
    hal.claim(lambda originals: None)
    counts = loop.run(300)
    assert counts.ticks == 300 and not counts.missed and not counts.drift and not counts.failed
    assert counts.writes > 100
    hal.close()
    assert tuple(loop.latency.stages()) == STAGES
    assert all(v["p99"] > 0 for v in loop.latency.stages().values())


def test_the_first_plan_is_written_whole() -> None:
    """It leads out of whatever was found, so no budget cuts it: from then on every VM has what it is owed."""
    host = Host(topology(), table(6))
    hal = FakeHal(host, lambda tick: 9.0)
    hal.write_ns = 700_000
    loop = ControlLoop(hal, make_mind("forecast", host), LoopOptions(apply_budget_ns=1_000_000))
    loop.run(1)
    assert len(hal.plans[0]) > 2
    assert loop.counts.deferred == 0
    assert (hal.held.units[:, 0] >= host.reservation[:, 0]).all()
