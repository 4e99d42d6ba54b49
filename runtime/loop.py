"""The control loop: sample, forecast, decide, guard, place, apply, verify, record; every tick, at absolute times.

Ticks start at ``start + k * tick``; a tick that overruns costs the ones it ran into, which are counted and skipped,
never caught up. What does not fit into the apply budget stays in the difference between what the controls hold and what
they should hold, and so is in the next tick's plan.

Whatever the host does, the loop goes on: a call into the HAL that fails is counted and costs what it was for. Without a
sample every value of the tick is missing; for what is written see controls.py.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from foreshare.envs.hal import Complains, Hal, IsComputed, Plan, Receipt
from foreshare.envs.hal.plan import Planner, build_plan
from foreshare.envs.hal.replan import replan
from foreshare.envs.hal.virtual import blank
from foreshare.policies import kernel
from foreshare.policies.ask import FAULTS
from foreshare.policies.decide import Decision, Mind, decide_tick
from foreshare.policies.errors import HalError
from foreshare.policies.host import BoolArray, Host, Placement
from foreshare.policies.presence import Presence
from foreshare.policies.reading import Reading

from .controls import Controls
from .latency import Latency
from .meter import Meter
from .priority import first_in_turn
from .rehearsal import Rehearsal
from .runlog import STAGES

TROUBLE_TICKS = 100
"""Between two questions to the host what is wrong with it."""
COLLECT_TICKS = 500
"""Garbage of the newest generations is collected in the slack of every so-manieth tick; never inside one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoopOptions:
    """How the loop keeps time."""

    tick_ns: int = 10_000_000
    apply_budget_ns: int = 1_000_000
    """Writes that have not started by then wait for the next tick."""
    verify_ticks: int = 0
    """All of the host's state is read back once in so many ticks, a few VMs in each; see :class:`~.verify.Rounds`.
    0: once a second."""
    verify_budget_ns: int = 500_000
    """What was just written is read back in the same tick, as far as that fits into so much time."""
    rehearse: bool = False
    """Wake up a little before each tick and judge the newest reading once more, for nothing: a CPU that has slept for
    milliseconds has cold caches, and a decision takes twice as long there. Only where time is real."""
    first_in_turn: bool = False
    """Run under SCHED_FIFO where that is allowed; see priority.py. Only where time is real."""


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
    """Ticks that the fallback or the default decided."""
    by_earlier: int = 0
    """Of those that the policy decided: by its answer to an earlier tick."""
    faults: dict[str, int] = field(default_factory=dict)
    """Ticks without an answer of the policy to them, by what was wrong; see policies/ask.py."""
    guarded: int = 0
    """Ticks in which the guard changed the policy's answer."""
    raised: int = 0
    """Those of them in which it did because the answer lay beyond the trust region."""
    writes: int = 0
    deferred: int = 0
    """Writes that did not fit into their tick's budget, or found a lock held."""
    deferred_longest: int = 0
    """Most ticks that any VM waited for a deferred write."""
    failed: int = 0
    drift: int = 0
    """VMs found to hold something other than was written."""
    disobedient: int = 0
    """How often a VM was held to its reservation because its controls did not obey."""
    distrusted: int = 0
    """How often a VM's telemetry was found not to be believed."""
    host_faults: dict[str, int] = field(default_factory=dict)
    """Calls into the HAL that failed as a whole, by what they were for."""
    changed_vms: int = 0
    """Sum over ticks of the VMs that a plan touched."""


