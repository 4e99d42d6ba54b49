"""A host on which everything fails at random, on the virtual clock: the loop goes on, nothing that it holds breaks."""

from __future__ import annotations

import gc
import os
import time
from typing import Any

import numpy as np
import pytest
from faulty_hal import FaultyHal
from hosts import check_feasible, table, topology
from soak_results import keep, soak_ticks

from foreshare.policies.allocators import Request, Triage
from foreshare.policies.decide import UNHURRIED, Mind
from foreshare.policies.host import Host, IntArray
from foreshare.policies.registry import make_mind
from foreshare.runtime.latency import Latency
from foreshare.runtime.loop import ControlLoop, Tick

FULL = 1_000_000
MIB = 1 << 20


class Unreliable(Triage):
    """Triage, but for one tick in fifty, in which it does anything."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._rng = np.random.default_rng(seed)
        self._spell = 0

    def allocate(self, request: Request, host: Host, tick: int) -> IntArray:
        units = super().allocate(request, host, tick)
        if self._spell:
            self._spell -= 1
            raise RuntimeError("a bad spell")
        if self._rng.random() > 0.02:
            return units
        match int(self._rng.integers(7)):
            case 6:
                self._spell = int(self._rng.integers(1, 8))
                return units
            case 0:
                raise OSError(int(self._rng.integers(1, 100)), "injected")
            case 1:
                return np.full(host.shape, np.nan)  # type: ignore[return-value] # the point
            case 2:
                return units[:-1]
            case 3:
                return units * (1 << 40)
            case 4:
                return -units
            case _:
                return None  # type: ignore[return-value] # the point


class Watch:
    """Checks every tick, keeps numbers only."""

    def __init__(self, loop: ControlLoop, hal: FaultyHal) -> None:
        self.loop, self.hal = loop, hal
        self.events: dict[str, int] = {}

    def on_event(self, kind: str, vm: int, text: str) -> None:
        self.events[kind] = self.events.get(kind, 0) + 1

    def on_tick(self, tick: Tick) -> None:
        host = self.loop.host
        check_feasible(host, self.loop.mind.held)
        check_feasible(host, tick.decision.placement.units)
        assert not self.hal.overlaps, f"tick {tick.number}: a write made VMs share what one has to itself"
        pinned = self.loop.mind.pinned & host.active
        units = tick.decision.placement.units
        owed = self._pinned_before & pinned
        assert (units[owed] <= host.reservation[owed]).all() and (units[owed, 0] == host.reservation[owed, 0]).all()
        self._pinned_before = pinned.copy()

    _pinned_before: Any = False


def _resident_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def run(ticks: int, seed: int) -> dict[str, Any]:
    reservation = np.tile([5, 0, 3, 4], (8, 1))
    reservation[0], reservation[1] = [10, 2, 5, 5], [10, 1, 5, 5]
    host = Host(
        topology(), table(8, isolation=[1, 2, 0, 0, 1, 0, 0, 0], priority=[3, 0, 2, 1, 0, 0, 1, 2],
                          reservation=reservation),
    )  # fmt: skip
    hal = FaultyHal(host, seed)
    forecaster = make_mind("triage", host, UNHURRIED).forecaster
    mind = Mind(host, forecaster, Unreliable(seed), UNHURRIED, default=Triage())
    loop = ControlLoop(hal, mind)
    watch = Watch(loop, hal)
    loop.observers.append(watch)
    loop.latency = Latency(1000)
    began = time.monotonic()
    warm = max(ticks // 10, 1)
    _go(loop, warm)
    hal.plans.clear()
    before = _resident_bytes()
    _go(loop, ticks - warm)
    grown = _resident_bytes() - before
    counts = loop.counts
    return {
        "ticks": counts.ticks, "injected_faults": hal.faults, "host_faults": counts.host_faults,
        "policy_faults": counts.faults, "failed_writes": counts.failed, "drift": counts.drift,
        "disobedient": counts.disobedient, "distrusted": counts.distrusted, "events": watch.events,
        "broken_invariants": 0, "overlapping_writes": hal.overlaps, "grown_bytes": grown,
        "seconds": round(time.monotonic() - began, 1),
    }  # fmt: skip


def _go(loop: ControlLoop, ticks: int) -> None:
    until = loop.counts.ticks + ticks
    hal = loop.hal
    assert isinstance(hal, FaultyHal)
    while loop.counts.ticks < until:  # a clock that jumps costs ticks: so many are to happen
        loop.run(None, lambda: loop.counts.ticks >= until or (loop.counts.ticks % 5000 == 4999 and _forget(hal)))
    gc.collect()


def _forget(hal: FaultyHal) -> bool:
    """Drop what the fake host remembers for other tests."""
    for kept in (hal.plans, hal.sampled_at, hal.verified, hal.gc_enabled):
        kept.clear()
    return False


@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", [1, 2])
def test_ten_thousand_ticks_of_random_faults(seed: int) -> None:
    figures = run(10_000, seed)
    assert figures["host_faults"].keys() >= {"sample", "apply", "read-back"}
    assert figures["policy_faults"].keys() >= {"raised", "wrong", "benched"}
    assert figures["disobedient"] and figures["distrusted"] and figures["failed_writes"] and figures["drift"]
    assert figures["grown_bytes"] < MIB


@pytest.mark.soak
@pytest.mark.timeout(4 * 3600)
def test_a_million_ticks_of_random_faults() -> None:
    figures = run(soak_ticks(FULL), 3)
    keep("random_faults", "tests/soak/test_random_faults.py", FULL, figures)
    assert figures["grown_bytes"] < MIB
