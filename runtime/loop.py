"""The control loop: sample, forecast, decide, guard, place, apply, verify, record; every tick, at absolute times.

Ticks start at ``start + k * tick``; a tick that overruns costs the ones it ran into, which are counted and skipped,
never caught up. What does not fit into the apply budget stays in the difference between what the controls hold and what
they should hold, and so is in the next tick's plan.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from foreshare.envs.hal import Hal, Plan, Receipt
from foreshare.envs.hal.plan import advance, build_plan
from foreshare.policies.decide import Decision, Mind, decide_tick
from foreshare.policies.host import BoolArray, Host, Placement
from foreshare.policies.presence import Presence
from foreshare.policies.reading import Reading

from .latency import Latency
from .meter import Meter
from .runlog import STAGES

COLLECT_TICKS = 500
"""Garbage of the newest generations is collected in the slack of every so-manieth tick; never inside one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoopOptions:
    """How the loop keeps time."""

    tick_ns: int = 10_000_000
    apply_budget_ns: int = 1_000_000
    """Writes that have not started by then wait for the next tick."""
    verify_ticks: int = 100
    """All of the host's state is read back once in so many ticks, a few VMs in each."""


@dataclass(slots=True, eq=False)
class Tick:
    """One tick as observers see it. Valid until the next one; copy what you keep."""

    number: int
    t_ns: int
    """Monotonic start, on the HAL's clock."""
    reading: Reading
    decision: Decision
    held: Placement
    """What the controls are believed to hold now."""
    stage_ns: npt.NDArray[np.int64]
    plan: Plan
    receipt: Receipt
    missed: int
    """Ticks missed so far."""


class Observer(Protocol):
    """Sees every tick after its work is done."""

    def on_tick(self, tick: Tick) -> None:
        """Take note of one tick; what it takes comes out of the slack."""
        ...

    def on_event(self, kind: str, vm: int, text: str) -> None:
        """Take note of something that happened to a VM (or to the host: -1) in the tick to come."""
        ...


@dataclass(slots=True)
class Counts:
    """What a loop counted."""

    ticks: int = 0
    missed: int = 0
    by_policy: int = 0
    by_fallback: int = 0
    writes: int = 0
    deferred: int = 0
    """Writes that did not fit into their tick's budget, or found a lock held."""
    deferred_longest: int = 0
    """Most ticks that any VM waited for a deferred write."""
    failed: int = 0
    drift: int = 0
    """VMs found to hold something other than was written."""
    changed_vms: int = 0
    """Sum over ticks of the VMs that a plan touched."""