class ControlLoop:
    """One host, one mind, one clock."""

    def __init__(
        self, hal: Hal, mind: Mind, options: LoopOptions | None = None, observers: Sequence[Observer] = ()
    ) -> None:
        self.hal, self.mind = hal, mind
        mind.rests = True
        self.options = options or LoopOptions()
        self.observers = list(observers)
        self.counts = Counts()
        self.latency = Latency()
        n = len(mind.host)
        self.meter = Meter(mind.host)
        turns = self.options.verify_ticks or max(1, 10**9 // self.options.tick_ns)
        self.controls = Controls(hal, n, turns, self._host_fault, self._event)
        self._reading = Reading.empty(n)
        self._stage = np.zeros(len(STAGES), np.int64)
        self._presence = Presence(n)
        self._topology, self._uuids = hal.topology, hal.vms.uuid
        self._present: BoolArray = np.ones(n, bool)
        self._waiting = np.zeros(n, np.int64)
        self._number = 0
        self._troubles: frozenset[str] = frozenset()
        self._doubted: BoolArray = np.zeros(n, bool)
        self._fault = ""
        self._rehearsal = Rehearsal(hal.clock, self.options.tick_ns) if self.options.rehearse else None
        self.scheduling = "other"
        """How the kernel schedules the loop while it runs: "fifo" or "other"."""
        self._planner, self._rehearsing = Planner(), Planner()
        self._computed = hal if isinstance(hal, IsComputed) else None
        self.benches_before = 0
        """Benches of the policy before the figures began."""

    @property
    def host(self) -> Host:
        """The host as the mind sees it now."""
        return self.mind.host

    def run(self, ticks: int | None = None, stop: Callable[[], bool] = lambda: False) -> Counts:
        """Run ``ticks`` ticks (None: until ``stop`` says so). The HAL must have been claimed."""
        with first_in_turn(self.options.first_in_turn) as self.scheduling:
            return self._run(ticks, stop)

    def _run(self, ticks: int | None, stop: Callable[[], bool]) -> Counts:
        self.controls.unknown[:] = True
        self.controls.read()
        self.mind.adopt(self.controls.held)
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
                if self._computed is not None:
                    self._computed.live_until(next_ns)
                if self._rehearsal is not None:
                    self._rehearsal.until(next_ns, self._rehearse)
                clock.sleep_until(next_ns)
                self._tick(next_ns)
                if self.counts.ticks % COLLECT_TICKS == 0:
                    gc.collect(1)
                late = clock.now_ns() - next_ns
                self.mind.rest(max(tick_ns - late, 0))
                late = clock.now_ns() - next_ns
                if late < -tick_ns:  # the clock went back: nobody waits until it has caught up
                    next_ns += late
                    late = 0
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
        self.benches_before = self.mind.standing.benches

    def _warm_up(self) -> None:
        """Touch what a tick needs before the first one counts: reads only, no writes."""
        self._sample()
        self.mind.warm_up()
        build_plan(self.host, self.controls.held, self.controls.held)

    def _rehearse(self) -> None:
        self._rehearsing.build(self.host, self.controls.held, self.mind.rehearse(self._reading).placement)
        kernel.touch(self._planner)

    def _tick(self, t_ns: int) -> None:
        now, stage = time.perf_counter_ns, self._stage
        began = now()
        self._sample()
        if self.hal.topology is not self._topology:
            self._other_hardware()
        sampled = now()

        decision = decide_tick(self.mind, self._reading)
        stage[1:5] = self.mind.stage_ns

        planning = now()
        controls, known = self.controls, self.controls.all_known()
        plan = self._planner.build(self.host, controls.held, decision.placement)
        planned = now()
        stage[4] += planned - planning  # which writes lead there is the last part of placing
        controls.receipt.clear()
        if len(plan) and known:
            # The first plan leads out of whatever was found: it is written whole, however long that takes.
            deadline = self.hal.clock.now_ns() + self.options.apply_budget_ns if self._number else 0
            controls.apply(plan, decision.placement, self.host, deadline)
        applied = now()

        self.counts.drift += controls.verify(plan, self.host, self.options.verify_budget_ns)
        done = now()
        stage[0], stage[5], stage[6] = sampled - began, applied - planned, done - applied
        reaction = applied - sampled + (sampled - began) // 2 if len(plan) else 0
        self.latency.add(stage, done - began, reaction)
        self._account(t_ns, decision, plan)

    def _sample(self) -> None:
        try:
            self.hal.sample(self._reading)
        except (OSError, HalError) as error:
            reading = self._reading
            reading.t_ns, reading.dt_ns = self.hal.clock.now_ns(), 0
            blank(reading)
            self._host_fault("sample", error)

    def _host_fault(self, what: str, error: Exception) -> None:
        faults = self.counts.host_faults
        faults[what] = faults.get(what, 0) + 1
        self._event("host-fault", -1, f"{what}: {error}")

    def _safeguards(self, decision: Decision) -> None:
        """Count and tell what the safeguards found: the policy's faults, disobedient controls, doubtful telemetry."""
        kind, before, self._fault = decision.fault_kind, self._fault, decision.fault_kind
        counts = self.counts
        if kind:
            counts.faults[kind] = counts.faults.get(kind, 0) + 1
        if before == "benched" != kind:
            self._event("asked-again", -1, "the policy may decide again")
        if kind in FAULTS:
            self._event("fallback" if not decision.by_policy else "late", -1, decision.fault)
        elif kind == "benched" != before:
            self._event("benched", -1, decision.fault)
        for what, row, text in self.controls.obedience.judge():
            counts.disobedient += what == "disobeys"
            self._event(what, row, text)
        pinned = self.mind.pinned
        pinned[:] = self.controls.obedience.pinned
        if pinned.any():
            self.controls.rounds.suspect(pinned.nonzero()[0])
        doubted = self.mind.trust.doubted_vms(self._reading.present)
        if (doubted != self._doubted).any():
            counts.distrusted += int((doubted & ~self._doubted).sum())
            for vm in np.flatnonzero(doubted != self._doubted).tolist():
                if doubted[vm]:
                    self._event("distrusted", vm, "its telemetry is missing or cannot be true: its reservation is safe")
                else:
                    self._event("trusted", vm, "its telemetry makes sense again")
            self._doubted = doubted

    def _account(self, t_ns: int, decision: Decision, plan: Plan) -> None:
        """Count, tell the observers, follow VMs that come and go. Outside every latency figure but the tick's slack."""
        counts, receipt = self.counts, self.controls.receipt
        counts.ticks += 1
        counts.by_policy += decision.by_policy
        counts.by_fallback += not decision.by_policy
        counts.by_earlier += decision.age > 0
        counts.raised += decision.raised > 0
        counts.guarded += decision.by_policy and self.mind.guard.changed > 0
        self._safeguards(decision)
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
        for kind, row, text in self.meter.update(t_ns, self._reading, decision, self.controls.held):
            self._event(kind, row, text)
        self._number += 1
        tick = Tick(
            self._number - 1,
            t_ns,
            self._reading,
            decision,
            self.controls.held,
            self._stage,
            plan,
            receipt,
            counts.missed,
        )
        for observer in self.observers:
            observer.on_tick(tick)
        self._follow(self._reading.present)
        if isinstance(self.hal, Complains) and self._number % TROUBLE_TICKS == 0:
            told, self._troubles = self._troubles, frozenset(self.hal.troubles())
            for text in sorted(self._troubles - told):
                self._event("trouble", -1, text)

    def _other_hardware(self) -> None:
        """Decide on the hardware that is left, or back: ways may be counted from another place now."""
        self._topology, active = self.hal.topology, self.host.active
        self.controls.unknown[:] = active
        self.controls.read()
        replan(self.mind, Host(self._topology, self.hal.vms, active), self.controls.held)
        self.meter.rebind(self.host)

    def _follow(self, present: BoolArray) -> None:
        """Reclaim from VMs that are gone for good, take back those that return."""
        self.controls.unknown |= present & ~self._present  # it may be another, with controls of its own
        self._present[:] = present
        active = self._presence.update(present)
        was, before, vms = self.host.active, self._uuids, self.hal.vms
        self._uuids = vms.uuid
        if (active == was).all() and (vms.uuid is before or vms.uuid == before):
            return
        self.mind.rebind(Host(self.host.topology, vms, active))
        for k in [k for k, (a, b) in enumerate(zip(before, vms.uuid, strict=True)) if a != b]:
            self._event("adopted", k, f"{vms.name[k]} ({vms.uuid[k]}) has a free place")
        self.meter.rebind(self.host)
        for row in np.flatnonzero(active != was):
            self._event("returned" if active[row] else "gone", int(row), "")
            self.controls.release(int(row))
            self.mind.pinned[row] = False
        back = np.flatnonzero(active & ~was)
        if len(back):
            self.controls.unknown[back] = True  # until it is read, now or later
            self.controls.read(back)

    def _event(self, kind: str, vm: int, text: str) -> None:
        for observer in self.observers:
            observer.on_event(kind, vm, text)
