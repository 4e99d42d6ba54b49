"""Cache ways and memory bandwidth on the kernel's own resctrl: many VMs, faults thrown in, kills, other tools' eyes."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from foreshare.envs.hal.linux.hal import LinuxHal
from foreshare.envs.hal.linux.resctrl.files import OsFiles
from foreshare.envs.hal.linux.resctrl.info import parse_schemata
from foreshare.envs.hal.linux.resctrl.masks import is_run
from foreshare.envs.hal.linux.resctrl.spec import ResctrlSpec
from foreshare.envs.hal.linux.restore import restore
from foreshare.envs.hal.linux.roots import Roots
from foreshare.envs.hal.linux.spec import LinuxSpec
from foreshare.envs.hal.linux.temporary import temporary_cgroups
from foreshare.envs.hal.plan import advance, build_plan
from foreshare.envs.hal.spec import VmSpec
from foreshare.envs.hal.types import Control, Plan, Receipt
from foreshare.policies.decide import Mind, decide_tick
from foreshare.policies.errors import HostError
from foreshare.policies.host import Host, Isolation, Placement, Resource
from foreshare.policies.reading import Quality, Reading
from foreshare.policies.registry import make_mind

ROOT = Path("/sys/fs/resctrl")
pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(os.environ.get("FORESHARE_IN_LAB") != "1", reason="runs inside the lab guest"),
]
TICKS = int(os.environ.get("FORESHARE_LAB_TICKS", "2000"))
PREFIX = "foreshare-"
SLEEPER = "sleep 9999 & sleep 9999 & exec sleep 9999"
MOUNT = ["mount", "-t", "resctrl", "resctrl", str(ROOT)]


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    """Nothing of ours before or after, and monitoring ids come back: the guest's invented occupancy is never low."""
    if OsFiles().mount_id(str(ROOT)) is None:
        subprocess.run(MOUNT, check=True)
    with contextlib.suppress(OSError):
        (ROOT / "info/L3_MON/max_threshold_occupancy").write_text(str(16 << 20))
    before = tree()
    yield
    assert tree() == before


def tree() -> dict[str, str]:
    """Return the schemata of every group, ours and others'."""
    found = {"": (ROOT / "schemata").read_text()}
    for path in sorted(ROOT.iterdir()):
        if path.is_dir() and path.name not in ("info", "mon_groups", "mon_data"):
            with contextlib.suppress(OSError):  # it may be removed meanwhile
                found[path.name] = (path / "schemata").read_text()
    return found


def make(n: int, paths: list[str], isolated: tuple[int, ...], **fields: object) -> LinuxHal:
    vms = tuple(
        VmSpec(name=f"vm{i}", cgroup=paths[i], zone=i % 2,
               isolation=Isolation.ISOLATED if i in isolated else Isolation.SHARED)
        for i in range(n)
    )  # fmt: skip
    spec = ResctrlSpec(use="require", memory_bandwidth=40e9, **fields)  # type: ignore[arg-type]  # by name
    return LinuxHal(LinuxSpec(vms=vms, resctrl=spec))


def masks(hal: LinuxHal) -> dict[int, list[int]]:
    """Return, read from the kernel's own files, each VM's masks in the domains of its zone."""
    parts = hal.partitions
    assert parts is not None
    out = {}
    for row in range(len(hal.vms)):
        name = parts.named[int(parts.state.group[row])][0]
        l3 = parse_schemata((ROOT / name / "schemata").read_text())["L3"]
        zone = parts.offer.domain_zone == hal.vms.zone[row]
        out[row] = [l3[d] for d in parts.offer.domain_id[zone].tolist() if d in l3]
    return out


