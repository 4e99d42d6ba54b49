"""What watches a run: fills the log for the report, asks for migrations, feeds the live view."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from foreshare.envs.hal import Hal
from foreshare.policies.host import RESOURCES, FloatArray, Host, Isolation

from .config.schema import MigrateConfig
from .loop import Tick
from .runlog import MAX_EVENTS, NOBODY, SEVERAL, Event, RunLog

Truth = Callable[[], FloatArray]


def describe_run(hal: Hal, host: Host, *, policy: str, tick_ms: float, scenario: str, seed: int) -> dict[str, Any]:
    """Return the facts about a run that its log carries (see RunLog.meta)."""
    t, v = host.topology, host.vms
    capacity = dict.fromkeys(RESOURCES, 0)
    unit = dict.fromkeys(RESOURCES, "")
    for pool in t.pools:
        name = RESOURCES[pool.resource]
        capacity[name] += pool.units
        unit[name] = pool.unit
    return {
        "hal": hal.name, "policy": policy, "tick_ms": tick_ms, "scenario": scenario, "seed": seed,
        "vm_names": list(v.name), "vm_uuids": list(v.uuid), "vm_priority": v.priority.tolist(),
        "vm_isolation": [Isolation(int(i)).name.lower() for i in v.isolation],
        "units": unit, "capacity": capacity, "movable": dict(zip(RESOURCES, host.movable.tolist(), strict=True)),
        "units_per_cpu": t.units_per_cpu, "cpu_ids": t.cpu_id.tolist(), "cpu_zone": t.zone.tolist(),
        "reservation": host.reservation.tolist(), "cap": host.cap.tolist(),
    }  # fmt: skip


class LogObserver:
    """Fills a RunLog, every so-manieth tick, and its events."""

    def __init__(self, log: RunLog, truth: Truth | None = None) -> None:
        self.log, self.truth = log, truth
        self._start_ns: int | None = None
        self._now_ns = 0
        self.dropped_events = 0

    def on_event(self, kind: str, vm: int, text: str) -> None:
        """See :class:`~.loop.Observer`."""
        if len(self.log.events) < MAX_EVENTS:
            self.log.events.append(Event(self._now_ns, kind, vm, text))
        else:
            self.dropped_events += 1

    def on_tick(self, tick: Tick) -> None:
        """See :class:`~.loop.Observer`."""
        if self._start_ns is None:
            self._start_ns = tick.t_ns
        self._now_ns = tick.t_ns - self._start_ns
        if tick.number % self.log.every:
            return
        s, at = self.log.series, self.log.rows % len(self.log.series["t_ns"])
        s["t_ns"][at] = self._now_ns
        s["demand"][at] = self.truth() if self.truth else tick.reading.demand_low
        s["usage"][at] = tick.reading.usage
        s["allocation"][at] = tick.held.units
        s["request"][at], s["request_high"][at] = tick.decision.forecast.mean, tick.decision.forecast.upper
        s["cpu_owner"][at] = cpu_owner(tick)
        s["stage_us"][at] = tick.stage_ns * 1e-3
        s["by_policy"][at] = tick.decision.by_policy
        s["contended"][at] = tick.decision.contended.any(axis=1)
        self.log.rows += 1


def cpu_owner(tick: Tick) -> np.ndarray[tuple[int], np.dtype[np.int16]]:
    """Return (C,) the row of the one VM that may run on each CPU, NOBODY or SEVERAL."""
    cpus = tick.held.cpus
    if not len(cpus):
        return np.full(cpus.shape[1], NOBODY, np.int16)
    count = cpus.sum(axis=0)
    return np.where(count == 0, NOBODY, np.where(count > 1, SEVERAL, cpus.argmax(axis=0))).astype(np.int16)


@dataclass(slots=True)
class _Running:
    process: subprocess.Popen[bytes]
    vm: int
    until: float


@dataclass(slots=True)
class MigrationHook:
    """Runs the user's command when a VM would be better off elsewhere: opt-in, one at a time for each VM, in bounds."""

    config: MigrateConfig
    uuids: Sequence[str]
    report: Callable[[str, int, str], None]
    """Told of each outcome as (kind, vm, text)."""
    _running: list[_Running] = field(default_factory=list)

    def on_event(self, kind: str, vm: int, text: str) -> None:
        """Start the command for a ``migrate`` event."""
        if kind != "migrate" or any(r.vm == vm for r in self._running):
            return
        argv = self.config.argv(uuid=self.uuids[vm], reason=text)
        try:
            process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, close_fds=True,
                process_group=0,
            )  # fmt: skip
        except OSError as error:
            self.report("migrate-failed", vm, f"{argv[0]}: {error.strerror}")
            return
        self._running.append(_Running(process, vm, time.monotonic() + self.config.deadline_s))

    def on_tick(self, tick: Tick) -> None:
        """Look after commands that are under way."""
        if self._running:
            self.poll()

    def poll(self, *, kill: bool = False) -> None:
        """Collect finished commands; end those that are past their deadline (all, with ``kill``)."""
        left = []
        for run in self._running:
            code = run.process.poll()
            if code is None and (kill or time.monotonic() > run.until):
                with suppress(ProcessLookupError):  # it may have left the group that it was started in
                    os.killpg(run.process.pid, signal.SIGKILL)  # not yet waited for, so the number is still its own
                run.process.kill()
                run.process.wait()
                why = "the run is over" if kill else f"not done within {self.config.deadline_s:g} s"
                self.report("migrate-failed", run.vm, f"{why}, ended")
            elif code is None:
                left.append(run)
            else:
                self.report("migrated" if code == 0 else "migrate-failed", run.vm, f"the command ended with {code}")
        self._running = left


class RecentEvents:
    """The newest few events, for the live view."""

    def __init__(self, keep: int = 50) -> None:
        self.events: deque[Event] = deque(maxlen=keep)
        self.t_ns = 0
        """Time of the newest tick since the first one."""
        self._start_ns: int | None = None

    def on_event(self, kind: str, vm: int, text: str) -> None:
        """See :class:`~.loop.Observer`."""
        self.events.append(Event(self.t_ns, kind, vm, text))

    def on_tick(self, tick: Tick) -> None:
        """See :class:`~.loop.Observer`."""
        if self._start_ns is None:
            self._start_ns = tick.t_ns
        self.t_ns = tick.t_ns - self._start_ns
