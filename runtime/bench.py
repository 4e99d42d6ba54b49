"""``bench tick``: how long a tick takes where everything moves, with the real gap between ticks.

In a tight loop caches stay warm and figures are a fraction of what hosts see; so ticks are 10 ms apart here too. In
every tick the demand of ``moving`` VMs jumps, each in its turn, by more than what a VM may count on; the figures say
how many VMs' controls that moved. On real cgroups the demand is put on top of what the (empty) cgroups report;
everything else, every read and every write, is real.
"""

from __future__ import annotations

import errno
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from foreshare.envs.hal import Clock, Hal, Host, Plan, Quality, Receipt, VmSpec
from foreshare.policies import kernel
from foreshare.policies.errors import HostError
from foreshare.policies.host import RESOURCES, BoolArray, FloatArray, IntArray, Placement, Resource, Topology, VmTable
from foreshare.policies.reading import Reading
from foreshare.policies.registry import DEFAULT

from .asking import Where, open_mind
from .jitter import JitterBeside
from .latency import percentiles
from .loop import ControlLoop, LoopOptions, Tick
from .priority import first_in_turn
from .session import decide_options

if TYPE_CHECKING:
    from foreshare.envs.simulator.scenario import Scenario

WARM_UP_TICKS = 50
REST_S = 30.0
"""How long to wait for groups to be made again: resctrl looks for ids that came free once a second."""
LINUX_UNITS_PER_CPU = 100
"""A benchmark host may have two CPUs and 64 VMs: each needs a unit, so units are hundredths of a CPU there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TickBench:
    """What to measure."""

    hal: str
    vms: int
    ticks: int = 1000
    tick_ms: float = 10.0
    policy: str = DEFAULT
    policy_in: Where = "auto"
    seed: int = 0
    moving: int | None = None
    """VMs whose demand jumps in each tick; None: a quarter of them. Of simulated hosts, all of them is the scenario as
    it stands: a third jumps, and noise moves the others."""

    rehearse: bool = True
    """See LoopOptions, here and below."""
    first_in_turn: bool = True

    @property
    def jumping(self) -> int:
        """How many VMs' demand jumps in each tick."""
        return min(self.moving if self.moving is not None else max(1, self.vms // 4), self.vms)


class Churn:
    """Demand that moves: each tick ``moving`` VMs, who take turns, jump between little and a bit above a fair share."""

    def __init__(self, host: Host, seed: int, moving: int) -> None:
        self._moving, self._turn = moving, 0
        self._high: BoolArray = np.arange(len(host)) % 2 == 0
        self._rng = np.random.default_rng(np.random.SeedSequence(seed))
        n = max(len(host), 1)
        capacity = np.zeros(len(RESOURCES))
        for pool in host.topology.pools:
            capacity[pool.resource] += pool.units
        self._share = capacity / n
        self._now: FloatArray = np.ones((len(host), len(RESOURCES))) * self._share

    def next(self) -> FloatArray:
        """Return (N, R) demand in units for the next tick."""
        n = len(self._now)
        chosen = (self._turn + np.arange(self._moving)) % max(n, 1)
        self._turn = (self._turn + self._moving) % max(n, 1)
        self._high[chosen] ^= True
        low, high = self._rng.uniform(0.02, 0.4, (len(chosen), 1)), self._rng.uniform(0.7, 1.1, (len(chosen), 1))
        self._now[chosen] = self._share * np.where(self._high[chosen, None], high, low)
        return self._now


def churning(bench: TickBench) -> Scenario:
    """Return the scenario in which as many VMs jump in each tick as are to, and the others stay where they are."""
    from foreshare.envs.simulator.scenario import load_scenario

    scenario = load_scenario("churn", vms=bench.vms, seed=bench.seed)
    if bench.jumping == bench.vms:
        return scenario
    hold_ms = bench.tick_ms * bench.vms / bench.jumping
    calm = tuple(replace(vm, workload=replace(vm.workload, on_ms=hold_ms, noise=0.0)) for vm in scenario.vm)
    return replace(scenario, vm=calm)


class DrivenHal:
    """A real backend under made-up demand: samples for real, then puts the demand on top of the reading."""

    def __init__(self, real: Hal, churn: Churn) -> None:
        self._real, self._churn = real, churn
        self.name = real.name

    @property
    def topology(self) -> Topology:
        """See :class:`Hal`."""
        return self._real.topology

    @property
    def vms(self) -> VmTable:
        """See :class:`Hal`."""
        return self._real.vms

    @property
    def clock(self) -> Clock:
        """See :class:`Hal`."""
        return self._real.clock

    def sample(self, reading: Reading) -> None:
        """Sample for real, then replace what can be moved by the demand."""
        self._real.sample(reading)
        demand = self._churn.next()
        for r in Resource:
            reading.usage[:, r] = reading.demand_low[:, r] = demand[:, r]
            reading.quality[:, r] = Quality.OK

    def claim(
        self, remember: Callable[[Mapping[str, object]], None], previous: Mapping[str, object] | None = None
    ) -> None:
        """See :class:`Hal`."""
        self._real.claim(remember, previous)

    def describe(self, plan: Plan) -> list[str]:
        """See :class:`Hal`."""
        return self._real.describe(plan)

    def apply(self, plan: Plan, deadline_ns: int, receipt: Receipt) -> None:
        """See :class:`Hal`."""
        self._real.apply(plan, deadline_ns, receipt)

    def read_back(self, into: Placement, rows: IntArray | None = None) -> None:
        """See :class:`Hal`."""
        self._real.read_back(into, rows)

    def close(self) -> None:
        """See :class:`Hal`."""
        self._real.close()


class _Start:
    """Drops the figures of the first ticks, and notes how few VMs any later one changed."""

    def __init__(self, loop: ControlLoop) -> None:
        self._loop = loop
        self.least = len(loop.host)

    def on_tick(self, tick: Tick) -> None:
        """See :class:`~.loop.Observer`."""
        if tick.number == WARM_UP_TICKS - 1:
            self._loop.reset_figures()
        elif tick.number >= WARM_UP_TICKS:
            self.least = min(self.least, len(np.unique(tick.plan.vm)))

    def on_event(self, kind: str, vm: int, text: str) -> None:
        """See :class:`~.loop.Observer`."""


def bench_tick(bench: TickBench) -> dict[str, Any]:
    """Measure; return the keys of ``foreshare bench tick --json``."""
    if bench.hal == "simulated":
        from foreshare.envs.hal.simulated import SimulatedHal

        hal = SimulatedHal(churning(bench), seed=bench.seed, realtime=True, tick_ms=bench.tick_ms)
        try:
            return _measure(hal, bench)
        finally:
            hal.close()
    return _bench_linux(bench)


def _measure(hal: Hal, bench: TickBench) -> dict[str, Any]:
    host = Host(hal.topology, hal.vms)
    with closing(open_mind(bench.policy, host, decide_options(hal, bench.tick_ms), bench.policy_in)) as mind:
        loop = ControlLoop(
            hal,
            mind,
            LoopOptions(tick_ns=round(bench.tick_ms * 1e6), rehearse=bench.rehearse, first_in_turn=bench.first_in_turn),
        )
        start = _Start(loop)
        loop.observers.append(start)
        hal.claim(lambda originals: None)
        with JitterBeside(bench.ticks, bench.tick_ms) as jitter:
            loop.run(bench.ticks + WARM_UP_TICKS)
    counts, latency = loop.counts, loop.latency
    decided = max(counts.by_policy + counts.by_fallback, 1)
    return {
        "hal": bench.hal,
        "vms": bench.vms,
        "moving": bench.jumping,
        "policy": bench.policy,
        "policy_in": "process" if mind.asker.beside else "inline",
        "scheduling": loop.scheduling,
        "resources": [name for name, moves in zip(RESOURCES, host.movable, strict=True) if moves],
        "ticks": counts.ticks,
        "missed_ticks": counts.missed,
        "stages": latency.stages(),
        "decision_us": latency.decision(),
        "tick_us": latency.tick(),
        "reaction_us": latency.reaction(),
        "floor_us": {"p50": 0.0, "p99": 0.0},
        "floor_ratio_p50": None,
        "floor_alone_us": {"p50": 0.0, "p99": 0.0},
        "decided_by_policy_pct": round(100.0 * counts.by_policy / decided, 3),
        "decided_late": counts.by_earlier,
        "policy_faults": dict(counts.faults),
        "deferred_writes_pct": round(100.0 * counts.deferred / max(counts.writes + counts.deferred, 1), 4),
        "deferred_longest_ticks": counts.deferred_longest,
        "changed_vms_per_tick": round(counts.changed_vms / max(counts.ticks, 1), 2),
        "changed_vms_least": start.least,
        "writes_per_tick": round(counts.writes / max(counts.ticks, 1), 2),
        "failed_writes": counts.failed,
        "jitter_us": jitter.result,
        "machine": machine_facts(),
    }


def _bench_linux(bench: TickBench) -> dict[str, Any]:
    """Measure on cgroups made for the occasion, then the same writes again with nothing around them."""
    from foreshare.envs.hal.linux.floor import measure_floor
    from foreshare.envs.hal.linux.hal import LinuxHal
    from foreshare.envs.hal.linux.resctrl.spec import ResctrlSpec
    from foreshare.envs.hal.linux.roots import Roots
    from foreshare.envs.hal.linux.spec import IoDevice, LinuxSpec
    from foreshare.envs.hal.linux.temporary import temporary_cgroups

    roots = Roots()
    writes: list[list[tuple[str, bytes]]] = []
    with temporary_cgroups(bench.vms, roots) as paths:
        device = _some_disk(roots.sys)
        spec = LinuxSpec(
            vms=tuple(VmSpec(name=f"vm{i}", cgroup=path) for i, path in enumerate(paths)),
            units_per_cpu=LINUX_UNITS_PER_CPU,
            period_us=LINUX_UNITS_PER_CPU * 1000,
            io=(IoDevice(device=device, bandwidth_bytes=1e9),) if device else (),
            resctrl=ResctrlSpec(memory_bandwidth=100e9),
        )
        real = LinuxHal(spec, roots)
        try:
            real.trace = writes
            churn = Churn(Host(real.topology, real.vms), bench.seed, bench.jumping)
            figures = _measure(DrivenHal(real, churn), bench)
        finally:
            real.close()
        with closing(LinuxHal(spec, roots, read_only=True)) as reader, _groups_of(writes):
            with first_in_turn(bench.first_in_turn):  # as the loop was
                floor = percentiles(_floor_us(reader, writes, bench.tick_ms)[WARM_UP_TICKS:])
            alone = percentiles(np.asarray(measure_floor(writes, round(bench.tick_ms * 1e6)))[WARM_UP_TICKS:])
    apply_us = figures["stages"]["apply"]["p50"]
    ratio = round(apply_us / floor["p50"], 3) if floor["p50"] else None
    return figures | {"floor_us": floor, "floor_ratio_p50": ratio, "floor_alone_us": alone}


def _floor_us(reader: Hal, ticks: list[list[tuple[str, bytes]]], tick_ms: float) -> FloatArray:
    """Return (T,) us that the same calls take in a tight loop, nothing else, with caches as cold as in a tick.

    What makes a tick's writes slow is what came before: ten milliseconds of other work and the reading of every
    counter. So both happen here, too, outside the clock. A program that does nothing but these writes
    (``floor_alone_us``, in C) has its caches to itself.
    """
    from foreshare.envs.hal.linux.floor import READ_BYTES

    reading = Reading.empty(len(reader.vms))
    files = {path: os.open(path, os.O_RDWR | os.O_CLOEXEC) for path in {p for tick in ticks for p, _ in tick}}
    calls = [[(files[path], data) for path, data in tick] for tick in ticks]
    spent, clock, write, read = np.empty(len(calls)), reader.clock, os.pwrite, os.pread
    try:
        next_ns = clock.now_ns()
        for i, tick in enumerate(calls):
            next_ns += round(tick_ms * 1e6)
            clock.sleep_until(next_ns)
            reader.sample(reading)
            start = time.perf_counter_ns()
            for fd, data in tick:
                if data:
                    write(fd, data, 0)
                else:
                    read(fd, READ_BYTES, 0)
            spent[i] = time.perf_counter_ns() - start
    finally:
        for fd in files.values():
            os.close(fd)
    return spent * 1e-3


@contextmanager
def _groups_of(ticks: list[list[tuple[str, bytes]]]) -> Iterator[None]:
    """Make the resctrl groups of a trace again, which went with the run that made them; remove them at the end."""
    folders = sorted({os.path.dirname(path) for tick in ticks for path, _ in tick if path.endswith("/schemata")})
    try:
        until = time.monotonic() + REST_S
        for folder in folders:
            while True:
                try:
                    os.mkdir(folder)
                    break
                except OSError as error:  # the monitoring ids of the groups that went are still resting
                    if error.errno != errno.EBUSY or time.monotonic() > until:
                        raise HostError(f"{folder}: {error.strerror}") from error
                time.sleep(0.2)
        yield
    finally:
        for folder in folders:
            with suppress(FileNotFoundError):
                os.rmdir(folder)


def _some_disk(sys_root: str) -> str:
    """Return "MAJ:MIN" of a whole disk, or "" where there is none."""
    folder = f"{sys_root}/block"
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return ""
    for name in names:
        if name.startswith(("loop", "ram", "zram", "dm-", "md")):
            continue
        try:
            with open(f"{folder}/{name}/dev", encoding="ascii") as file:
                return file.read().strip()
        except OSError:
            continue
    return ""


def machine_facts() -> dict[str, Any]:
    """Return what somebody needs to judge a figure by."""
    model = ""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            model = next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), "")
    except OSError as error:
        raise HostError(f"cannot read /proc/cpuinfo: {error.strerror}") from error
    return {
        "cpu": model, "cpus": os.cpu_count(), "kernel": platform.release(), "python": platform.python_version(),
        "numpy": np.__version__, "inner_loops": kernel.kind(), "load_1min": os.getloadavg()[0],
    }  # fmt: skip