def check(hal: LinuxHal, owners: list[int]) -> list[str]:
    """Return what is wrong with the kernel's files: illegal masks, ways of an owner that somebody else may fill."""
    wrong = []
    for name, text in tree().items():
        if name.startswith(PREFIX):
            for domain, mask in parse_schemata(text)["L3"].items():
                if not is_run(mask) or mask >> 12:
                    wrong.append(f"{name} has the mask {mask:x} in domain {domain}")
    parts = hal.partitions
    assert parts is not None
    found = masks(hal)
    for a in owners:
        for b in range(len(hal.vms)):
            if a == b or hal.vms.zone[a] != hal.vms.zone[b]:
                continue
            for x, y in zip(found[a], found[b], strict=False):
                if x & y & ~1:  # way 0 is nobody's own
                    wrong.append(f"VMs {a} and {b} share the ways {x & y:x}")
    return wrong


@contextlib.contextmanager
def sleepers(paths: list[str]) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Put a process of three threads into each cgroup."""
    running: list[subprocess.Popen[bytes]] = []
    try:
        for path in paths:
            process = subprocess.Popen(
                ["sh", "-c", "sleep 9999 & sleep 9999 & exec sleep 9999"], start_new_session=True
            )
            (Path("/sys/fs/cgroup") / path / "cgroup.procs").write_text(str(process.pid))
            running.append(process)
        yield running
    finally:
        for process in running:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def group_of(pid: int) -> str:
    text = Path(f"/proc/{pid}/cpu_resctrl_groups").read_text()
    return text.splitlines()[0].removeprefix("res:").strip("/")


class Demanding:
    """A mind that is fed made-up demand in place of what idle VMs use."""

    def __init__(self, hal: LinuxHal, policy: str, seed: int) -> None:
        self.hal, self.host = hal, Host(hal.topology, hal.vms)
        self.mind: Mind = make_mind(policy, self.host)
        self.rng = np.random.default_rng(seed)
        self.held, self.reading = Placement.empty(len(hal.vms), hal.topology.cpus), Reading.empty(len(hal.vms))
        hal.read_back(self.held)
        self.mind.adopt(self.held)
        self.level = self.host.reservation.astype(float)
        self.receipt = Receipt()
        self.failures: list[str] = []
        self.writes = 0

    def tick(self, number: int) -> None:
        hal, reading, n = self.hal, self.reading, len(self.hal.vms)
        hal.sample(reading)
        busy = self.rng.random((n, 4)) < 0.05
        self.level = np.where(busy, self.rng.uniform(0, 1, (n, 4)) * self.host.cap, self.level)
        reading.usage[:] = reading.demand_low[:] = self.level
        reading.quality[:] = Quality.OK
        plan = build_plan(self.host, self.held, decide_tick(self.mind, reading).placement)
        self.receipt.clear()
        hal.apply(plan, 0, self.receipt)
        advance(self.held, plan, self.receipt, self.mind.decision.placement, self.host)
        self.writes += self.receipt.done
        self.failures += [f.text for f in self.receipt.failures]
        rows = np.arange(number % n, number % n + 1)
        hal.read_back(self.held, rows)


def offline(cpu: int, online: int) -> None:
    Path(f"/sys/devices/system/cpu/cpu{cpu}/online").write_text(str(online))


@pytest.mark.timeout(900)
def test_sixteen_vms_and_everything_that_can_happen() -> None:
    """Faults 9, 11, 13, 20 and 21: after every tick the kernel's own files show legal masks and nothing shared.

    A foreign write is found when its group's turn to be read comes; until then, at most as many ticks as groups, what
    it broke is broken. A hot-plug and a removed group are mended in the very next tick.
    """
    other = ROOT / "somebody-elses"
    other.mkdir()
    (other / "schemata").write_text("L3:0=3\n")
    theirs = (other / "schemata").read_text()
    rng = np.random.default_rng(7)
    with temporary_cgroups(16) as paths, sleepers(paths) as processes:
        hal = make(16, paths, (0, 1), moves_per_s=100, quarantine_ms=20.0)
        hal.claim(lambda doc: None)
        parts = hal.partitions
        assert parts is not None
        default = (ROOT / "schemata").read_text()
        run = Demanding(hal, "triage", 3)
        grace, off, thrown, seen = len(parts.groups) + 2, False, {"rmdir": 0, "reset": 0, "cpu": 0, "umount": 0}, 0
        owners_seen: set[int] = set()
        for number in range(TICKS):
            fault = ""
            if number > 20 and grace == 0 and number % 25 == 0 and number < TICKS - 60:
                fault = ("reset", "cpu", "rmdir", "reset", "cpu")[number // 25 % 5]
                name = parts.named[int(rng.integers(len(parts.named)))][0]
                if fault == "rmdir" and thrown["rmdir"] < 12:
                    (ROOT / name).rmdir()
                elif fault == "cpu":
                    off = not off
                    offline(7, 0 if off else 1)
                else:
                    fault = "reset"
                    with contextlib.suppress(OSError):
                        (ROOT / name / "schemata").write_text("L3:0=fff\nMB:0=100\n")
                thrown[fault] += 1
                grace = len(parts.groups) + 2 if fault == "reset" else 1 if fault == "cpu" else len(parts.groups) + 2
            if number == TICKS // 2:
                subprocess.run(["umount", "--lazy", str(ROOT)], check=True)
                thrown["umount"] += 1
                for _ in range(30):
                    run.tick(number)
                    time.sleep(0.01)
                for _ in range(50):  # the last descriptor is closed by the monitoring thread
                    done = subprocess.run(
                        ["mount", "-t", "resctrl", "r", str(ROOT)], check=False, stderr=subprocess.PIPE
                    )
                    if done.returncode == 0:
                        break
                    time.sleep(0.1)
                assert done.returncode == 0, done.stderr
                other.mkdir()
                (other / "schemata").write_text("L3:0=3\n")
                until = time.monotonic() + 60
                while hal._upkeep is not None and (hal._upkeep.down or None in parts.groups):
                    run.tick(number)
                    assert time.monotonic() < until, parts.trouble
                    time.sleep(0.02)
                grace = len(parts.groups) + 2
            run.tick(number)
            if grace:
                grace -= 1
                continue
            owners = [
                r for r in range(16) if parts.state.ways[r] and parts.state.exclusive()[parts.state.group[r]] == r
            ]
            owners_seen |= set(owners)
            seen += 1
            assert check(hal, owners) == [], (number, fault, thrown, parts.trouble)
            assert {0, 1} <= set(owners), parts.trouble
            if not off:
                assert (other / "schemata").read_text() == theirs
                assert (ROOT / "schemata").read_text() == default
        if off:
            offline(7, 1)
            run.tick(TICKS)
        assert thrown["rmdir"] >= min(TICKS // 250, 3) and thrown["umount"] == 1 and thrown["cpu"] > 1, thrown
        assert seen > TICKS // 3 and len(owners_seen) >= 2
        for row, process in enumerate(processes):
            assert group_of(process.pid) == parts.named[int(parts.state.group[row])][0]
        print(thrown, "owners", sorted(owners_seen), "writes", run.writes, "failures", len(run.failures),
              "moves", parts.members.moves, set(run.failures))  # fmt: skip
        hal.close()
        assert {name for name in tree() if name.startswith(PREFIX)} == set()
        assert (other / "schemata").read_text() == theirs
        for process in processes:
            assert group_of(process.pid) == ""
    other.rmdir()


MOVES = [
    [(Control.WAYS, 0, 0b1110), (Control.WAYS, 2, 0b110000), (Control.MEMORY, 0, 3)],
    [(Control.WAYS, 0, 0b10), (Control.WAYS, 2, 0b1111100), (Control.MEMORY, 2, 2)],
    [(Control.WAYS, 2, 0b110 << 6), (Control.WAYS, 0, 0b111110)],
]


def apply(hal: LinuxHal, entries: list[tuple[Control, int, int]]) -> Receipt:
    control, vm, value = zip(*entries, strict=True)
    receipt = Receipt()
    none = np.zeros((0, hal.topology.cpus), bool)
    hal.apply(Plan(np.array(control, np.int8), np.array(vm, np.int64), np.array(value, np.int64), none), 0, receipt)
    return receipt


@pytest.mark.timeout(600)
def test_kill_9_at_every_write(tmp_path: Path) -> None:
    """Fault 38 on the real files: never an overlap at rest; the next start goes on, and its end leaves nothing."""

    class Mortal(OsFiles):
        left = -1

        def pwrite(self, fd: int, data: bytes, offset: int) -> int:  # type: ignore[override]  # a static method there
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            self.left -= 1
            return os.pwrite(fd, data, offset)

    vms = ("a", "b", "c", "d")
    with temporary_cgroups(4) as paths, sleepers(paths) as processes:
        spec = LinuxSpec(
            vms=tuple(
                VmSpec(name=v, cgroup=p, zone=0, isolation=Isolation.ISOLATED if i in (0, 2) else Isolation.SHARED)
                for i, (v, p) in enumerate(zip(vms, paths, strict=True))
            ),
            resctrl=ResctrlSpec(use="require", memory_bandwidth=40e9),
            cpus=frozenset(range(4)),
        )
        journal = tmp_path / "journal"
        for at in range(60):
            child = os.fork()
            if child == 0:
                files = Mortal()
                hal = LinuxHal(spec, Roots(resctrl=files))
                hal.claim(lambda doc: journal.write_text(json.dumps(doc)) and None)
                files.left = at
                for move in MOVES:
                    apply(hal, move)
                os._exit(0)  # as good as a kill: nothing is put back
            _, status = os.waitpid(child, 0)
            print(at, status, time.monotonic(), flush=True)
            doc = json.loads(journal.read_text())
            names = doc["items"][-1]["groups"]
            held = {n: parse_schemata((ROOT / n / "schemata").read_text()) for n in names}
            for i, a in enumerate(names):
                for b in names[i + 1 :]:
                    for d, mask in held[a]["L3"].items():
                        if {i, names.index(b)} & {0, 2}:
                            assert not mask & held[b]["L3"][d] & ~1, (at, held)
            hal = LinuxHal(spec)
            hal.claim(lambda doc: None, doc)
            assert {n: parse_schemata((ROOT / n / "schemata").read_text())["L3"] for n in (names[0], names[2])} == {
                n: held[n]["L3"] for n in (names[0], names[2])
            }
            last = [(Control.WAYS, 0, 0), (Control.WAYS, 2, 0), *MOVES[1]]
            assert apply(hal, last).failures == []
            assert masks(hal)[2][0] == 0b1111100 and masks(hal)[0][0] == 0b10
            assert [group_of(p.pid) for p in processes] == names
            hal.close()
            assert not [n for n in tree() if n.startswith(PREFIX)]
            if os.WIFEXITED(status):
                break
        else:
            pytest.fail("the plans never came to their end")
        assert at > 5
        child = os.fork()  # killed with everything held, and then only `foreshare restore`
        if child == 0:
            hal = LinuxHal(spec)
            hal.claim(lambda doc: journal.write_text(json.dumps(doc)) and None)
            apply(hal, MOVES[0])
            os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(child, 0)
        assert len([n for n in tree() if n.startswith(PREFIX)]) == 4
        assert restore(json.loads(journal.read_text()), Roots()).failed == []


def test_a_second_foreshare_is_refused_and_the_lock_is_free_between_writes() -> None:
    """Faults 13, 14 and 41."""
    with temporary_cgroups(4) as paths:
        first = make(2, paths[:2], ())
        first.claim(lambda doc: None)
        second = make(2, paths[2:], (), prefix="other-")
        with pytest.raises(HostError, match="another foreshare drives"):
            second.claim(lambda doc: None)
        second.close()
        assert subprocess.run(["flock", "--nonblock", str(ROOT), "true"], check=False).returncode == 0
        holder = subprocess.Popen(["flock", str(ROOT), "sleep", "9999"], start_new_session=True)
        try:
            while subprocess.run(["flock", "--nonblock", str(ROOT), "true"], check=False).returncode == 0:
                time.sleep(0.01)
            (failure,) = apply(first, [(Control.WAYS, 0, 0b110)]).failures
            assert failure.errno == errno.EWOULDBLOCK
        finally:
            os.killpg(holder.pid, signal.SIGKILL)
            holder.wait()
        while apply(first, [(Control.WAYS, 0, 0b110)]).failures:
            time.sleep(0.01)
        assert masks(first)[0][0] == 0b110
        first.close()


def test_monitoring_counts_and_ages() -> None:
    """Faults 17 to 19: what the guest's counters say arrives as units with an age; the tick never reads them itself."""
    with temporary_cgroups(2) as paths, sleepers(paths):
        hal = make(2, paths, (), monitor_ms=20)
        hal.claim(lambda doc: None)
        reading = Reading.empty(2)
        hal.sample(reading)
        until = time.monotonic() + 30
        while np.isnan(reading.usage[:, Resource.MEMORY]).any():
            assert time.monotonic() < until
            time.sleep(0.05)
            hal.sample(reading)
        assert (reading.usage[:, Resource.MEMORY] > 0).all()
        assert not (reading.quality[:, Resource.MEMORY] & Quality.MISSING).any()
        hal.close()


