"""One run from start to finish: open the host, take the lease, run the loop, put the host back, sum up.

A host is put back on every way out: the end of the run, a signal, an exception. Only a kill -9 gets past; then the
journal is still there, and the next start goes on from it.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from foreshare.envs.hal import Hal, Host
from foreshare.envs.hal.plan import build_plan
from foreshare.envs.hal.virtual import VirtualClock
from foreshare.policies.analyzer import Analyzer
from foreshare.policies.decide import UNHURRIED, DecideOptions, Mind, decide_tick
from foreshare.policies.errors import HostError, InputError
from foreshare.policies.host import FloatArray, Placement
from foreshare.policies.reading import Reading

from .asking import PLUG_IN_RADIUS, Where, open_mind
from .config import Config
from .forecast_watch import ForecastWatch
from .journal import StateDir
from .loop import ControlLoop, LoopOptions, Observer, Tick
from .observers import LogObserver, MigrationHook, describe_run
from .patient import PatientHal
from .runlog import RunLog

POLICY_SHARE = 0.06
"""Of a tick: what a policy may take before it loses the tick to the priority sort; 0.6 ms of 10."""
_NAMED = 5
"""VMs that are named in a line about all of them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HalChoice:
    """Which host, as the command line says it."""

    hal: str = "simulated"
    config: Config | None = None
    scenario: str = "mixed"
    vms: int | None = None
    trace: Path | None = None
    seed: int = 0
    realtime: bool = False
    read_only: bool = False
    """Nothing will be written: no right to write is needed."""
    tick_ms: float = 10.0


def open_hal(choice: HalChoice) -> Hal:
    """Open a backend; nothing is written. Raises InputError (or HostError) with one clear line."""
    if choice.hal == "simulated":
        from foreshare.envs.hal.simulated import SimulatedHal
        from foreshare.envs.simulator.scenario import load_scenario

        scenario = load_scenario(choice.scenario, vms=choice.vms, seed=choice.seed)
        return SimulatedHal(scenario, seed=choice.seed, realtime=choice.realtime, tick_ms=choice.tick_ms)
    if choice.hal == "linux":
        from foreshare.envs.hal.linux.hal import LinuxHal

        if choice.config is None:
            raise HostError("--hal linux needs --config FILE.toml that names the VMs' cgroups; see foreshare doctor")
        hal = LinuxHal(choice.config.linux_spec(), read_only=choice.read_only)
        if not len(hal.vms):
            why = "; ".join(hal.troubles())
            hal.close()
            raise HostError(_no_place(choice.config) + (f" ({why})" if why else ""))
        patience_s = choice.config.host.patience_s
        return PatientHal(hal, patience_s) if patience_s and not choice.read_only else hal
    if choice.hal == "replay":
        from foreshare.envs.hal.replay import ReplayHal

        if choice.trace is None:
            raise HostError("--hal replay needs --trace DIR, a recording made by foreshare record")
        return ReplayHal(choice.trace)
    raise HostError(f"no HAL named {choice.hal!r}; there are simulated, linux and replay")


def _no_place(config: Config) -> str:
    """Return why there is no VM to partition and none can come."""
    if config.host.discovery.all_domains:
        return (
            "libvirt has no domain now, and no place is kept free for one that starts later: set spare in"
            " [host.discovery]"
        )
    return (
        "the configuration names no VM, so there is nothing to partition: add a [[vm]] table, or keep places free for"
        " VMs that start later (spare in [host.discovery])"
    )


def decide_options(hal: Hal, tick_ms: float) -> DecideOptions:
    """Return how to decide on ``hal``: where time is virtual, a policy cannot be late.

    How long this machine took would else decide who decides, and the same seed would not give the same run.
    """
    if isinstance(hal.clock, VirtualClock):
        return replace(UNHURRIED, tick_ms=tick_ms)
    return DecideOptions(policy_budget_ns=round(POLICY_SHARE * tick_ms * 1e6), tick_ms=tick_ms)


@contextmanager
def stop_on_signals() -> Iterator[Callable[[], bool]]:
    """Within this, SIGINT, SIGTERM and SIGHUP ask for an orderly end; yields the function that says if one came.

    A signal that whoever started us had ignored (nohup, a shell's background job) stays ignored.
    """
    stopped = False

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal stopped
        stopped = True

    heeded = [s for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(s) != signal.SIG_IGN]
    before = {s: signal.signal(s, ask) for s in heeded}
    try:
        yield lambda: stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass(slots=True)
class Outcome:
    """What a run came to."""

    log: RunLog
    restored: bool
    notes: list[str] = field(default_factory=list)
    """One line each for what an operator should know (a corrupt journal put aside, a run taken over)."""


