"""The backend over made-up trees of plain files, v1 and v2: payloads, parsing, counters. Plain files refuse nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from resctrl_host import DISK, HandClock

from foreshare.envs.hal.linux.floor import compiler, measure_floor
from foreshare.envs.hal.linux.hal import LinuxHal
from foreshare.envs.hal.linux.restore import restore
from foreshare.envs.hal.linux.roots import Roots
from foreshare.envs.hal.linux.spec import LinuxSpec
from foreshare.envs.hal.spec import VmSpec
from foreshare.envs.hal.types import Control, Plan, Receipt
from foreshare.policies.errors import HostError, InputError
from foreshare.policies.host import Isolation, Placement, Resource
from foreshare.policies.reading import Quality, Reading


def put(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")


def base(root: Path, mountinfo: str) -> Roots:
    put(root, {"sys/devices/system/cpu/online": "0-3", "sys/dev/block/8:0/size": "1",
               "proc/self/mountinfo": mountinfo.format(root), "proc/self/schedstat": "5 6 7"})  # fmt: skip
    return Roots(cgroup=str(root / "cg"), sys=str(root / "sys"), proc=str(root / "proc"))


def v2(root: Path, n: int = 2) -> Roots:
    put(root, {"cg/cgroup.controllers": "cpuset cpu io memory"})
    for i in range(n):
        put(root / f"cg/vm{i}", {
            "cpu.max": "max 100000", "cpu.stat": "usage_usec 1000\nuser_usec 1\nnr_periods 0\nthrottled_usec 0",
            "cpu.weight": "100", "cpu.idle": "0", "cpuset.cpus": "", "cpuset.mems": "", "cpuset.cpus.effective": "0-3",
            "cgroup.threads": "", "io.max": "", "io.stat": "", "memory.current": "4096",
            "cpu.pressure": "some avg10=0.00 avg60=0.00 avg300=0.00 total=5\nfull avg10=0.00 total=0",
            "io.pressure": "some avg10=0.00 total=9\nfull total=1",
            "memory.numa_stat": "anon N0=4096 N1=8192\nfile N0=100 N1=0\nkernel_stack N0=7 N1=7",
        })  # fmt: skip
    return base(root, "24 17 0:21 / {0}/cg rw - cgroup2 cg rw")


def v1(root: Path, n: int = 2) -> Roots:
    for i in range(n):
        put(root / f"cg/cpu/vm{i}", {
            "cpu.cfs_quota_us": "-1", "cpu.cfs_period_us": "100000", "cpu.shares": "1024", "tasks": "",
            "cpu.stat": "nr_periods 0\nnr_throttled 0\nthrottled_time 0", "cpuacct.usage": "1000000",
        })  # fmt: skip
        put(root / f"cg/cpuset/vm{i}", {"cpuset.cpus": "0-3", "cpuset.mems": "0", "tasks": ""})
        put(root / f"cg/blkio/vm{i}", {"blkio.throttle.read_bps_device": "", "blkio.throttle.write_bps_device": "",
            "blkio.throttle.io_service_bytes_recursive": "Total 0"})  # fmt: skip
    rows = ("cpu,cpuacct", "cpuset", "blkio")
    return base(root, "".join(f"3 1 0:2 / {{0}}/cg/{r.split(',')[0]} rw - cgroup c rw,{r}\n" for r in rows))


def hal_of(roots: Roots, clock: HandClock, *, n: int = 2, isolated: tuple[int, ...] = (), **fields: object) -> LinuxHal:
    vms = tuple(
        VmSpec(name=f"vm{i}", cgroup=f"vm{i}", isolation=Isolation.ISOLATED if i in isolated else Isolation.SHARED)
        for i in range(n)
    )
    return LinuxHal(LinuxSpec(vms=vms, io=(DISK,), **fields), roots, clock)  # type: ignore[arg-type]  # by name


def one(control: Control, row: int, value: int, cpus: list[int] | None = None) -> Plan:
    sets = np.zeros((1, 4), bool)
    sets[0, cpus or []] = True
    return Plan(np.array([control], np.int8), np.array([row]), np.array([value]), sets)


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        (v2, {"vm0/cpu.max": "25000 10000", "vm1/cpu.max": "max 10000", "vm1/cpuset.cpus": "1,3",
              "vm0/io.max": "8:0 rbps=70000000 wbps=70000000"}),
        (v1, {"cpu/vm0/cpu.cfs_quota_us": "25000", "cpu/vm1/cpu.cfs_quota_us": "-1", "cpuset/vm1/cpuset.cpus": "1,3",
              "cpu/vm0/cpu.cfs_period_us": "10000", "blkio/vm0/blkio.throttle.read_bps_device": "8:0 70000000",
              "blkio/vm0/blkio.throttle.write_bps_device": "8:0 70000000"}),
    ],
)  # fmt: skip
def test_bytes_written_and_read_back(
    tree: Callable[[Path], Roots], expected: dict[str, str], tmp_path: Path, clock: HandClock
) -> None:
    hal = hal_of(tree(tmp_path), clock, isolated=(1,))
    hal.claim(lambda doc: None)
    hal.trace = []
    receipt = Receipt()
    calls = 0
    for step in (
        one(Control.CPU, 0, 25), one(Control.CPU, 1, 25), one(Control.CPUS, 1, 0, [1, 3]), one(Control.IO, 0, 7)
    ):  # fmt: skip
        hal.apply(step, 0, receipt)
        assert receipt.failures == []
        calls += receipt.system_calls
    for name, text in expected.items():
        assert (tmp_path / "cg" / name).read_text().splitlines()[0] == text, name
    assert sum(len(t) for t in hal.trace) == calls
    assert all(Path(path).read_bytes().startswith(data.strip()) for tick in hal.trace for path, data in tick)
    into = Placement.empty(2, 4)
    hal.read_back(into)
    assert into.units.tolist() == [[25, 0, 0, 7], [20, 0, 0, 100]]
    assert into.cpus.tolist() == [[True] * 4, [False, True, False, True]]
    hal.close()


@pytest.mark.parametrize("value", [-5, 0, 10**9])
def test_amounts_out_of_range_never_lift_a_limit(tmp_path: Path, clock: HandClock, value: int) -> None:
    hal = hal_of(v1(tmp_path), clock)
    hal.claim(lambda doc: None)
    for control in (Control.CPU, Control.IO):
        hal.apply(one(control, 0, value), 0, Receipt())
    quota = int((tmp_path / "cg/cpu/vm0/cpu.cfs_quota_us").read_text().split()[0])
    rate = int((tmp_path / "cg/blkio/vm0/blkio.throttle.read_bps_device").read_text().split()[1])
    assert quota == (1000 if value <= 0 else 40_000)
    assert rate == (10**7 if value <= 0 else 10**9), "0 would mean no limit in v1"
    hal.close()


def test_counters_become_rates_v2(tmp_path: Path, clock: HandClock) -> None:
    roots = v2(tmp_path)
    hal = hal_of(roots, clock)
    hal.claim(lambda doc: None)
    hal.apply(one(Control.CPU, 0, 8), 0, Receipt())
    hal.apply(one(Control.IO, 0, 10), 0, Receipt())
    r = Reading.empty(2)
    hal.sample(r)
    assert (r.dt_ns, np.isnan(r.usage).all()) == (0, True)
    clock.t_ns += 10_000_000
    put(tmp_path, {
        "cg/vm0/cpu.stat": "usage_usec 6000\nthrottled_usec 3000",  # 5 ms in 10 ms, 3 ms throttled
        "cg/vm0/io.stat": "18:0 rbytes=5\n8:0 rbytes=500000 wbytes=1000000 rios=1 wios=1 dbytes=0 dios=0",
        "cg/vm1/cpu.stat": "usage_usec 10",
    })  # fmt: skip
    hal.sample(r)
    assert r.dt_ns == 10_000_000
    assert r.usage[0].tolist() == pytest.approx([5, np.nan, np.nan, 10], nan_ok=True)
    assert r.demand_low[0, 0] == pytest.approx(8)
    assert r.limit[0, [0, 3]].tolist() == [8, 10]
    assert r.quality[0].tolist() == [Quality.CENSORED, Quality.MISSING, Quality.MISSING, Quality.CENSORED]
    assert r.quality[1, 0] == Quality.RESET | Quality.MISSING, "a counter went back"
    assert np.isnan(r.usage[1, 0])
    assert r.limit[1, 0] == 40
    assert np.isinf(r.limit[1, 3])
    clock.t_ns += 10_000_000
    put(tmp_path, {"cg/vm0/cpu.stat": "usage_usec 7000\nthrottled_usec 3000", "cg/vm1/cpu.stat": "nonsense"})
    hal.sample(r)
    assert r.usage[0, 0] == pytest.approx(1)
    assert r.quality[0, 0] == Quality.OK
    assert r.quality[1, 0] == Quality.MISSING
    assert r.present.all()
    hal.close()


def test_counters_become_rates_v1(tmp_path: Path, clock: HandClock) -> None:
    hal = hal_of(v1(tmp_path), clock)
    r = Reading.empty(2)
    hal.sample(r)
    clock.t_ns += 5_000_000
    put(tmp_path, {
        "cg/cpu/vm0/cpuacct.usage": "11000000", "cg/cpu/vm0/cpu.stat": "nr_periods 1\nthrottled_time 2500000",
        "cg/blkio/vm0/blkio.throttle.io_service_bytes_recursive":
            "18:0 Read 1\n8:0 Read 100000\n8:0 Write 50000\n8:0 Total 150000\nTotal 150001",
    })  # fmt: skip
    hal.sample(r)
    assert r.usage[0, 0] == pytest.approx(20)
    assert r.demand_low[0, 0] == pytest.approx(25)
    assert r.usage[0, 3] == pytest.approx(2)
    assert r.usage[1, 0] == 0
    hal.close()


def test_no_time_between_samples_gives_no_rates(tmp_path: Path, clock: HandClock) -> None:
    hal = hal_of(v2(tmp_path), clock)
    r = Reading.empty(2)
    for _ in range(3):
        hal.sample(r)
    assert np.isnan(r.usage).all()
    assert (r.quality & Quality.MISSING).all()
    hal.close()


def test_without_schedstat_the_wait_is_missing_and_pressure_stands_in(tmp_path: Path, clock: HandClock) -> None:
    roots = v2(tmp_path)
    put(tmp_path, {"proc/self/schedstat": "0 0 0"})
    hal = hal_of(roots, clock)
    r = Reading.empty(2)
    hal.sample(r)
    clock.t_ns += 10_000_000
    put(tmp_path, {"cg/vm0/cpu.pressure": "some avg10=0.00 total=4005\nfull total=0"})
    hal.sample(r)
    assert np.isnan(r.wait_ns).all()
    assert r.demand_low[0, 0] == pytest.approx(4)
    hal.close()


@pytest.mark.parametrize("tree", [v1, v2])
def test_restore_puts_every_file_back(tree: Callable[[Path], Roots], tmp_path: Path, clock: HandClock) -> None:
    roots = tree(tmp_path)

    # Plain files are not cut by a shorter write, so compare what the kernel would see: the first line.
    def lines() -> dict[str, str]:
        return {str(p): p.read_text().partition("\n")[0] for p in sorted((tmp_path / "cg").rglob("*")) if p.is_file()}

    before = lines()
    hal = hal_of(roots, clock)
    docs: list[str] = []
    hal.claim(lambda doc: docs.append(json.dumps(doc)))
    hal.apply(one(Control.CPU, 0, 5), 0, Receipt())
    hal.apply(one(Control.CPUS, 0, 0, [2]), 0, Receipt())
    assert lines() != before
    report = restore(json.loads(docs[0]), roots)
    assert (report.gone, report.failed) == (0, [])
    after = lines()
    known = {k for k in before if ("io.max" not in k and "cpuset.cpus" not in k) or before[k]}
    assert {k: after[k] for k in known} == {k: before[k] for k in known}
    hal.close()


@pytest.mark.parametrize(
    "doc",
    [{}, {"kind": "linux", "version": 2}, {"kind": "linux", "version": 1, "items": [{"what": "rm -rf"}]},
     {"kind": "linux", "version": 1, "items": None},
     {"kind": "linux", "version": 1, "boot_id": "", "items": [{"what": "weight", "cgroup": "vm0"}]}],
)  # fmt: skip
def test_a_damaged_record_is_refused(doc: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(InputError):
        restore(doc, v2(tmp_path))


def test_a_record_cannot_lead_out_of_the_hierarchy(tmp_path: Path) -> None:
    roots = v2(tmp_path)
    put(tmp_path, {"outside/cpu.weight": "1"})
    for path in ("../outside", "/etc"):
        item = {
            "what": "weight",
            "cgroup": path,
            "inode": os.stat(tmp_path / "outside").st_ino,
            "weight": 9,
            "idle": None,
        }
        with pytest.raises(InputError, match="not a cgroup path"):
            restore({"kind": "linux", "version": 1, "boot_id": "", "items": [item]}, roots)
    assert (tmp_path / "outside/cpu.weight").read_text() == "1\n"


def test_a_missing_controller_file_names_the_remedy(tmp_path: Path, clock: HandClock) -> None:
    roots = v2(tmp_path)
    (tmp_path / "cg/vm1/cpu.max").unlink()
    with pytest.raises(HostError, match=r"enable the cpu controller .*subtree_control"):
        hal_of(roots, clock)


def test_without_a_cpuset_controller_affinity_is_taken(tmp_path: Path, clock: HandClock) -> None:
    """Fault 26."""
    roots = v2(tmp_path)
    put(tmp_path, {"cg/cgroup.controllers": "cpu io"})
    hal = hal_of(roots, clock)
    assert hal.placements() == ["affinity", "affinity"]
    hal.close()
    with pytest.raises(HostError, match="cpuset controller"):
        hal_of(roots, clock, placement="cpuset")


def test_facts_are_json_and_complete(tmp_path: Path, clock: HandClock) -> None:
    hal = hal_of(v2(tmp_path), clock)
    facts = hal.extras()[hal.vms.uuid[0]]
    assert json.loads(json.dumps(facts)) == {
        "cgroup": "vm0", "threads": 0, "cpu_pressure_us": 5, "io_pressure_us": 9, "memory_bytes": 4096,
        "memory_node_bytes": {"0": 4196, "1": 8192},
    }  # fmt: skip
    hal.close()


def test_zero_vms_are_a_host_too(tmp_path: Path, clock: HandClock) -> None:
    hal = hal_of(v2(tmp_path), clock, n=0)
    hal.claim(lambda doc: None)
    r = Reading.empty(0)
    hal.sample(r)
    hal.sample(r)
    receipt = Receipt()
    hal.apply(
        Plan(np.zeros(0, np.int8), np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, 4), bool)), 0, receipt
    )
    assert (receipt.done, receipt.system_calls) == (0, 0)
    hal.read_back(Placement.empty(0, 4))
    hal.close()
    assert hal.topology.movable()[Resource.CPU]


@pytest.mark.parametrize(
    "use_c", [False, pytest.param(True, marks=pytest.mark.skipif(compiler() is None, reason="no C compiler"))]
)
def test_the_floor_repeats_the_writes(use_c: bool, tmp_path: Path) -> None:
    a, b = tmp_path / "with blank", tmp_path / "b"
    for path in (a, b):
        path.write_text("........\n")
    ticks = [[(str(a), b"12\n"), (str(b), b"\x00\xff")], [], [(str(a), b"7\n")]]
    took = measure_floor(ticks, 1_000_000, use_c=use_c)
    assert len(took) == 3
    assert all(0 <= t < 1e6 for t in took)
    assert a.read_bytes() == b"7\n\n.....\n"
    assert b.read_bytes() == b"\x00\xff......\n"
    assert measure_floor([], 1_000_000, use_c=use_c) == []
    with pytest.raises(HostError):
        measure_floor([[(str(tmp_path / "none"), b"1")]], 1_000_000, use_c=use_c)