@pytest.mark.skipif(not (shutil.which("pqos") or Path("/usr/sbin/pqos").exists()), reason="no intel-cmt-cat")
def test_pqos_sees_the_same_masks() -> None:
    with temporary_cgroups(3) as paths, sleepers(paths) as processes:
        hal = make(3, paths, (0,), prefix="COS")
        hal.claim(lambda doc: None)
        assert (
            apply(hal, [(Control.WAYS, 0, 0b1110), (Control.WAYS, 1, 0b110000), (Control.MEMORY, 1, 2)]).failures == []
        )
        pqos = shutil.which("pqos") or "/usr/sbin/pqos"
        Path("/run/lock").mkdir(exist_ok=True)  # where its own lock file lives
        said = subprocess.run([pqos, "--iface=os", "-s"], capture_output=True, text=True, check=False)
        ours = {n: parse_schemata((ROOT / n / "schemata").read_text()) for n in ("COS1", "COS2", "COS3")}
        members = [group_of(p.pid) for p in processes]
        hal.close()
        for name in [n for n in tree() if n.startswith("COS")]:
            (ROOT / name).rmdir()  # pqos makes a group of every class that it finds free
        if said.returncode:
            pytest.skip(f"pqos does not run here: {(said.stdout + said.stderr).strip()[-300:]}")
        print(said.stdout)
        assert members == ["COS1", "COS2", "COS3"]
        for k in (1, 2, 3):
            lines = [x.split() for x in said.stdout.splitlines() if f"COS{k} " in x]
            assert [int(x[-1], 16) for x in lines if x[0] == "L3CA"] == list(ours[f"COS{k}"]["L3"].values())


