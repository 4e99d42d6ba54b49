"""Whole runs on real cgroups with real processes: what the kernel holds meanwhile, and what is left afterwards."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from real_host import (
    CPUS,
    ENVIRONMENT,
    FORESHARE,
    Place,
    answer,
    call,
    cpu_seconds,
    cpus_of,
    needs_cgroups,
    path_of,
    place,
    processes,
    quota_cpus,
    read,
    refused,
    snapshot,
    vm_table,
    wait_for,
)

from foreshare.policies.errors import HostError
from foreshare.runtime.config import load_config
from foreshare.runtime.loop import Tick
from foreshare.runtime.session import HalChoice, Outcome, Session

pytestmark = needs_cgroups
ISOLATED = 'isolation = "isolated"'


class At:
    """Calls ``look`` after each tick whose number is in ``ticks`` (None: every one), once it is all written."""

    def __init__(self, look: Callable[[Tick], None], ticks: set[int] | None = None) -> None:
        self.look, self.ticks = look, ticks
        self.calls = 0
        self.events: list[tuple[str, int]] = []

    def on_tick(self, tick: Tick) -> None:
        if self.ticks is None or tick.number in self.ticks:
            self.calls += 1
            self.look(tick)

    def on_event(self, kind: str, vm: int, text: str) -> None:
        self.events.append((kind, vm))


def run_here(here: Place, ticks: int, *observers: At) -> Outcome:
    session = Session(
        choice=HalChoice(hal="linux", config=load_config(here.config)), policy="forecast", ticks=ticks,
        state_dir=str(here.state_dir), watchers=lambda facts, loop: observers,
    )  # fmt: skip
    return session.run()


def postponed(tick: Tick) -> bool:
    """Return whether the machine took so long over this tick that some of its writes are left for the next one."""
    return tick.receipt.done < len(tick.plan)


@pytest.fixture
def three(tmp_path: Path) -> Iterator[Place]:
    with place(tmp_path, 3) as here:
        yield here


def test_cpu_time_follows_priority_reservation_and_cap(three: Place) -> None:
    high, low, capped = three.cgroups
    everybody = len(CPUS)
    three.write(
        vm_table("high", high, "priority = 3", f"reservation = {{ cpu = {everybody * 0.4} }}"),
        vm_table("low", low, f"reservation = {{ cpu = {everybody * 0.1} }}"),
        vm_table("capped", capped, "priority = 9", "cap = { cpu = 0.2 }"),
    )
    before = snapshot(three.cgroups)
    crowd = [high] * everybody + [low] * everybody + [capped]
    with processes(crowd) as running:
        pids = [p.pid for p in running]
        before |= snapshot([], pids)
        used: dict[str, list[float]] = {c: [] for c in three.cgroups}
        at: list[float] = []
        given: dict[str, list[float]] = {c: [] for c in three.cgroups}

        def look(tick: Tick) -> None:
            at.append(time.monotonic())
            for c in three.cgroups:
                given[c].append(quota_cpus(c))
                used[c].append(cpu_seconds(c))

        outcome = run_here(three, 300, At(look))
        assert snapshot(three.cgroups, pids) == before
    assert outcome.restored and not three.journal.exists()
    assert max(given[capped]) <= 0.2 + 1e-9
    assert min(given[high]) >= everybody * 0.4 - 1e-9
    assert min(given[low]) >= everybody * 0.1 - 1e-9
    settled = len(at) // 6
    rate = {c: (u[-1] - u[settled]) / (at[-1] - at[settled]) for c, u in used.items()}
    for cgroup in three.cgroups:  # nobody uses more than he was given
        mean = sum(given[cgroup][settled:]) / len(given[cgroup][settled:])
        assert 0 < rate[cgroup] <= mean * 1.25 + 0.05, cgroup
    assert rate[high] > rate[low]
    assert rate[capped] < 0.3


def test_an_isolated_vm_has_its_core_for_itself(three: Place) -> None:
    alone, other, idle = three.cgroups
    three.write(
        vm_table("alone", alone, ISOLATED, "reservation = { cpu = 1 }", "cap = { cpu = 1 }"),
        vm_table("other", other), vm_table("idle", idle),
    )  # fmt: skip
    before = snapshot(three.cgroups)
    with processes([alone, other, other]) as running:
        pids = [p.pid for p in running]
        before |= snapshot([], pids)

        def look(tick: Tick) -> None:
            if postponed(tick):
                return
            mine = cpus_of(alone)
            assert len(mine) == 1
            assert not mine & (cpus_of(other) | cpus_of(idle))
            assert os.sched_getaffinity(pids[0]) == mine
            assert read(alone, "cpu.cfs_quota_us") == "-1"
            assert quota_cpus(alone) == 1

        looking = At(look, set(range(2, 200)))
        begun = cpu_seconds(other), time.monotonic()
        run_here(three, 120, looking)
        used, took = cpu_seconds(other) - begun[0], time.monotonic() - begun[1]
        assert looking.calls > 50
        assert used <= (len(CPUS) - 1) * took * 1.1 + 0.4  # 0.4: opening and closing, when nobody is bound yet
        assert snapshot(three.cgroups, pids) == before


def test_affinity_does_where_there_is_no_cpuset(three: Place) -> None:
    alone, other, _ = three.cgroups
    three.write(
        'placement = "affinity"\n',
        vm_table("alone", alone, ISOLATED, "reservation = { cpu = 1 }", "cap = { cpu = 1 }"),
        vm_table("other", other),
    )
    before = snapshot(three.cgroups)
    with processes([alone, other]) as running:
        one, two = (p.pid for p in running)
        os.sched_setaffinity(two, {CPUS[0], CPUS[1]})
        before |= snapshot([], [one, two])

        def look(tick: Tick) -> None:
            if postponed(tick):
                return
            checked.append(tick.number)
            assert len(os.sched_getaffinity(one)) == 1
            assert not os.sched_getaffinity(one) & os.sched_getaffinity(two)

        checked: list[int] = []
        run_here(three, 40, At(look, set(range(5, 40))))
        assert checked
        assert snapshot(three.cgroups, [one, two]) == before


def test_values_that_were_set_before_are_set_again(three: Place) -> None:
    a, b, c = three.cgroups
    path_of(a, "cpu.cfs_period_us").write_text("50000")
    path_of(a, "cpu.cfs_quota_us").write_text("30000")
    path_of(b, "cpu.shares").write_text("77")
    path_of(b, "cpuset.cpus").write_text(str(CPUS[-1]))
    path_of(c, "cpu.idle").write_text("1")
    three.write(*(vm_table(x, x, "priority = -1" if x == b else "") for x in three.cgroups))
    before = snapshot(three.cgroups)
    with processes([a, b, c]) as running:
        pids = [p.pid for p in running]
        os.sched_setaffinity(pids[0], {CPUS[0]})
        before |= snapshot([], pids)
        changed: list[bool] = []
        run_here(three, 20, At(lambda tick: changed.append(snapshot(three.cgroups) != snapshot([])), {5}))
        assert changed == [True]
        assert snapshot(three.cgroups, pids) == before


def test_an_exception_in_mid_run_puts_the_host_back(three: Place) -> None:
    three.write(*(vm_table(c, c, "reservation = { cpu = 0.1 }") for c in three.cgroups))
    before = snapshot(three.cgroups)
    with processes(three.cgroups[:2]) as running:
        pids = [p.pid for p in running]
        before |= snapshot([], pids)

        def fail(tick: Tick) -> None:
            assert snapshot(three.cgroups, pids) != before
            assert three.journal.exists()
            raise ZeroDivisionError("an observer's own fault")

        with pytest.raises(ZeroDivisionError):
            run_here(three, 50, At(fail, {17}))
        assert snapshot(three.cgroups, pids) == before
    assert not three.journal.exists()


def test_a_vm_that_goes_in_mid_run_is_no_error(three: Place) -> None:
    three.write(*(vm_table(c, c) for c in three.cgroups))
    stays, killed, removed = three.cgroups
    before = snapshot([stays, killed])
    with processes([stays, killed]) as running:

        def kill(tick: Tick) -> None:
            running[1].kill()

        def remove(tick: Tick) -> None:
            for folder in Path("/sys/fs/cgroup").glob(f"*/{removed}"):
                folder.rmdir()

        watch = At(remove, {20})
        outcome = run_here(three, 60, At(kill, {10}), watch)
        assert snapshot([stays, killed]) == before
    assert ("gone", 2) in watch.events
    assert outcome.log.summary["failed_writes"] == 0
    assert not three.journal.exists()


def test_somebody_elses_writes_are_found_and_mended(three: Place) -> None:
    """Fault 25."""
    a, b, _ = three.cgroups
    three.write(vm_table("a", a, ISOLATED, "reservation = { cpu = 1 }", "cap = { cpu = 1 }"), vm_table("b", b))
    before = snapshot(three.cgroups)
    whole = read(a, "cpuset.cpus")
    watch = At(lambda tick: path_of(b, "cpuset.cpus").write_text(whole), {10})
    mended: list[bool] = []
    run_here(three, 160, watch, At(lambda tick: mended.append(not cpus_of(a) & cpus_of(b)), {150}))
    assert mended != [False] and ("drift", 1) in watch.events
    assert snapshot(three.cgroups) == before


def test_two_at_once_are_refused(three: Place) -> None:
    """Fault 41."""
    three.write(*(vm_table(c, c) for c in three.cgroups))
    before = snapshot(three.cgroups)
    first = subprocess.Popen(
        [FORESHARE, *three.run_args("--seconds", "60", "--json")], stdout=subprocess.PIPE, env=ENVIRONMENT
    )
    try:
        assert wait_for(three.journal.exists)
        assert "another foreshare" in refused(call(*three.run_args("--ticks", "3", "--json")))
        assert "another foreshare" in refused(call("restore", "--config", str(three.config), "--json"))
        elsewhere = refused(call(*three.run_args("--ticks", "3", "--json", "--state-dir", str(three.folder / "other"))))
        assert "another foreshare" in elsewhere and three.cgroups[0] in elsewhere
        assert three.journal.exists() and first.poll() is None
    finally:
        first.terminate()
        first.communicate(timeout=20)
    assert first.returncode == 0
    assert snapshot(three.cgroups) == before


DIES_AT_A_WRITE = """
import os, signal, sys
from foreshare.runtime.cli import main
left, write = int(sys.argv[1]), os.pwrite
def pwrite(*args):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return write(*args)
os.pwrite = pwrite
main(sys.argv[2:])
"""


def start_and_kill(here: Place, rng: random.Random) -> None:
    """Start a run that dies by kill -9: at some time in it or in its orderly end, or just before one of its writes."""
    how = rng.choice(("any time", "claim", "mid-run", "mid-run", "end", "write", "write", "write"))
    argv = [FORESHARE]
    if how == "write":
        argv = [sys.executable, "-c", DIES_AT_A_WRITE, str(rng.randrange(25))]

    def journal() -> int:
        return here.journal.stat().st_ino if here.journal.exists() else 0  # an earlier one's may still be there

    before = journal()
    run = subprocess.Popen(
        [*argv, *here.run_args("--seconds", "60", "--json")],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=ENVIRONMENT,
    )  # fmt: skip
    try:
        if how == "any time":
            time.sleep(rng.uniform(0.0, 0.4))
        else:
            assert wait_for(lambda: journal() not in (0, before) or run.poll() is not None), how
            if how == "write":
                with suppress(subprocess.TimeoutExpired):  # it may be that so many are not written
                    run.wait(timeout=0.5)
            elif how != "claim":
                time.sleep(rng.uniform(0.0, 0.15))
            if how == "end":
                run.terminate()
                time.sleep(rng.uniform(0.0, 0.03))
        assert run.poll() in (None, -signal.SIGKILL, 0 if how == "end" else None), how
    finally:
        run.kill()
        run.wait()


# One isolated VM beside shared ones, and two isolated ones that are apart when found and must be apart for ever.
LAYOUTS = {
    "one": ([ISOLATED, "reservation = { cpu = 1 }"], ["reservation = { cpu = 0.3 }"], ["reservation = { cpu = 0.2 }"]),
    "two": ([ISOLATED, "reservation = { cpu = 1 }"], [ISOLATED, "reservation = { cpu = 1 }"]),
}  # fmt: skip
RESERVED = {"one": (1.0, 0.3, 0.2), "two": (1.0, 1.0)}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kills", [4, pytest.param(25, marks=[pytest.mark.soak, pytest.mark.timeout(600)])])
def test_kill_9_at_random_moments(three: Place, layout: str, kills: int) -> None:
    """Fault 38."""
    vms = three.cgroups[: len(LAYOUTS[layout])]
    three.write(*(vm_table(c, c, *lines) for c, lines in zip(vms, LAYOUTS[layout], strict=True)))
    apart = [c for c, lines in zip(vms, LAYOUTS[layout], strict=True) if ISOLATED in lines]
    if len(apart) == 2:
        for cgroup, cpu in zip(apart, CPUS, strict=False):
            path_of(cgroup, "cpuset.cpus").write_text(str(cpu))
    first_found = snapshot(three.cgroups)
    rng = random.Random(f"{layout} {kills}")

    def no_two_share() -> None:
        if len(apart) == 2:
            assert not cpus_of(apart[0]) & cpus_of(apart[1])

    checked: list[int] = []

    def look(tick: Tick) -> None:
        for cgroup, reserved in zip(vms, RESERVED[layout], strict=True):
            assert quota_cpus(cgroup) >= reserved - 1e-9
        if postponed(tick):
            return
        checked.append(tick.number)
        for cgroup in apart:
            others = [cpus_of(c) for c in vms if c != cgroup]
            assert not cpus_of(cgroup) & frozenset().union(*others)

    with processes(vms) as running:
        pids = [p.pid for p in running]
        first_found |= snapshot([], pids)
        held_something = 0
        for turn in range(kills):
            start_and_kill(three, rng)
            no_two_share()
            held_something += snapshot(three.cgroups, pids) != first_found
            if turn % 4 == 3:
                # An operator puts it back instead of starting again; once more does no harm.
                journal = three.journal.exists()
                said = answer("restore", "--config", str(three.config), "--json")
                assert said["failed"] == [] and (said["restored"] > 0) == journal
                assert snapshot(three.cgroups, pids) == first_found
                assert answer("restore", "--config", str(three.config), "--json")["restored"] == 0
                assert snapshot(three.cgroups, pids) == first_found
                continue
            if rng.random() < 0.3:  # killed again before anybody came to a clean end
                start_and_kill(three, rng)
                no_two_share()

            checked.clear()
            for _ in range(5):  # a busy machine may postpone some writes in every one of eight ticks
                run_here(three, 8, At(lambda tick: no_two_share()), At(look, set(range(1, 8))))
                if checked:
                    break
            assert checked
            assert snapshot(three.cgroups, pids) == first_found
            assert not three.journal.exists()
        assert held_something, "no kill came in time to find anything changed: the test proves nothing"


def test_a_claim_that_is_refused_leaves_no_journal(three: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    from foreshare.envs.hal.linux import claim

    three.write(*(vm_table(c, c) for c in three.cgroups))
    before = snapshot(three.cgroups)

    def refuse(*args: object) -> None:
        raise OSError(5, "refused for the test")

    with monkeypatch.context() as patch:
        patch.setattr(claim, "take", refuse)
        with pytest.raises(HostError, match="refused for the test"):
            run_here(three, 3)
    assert snapshot(three.cgroups) == before
    assert not three.journal.exists()


@pytest.mark.parametrize("damage", [b"", b"{}", b"\x00" * 4096, b'{"sha256": "0", "body": {"version": 1}}'])
def test_a_corrupt_journal_is_put_aside_and_no_reason_not_to_start(three: Place, damage: bytes) -> None:
    three.write(*(vm_table(c, c) for c in three.cgroups))
    before = snapshot(three.cgroups)
    three.state_dir.mkdir(mode=0o700)
    three.journal.write_bytes(damage)
    outcome = run_here(three, 5)
    assert len(outcome.notes) == 1 and "corrupt" in outcome.notes[0]
    assert snapshot(three.cgroups) == before
    assert [f.name for f in three.state_dir.glob("journal*")] == ["journal.corrupt-0"]
