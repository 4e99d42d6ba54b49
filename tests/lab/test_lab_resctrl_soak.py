"""Sixteen VMs on the kernel's own resctrl, with everything thrown in that can happen to it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from resctrl_guest import IN_LAB, PREFIX, ROOT, check, check_cpus, group_of, ids_come_back, make, sleepers, tree

from foreshare.envs.hal.linux.hal import LinuxHal
from foreshare.envs.hal.linux.temporary import temporary_cgroups
from foreshare.envs.hal.plan import advance, build_plan
from foreshare.envs.hal.replan import replan
from foreshare.envs.hal.types import Receipt
from foreshare.policies.decide import UNHURRIED, Mind, decide_tick
from foreshare.policies.host import CPU, Host, Placement
from foreshare.policies.reading import Quality, Reading
from foreshare.policies.registry import make_mind

TICKS = int(os.environ.get("FORESHARE_LAB_TICKS", "200"))
PLUGS = (4, 5, 6, 7), (7,)
"""CPUs that go offline and come back together; all of a domain: its groups have full masks then."""
pytestmark = [*IN_LAB, pytest.mark.usefixtures("clean_groups")]


class Demanding:
    """A mind that is fed made-up demand in place of what idle VMs use."""

    def __init__(self, hal: LinuxHal, policy: str, seed: int) -> None:
        self.hal, self.host = hal, Host(hal.topology, hal.vms)
        self.mind: Mind = make_mind(policy, self.host)
        self.mind.options = UNHURRIED  # which ticks a slow guest decides late must not matter
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
        if hal.topology is not self.host.topology:  # as the loop does
            self.host = Host(hal.topology, hal.vms)
            hal.read_back(self.held)
            replan(self.mind, self.host, self.held)
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
        refused = plan.vm[[f.index for f in self.receipt.failures]]
        hal.read_back(self.held, np.union1d(refused, [number % n]).astype(np.int64))


def set_online(cpus: tuple[int, ...], online: int) -> None:
    for cpu in cpus:
        Path(f"/sys/devices/system/cpu/cpu{cpu}/online").write_text(str(online))


@pytest.mark.timeout(3600)
def test_sixteen_vms_and_everything_that_can_happen() -> None:
    """Faults 9, 11, 13, 20 and 21: after every tick the kernel's own files show legal masks and nothing shared.

    A foreign write is found when its group's turn to be read comes; until then, at most as many ticks as groups, what
    it broke is broken. A hot-plug and a removed group are mended in the next two ticks: of cores nothing is shared, and
    each VM that has a CPU left in its zone holds its reservation.
    """
    other = ROOT / "somebody-elses"
    other.mkdir()
    (other / "schemata").write_text("L3:0=3\n")
    theirs = (other / "schemata").read_text()
    rng = np.random.default_rng(7)
    with temporary_cgroups(16) as paths, sleepers(paths) as processes:
        hal = make(16, paths, (0, 1), (2, 3, 4, 5, 6, 7), moves_per_s=100, quarantine_ms=20.0)
        hal.claim(lambda doc: None)
        parts = hal.partitions
        assert parts is not None
        default = (ROOT / "schemata").read_text()
        run = Demanding(hal, "triage", 3)
        off: tuple[int, ...] = ()
        grace, seen, thrown = len(parts.groups) + 2, 0, {"rmdir": 0, "reset": 0, "cpu": 0, "umount": 0}
        owners_seen: set[int] = set()
        for number in range(TICKS):
            fault = ""
            if number % 100 == 0:
                print(number, round(time.monotonic()), thrown, flush=True)  # a slow machine shows where it is
            if number > 20 and grace == 0 and number % 25 == 0 and number < TICKS - 60:
                fault = ("reset", "cpu", "rmdir", "cpu", "cpu")[number // 25 % 5]
                name = parts.named[int(rng.integers(len(parts.named)))][0]
                if fault == "rmdir" and thrown["rmdir"] < (12 if ids_come_back() else 1):
                    (ROOT / name).rmdir()
                elif fault == "cpu":
                    plug = PLUGS[thrown["cpu"] // 2 % 2]
                    set_online(plug, 1 if off else 0)
                    off = () if off else plug
                else:
                    fault = "reset"
                    with contextlib.suppress(OSError):
                        (ROOT / name / "schemata").write_text("L3:0=fff\nMB:0=100\n")
                thrown[fault] += 1
                grace = len(parts.groups) + 2 if fault == "reset" else 2
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
            lost = frozenset(range(1, 16, 2)) if off == PLUGS[0] else frozenset()
            wanted = np.ceil(run.level[:, CPU]).astype(np.int64)
            assert check_cpus(paths, run.host, wanted, lost) == [], (number, off, hal.troubles())
            assert {0, 1} <= set(owners), parts.trouble
            if not off:
                assert (other / "schemata").read_text() == theirs
                assert (ROOT / "schemata").read_text() == default
        if off:
            set_online(off, 1)
            run.tick(TICKS)
        assert thrown["rmdir"] > 0 and thrown["umount"] == 1 and thrown["cpu"] > 1, thrown
        assert seen > TICKS // 2 and len(owners_seen) >= 2
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