def test_the_command_line_moves_ways_and_lets_go(tmp_path: Path) -> None:
    with temporary_cgroups(2) as paths, sleepers(paths):
        config = tmp_path / "host.toml"
        config.write_text(
            f'[host]\nstate_dir = "{tmp_path}/state"\n[host.resctrl]\nuse = "require"\nmemory_bandwidth = "40GB/s"\n'
            f'[[vm]]\nname = "alone"\ncgroup = "{paths[0]}"\nisolation = "isolated"\n'
            f'reservation = {{ cpu = 2, cache = 3, memory = "8GB/s" }}\n[[vm]]\nname = "other"\ncgroup = "{paths[1]}"\n'
        )
        program = [str(Path(sys.executable).parent / "foreshare"), "run", "--hal", "linux", "--config", str(config)]
        run = subprocess.Popen(
            [*program, "--json", "--ticks", "60", "--tick-ms", "50"], stdout=subprocess.PIPE, text=True
        )
        seen: set[int] = set()
        while run.poll() is None:
            for name in [n for n in tree() if n.startswith(PREFIX)]:
                with contextlib.suppress(OSError):
                    seen |= {
                        m.bit_count() for m in parse_schemata((ROOT / name / "schemata").read_text())["L3"].values()
                    }
            time.sleep(0.05)
        assert run.stdout is not None
        with run.stdout as out:
            figures = json.load(out)
        assert run.returncode == 0 and figures["restored"] is True
        assert any(n >= 3 for n in seen)
