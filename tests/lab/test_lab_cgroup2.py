"""The linux backend on a real cgroup v2, in a guest with 8 CPUs, 2 sockets and 2 NUMA nodes and no disks.

Runs where FORESHARE_IN_LAB=1 says that this machine may be used up: the root's subtree_control is changed.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest

from foreshare.envs.hal.linux import cookies, cpulist
from foreshare.envs.hal.linux.capabilities import probe
from foreshare.envs.hal.linux.cgroups import find_hierarchies
from foreshare.envs.hal.linux.floor import measure_floor
from foreshare.envs.hal.linux.hal import LinuxHal
from foreshare.envs.hal.linux.resctrl.spec import ResctrlSpec
from foreshare.envs.hal.linux.restore import restore
from foreshare.envs.hal.linux.roots import Roots
from foreshare.envs.hal.linux.spec import LinuxSpec
from foreshare.envs.hal.linux.temporary import temporary_cgroups
from foreshare.envs.hal.plan import build_plan
from foreshare.envs.hal.spec import VmSpec
from foreshare.envs.hal.types import Control, Plan, Receipt
from foreshare.policies.errors import HostError
from foreshare.policies.host import Host, Isolation, Placement, Resource
from foreshare.policies.reading import Quality, Reading
from foreshare.policies.registry import make_mind
from foreshare.runtime.loop import ControlLoop

pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(os.environ.get("FORESHARE_IN_LAB") != "1", reason="runs inside the lab guest"),
]
FILES = ("cpu.max", "cpu.weight", "cpu.idle", "cpuset.cpus", "cpuset.mems")
SPIN_S = 120
SPIN = f"print('up', flush=True)\nend = time.monotonic() + {SPIN_S}\nwhile time.monotonic() < end: pass"
REST = "print('up', flush=True)\nsys.stdin.read()"


def root() -> Path:
    return Path(find_hierarchies(Roots()).of("cpu").path)


def state(cgroup: str) -> dict[str, str]:
    return {name: (root() / cgroup / name).read_text().strip() for name in FILES}


@pytest.fixture
def groups() -> Iterator[list[str]]:
    with temporary_cgroups(2) as paths:
        yield paths


@contextmanager
def inside(cgroup: str, code: str) -> Iterator[int]:
    """Run Python code in a cgroup until the block ends; yield its pid once it says so.

    A guest's processors share the host's few: whoever need not spin rests.
    """
    enter = f"import os, sys, time\nopen({str(root() / cgroup / 'cgroup.procs')!r}, 'w').write(str(os.getpid()))\n"
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, "-S", "-c", enter + code], stdin=pipe, stdout=pipe, text=True)
    with process:  # closes its pipes and waits for it
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "up\n"
            yield process.pid
        finally:
            process.kill()


@contextmanager
def opened(spec: LinuxSpec) -> Iterator[LinuxHal]:
    """Open a host and let go of it, whatever happens: its locks would fail every test behind this one."""
    hal = LinuxHal(spec)
    try:
        yield hal
    finally:
        hal.close()


def one(hal: LinuxHal, control: Control, row: int, value: int, cpus: tuple[int, ...] = ()) -> Receipt:
    sets = np.zeros((1, hal.topology.cpus), bool)
    sets[0, list(cpus)] = True
    receipt = Receipt()
    hal.apply(Plan(np.array([control], np.int8), np.array([row]), np.array([value]), sets), 0, receipt)
    return receipt


def test_topology_and_capabilities_of_the_guest() -> None:
    caps = probe()
    assert caps["cpu"].interface == "cgroup v2 cpu + v2 cpuset"
    assert caps["cpu"].move
    assert caps["cache"].move and caps["cache"].units == 10
    with temporary_cgroups(1) as (path,), opened(LinuxSpec(vms=(VmSpec(name="vm", cgroup=path),))) as hal:
        assert hal.topology.threads_per_core == 2
        assert hal.topology.zones == 2
        assert [hal.topology.pool(Resource.CPU, z).units for z in (0, 1)] == [40, 40]


def test_quota_cpuset_restore_and_crash(groups: list[str]) -> None:
    a, b = groups
    (root() / a / "cpu.max").write_text("200000 100000")
    before = [state(a), state(b)]
    spec = LinuxSpec(
        vms=(VmSpec(name="a", cgroup=a, priority=-1), VmSpec(name="b", cgroup=b, isolation=Isolation.ISOLATED))
    )
    with opened(spec) as hal:
        assert [state(a), state(b)] == before
        docs: list[str] = []
        hal.claim(lambda doc: docs.append(json.dumps(doc)))
        assert state(a)["cpu.max"] == "20000 10000", "the rate stays while the period changes"
        assert state(a)["cpu.idle"] == "1"
        with inside(a, SPIN) as pid:
            assert one(hal, Control.CPUS, 0, 0, (2, 3)).failures == []
            assert one(hal, Control.CPUS, 1, 0, (4, 5)).failures == []
            assert one(hal, Control.CPU, 0, 4).failures == []
            assert one(hal, Control.CPU, 1, 20).failures == []
            assert os.sched_getaffinity(pid) == {2, 3}
            into = Placement.empty(2, 8)
            hal.read_back(into)
            assert into.units[:, Resource.CPU].tolist() == [4, 20]
            assert np.flatnonzero(into.cpus[1]).tolist() == [4, 5]
            reading = Reading.empty(2)
            hal.sample(reading)
            time.sleep(1)  # the interval that is measured
            hal.sample(reading)
            assert 0 < reading.usage[0, Resource.CPU] < 6
            assert reading.quality[0, Resource.CPU] & Quality.CENSORED
            assert reading.demand_low[0, Resource.CPU] > reading.usage[0, Resource.CPU] + 2
            facts = hal.extras()[hal.vms.uuid[0]]
            assert {"memory_bytes", "memory_node_bytes", "cpu_pressure_us"} <= set(facts)
        report = restore(json.loads(docs[0]), Roots())  # as a later process would after a kill -9
        assert report.failed == []
        assert [state(a), state(b)] == before
    assert [state(a), state(b)] == before


TWO_LAYOUTS = [  # CPUs and quotas of an isolated VM and two shared ones
    (((0, 1), (2, 3), (4, 5, 6, 7)), (20, 5, 30)),
    (((4, 5), (0, 1, 2, 3), (6, 7)), (20, 30, 10)),
]


def settle(hal: LinuxHal, layout: int) -> int:
    """Lead the host to a layout by plans; return how many it took."""
    host, target, held = Host(hal.topology, hal.vms), Placement.empty(3, 8), Placement.empty(3, 8)
    for ticks in range(6):
        hal.read_back(held)
        target.copy_from(held)
        target.cpus[:] = False
        for row, cpus in enumerate(TWO_LAYOUTS[layout][0]):
            target.cpus[row, list(cpus)] = True
        target.units[:, Resource.CPU] = TWO_LAYOUTS[layout][1]
        plan = build_plan(host, held, target)
        if not len(plan):
            return ticks
        receipt = Receipt()
        hal.apply(plan, 0, receipt)
        assert receipt.failures == []
    raise AssertionError(f"still {plan} after {ticks} plans")


def test_kill_9_at_every_write(tmp_path: Path) -> None:
    """Fault 38 on the real files: an isolated VM's CPUs are nobody else's at rest; five ticks later all is well."""
    writes = [-1]

    def mortal(fd: int, data: bytes, offset: int) -> int:
        if writes[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        writes[0] -= 1
        return os.pwrite(fd, data, offset)

    journal = tmp_path / "journal"
    with temporary_cgroups(3) as paths:
        before = [state(path) for path in paths]
        vms = tuple(
            VmSpec(name=p, cgroup=p, isolation=Isolation.SHARED if i else Isolation.ISOLATED)
            for i, p in enumerate(paths)
        )
        spec = LinuxSpec(vms=vms, resctrl=ResctrlSpec(use="off"))
        hal = LinuxHal(spec)
        hal.claim(lambda doc: journal.write_text(json.dumps(doc)) and None)
        settle(hal, 0)
        hal._release()  # as good as killed
        for at in range(100):
            doc = json.loads(journal.read_text())
            child = os.fork()
            if child == 0:
                try:
                    hal = LinuxHal(spec, Roots(pwrite=mortal))
                    hal.claim(lambda doc: None, doc)
                    writes[0] = at
                    settle(hal, 1)
                    settle(hal, 0)
                    os._exit(0)
                except BaseException:
                    traceback.print_exc()
                    os._exit(1)
            _, status = os.waitpid(child, 0)
            own, *others = [cpulist.parse(state(path)["cpuset.cpus"]) for path in paths]
            assert own and all(others) and not own & frozenset().union(*others), (at, own, others)
            with opened(spec) as hal:
                hal.claim(lambda doc: None, doc)
                assert settle(hal, at % 2) <= 5
                if os.WIFEXITED(status):
                    assert os.waitstatus_to_exitcode(status) == 0
                    break
                settle(hal, 0)
                hal._release()  # killed again
        else:
            pytest.fail("the plans never came to their end")
        assert at > 6
        assert [{**state(path), "cpuset.cpus": ""} for path in paths] == [{**s, "cpuset.cpus": ""} for s in before]


def test_a_pinned_child_is_narrowed_by_the_kernel(groups: list[str]) -> None:
    parent = groups[0]
    child = root() / parent / "vcpu0"
    (root() / parent / "cgroup.subtree_control").write_text("+cpuset +cpu")
    child.mkdir()
    (child / "cpuset.cpus").write_text("0-1")
    (child / "cpu.max").write_text("50000 100000")
    with opened(LinuxSpec(vms=(VmSpec(name="vm", cgroup=parent),))) as hal, inside(f"{parent}/vcpu0", REST) as pid:
        hal.claim(lambda doc: None)
        assert one(hal, Control.CPUS, 0, 0, (1, 2)).failures == []
        assert os.sched_getaffinity(pid) == {1}
        assert one(hal, Control.CPUS, 0, 0, (6,)).failures == []
        assert os.sched_getaffinity(pid) == {6}
        assert one(hal, Control.CPU, 0, 3).failures == []
        reading = Reading.empty(1)
        for _ in range(11):
            hal.sample(reading)
        assert hal.extras()[hal.vms.uuid[0]]["threads"] == 1
    assert (child / "cpuset.cpus").read_text().strip() == "0-1"
    child.rmdir()


def test_vanishing_and_missing_controllers(groups: list[str]) -> None:
    a, b = groups
    with opened(LinuxSpec(vms=(VmSpec(name="a", cgroup=a), VmSpec(name="b", cgroup=b)))) as hal:
        hal.claim(lambda doc: None)
        reading = Reading.empty(2)
        hal.sample(reading)
        (root() / a).rmdir()
        assert [f.gone for f in one(hal, Control.CPU, 0, 3).failures] == [True]
        hal.sample(reading)
        assert reading.present.tolist() == [False, True]
    bare = root() / b / "bare"
    bare.mkdir()
    with pytest.raises(HostError, match=r"enable the cpu controller .*subtree_control"):
        LinuxHal(LinuxSpec(vms=(VmSpec(name="c", cgroup=f"{b}/bare"),)))
    bare.rmdir()


def test_the_floor_on_real_files(groups: list[str]) -> None:
    path = str(root() / groups[0] / "cpu.max")
    took = measure_floor([[(path, b"5000 10000\n")], [(path, b"6000 10000\n")]], 1_000_000)
    assert len(took) == 2
    assert Path(path).read_text() == "6000 10000\n"


def test_temporary_cgroups_leave_nothing() -> None:
    control = root() / "cgroup.subtree_control"
    before, names = control.read_text(), sorted(p.name for p in root().iterdir())
    with ExitStack() as after, pytest.raises(RuntimeError), temporary_cgroups(3) as paths:
        after.enter_context(inside(paths[0], SPIN))
        raise RuntimeError("out")
    assert sorted(p.name for p in root().iterdir()) == names
    assert control.read_text() == before


def test_the_command_line_partitions_and_lets_go(groups: list[str], tmp_path: Path) -> None:
    """`foreshare run` on real cgroups v2: an isolated VM beside a shared one; afterwards both may run anywhere again.

    The kernel refuses to empty a cpuset with threads in it, so that "as the parent" becomes the parent's CPUs.
    """
    before = [state(group) for group in groups]
    everywhere = (root() / "cpuset.cpus.effective").read_text().strip()
    config = tmp_path / "host.toml"
    config.write_text(
        f'[host]\nstate_dir = "{tmp_path}/state"\n'
        f'[[vm]]\nname = "alone"\ncgroup = "{groups[0]}"\nisolation = "isolated"\nreservation = {{ cpu = 2 }}\n'
        f'[[vm]]\nname = "other"\ncgroup = "{groups[1]}"\n'
    )
    program = [Path(sys.executable).parent / "foreshare", "run", "--hal", "linux", "--config", config, "--json"]
    nodes = (root() / "cpuset.mems.effective").read_text().strip()
    seen: set[str] = set()
    bound: set[str] = set()
    with ExitStack() as after:
        for group in groups:
            after.enter_context(inside(group, REST))
        run = after.enter_context(
            subprocess.Popen([*program, "--ticks", "40", "--tick-ms", "50"], stdout=subprocess.PIPE, text=True)
        )
        after.callback(run.kill)
        while run.poll() is None:
            seen.add((root() / groups[0] / "cpuset.cpus").read_text().strip())
            bound.add((root() / groups[0] / "cpuset.mems").read_text().strip())
            time.sleep(0.1)
        assert run.stdout is not None
        figures = json.load(run.stdout)
        assert run.returncode == 0
        assert figures["restored"] is True
        assert figures["ticks"] + figures["missed_ticks"] >= 40
        assert any(value in seen for value in ("0-1", "2-3", "4-5", "6-7")), "never had a core of its own"
        assert "0" in bound, "its memory is on the node of its cores"
        for group, was in zip(groups, before, strict=True):
            now = state(group)
            assert now.pop("cpuset.cpus") in (was.pop("cpuset.cpus"), everywhere)
            assert now.pop("cpuset.mems") in (was.pop("cpuset.mems"), nodes)
            assert now == was


def partition_of(cgroup: str) -> str:
    return (root() / cgroup / "cpuset.cpus.partition").read_text().strip()


def test_an_isolated_vm_has_a_partition_and_what_reads_invalid_is_none() -> None:
    """Fault 23: the write is accepted; what is read back counts, then and later."""
    names = ("fs-alone", "fs-other", "fs-stranger")
    with temporary_cgroups(1) as (nested,):
        for name in names:
            (root() / name).mkdir()
        try:
            vms = [VmSpec(name=n, cgroup=n, zone=0) for n in names[1:2]]
            vms += [VmSpec(name=c, cgroup=c, zone=0, isolation=Isolation.ISOLATED) for c in (names[0], nested)]
            spec = LinuxSpec(vms=tuple(vms), cpu_partitions="root", resctrl=ResctrlSpec(use="off"))
            with opened(spec) as hal:
                hal.claim(lambda doc: None)
                reading = Reading.empty(3)

                def ticks(n: int) -> None:
                    for _ in range(n):
                        hal.sample(reading)

                ticks(12)
                assert partition_of(names[0]) == "member", "not before it has cores of its own"
                for row, cpus in ((0, (0, 1)), (1, (2, 3)), (2, (4, 5))):
                    assert one(hal, Control.CPUS, row, 0, cpus).failures == []
                ticks(12)
                assert partition_of(names[0]) == "root" and hal.cpu_partitions.why_not[1] == ""
                assert "2" not in (root() / "cpuset.cpus.effective").read_text().strip().replace("-3", "-"), (
                    "left the host"
                )
                assert partition_of(nested) == "member", "its parent is no partition"
                assert "invalid" in hal.cpu_partitions.why_not[2]
                assert one(hal, Control.CPUS, 1, 0, (6, 7)).failures == []
                ticks(12)
                assert partition_of(names[0]) == "root" and hal.cpu_partitions.breaches == 0
                (root() / names[0] / "cpuset.cpus.partition").write_text("member")
                (root() / names[2] / "cpuset.cpus").write_text("6-7")
                ticks(12)  # somebody else has the cores in a cpuset of its own: the kernel says so, or takes it
                state = partition_of(names[0])
                assert state in ("member", "root") and (state == "root") == (hal.cpu_partitions.why_not[1] == "")
            assert partition_of(names[0]) == "member"
        finally:
            for name in names:
                (root() / name).rmdir()


def test_cpus_of_a_partition_that_comes_later_are_left_to_it_and_taken_back() -> None:
    """Faults 13 and 20 on the real files: a partition beside the cgroup above the VMs takes CPUs from under them."""
    folders = ("fs-machine", "fs-machine/a", "fs-machine/b", "fs-stranger")
    with temporary_cgroups(1), ExitStack() as after:
        for folder in folders:
            (root() / folder).mkdir()
            after.callback((root() / folder).rmdir)
            if folder == folders[0]:
                (root() / folder / "cgroup.subtree_control").write_text("+cpu +cpuset")
        stranger = root() / folders[-1]
        vms = tuple(
            VmSpec(name=c, cgroup=c, zone=1, isolation=Isolation.ISOLATED if i else Isolation.SHARED)
            for i, c in enumerate(folders[1:3])
        )
        hal = after.enter_context(opened(LinuxSpec(vms=vms, resctrl=ResctrlSpec(use="off"))))
        hal.claim(lambda doc: None)
        loop = ControlLoop(hal, make_mind("static", Host(hal.topology, hal.vms)))

        def listed() -> set[int]:
            texts = [(root() / c / "cpuset.cpus").read_text() for c in folders[1:3]]
            return set().union(*map(cpulist.parse, texts))

        loop.run(10)
        whole, taken = hal.topology.pool(Resource.CPU, 1).units, max(listed())
        (stranger / "cpuset.cpus").write_text(str(taken))
        (stranger / "cpuset.cpus.partition").write_text("root")
        assert partition_of(folders[-1]) == "root"
        loop.run(10)
        assert taken not in listed() and partition_of(folders[-1]) == "root"
        assert hal.topology.pool(Resource.CPU, 1).units < whole
        assert any(f"CPUs {taken} are kept by a cpuset of another program" in line for line in hal.troubles())
        (stranger / "cpuset.cpus.partition").write_text("member")
        loop.run(10)
        assert hal.topology.pool(Resource.CPU, 1).units == whole and loop.counts.failed == 0
        assert not any("another program" in line for line in hal.troubles())


def test_an_isolated_vm_has_a_cookie_of_its_own() -> None:
    if cookies.why_none():
        pytest.skip(cookies.why_none())
    with temporary_cgroups(3) as paths, ExitStack() as after:
        pids = [after.enter_context(inside(path, REST)) for path in paths]
        apart = (Isolation.ISOLATED, Isolation.SECURITY, Isolation.SHARED)
        vms = tuple(VmSpec(name=p, cgroup=p, zone=0, isolation=a) for p, a in zip(paths, apart, strict=True))
        cookies.give([pids[1]])
        theirs = cookies.cookie_of(pids[1])
        docs: list[str] = []
        with opened(LinuxSpec(vms=vms, core_scheduling="auto", resctrl=ResctrlSpec(use="off"))) as hal:
            hal.claim(lambda doc: docs.append(json.dumps(doc)))
            found = [cookies.cookie_of(pid) for pid in pids]
            assert found[0] and found[0] != theirs and found[1:] == [theirs, 0], "one that is there stays"
            assert cookies.cookie_of(0) == 0
        assert [cookies.cookie_of(pid) for pid in pids] == [0, theirs, 0]
        cookies.give([pids[0]])
        assert restore(json.loads(docs[0]), Roots()).failed == []
        assert cookies.cookie_of(pids[0]) == 0


def test_a_user_drives_what_was_delegated_to_him(groups: list[str]) -> None:
    """Without root: CPUs, quotas and weights of cgroups that are his; resctrl is nobody's but root's, and says so."""
    user = 65534
    for group in groups:
        for path in (root() / group, *(root() / group).iterdir()):
            os.chown(path, user, user)
    before = [state(group) for group in groups]
    vms = (VmSpec(name="a", cgroup=groups[0]), VmSpec(name="b", cgroup=groups[1], isolation=Isolation.ISOLATED))
    LinuxHal(LinuxSpec(vms=vms), read_only=True).close()  # what is imported late may not be his to read
    out, back = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(user)
            os.setuid(user)
            with opened(LinuxSpec(vms=vms)) as hal:
                assert "no permission" in hal.why_no_resctrl
                hal.claim(lambda doc: None)
                assert one(hal, Control.CPUS, 0, 0, (2, 3)).failures == []
                assert one(hal, Control.CPUS, 1, 0, (4, 5)).failures == []
                assert one(hal, Control.CPU, 0, 4).failures == []
                held = Placement.empty(2, 8)
                hal.read_back(held)
                assert held.units[:, Resource.CPU].tolist() == [4, 20]
            with pytest.raises(HostError, match="no permission"):
                LinuxHal(LinuxSpec(vms=vms, resctrl=ResctrlSpec(use="require")))
            os._exit(0)
        except BaseException:
            os.write(back, traceback.format_exc().encode())
            os._exit(1)
    os.close(back)
    _, status = os.waitpid(child, 0)
    with os.fdopen(out) as said:
        assert os.waitstatus_to_exitcode(status) == 0, said.read()
    assert [state(group) for group in groups] == before