class ControlLoop:
    """One host, one mind, one clock."""

    def __init__(
        self, hal: Hal, mind: Mind, options: LoopOptions | None = None, observers: Sequence[Observer] = ()
    ) -> None:
        self.hal, self.mind = hal, mind
        self.options = options or LoopOptions()
        self.observers = list(observers)
        self.counts = Counts()
        self.latency = Latency()
        n = len(mind.host)
        self.meter = Meter(mind.host)
        self._held = Placement.empty(n, mind.host.topology.cpus)
        self._seen = Placement.empty(n, mind.host.topology.cpus)
        self._reading, self._receipt = Reading.empty(n), Receipt()
        self._stage = np.zeros(len(STAGES), np.int64)
        self._presence = Presence(n)
        self._waiting = np.zeros(n, np.int64)
        self._verify_at = self._number = 0
        per_tick = -(-n // max(self.options.verify_ticks - 1, 1)) if n else 0
        self._verify_rows = [np.arange(i, min(i + per_tick, n)) for i in range(0, n, max(per_tick, 1))]

    @property
    def host(self) -> Host:
        """The host as the mind sees it now."""
        return self.mind.host

    def run(self, ticks: int | None = None, stop: Callable[[], bool] = lambda: False) -> Counts:
        """Run ``ticks`` ticks (None: until ``stop`` says so). The HAL must have been claimed."""
        self.hal.read_back(self._held)
        self.mind.adopt(self._held)
        clock, tick_ns = self.hal.clock, self.options.tick_ns
        self._warm_up()
        enabled = gc.isenabled()
        gc.collect()
        gc.freeze()
        gc.disable()
        try:
            next_ns = clock.now_ns() + tick_ns
            done = 0
            while (ticks is None or done < ticks) and not stop():
                clock.sleep_until(next_ns)
                self._tick(next_ns)
                if self.counts.ticks % COLLECT_TICKS == 0:
                    gc.collect(1)
                late = clock.now_ns() - next_ns
                missed = max(0, (late - 1) // tick_ns) if late > tick_ns else 0
                self.counts.missed += missed
                next_ns += (1 + missed) * tick_ns
                done += 1 + missed
        finally:
            if enabled:
                gc.enable()
            gc.unfreeze()
        return self.counts

    def reset_figures(self) -> None:
        """Start counting anew; what the host holds is not touched."""
        self.counts, self.latency = Counts(), Latency()

    def _warm_up(self) -> None:
        """Touch what a tick needs before the first one counts: reads only, no writes."""
        self.hal.sample(self._reading)
        self.mind.warm_up()
        build_plan(self.host, self._held, self._held)

    def _tick(self, t_ns: int) -> None:
        now, stage = time.perf_counter_ns, self._stage
        began = now()
        self.hal.sample(self._reading)
        sampled = now()

        decision = decide_tick(self.mind, self._reading)
        stage[1:5] = self.mind.stage_ns

        planning = now()
        plan = build_plan(self.host, self._held, decision.placement)
        planned = now()
        stage[4] += planned - planning  # which writes lead there is the last part of placing
        receipt = self._receipt
        receipt.clear()
        if len(plan):
            # The first plan leads out of whatever was found: it is written whole, however long that takes.
            deadline = self.hal.clock.now_ns() + self.options.apply_budget_ns if self._number else 0
            self.hal.apply(plan, deadline, receipt)
            advance(self._held, plan, receipt, decision.placement, self.host)
        applied = now()

        self._verify(plan)
        done = now()
        stage[0], stage[5], stage[6] = sampled - began, applied - planned, done - applied
        reaction = applied - sampled + (sampled - began) // 2 if len(plan) else 0
        self.latency.add(stage, done - began, reaction)
        self._account(t_ns, decision, plan)

    def _verify(self, plan: Plan) -> None:
        """Read back some VMs' controls, and those that refused a write, and believe what the kernel says."""
        if not self._verify_rows:
            return
        rows = self._verify_rows[self._verify_at % len(self._verify_rows)]
        self._verify_at += 1
        if self._receipt.failures:
            rows = np.union1d(rows, plan.vm[[failure.index for failure in self._receipt.failures]])
        held, seen = self._held, self._seen
        seen.units[rows], seen.cpus[rows], seen.ways[rows] = held.units[rows], held.cpus[rows], held.ways[rows]
        self.hal.read_back(seen, rows)
        differs = (
            (seen.units[rows] != held.units[rows]).any(axis=1)
            | (seen.cpus[rows] != held.cpus[rows]).any(axis=1)
            | (seen.ways[rows] != held.ways[rows])
        ) & self.host.active[rows]
        if differs.any():
            for row in rows[differs]:
                self.counts.drift += 1
                held.units[row], held.cpus[row], held.ways[row] = seen.units[row], seen.cpus[row], seen.ways[row]
                self._event("drift", int(row), "the controls held something else than was written; writing again")

    def _account(self, t_ns: int, decision: Decision, plan: Plan) -> None:
        """Count, tell the observers, follow VMs that come and go. Outside every latency figure but the tick's slack."""
        counts, receipt = self.counts, self._receipt
        counts.ticks += 1
        if decision.by_policy:
            counts.by_policy += 1
        else:
            counts.by_fallback += 1
            self._event("fallback", -1, decision.fault)
        waiting = [failure.index for failure in receipt.failures if failure.deferred]
        counts.writes += receipt.done - len(waiting)
        counts.deferred += len(plan) - receipt.done + len(waiting)
        if len(plan):
            counts.changed_vms += len(np.unique(plan.vm))
        left = np.zeros(len(self._waiting), bool)
        left[plan.vm[receipt.done :]] = True
        left[plan.vm[waiting]] = True
        self._waiting[left] += 1
        self._waiting[~left] = 0
        counts.deferred_longest = max(counts.deferred_longest, int(self._waiting.max(initial=0)))
        for failure in receipt.failures:
            row = int(plan.vm[failure.index])
            if not failure.gone and not failure.deferred:
                counts.failed += 1
                self._event("write-failed", row, failure.text)
        for kind, row, text in self.meter.update(t_ns, self._reading, decision, self._held):
            self._event(kind, row, text)
        self._number += 1
        tick = Tick(
            self._number - 1, t_ns, self._reading, decision, self._held, self._stage, plan, receipt, counts.missed
        )
        for observer in self.observers:
            observer.on_tick(tick)
        self._follow(self._reading.present)

    def _follow(self, present: BoolArray) -> None:
        """Reclaim from VMs that are gone for good, take back those that return."""
        active = self._presence.update(present)
        was = self.host.active
        if (active == was).all():
            return
        self.mind.rebind(Host(self.host.topology, self.host.vms, active))
        self.meter.rebind(self.host)
        for row in np.flatnonzero(active != was):
            self._event("returned" if active[row] else "gone", int(row), "")
            self._release(int(row))
        if (active & ~was).any():
            self.hal.read_back(self._held, np.flatnonzero(active & ~was))

    def _release(self, row: int) -> None:
        self._held.units[row], self._held.cpus[row], self._held.ways[row] = 0, False, 0

    def _event(self, kind: str, vm: int, text: str) -> None:
        for observer in self.observers:
            observer.on_event(kind, vm, text)
