"""The linux backend on this machine's cgroup v1, with real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest

from foreshare.envs.hal.linux.cgroups import find_hierarchies
from foreshare.envs.hal.linux.hal import LinuxHal
from foreshare.envs.hal.linux.hotplug import SCATTERED_TICKS
from foreshare.envs.hal.linux.restore import restore
from foreshare.envs.hal.linux.roots import Roots
from foreshare.envs.hal.linux.spec import IoDevice, LinuxSpec
from foreshare.envs.hal.linux.temporary import temporary_cgroups
from foreshare.envs.hal.spec import VmSpec
from foreshare.envs.hal.types import Control, Plan, Receipt
from foreshare.policies.errors import HalError, HostError, InputError
from foreshare.policies.host import Isolation, Placement, Resource
from foreshare.policies.reading import Quality, Reading

_HERE = find_hierarchies(Roots()).controllers
_V1 = all(name in _HERE and _HERE[name].version == 1 for name in ("cpu", "cpuacct", "cpuset"))
pytestmark = [
    pytest.mark.linux_cgroup,
    pytest.mark.skipif(not _V1, reason="cpu, cpuacct and cpuset are not mounted as cgroup v1"),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make cgroups"),
    pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two CPUs to move anything"),
]
ALL = tuple(name for name in ("cpu", "cpuacct", "cpuset", "blkio") if name in _HERE)
SPIN = "print('up', flush=True)\nwhile True: pass"
FOUR_THREADS = (
    "import threading, time\nfor _ in range(3): threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
    "print('up', flush=True)\ntime.sleep(60)"
)
FILES = ("cpu.cfs_quota_us", "cpu.cfs_period_us", "cpu.shares", "cpu.idle", "cpuset.cpus", "cpuset.mems")


def path_of(cgroup: str, name: str) -> Path:
    controller = {"blkio": "blkio", "cpuset": "cpuset", "cpuacct": "cpuacct"}.get(name.partition(".")[0], "cpu")
    return Path(_HERE[controller].path) / cgroup / name


def read(cgroup: str, name: str) -> str:
    return path_of(cgroup, name).read_text().strip()


def state(cgroup: str) -> dict[str, str]:
    return {name: read(cgroup, name) for name in FILES}


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    running: list[subprocess.Popen[str]] = []

    def run(code: str, cgroup: str, controllers: tuple[str, ...] = ALL) -> subprocess.Popen[str]:
        # The process waits for a line before it starts, so that it runs nowhere but in its cgroup.
        program = f"import sys\nsys.stdin.readline()\n{code}"
        process = subprocess.Popen(
            [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        running.append(process)
        for controller in controllers:
            (Path(_HERE[controller].path) / cgroup / "tasks").write_text(str(process.pid))
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
        return process

    yield run
    for process in running:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with suppress(BrokenPipeError):
                    stream.close()


@contextmanager
def opened(spec: LinuxSpec) -> Iterator[tuple[LinuxHal, list[str]]]:
    hal, kept = LinuxHal(spec), []
    try:
        hal.claim(lambda doc: kept.append(json.dumps(doc)))
        yield hal, kept
    finally:
        hal.close()


def vm(cgroup: str, **more: object) -> VmSpec:
    return VmSpec(name=cgroup, cgroup=cgroup, **more)  # type: ignore[arg-type]  # tests pass fields by name


def plan(*writes: tuple[Control, int, int | list[int]], cpus: int) -> Plan:
    sets = [v for _, _, v in writes if isinstance(v, list)]
    rows = np.zeros((len(sets), cpus), bool)
    for k, ids in enumerate(sets):
        rows[k, ids] = True
    values, k = [], 0
    for _, _, value in writes:
        values.append(k if isinstance(value, list) else value)
        k += isinstance(value, list)
    return Plan(
        np.array([c for c, _, _ in writes], np.int8), np.array([r for _, r, _ in writes], np.int64),
        np.array(values, np.int64), rows,
    )  # fmt: skip


def apply(hal: LinuxHal, *writes: tuple[Control, int, int | list[int]], deadline_ns: int = 0) -> Receipt:
    receipt = Receipt()
    hal.apply(plan(*writes, cpus=hal.topology.cpus), deadline_ns, receipt)
    return receipt


def sampled(hal: LinuxHal, seconds: float) -> Reading:
    reading = Reading.empty(len(hal.vms))
    hal.sample(reading)
    time.sleep(seconds)  # the interval that is measured
    hal.sample(reading)
    return reading


def sampled_at(hal: LinuxHal, units: float) -> Reading:
    """Sample until usage reaches the quota; other programs on this machine may hold a window below it, never above."""
    for _ in range(10):
        reading = sampled(hal, 0.2)
        assert reading.usage[0, Resource.CPU] < units * 1.25
        if reading.usage[0, Resource.CPU] > units * 0.8:
            return reading
    raise AssertionError(f"usage never came near {units} units: {reading.usage}")


def test_usage_follows_quota(start: Callable[..., subprocess.Popen[str]]) -> None:
    with temporary_cgroups(1) as (path,), opened(LinuxSpec(vms=(vm(path),))) as (hal, _):
        spinning = start(SPIN, path)
        assert spinning.stdout is not None
        spinning.stdout.readline()
        apply(hal, (Control.CPUS, 0, [0]), (Control.CPU, 0, 3))
        low = sampled_at(hal, 3.0)
        assert low.limit[0, Resource.CPU] == 3
        assert low.quality[0, Resource.CPU] == Quality.CENSORED
        assert low.demand_low[0, Resource.CPU] > 6, "it wants a whole CPU and waits for the rest"
        assert low.wait_ns[0] > 0.4 * low.dt_ns
        apply(hal, (Control.CPU, 0, 6))
        high = sampled_at(hal, 6.0)
        assert np.isnan(high.usage[0, Resource.MEMORY])
        assert high.quality[0, Resource.CACHE] == Quality.MISSING


def test_idle_vm_is_not_censored() -> None:
    with temporary_cgroups(1) as (path,), opened(LinuxSpec(vms=(vm(path),))) as (hal, _):
        reading = Reading.empty(1)
        hal.sample(reading)
        assert reading.dt_ns == 0
        assert reading.quality[0, Resource.CPU] == Quality.MISSING
        reading = sampled(hal, 0.02)
        assert reading.usage[0, Resource.CPU] == 0
        assert np.isnan(reading.wait_ns[0]), "nobody is there who could wait"
        assert reading.quality[0, Resource.CPU] == Quality.OK


def test_cpuset_moves_the_process_and_reads_back(start: Callable[..., subprocess.Popen[str]]) -> None:
    with (
        temporary_cgroups(2) as (a, b),
        opened(LinuxSpec(vms=(vm(a, isolation=Isolation.ISOLATED), vm(b)))) as (hal, _),
    ):
        process = start(SPIN, a)
        assert hal.placements() == ["cpuset", "cpuset"]
        receipt = apply(hal, (Control.CPUS, 1, [0]), (Control.CPUS, 0, [1]), (Control.CPU, 1, 7), (Control.CPU, 0, 4))
        assert (receipt.done, receipt.system_calls, receipt.failures) == (4, 4, [])
        assert receipt.last_write_ns <= time.monotonic_ns()
        assert os.sched_getaffinity(process.pid) == {1}
        assert read(a, "cpu.cfs_quota_us") == "-1", "an isolated VM owns its core and has no quota"
        assert read(b, "cpu.cfs_quota_us") == "7000"
        into = Placement.empty(2, hal.topology.cpus)
        hal.read_back(into)
        assert into.cpus[:, :2].tolist() == [[False, True], [True, False]]
        assert into.units[:, Resource.CPU].tolist() == [10, 7]


def test_drift_is_seen_and_a_changed_period_mended() -> None:
    with temporary_cgroups(1) as (path,), opened(LinuxSpec(vms=(vm(path),))) as (hal, _):
        apply(hal, (Control.CPU, 0, 7), (Control.CPUS, 0, [0]))
        path_of(path, "cpu.cfs_period_us").write_text("50000")
        path_of(path, "cpuset.cpus").write_text("1")
        into = Placement.empty(1, hal.topology.cpus)
        hal.read_back(into)
        assert into.units[0, Resource.CPU] == 1
        assert into.cpus[0, :2].tolist() == [False, True]
        apply(hal, (Control.CPU, 0, 7))
        assert (read(path, "cpu.cfs_period_us"), read(path, "cpu.cfs_quota_us")) == ("10000", "7000")


def test_nested_cpusets_follow_in_an_order_that_the_kernel_accepts() -> None:
    """Fault 24."""
    with temporary_cgroups(1) as (path,):
        children = [f"{path}/emulator", f"{path}/emulator/io", f"{path}/vcpu0"]
        for child, cpus in zip(children, ("0-1", "1", "0"), strict=True):
            path_of(child, "").mkdir()
            (Path(_HERE["cpuset"].path) / child).mkdir()
            path_of(child, "cpuset.mems").write_text("0")
            path_of(child, "cpuset.cpus").write_text(cpus)
        path_of(children[2], "cpu.cfs_quota_us").write_text("50000")
        before = [state(p) for p in (path, *children)]
        with opened(LinuxSpec(vms=(vm(path),))) as (hal, _):
            assert read(children[2], "cpu.cfs_quota_us") == "-1", "v1 refuses a parent's quota below a child's"
            for cpus in ([0], [1], [0, 1], [1], [0]):
                receipt = apply(hal, (Control.CPUS, 0, cpus), (Control.CPU, 0, 2))
                assert receipt.failures == []
                expected = "0-1" if len(cpus) == 2 else str(cpus[0])
                assert [read(p, "cpuset.cpus") for p in (path, *children)] == [expected] * 4
            late = f"{path}/vcpu1"  # hot-plugged: nobody told us
            (Path(_HERE["cpuset"].path) / late).mkdir()
            path_of(late, "cpuset.mems").write_text("0")
            path_of(late, "cpuset.cpus").write_text("0")
            assert apply(hal, (Control.CPUS, 0, [1])).failures == []
            assert read(late, "cpuset.cpus") == "1"
            (Path(_HERE["cpuset"].path) / late).rmdir()
            assert apply(hal, (Control.CPUS, 0, [0])).failures == []
        assert [state(p) for p in (path, *children)] == before


def test_a_cpuset_that_lost_a_cpu_gets_it_back_from_above() -> None:
    """Fault 22: what a hot-unplug leaves in v1 (played by writes, from below) is found, named and mended, top-down."""
    with temporary_cgroups(1) as (path,):
        child, parent = f"{path}/vcpu0", path.rpartition("/")[0]
        path_of(child, "").mkdir()
        (Path(_HERE["cpuset"].path) / child).mkdir()
        path_of(child, "cpuset.mems").write_text("0")
        path_of(child, "cpuset.cpus").write_text("0-1")
        with opened(LinuxSpec(vms=(vm(path),), cpus=frozenset({0, 1}))) as (hal, _):
            assert apply(hal, (Control.CPUS, 0, [0, 1])).failures == []
            for lost in (child, path):
                path_of(lost, "cpuset.cpus").write_text("0")
            into = Placement.empty(1, hal.topology.cpus)
            hal.read_back(into)
            assert np.flatnonzero(into.cpus[0]).tolist() == [0], "found by the next look"
            assert apply(hal, (Control.CPUS, 0, [0, 1])).failures == []
            assert [read(p, "cpuset.cpus") for p in (path, child)] == ["0-1", "0-1"]
            for lost in (child, path, parent):  # the one above is somebody else's
                path_of(lost, "cpuset.cpus").write_text("0")
            hal.read_back(into)
            (failure,) = apply(hal, (Control.CPUS, 0, [0, 1])).failures
            assert "has only CPUs 0: write what it should have to" in failure.text and not failure.gone
            assert [read(p, "cpuset.cpus") for p in (path, child)] == ["0", "0"], "holds what it had"
            path_of(parent, "cpuset.cpus").write_text("0-1")
            assert apply(hal, (Control.CPUS, 0, [0, 1])).failures == []
            assert [read(p, "cpuset.cpus") for p in (path, child)] == ["0-1", "0-1"]
        path_of(child, "").rmdir()
        (Path(_HERE["cpuset"].path) / child).rmdir()


def test_threads_that_a_cpuset_without_cpus_lost_come_back(start: Callable[..., subprocess.Popen[str]]) -> None:
    """Fault 22: of a v1 cpuset whose last CPU goes offline the kernel moves all threads up, and never back (played)."""
    code = "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
    code += "time.sleep(60)"
    with temporary_cgroups(1) as (path,):
        child, parent, cpusets = f"{path}/vcpu0", path.rpartition("/")[0], Path(_HERE["cpuset"].path)
        for controller in ("cpu", "cpuset"):
            (Path(_HERE[controller].path) / child).mkdir()
        path_of(child, "cpuset.mems").write_text("0")
        path_of(child, "cpuset.cpus").write_text("0-1")
        process = start(code, path)
        until = time.monotonic() + 10
        while len(tids := [int(t) for t in os.listdir(f"/proc/{process.pid}/task")]) < 2:
            assert time.monotonic() < until
        for controller in ("cpu", "cpuset"):
            (Path(_HERE[controller].path) / child / "tasks").write_text(str(max(tids)))
        with opened(LinuxSpec(vms=(vm(path),), cpus=frozenset({0, 1}))) as (hal, _):
            assert apply(hal, (Control.CPUS, 0, [1])).failures == []
            for tid in tids:
                (cpusets / parent / "tasks").write_text(str(tid))
            for lost in (child, path):
                path_of(lost, "cpuset.cpus").write_text("\n")
            shelter, reading = hal._writer.shelter, Reading.empty(1)
            shelter.hotplug(np.array([True, False]), [True])
            for _ in range(10):
                hal.sample(reading)
            assert [read(p, "cpuset.cpus") for p in (path, child)] == ["0", "0"]
            inside = [(cpusets / p / "tasks").read_text().split() for p in (path, child)]
            assert inside == [[str(min(tids))], [str(max(tids))]]
            shelter.hotplug(np.array([True, True]), [True])
            assert [read(p, "cpuset.cpus") for p in (path, child)] == ["1", "1"]
            for _ in range(SCATTERED_TICKS):
                hal.sample(reading)
            assert not shelter.scattered
        process.kill()
        process.wait()
        for controller in ("cpu", "cpuset"):
            (Path(_HERE[controller].path) / child).rmdir()


def test_close_leaves_the_host_as_it_was_found(start: Callable[..., subprocess.Popen[str]]) -> None:
    with temporary_cgroups(2) as (a, b):
        path_of(a, "cpu.cfs_quota_us").write_text("130000")
        path_of(a, "cpu.shares").write_text("333")
        path_of(b, "cpuset.cpus").write_text("1")
        pinned = start(SPIN, a)
        os.sched_setaffinity(pinned.pid, {1})
        before = [state(a), state(b)]
        spec = LinuxSpec(vms=(vm(a), vm(b, priority=-1)))
        hal = LinuxHal(spec)
        assert [state(a), state(b)] == before, "opening writes nothing"
        docs: list[Mapping[str, object]] = []

        def remember(doc: Mapping[str, object]) -> None:
            assert [state(a), state(b)] == before, "remembered before the first write"
            docs.append(json.loads(json.dumps(doc)))

        hal.claim(remember)
        assert read(a, "cpu.cfs_quota_us") == "13000", "the rate stays while the period changes"
        assert read(b, "cpu.idle") == "1"
        apply(hal, (Control.CPUS, 0, [0]), (Control.CPUS, 1, [0]), (Control.CPU, 0, 5), (Control.CPU, 1, 5))
        assert [state(a), state(b)] != before
        hal.close()
        hal.close()
        assert [state(a), state(b)] == before
        assert os.sched_getaffinity(pinned.pid) == {1}
        assert hal.restored is not None
        assert hal.restored.failed == []


def test_an_empty_cpuset_is_filled_for_the_run_and_emptied_afterwards() -> None:
    with temporary_cgroups(1) as (path,):
        path_of(path, "cpuset.cpus").write_text("\n")
        path_of(path, "cpuset.mems").write_text("\n")
        with opened(LinuxSpec(vms=(vm(path),))) as (hal, _):
            assert read(path, "cpuset.mems") != ""
            assert apply(hal, (Control.CPUS, 0, [1])).failures == []
            assert read(path, "cpuset.cpus") == "1"
        assert (read(path, "cpuset.cpus"), read(path, "cpuset.mems")) == ("", "")


def test_a_later_process_restores_after_a_kill(tmp_path: Path, start: Callable[..., subprocess.Popen[str]]) -> None:
    with temporary_cgroups(2) as (a, b):
        before = [state(a), state(b)]
        start(SPIN, a)
        journal = tmp_path / "journal"
        code = f"""
