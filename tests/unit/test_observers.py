"""What watches a run: the log for the report, the migration hook, and the meter that finds contention."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_hal import FakeHal
from hosts import table, topology

from foreshare.envs.hal.linux import hal as linux_hal
from foreshare.envs.hal.types import Plan, Receipt
from foreshare.policies.decide import Decision
from foreshare.policies.forecast import Forecast
from foreshare.policies.host import Host, Placement
from foreshare.policies.reading import Quality, Reading
from foreshare.policies.registry import DEFAULT, make_mind
from foreshare.runtime import observers, session
from foreshare.runtime.config import load_config
from foreshare.runtime.config.schema import MigrateConfig
from foreshare.runtime.loop import ControlLoop, Observer, Tick
from foreshare.runtime.meter import CALM_TICKS, LASTING_TICKS, Meter
from foreshare.runtime.observers import LogObserver, MigrationHook, RecentEvents, cpu_owner, describe_run
from foreshare.runtime.runlog import MAX_EVENTS, MAX_ROWS, NOBODY, SEVERAL, STAGES, RunLog

N, TICK = 3, 10_000_000


def decision_of(contended: list[int], throttled: tuple[int, ...] = ()) -> Decision:
    short = np.zeros((N, 4), bool)
    short[contended, 0] = True
    held = np.zeros(N, bool)
    held[list(throttled)] = True
    mind = make_mind("forecast", Host(topology(), table(N)))
    mind.request.need[:] = 9.0
    return Decision(Placement.empty(N, 8), True, "", short, held, mind.request, Forecast.empty(N))


def tick_of(number: int, contended: list[int] | None = None) -> Tick:
    reading = Reading.empty(N)
    reading.usage[:] = number + 0.25
    reading.demand_low[:] = number + 0.5
    held = Placement.empty(N, 8)
    held.units[:] = number
    none = np.zeros(0, np.int64)
    plan = Plan(none.astype(np.int8), none, none, np.zeros((0, 8), bool))
    stage = np.arange(len(STAGES), dtype=np.int64) * 1000
    decision = decision_of(contended or [])
    return Tick(number, 10**9 + number * TICK, reading, decision, held, stage, plan, Receipt(), 0)


# -- the log


def test_the_log_has_a_row_for_every_tick_of_a_short_run() -> None:
    log = RunLog.for_run(ticks=20, n=N, cpus=8, meta={})
    observer = LogObserver(log)
    for k in range(20):
        if k == 7:
            observer.on_event("gone", 1, "")
        observer.on_tick(tick_of(k, [2] if k == 4 else None))
    got = log.trimmed()
    assert (log.every, got.rows) == (1, 20)
    assert got.series["t_ns"].tolist() == [k * TICK for k in range(20)]
    assert (got.series["demand"][:, 0, 0] == np.arange(20) + 0.5).all()
    assert (got.series["usage"][:, 2, 3] == np.arange(20) + 0.25).all()
    assert (got.series["allocation"][:, 1, 1] == np.arange(20)).all()
    assert (got.series["stage_us"] == np.arange(len(STAGES))).all()
    assert got.series["contended"].nonzero()[0].tolist() == [4] and got.series["contended"][4].tolist() == [0, 0, 1]
    assert got.series["by_policy"].all()
    assert [(e.t_ns, e.kind, e.vm) for e in got.events] == [(6 * TICK, "gone", 1)]


def test_the_truth_is_logged_where_somebody_knows_it() -> None:
    log = RunLog.for_run(ticks=3, n=N, cpus=8, meta={})
    observer = LogObserver(log, lambda: np.full((N, 4), 42.0))
    observer.on_tick(tick_of(0))
    assert (log.series["demand"][0] == 42.0).all()


@pytest.mark.parametrize("ticks", [1, MAX_ROWS, MAX_ROWS + 1, 4 * MAX_ROWS + 3])
def test_a_long_run_is_thinned_into_its_bounds(ticks: int) -> None:
    log = RunLog.for_run(ticks=ticks, n=N, cpus=8, meta={})
    observer = LogObserver(log)
    tick = tick_of(0)
    for k in range(ticks):
        tick.number, tick.t_ns = k, k * TICK
        observer.on_tick(tick)
    t = log.trimmed().series["t_ns"]
    assert len(t) <= MAX_ROWS and len(t) == -(-ticks // log.every)
    assert (np.diff(t) == log.every * TICK).all()
    assert t[-1] > (ticks - 1 - log.every) * TICK


def test_a_run_without_end_keeps_the_newest_rows_in_order() -> None:
    log = RunLog.for_run(ticks=0, n=N, cpus=8, meta={})
    observer = LogObserver(log)
    tick = tick_of(0)
    for k in range(2 * MAX_ROWS + 77):
        tick.number, tick.t_ns = k, k * TICK
        observer.on_tick(tick)
    t = log.trimmed().series["t_ns"]
    assert t.tolist() == [k * TICK for k in range(MAX_ROWS + 77, 2 * MAX_ROWS + 77)]


def test_events_are_bounded_and_what_is_dropped_is_counted() -> None:
    log = RunLog.for_run(ticks=1, n=N, cpus=8, meta={})
    observer = LogObserver(log)
    for _ in range(MAX_EVENTS + 5):
        observer.on_event("drift", 0, "")
    assert (len(log.events), observer.dropped_events) == (MAX_EVENTS, 5)
    recent = RecentEvents(keep=4)
    for k in range(9):
        recent.on_tick(tick_of(k))
        recent.on_event("drift", k, "")
    assert [(e.vm, e.t_ns) for e in recent.events] == [(k, k * TICK) for k in range(5, 9)]


def test_cpu_owners() -> None:
    tick = tick_of(0)
    tick.held.cpus[0, :3] = tick.held.cpus[2, 2:5] = True
    assert cpu_owner(tick).tolist() == [0, 0, SEVERAL, 2, 2, NOBODY, NOBODY, NOBODY]
    tick.held = Placement.empty(0, 8)
    assert cpu_owner(tick).tolist() == [NOBODY] * 8


def test_a_log_survives_its_file(tmp_path: Path) -> None:
    host = Host(topology(), table(N))
    facts = describe_run(FakeHal(host), host, policy="forecast", tick_ms=10.0, scenario="mixed", seed=1)
    log = RunLog.for_run(ticks=5, n=N, cpus=8, meta=facts)
    observer = LogObserver(log)
    for k in range(3):
        observer.on_tick(tick_of(k))
    observer.on_event("migrate", 2, "why")
    log.save(tmp_path / "log.npz")
    back = RunLog.load(tmp_path / "log.npz")
    assert back.meta == facts and back.rows == 3 and back.events == log.events
    for name, values in log.trimmed().series.items():
        np.testing.assert_array_equal(back.series[name], values)


# -- the meter


class Timeline:
    """Feeds a meter tick by tick and remembers its events with the tick in which they came."""

    def __init__(self, migrate_after_ticks: int = 500) -> None:
        self.host = Host(topology(), table(N, priority=[0, 0, 4]))
        self.meter = Meter(self.host, migrate_after_ns=migrate_after_ticks * TICK)
        self.now = 0
        self.events: list[tuple[int, str, int]] = []

    def feed(self, ticks: int, contended: list[int], throttled: tuple[int, ...] = ()) -> None:
        for _ in range(ticks):
            decision = decision_of(contended, throttled)
            found = self.meter.update(self.now * TICK, Reading.empty(N), decision, Placement.empty(N, 8))
            self.events += [(self.now, kind, vm) for kind, vm, _ in found]
            self.now += 1


def test_contention_is_an_event_once_it_lasts() -> None:
    line = Timeline()
    for _ in range(5):
        line.feed(LASTING_TICKS - 1, [1])
        line.feed(1, [])
    assert not line.events and not line.meter.contentions
    start = line.now
    line.feed(50, [1], throttled=(1,))
    assert line.events == [(start + LASTING_TICKS - 1, "throttled", 1)]
    assert line.meter.contentions == 1


def test_contention_ends_when_it_has_been_calm() -> None:
    line = Timeline()
    line.feed(LASTING_TICKS, [0])
    line.feed(CALM_TICKS - 1, [])
    line.feed(LASTING_TICKS, [0])  # the same event still
    assert line.meter.contentions == 1
    line.feed(CALM_TICKS, [])
    line.feed(LASTING_TICKS, [0, 2])
    assert line.meter.contentions == 3
    assert [(kind, vm) for _, kind, vm in line.events] == [("contention", 0)] * 2 + [("contention", 2)]


def test_a_migration_is_advised_once_for_each_contention() -> None:
    line = Timeline(migrate_after_ticks=100)
    line.feed(400, [2])
    begin = LASTING_TICKS - 1
    assert line.events == [(begin, "contention", 2), (begin + 100, "migrate", 2)]
    line.feed(CALM_TICKS, [])
    line.feed(LASTING_TICKS + 100, [2])
    assert [kind for _, kind, _ in line.events].count("migrate") == 2


def test_a_migration_may_be_advised_at_once() -> None:
    line = Timeline(migrate_after_ticks=0)
    line.feed(LASTING_TICKS, [0])
    assert [kind for _, kind, _ in line.events] == ["contention", "migrate"]


def test_a_vm_that_is_gone_is_not_contended() -> None:
    line = Timeline()
    line.meter.rebind(Host(line.host.topology, line.host.vms, np.array([True, False, True])))
    line.feed(50, [1])
    assert not line.events


def test_late_vms_weigh_by_priority_and_missing_is_not_idle() -> None:
    line = Timeline()
    r = Reading.empty(N)
    r.dt_ns = TICK
    r.usage[:, 0], r.demand_low[:, 0] = [10.0, 10.0, np.nan], [20.0, 10.0, np.nan]
    r.quality[:] = 0
    r.quality[:, 0] = [Quality.CENSORED, Quality.CENSORED, Quality.MISSING]
    for _ in line.meter.update(0, r, decision_of([]), Placement.empty(N, 8)):
        pass
    assert line.meter.late_pct == pytest.approx(100.0 * 1 / (1 + 1 + 5))
    assert line.meter.utilisation_pct == pytest.approx(100.0 * 20 / 80)  # CPU alone was measured
    assert Timeline().meter.late_pct == Timeline().meter.utilisation_pct == 0.0


# -- the migration hook


class Reports(list[tuple[str, int, str]]):
    """Collects what the hook tells."""

    def __call__(self, kind: str, vm: int, text: str) -> None:
        self.append((kind, vm, text))


@pytest.fixture
def make_hook() -> Iterator[Callable[..., tuple[MigrationHook, Reports]]]:
    made: list[MigrationHook] = []

    def make(*argv: str, deadline_s: float = 30.0) -> tuple[MigrationHook, Reports]:
        reports = Reports()
        hook = MigrationHook(
            MigrateConfig(command=argv, deadline_s=deadline_s), [f"uuid-{i}" for i in range(N)], reports
        )
        made.append(hook)
        return hook, reports

    yield make
    for hook in made:
        hook.poll(kill=True)


def until(hook: MigrationHook, reports: Reports, count: int) -> None:
    end = time.monotonic() + 20.0
    while len(reports) < count and time.monotonic() < end:
        hook.on_tick(tick_of(0))
        time.sleep(0.002)
    assert len(reports) == count


def test_the_command_runs_without_a_shell(tmp_path: Path, make_hook: Callable[..., Any]) -> None:
    out = tmp_path / "argv"
    code = f"import sys, pathlib; pathlib.Path({str(out)!r}).write_text('|'.join(sys.argv[1:]))"
    hook, reports = make_hook(sys.executable, "-c", code, "{uuid}", "why: {reason}", "$HOME; exit 7", "*")
    for kind in ("contention", "throttled", "gone"):
        hook.on_event(kind, 1, "")
    hook.on_event("migrate", 1, "short of {uuid} & `cpu`")
    until(hook, reports, 1)
    assert reports == [("migrated", 1, "the command ended with 0")]
    assert out.read_text() == "uuid-1|why: short of {uuid} & `cpu`|$HOME; exit 7|*"


def test_failure_and_a_missing_program_are_reported(make_hook: Callable[..., Any]) -> None:
    hook, reports = make_hook(sys.executable, "-c", "raise SystemExit(3)")
    hook.on_event("migrate", 0, "")
    until(hook, reports, 1)
    assert reports == [("migrate-failed", 0, "the command ended with 3")]
    hook, reports = make_hook("/nowhere/migrate")
    hook.on_event("migrate", 2, "")
    assert reports == [("migrate-failed", 2, "/nowhere/migrate: No such file or directory")]
    hook.poll()


def test_one_at_a_time_for_each_vm(tmp_path: Path, make_hook: Callable[..., Any]) -> None:
    go = tmp_path / "go"
    code = f"import pathlib, time\nwhile not pathlib.Path({str(go)!r}).exists(): time.sleep(0.005)"
    hook, reports = make_hook(sys.executable, "-c", code)
    for vm in (0, 0, 1, 0):
        hook.on_event("migrate", vm, "")
    hook.poll()
    assert not reports
    go.touch()
    until(hook, reports, 2)
    assert sorted(vm for _, vm, _ in reports) == [0, 1]
    hook.on_event("migrate", 0, "")  # the earlier one is done
    until(hook, reports, 3)


def test_the_deadline_ends_the_command_and_its_children(
    tmp_path: Path, make_hook: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = tmp_path / "pid"
    code = (
        "import subprocess, pathlib; p = subprocess.Popen(['sleep', '60']);"
        f" f = pathlib.Path({str(pid)!r} + '.new'); f.write_text(str(p.pid)); f.rename({str(pid)!r}); p.wait()"
    )
    hook, reports = make_hook(sys.executable, "-c", code, deadline_s=5.0)
    hook.on_event("migrate", 0, "")
    end = time.monotonic() + 20
    while not pid.exists() and time.monotonic() < end:
        time.sleep(0.005)
    hook.poll()
    assert not reports
    later = time.monotonic() + 6.0
    monkeypatch.setattr(observers.time, "monotonic", lambda: later)
    hook.poll()
    monkeypatch.undo()
    assert reports == [("migrate-failed", 0, "not done within 5 s, ended")]
    child = Path(f"/proc/{pid.read_text()}/stat")
    end = time.monotonic() + 10
    while child.exists() and child.read_text().rsplit(")", 1)[1].split()[0] != "Z" and time.monotonic() < end:
        time.sleep(0.005)
    assert not child.exists() or child.read_text().rsplit(")", 1)[1].split()[0] == "Z", "a child lives on"


def test_the_end_of_the_run_ends_the_command(make_hook: Callable[..., Any]) -> None:
    hook, reports = make_hook("/bin/sleep", "60")
    hook.on_event("migrate", 0, "")
    hook.poll(kill=True)
    assert reports == [("migrate-failed", 0, "the run is over, ended")]
    hook.poll(kill=True)
    assert len(reports) == 1


def test_the_configured_time_reaches_the_meter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "host.toml"
    file.write_text('[migrate]\ncommand = ["/bin/true", "{uuid}"]\nafter_s = 1.25\n[[vm]]\nname = "a"\ncgroup = "a"\n')
    host = Host(topology(), table(N))
    monkeypatch.setattr(linux_hal, "LinuxHal", lambda *args, **keys: FakeHal(host, lambda tick: 1e6))
    seen: list[int] = []

    def watch(facts: dict[str, Any], loop: ControlLoop) -> list[Observer]:
        seen.append(loop.meter.migrate_after_ns)
        return []

    choice = session.HalChoice(hal="linux", config=load_config(file, policies=frozenset({DEFAULT})))
    outcome = session.Session(choice=choice, policy="forecast", ticks=140, watchers=watch).run()
    assert seen == [1_250_000_000]
    asked = [e for e in outcome.log.events if e.kind == "migrate"]
    began = min(e.t_ns for e in outcome.log.events if e.kind in ("contention", "throttled"))
    assert sorted(e.vm for e in asked) == [0, 1, 2]
    assert all(e.t_ns - began == 1_250_000_000 for e in asked)
    assert {e.kind for e in outcome.log.events} & {"migrated", "migrate-failed"}