class _Arrival:
    """Looks out for the first VM of a run that began without any."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say, self.came = say, False

    def on_tick(self, tick: Tick) -> None:
        """See Observer."""
        if not self.came and tick.reading.present.any():
            self.came = True
            self._say("the first VM is there")

    def on_event(self, kind: str, vm: int, text: str) -> None:
        """See Observer."""


@dataclass(kw_only=True, slots=True)
class Session:
    """A run to be made."""

    choice: HalChoice
    policy: str
    ticks: int | None
    options: LoopOptions | None = None
    policy_in: Where = "auto"
    """Where the policy runs: called by the loop, or in a process of its own."""
    first_in_turn: bool = True
    """On a real host, run under SCHED_FIFO where that is allowed."""
    radius: float = PLUG_IN_RADIUS
    """Of the trust region to which plug-ins are held; 1: none."""
    forecast: str = ""
    """Folder of fitted forecasters; empty: those that ship."""
    state_dir: str = ""
    """Where lease and journal live; only real hosts need them."""
    watchers: Callable[[dict[str, Any], ControlLoop], Sequence[Observer]] | None = None
    """Makes further observers, given the run's facts and its loop."""
    stop: Callable[[], bool] = field(default=lambda: False)
    say: Callable[[str], None] = field(default=lambda text: None)
    """Tells whoever looks on something that he should know at once, in one line."""

    def run(self) -> Outcome:
        """Run. Raises InputError before anything is written if the host or the configuration is wrong."""
        hal = open_hal(self.choice)
        try:
            if hal.name != "linux":
                return self._run(hal, None)
            with StateDir(self.state_dir) as state:
                return self._run(hal, state)
        finally:
            hal.close()

    def _run(self, hal: Hal, state: StateDir | None) -> Outcome:
        host = Host(hal.topology, hal.vms)
        virtual = isinstance(hal.clock, VirtualClock)
        decide = decide_options(hal, self.choice.tick_ms)
        mind = open_mind(
            self.policy, host, decide, self.policy_in, virtual_time=virtual, forecast=self.forecast, radius=self.radius
        )
        try:
            return self._run_mind(hal, host, mind, state)
        finally:
            mind.close()

    def _run_mind(self, hal: Hal, host: Host, mind: Mind, state: StateDir | None) -> Outcome:
        real_time = not isinstance(hal.clock, VirtualClock) and hal.name != "replay"
        options = self.options or LoopOptions(
            tick_ns=round(self.choice.tick_ms * 1e6), rehearse=real_time,
            first_in_turn=self.first_in_turn and hal.name == "linux",
        )  # fmt: skip
        loop = ControlLoop(hal, mind, options)
        if self.choice.config is not None and self.choice.config.migrate is not None:
            loop.meter.migrate_after_ns = round(self.choice.config.migrate.after_s * 1e9)
        facts = describe_run(
            hal, host, policy=self.policy, tick_ms=self.choice.tick_ms,
            scenario=self.choice.scenario if hal.name == "simulated" else "", seed=self.choice.seed,
        )  # fmt: skip
        log = RunLog.for_run(ticks=self.ticks or 0, n=len(host), cpus=host.topology.cpus, meta=facts)
        recorder = LogObserver(log, _truth(hal))
        hooks: list[Observer] = [recorder, *self._migration(host, recorder)]
        loop.observers.extend(hooks)
        if self.watchers:
            loop.observers.extend(self.watchers(facts, loop))
        watch = None
        if isinstance(mind.forecaster, Analyzer):
            watch = ForecastWatch(mind.forecaster, host.vms.name, tuple(loop.observers))
            loop.observers.append(watch)
        notes = _claim(hal, state)
        nobody = self._wait_for_vms(hal, loop)
        try:
            self._loop(hal, loop)
        finally:
            for hook in hooks:
                if isinstance(hook, MigrationHook):
                    hook.poll(kill=True)
            hal.close()  # raises if something could not be put back; the journal then stays for `foreshare restore`
            if state is not None:
                state.clear()
        log.summary = summarise(hal, loop, self.policy)
        if watch is not None:
            log.summary["forecasts"] = watch.summary()
        if nobody is not None and not nobody.came:
            notes.append("no VM was there in the whole run: nothing was partitioned")
        return Outcome(log.trimmed(), restored=True, notes=notes)

    def _wait_for_vms(self, hal: Hal, loop: ControlLoop) -> _Arrival | None:
        """Say so where none of the VMs is there yet, and return who looks out for the first."""
        if hal.name != "linux":
            return None
        reading = Reading.empty(len(hal.vms))
        hal.sample(reading)
        if reading.present.any():
            return None
        names = [repr(name) for name in hal.vms.name[:_NAMED]] + ["..."] * (len(hal.vms) > _NAMED)
        self.say(f"no VM is there yet, waiting for {', '.join(names)}")
        loop.observers.append(first := _Arrival(self.say))
        return first

    def _loop(self, hal: Hal, loop: ControlLoop) -> None:
        if hal.name != "replay":
            loop.run(self.ticks, self.stop)
            return
        from foreshare.envs.hal.replay import EndOfTrace

        try:
            loop.run(self.ticks, self.stop)
        except EndOfTrace:
            return

    def _migration(self, host: Host, recorder: LogObserver) -> list[MigrationHook]:
        config = self.choice.config
        if config is None or config.migrate is None:
            return []
        return [MigrationHook(config.migrate, host.vms.uuid, recorder.on_event)]