import json, os, signal
from foreshare.envs.hal.linux.hal import LinuxHal
from foreshare.envs.hal.linux.spec import LinuxSpec
from foreshare.envs.hal.spec import VmSpec
import numpy as np
from foreshare.envs.hal.types import Plan, Receipt
hal = LinuxHal(LinuxSpec(vms=tuple(VmSpec(name=c, cgroup=c, priority=-1) for c in {[a, b]!r})))
hal.claim(lambda doc: open({str(journal)!r}, "w").write(json.dumps(doc)) and None)
sets = np.eye(1, hal.topology.cpus, dtype=bool)
p = Plan(np.array([0, 1, 1], np.int8), np.array([0, 0, 1]), np.array([0, 2, 3]), sets)
hal.apply(p, 0, Receipt())
os.kill(os.getpid(), signal.SIGKILL)
"""
        ended = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
        assert ended.returncode == -signal.SIGKILL, ended.stderr
        assert [state(a), state(b)] != before
        doc = json.loads(journal.read_text())
        report = restore(doc, Roots())
        assert (report.gone, report.failed) == (0, [])
        assert [state(a), state(b)] == before
        again = restore(doc, Roots())
        assert (again.restored, again.failed) == (report.restored, [])
        other_boot = restore({**doc, "boot_id": "another"}, Roots())
        assert (other_boot.restored, other_boot.gone) == (0, len(doc["items"]))


@pytest.mark.parametrize("again", ["auto", "affinity"])
def test_the_next_start_takes_over_from_a_killed_one(again: str, start: Callable[..., subprocess.Popen[str]]) -> None:
    with temporary_cgroups(3) as (a, b, dropped):
        path_of(a, "cpu.cfs_quota_us").write_text("70000")
        (path_of(a, "") / "vcpu0").mkdir()
        path_of(f"{a}/vcpu0", "cpu.cfs_quota_us").write_text("30000")
        process = start(SPIN, a)
        os.sched_setaffinity(process.pid, {0, 1})
        before = [state(p) for p in (a, b, dropped)]
        first, docs = LinuxHal(LinuxSpec(vms=(vm(a, priority=-1), vm(b, priority=-1), vm(dropped)))), []
        first.claim(docs.append)
        apply(first, (Control.CPUS, 0, [1]), (Control.CPU, 0, 2), (Control.CPUS, 2, [0]), (Control.CPU, 2, 2))
        first._release()  # as if killed: nothing is put back
        assert [state(p) for p in (a, b, dropped)] != before
        previous = json.loads(json.dumps(docs[0]))
        second = LinuxHal(LinuxSpec(vms=(vm(b), vm(a)), placement=again))  # type: ignore[arg-type]  # parametrized
        second.claim(docs.append, previous)
        assert state(dropped) == before[2], "nobody manages it any more"
        assert read(b, "cpu.idle") == "0"
        apply(second, (Control.CPU, 0, 3), (Control.CPU, 1, 3), (Control.CPUS, 1, [1]))
        second._release()
        third = LinuxHal(LinuxSpec(vms=(vm(a), vm(b))))
        third.claim(docs.append, json.loads(json.dumps(docs[1])))
        third.close()
        assert [state(p) for p in (a, b, dropped)] == before
        assert read(f"{a}/vcpu0", "cpu.cfs_quota_us") == "30000"
        assert os.sched_getaffinity(process.pid) == {0, 1}


def test_a_record_of_another_boot_or_kind_is_no_original() -> None:
    """Fault 40."""
    with temporary_cgroups(1) as (path,):
        hal = LinuxHal(LinuxSpec(vms=(vm(path),)))
        with pytest.raises(InputError, match="not a record"):
            hal.claim(lambda doc: None, {"kind": "simulated"})
        docs: list[Mapping[str, object]] = []
        item = {"what": "weight", "cgroup": path, "inode": 0, "weight": 5, "idle": 0}
        hal.claim(docs.append, {"kind": "linux", "version": 1, "boot_id": "another", "items": [item]})
        assert item not in docs[0]["items"]  # type: ignore[operator]  # JSON
        hal.close()


def test_a_namesake_is_left_alone() -> None:
    with temporary_cgroups(2) as (a, b):
        hal, docs = LinuxHal(LinuxSpec(vms=(vm(a), vm(b)))), []
        hal.claim(docs.append)
        for controller in ("cpu", "cpuset"):
            directory = Path(_HERE[controller].path) / a
            directory.rmdir()
            directory.mkdir()
        path_of(a, "cpu.shares").write_text("77")
        hal.close()
        assert read(a, "cpu.shares") == "77"
        assert hal.restored is not None
        assert hal.restored.gone == sum(i["cgroup"] == a for i in docs[0]["items"])


def test_a_vm_that_vanishes_is_absent_and_its_writes_fail_as_gone() -> None:
    """Fault 1."""
    with temporary_cgroups(3) as (a, b, c), opened(LinuxSpec(vms=(vm(a), vm(b), vm(c)))) as (hal, _):
        reading = Reading.empty(3)
        hal.sample(reading)
        for controller in ("cpu", "cpuset", "cpuacct"):
            (Path(_HERE[controller].path) / b).rmdir()
        receipt = apply(
            hal, (Control.CPUS, 1, [0]), (Control.CPU, 1, 3), (Control.CPUS, 2, [1]), (Control.CPU, 0, 4)
        )  # fmt: skip
        assert [(f.index, f.gone) for f in receipt.failures] == [(0, True), (1, True)]
        assert receipt.done == 4
        assert read(a, "cpu.cfs_quota_us") == "4000"
        assert read(c, "cpuset.cpus") == "1"
        hal.sample(reading)
        assert reading.present.tolist() == [True, False, True]
        assert np.isnan(reading.usage[1, Resource.CPU])
        assert reading.usage[0, Resource.CPU] == 0
        into = Placement.empty(3, hal.topology.cpus)
        hal.read_back(into)
        assert into.units[1, Resource.CPU] == 0


def test_a_refused_shrink_stops_the_plan_and_other_refusals_do_not() -> None:
    """Fault 24."""
    with temporary_cgroups(2) as (a, b), opened(LinuxSpec(vms=(vm(a), vm(b)))) as (hal, _):
        nobody: list[int] = []
        path_of(a, "cpu.cfs_quota_us").write_text("-1")
        sleeper = subprocess.Popen(["sleep", "60"])
        try:
            path_of(a, "tasks").write_text(str(sleeper.pid))
            (Path(_HERE["cpuset"].path) / a / "tasks").write_text(str(sleeper.pid))
            receipt = apply(hal, (Control.CPU, 0, 4), (Control.CPUS, 0, nobody), (Control.CPUS, 1, [0]))
        finally:
            sleeper.kill()
            sleeper.wait()
        assert receipt.done == 2, "an empty cpuset with threads in it is refused (ENOSPC)"
        assert [(f.index, f.gone) for f in receipt.failures] == [(1, False)]
        assert read(b, "cpuset.cpus") != "0"


def test_a_deadline_in_the_past_writes_nothing_and_one_ahead_everything() -> None:
    with temporary_cgroups(1) as (path,), opened(LinuxSpec(vms=(vm(path),))) as (hal, _):
        before = state(path)
        receipt = apply(hal, (Control.CPU, 0, 3), deadline_ns=1)
        assert (receipt.done, receipt.system_calls, receipt.last_write_ns) == (0, 0, 0)
        assert state(path) == before
        assert apply(hal, (Control.CPU, 0, 3), deadline_ns=time.monotonic_ns() + 10**10).done == 1


def test_resources_that_cannot_move_count_as_done() -> None:
    with temporary_cgroups(1) as (path,), opened(LinuxSpec(vms=(vm(path),))) as (hal, _):
        writes = (Control.WAYS, 0, 3), (Control.MEMORY, 0, 2), (Control.IO, 0, 9)
        receipt = apply(hal, *writes)
        assert (receipt.done, receipt.system_calls, receipt.failures) == (3, 0, [])
        lines = hal.describe(plan(*writes, cpus=hal.topology.cpus))
        assert [line.startswith("nothing: ") for line in lines] == [True] * 3


@pytest.mark.skipif("blkio" not in _HERE, reason="no blkio controller")
def test_io_is_limited_and_measured(tmp_path: Path, start: Callable[..., subprocess.Popen[str]]) -> None:
    device = os.stat(tmp_path).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    if not Path(f"/sys/dev/block/{number}").is_dir():
        pytest.skip(f"{tmp_path} is not on a block device")
    target = tmp_path / "data"
    code = f"""