def _claim(hal: Hal, state: StateDir | None) -> list[str]:
    """Take hold of the host, going on from the journal of a run that did not end in good order."""
    if state is None:
        hal.claim(lambda originals: None)
        return []
    notes = []
    entry = state.read()
    if state.sidelined:
        notes.append(f"the journal was corrupt and was put aside as {state.sidelined}; taking the host as it is")
    previous = None
    if entry is not None and entry.same_boot and entry.hal == hal.name:
        previous = entry.originals
        notes.append("an earlier run did not end in good order; going on from its journal")
    written = False

    def remember(originals: Mapping[str, object]) -> None:
        nonlocal written
        state.write(hal.name, originals)
        written = True

    try:
        hal.claim(remember, previous)
    except HostError:
        if written:  # refused after its first write, which was undone: there is nothing left to put back
            state.clear()
        raise
    except InputError:
        if previous is None:
            raise
        state.put_aside()  # whole, but in no form that this version knows
        notes[-1] = (
            f"the journal is of another version and was put aside as {state.sidelined}; taking the host as it is"
        )
        hal.claim(remember)
    return notes


def _truth(hal: Hal) -> Callable[[], FloatArray] | None:
    if hal.name != "simulated":
        return None
    from foreshare.envs.hal.simulated import SimulatedHal

    return (lambda: hal.truth) if isinstance(hal, SimulatedHal) else None


def summarise(hal: Hal, loop: ControlLoop, policy: str) -> dict[str, Any]:
    """Return the figures of a run: the keys of ``foreshare run --json``, and more."""
    counts, latency = loop.counts, loop.latency
    slo, utilisation, source = loop.meter.late_pct, loop.meter.utilisation_pct, "throttled VM-ticks"
    if hal.name == "simulated":
        from foreshare.envs.hal.simulated import SimulatedHal

        if isinstance(hal, SimulatedHal):
            slo, utilisation, source = hal.slo(), hal.utilisation(), "late requests"
    decided = max(counts.by_policy + counts.by_fallback, 1)
    return {
        "policy": policy,
        "ticks": counts.ticks,
        "missed_ticks": counts.missed,
        "decided_by": {"policy": counts.by_policy, "fallback": counts.by_fallback},
        "decided_by_policy_pct": round(100.0 * counts.by_policy / decided, 3),
        "decided_late": counts.by_earlier,
        "policy_faults": dict(counts.faults),
        "guarded_ticks": counts.guarded,
        "raised_ticks": counts.raised,
        "policy_benches": loop.mind.standing.benches - loop.benches_before,
        "slo_violation_pct": round(float(slo), 4),
        "slo_measured_by": source,
        "utilisation_pct": round(float(utilisation), 3),
        "contentions": loop.meter.contentions,
        "writes": counts.writes,
        "deferred_writes_pct": round(100.0 * counts.deferred / max(counts.writes + counts.deferred, 1), 4),
        "failed_writes": counts.failed,
        "drift": counts.drift,
        "host_faults": dict(counts.host_faults),
        "disobedient_vms": counts.disobedient,
        "distrusted_vms": counts.distrusted,
        "scheduling": loop.scheduling,
        "decision_us": latency.decision(),
        "tick_us": latency.tick(),
        "reaction_us": latency.reaction(),
        "stages": latency.stages(),
    }


def dry_run(choice: HalChoice, policy: str, policy_in: Where = "auto") -> list[str]:
    """Return what the first tick would write, one line each. Writes nothing, takes no lease."""
    hal = open_hal(replace(choice, read_only=True))
    try:
        host = Host(hal.topology, hal.vms)
        decide = replace(UNHURRIED, tick_ms=choice.tick_ms)
        with closing(open_mind(policy, host, decide, policy_in, virtual_time=True)) as mind:
            held = Placement.empty(len(host), host.topology.cpus)
            hal.read_back(held)
            mind.adopt(held)
            reading = Reading.empty(len(host))
            hal.sample(reading)
            hal.clock.sleep_until(hal.clock.now_ns() + round(choice.tick_ms * 1e6))
            hal.sample(reading)
            plan = build_plan(host, held, decide_tick(mind, reading).placement)
            return hal.describe(plan)
    finally:
        hal.close()


def ticks_for(seconds: float, tick_ms: float) -> int:
    """Return how many ticks ``seconds`` of host time are; at least one."""
    return max(1, int(np.ceil(seconds * 1000.0 / tick_ms - 1e-9)))