import mmap, os
fd = os.open({str(target)!r}, os.O_CREAT | os.O_WRONLY | os.O_DIRECT)
block = mmap.mmap(-1, 1 << 18)
while True: os.pwrite(fd, block, 0)
"""
    with temporary_cgroups(1) as (path,):
        name = "blkio.throttle.write_bps_device"
        path_of(path, name).write_text(f"{number} 77777777")
        spec = LinuxSpec(vms=(vm(path),), io=(IoDevice(device=number, bandwidth_bytes=200e6),))
        with opened(spec) as (hal, _):
            assert hal.topology.pool(Resource.IO, 0).units == 100
            assert apply(hal, (Control.IO, 0, 5)).system_calls == 2
            assert read(path, name) == f"{number} 10000000"
            start(code, path)
            reading = sampled(hal, 0.6)
            if reading.usage[0, Resource.IO] == 0:
                pytest.skip("direct IO on this device is not accounted to the cgroup")
            assert reading.usage[0, Resource.IO] == pytest.approx(5, abs=2.5)
            assert reading.limit[0, Resource.IO] == 5
            into = Placement.empty(1, hal.topology.cpus)
            hal.read_back(into)
            assert into.units[0, Resource.IO] == 5
        assert read(path, name) == f"{number} 77777777"
        assert read(path, "blkio.throttle.read_bps_device") == ""


def test_affinity_moves_every_thread_also_later_ones(start: Callable[..., subprocess.Popen[str]]) -> None:
    with temporary_cgroups(1) as (path,):
        process = start(FOUR_THREADS, path, ("cpu", "cpuacct"))
        assert process.stdout is not None
        process.stdout.readline()
        tids = [int(p.name) for p in Path(f"/proc/{process.pid}/task").iterdir()]
        assert len(tids) == 4
        before = [os.sched_getaffinity(t) for t in tids]
        with opened(LinuxSpec(vms=(vm(path),))) as (hal, _):
            assert hal.placements() == ["affinity"], "its threads are not in the cpuset of the same name"
            receipt = apply(hal, (Control.CPUS, 0, [1]))
            assert receipt.failures == []
            assert receipt.system_calls >= 4
            assert [os.sched_getaffinity(t) for t in tids] == [{1}] * 4
            late = start(SPIN, path, ("cpu", "cpuacct"))
            reading = Reading.empty(1)
            for _ in range(12):
                hal.sample(reading)
            assert os.sched_getaffinity(late.pid) != {1}
            apply(hal)
            assert os.sched_getaffinity(late.pid) == {1}
            into = Placement.empty(1, hal.topology.cpus)
            hal.read_back(into)
            assert into.cpus[0, :2].tolist() == [False, True]
            assert "affinity of 5 threads" in hal.describe(plan((Control.CPUS, 0, [0]), cpus=hal.topology.cpus))[0]
            assert hal.extras()[hal.vms.uuid[0]]["threads"] == 5
        assert [os.sched_getaffinity(t) for t in tids] == before
        assert os.sched_getaffinity(late.pid) == before[0]


def test_describe_writes_nothing() -> None:
    with temporary_cgroups(1) as (path,):
        before = state(path)
        hal = LinuxHal(LinuxSpec(vms=(vm(path),)), read_only=True)
        lines = hal.describe(plan((Control.CPUS, 0, [0, 1]), (Control.CPU, 0, 25), cpus=hal.topology.cpus))
        quota = min(25, hal.topology.cpus * 10) * 1000
        root = Path(_HERE["cpuset"].path).name, Path(_HERE["cpu"].path).name
        assert lines == [
            f"write 0-1 to {root[0]}/{path}/cpuset.cpus", f"write {quota} to {root[1]}/{path}/cpu.cfs_quota_us"
        ]  # fmt: skip
        with pytest.raises(HostError, match="reading only"):
            hal.claim(lambda doc: None)
        with pytest.raises(HalError, match="claim comes first"):
            hal.apply(plan((Control.CPU, 0, 1), cpus=hal.topology.cpus), 0, Receipt())
        hal.close()
        assert state(path) == before


def test_only_managed_cpus_stay_in_a_cpuset() -> None:
    with temporary_cgroups(1) as (path,), opened(LinuxSpec(vms=(vm(path),), cpus=frozenset({1}))) as (hal, _):
        assert read(path, "cpuset.cpus") == "1"
        assert hal.topology.cpu_id.tolist() == [1]


def test_what_is_missing_is_said_in_one_line() -> None:
    with pytest.raises(HostError, match=r"cgroup no-such-thing does not exist under /.*: create it \(mkdir -p"):
        LinuxHal(LinuxSpec(vms=(vm("no-such-thing"),)))
    with pytest.raises(InputError, match="not a cgroup path"):
        LinuxHal(LinuxSpec(vms=(vm("../escape"),)))
    with temporary_cgroups(1) as (path,):
        with pytest.raises(HostError, match="lies inside"):
            LinuxHal(LinuxSpec(vms=(vm(path), vm(path.rpartition("/")[0]))))
        with pytest.raises(HostError, match="same cgroup"):
            LinuxHal(LinuxSpec(vms=(vm(path, uuid="1"), vm(path, uuid="2"))))
        (Path(_HERE["cpuacct"].path) / path).rmdir()
        with pytest.raises(HostError, match="cpuacct"):
            LinuxHal(LinuxSpec(vms=(vm(path),)))


def test_a_claim_that_fails_half_way_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    from foreshare.envs.hal.linux import claim

    with temporary_cgroups(2) as (a, b):
        before = [state(a), state(b)]
        hal = LinuxHal(LinuxSpec(vms=(vm(a), vm(b))))
        real, seen = claim.put_bandwidth, []

        def second_refused(*args: object) -> None:
            seen.append(args)
            if len(seen) == 2:
                raise OSError(1, "Operation not permitted")
            real(*args)  # type: ignore[arg-type]  # passed through

        monkeypatch.setattr(claim, "put_bandwidth", second_refused)
        with pytest.raises(HostError, match="Operation not permitted"):
            hal.claim(lambda doc: None)
        monkeypatch.undo()
        assert [state(a), state(b)] == before
        hal.close()


def test_no_descriptor_is_left_behind() -> None:
    """Fault 49."""

    def count() -> int:
        return len(os.listdir("/proc/self/fd"))

    with temporary_cgroups(2) as (a, b):
        before = count()
        with opened(LinuxSpec(vms=(vm(a), vm(b)))) as (hal, _):
            apply(hal, (Control.CPUS, 0, [0]))
            assert count() > before
        assert count() == before
        with pytest.raises(HostError):
            LinuxHal(LinuxSpec(vms=(vm(a), vm("missing"))))
        assert count() == before
