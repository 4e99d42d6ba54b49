"""A policy in its own process: the same answers as inline; whatever it does, the asker comes back and says what."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hosts import hosts, table, topology
from hypothesis import given, settings

from foreshare.policies.ask import ABSENCES, FAULTS
from foreshare.policies.decide import UNHURRIED, DecideOptions, Mind, decide_tick
from foreshare.policies.errors import InputError
from foreshare.policies.host import CACHE, Host
from foreshare.policies.reading import Reading
from foreshare.runtime.asking import open_mind
from foreshare.runtime.policy_process import PolicyProcess, ProcessOptions
from foreshare.runtime.policy_wire import Block, host_from_json, host_to_json

TESTS = Path(__file__).parent.parent
SLACK_NS = 8_000_000


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(TESTS))


@pytest.fixture
def host() -> Host:
    return Host(topology(), table(4, isolation=[1, 0, 0, 0], priority=[0, 2, 1, 0]))


@pytest.fixture
def minds() -> Iterator[list[Mind]]:
    made: list[Mind] = []
    yield made
    for mind in made:
        mind.close()


def opened(policy: str, host: Host, into: list[Mind], **options: Any) -> Mind:
    mind = open_mind(policy, host, DecideOptions(policy_budget_ns=20_000_000, **options), "process")
    into.append(mind)
    mind.warm_up()
    return mind


def process_of(mind: Mind) -> PolicyProcess:
    assert isinstance(mind.asker, PolicyProcess)
    return mind.asker


def readings(host: Host, ticks: int, seed: int = 0) -> Iterator[Reading]:
    rng = np.random.default_rng(seed)
    for t in range(ticks):
        reading = Reading.empty(len(host))
        reading.dt_ns = 10_000_000 + t
        reading.usage[:] = rng.uniform(0, 14, reading.usage.shape)
        reading.usage[:, CACHE] = 1.0
        reading.demand_low[:] = reading.usage
        reading.quality[:] = 0
        yield reading


def drive(mind: Mind, ticks: int, *, pause_s: float = 0.0, slack_ns: int = SLACK_NS) -> Counter[str]:
    """Run ticks; return how often each fault kind ("" for none) was given."""
    kinds: Counter[str] = Counter()
    for reading in readings(mind.host, ticks):
        decision = decide_tick(mind, reading)
        assert decision.fault_kind in {"", *FAULTS, *ABSENCES}
        assert bool(decision.fault) == bool(decision.fault_kind)
        kinds[decision.fault_kind] += 1
        mind.rest(slack_ns)
        time.sleep(pause_s)
    return kinds


# -- the wire


@settings(max_examples=30)
@given(host=hosts())
def test_a_host_survives_the_wire(host: Host) -> None:
    host = Host(host.topology, host.vms, np.arange(len(host)) % 3 != 1)
    other = host_from_json(host_to_json(host))
    for name in ("reservation", "cap", "floor", "granule", "active", "movable"):
        assert (getattr(other, name) == getattr(host, name)).all()
    assert other.vms.uuid == host.vms.uuid and (other.vms.rank == host.vms.rank).all()
    assert (other.vms.priority == host.vms.priority).all()


def test_the_memory_cannot_be_cut_short_and_holds_what_was_put(host: Host) -> None:
    block = Block.make(host)
    other, seen = Block.open(os.dup(block.fd), block.host_bytes)
    assert seen.vms.uuid == host.vms.uuid
    with pytest.raises(OSError, match="not permitted"):
        os.ftruncate(other.fd, 0)
    units = np.arange(16).reshape(4, 4)
    for answer in (units, units * 0.5):
        other.put_answer(7, 3, "", "", answer, np.array([True, False, True, False]))
        sequence, tick, fault, _, values, refused = block.answer()
        assert (sequence, tick, fault) == (7, 3, "") and values.dtype == answer.dtype and (values == answer).all()
        assert refused is not None and refused.tolist() == [True, False, True, False]
    other.put_answer(8, 4, "raised", "x" * 5000, None, None)
    assert block.answer()[2] == "raised" and 100 < len(block.answer()[3]) < 600
    other.memory[-200:] = bytes(range(200))  # whatever stands there, reading it raises nothing
    block.answer()
    for b in (block, other):
        b.close()


# -- the same answers


@pytest.mark.parametrize("policy", ["triage", "priority", "parties"])
def test_a_process_answers_as_the_policy_does_inline(policy: str, host: Host, minds: list[Mind]) -> None:
    there = open_mind(policy, host, UNHURRIED, "process")
    minds.append(there)
    there.warm_up()
    here = open_mind(policy, host, UNHURRIED, "inline")
    present = np.ones(4, bool)
    for t, full in enumerate(readings(host, 60)):
        if t in (20, 40):  # one goes, and comes back
            present[2] = not present[2]
            for mind in (here, there):
                mind.rebind(Host(mind.host.topology, mind.host.vms, present.copy()))
        if t == 50:  # another table of VMs, in another order
            less = Host(host.topology, host.vms.take(np.array([3, 0, 1])))
            for mind in (here, there):
                mind.rebind(less)
            while not process_of(there)._ready:
                there.asker.rest(SLACK_NS, True)
        reading = full if t < 50 else next(readings(here.host, 1, seed=t))
        a, b = decide_tick(here, reading), decide_tick(there, reading)
        assert not b.fault, b.fault
        assert (a.placement.units == b.placement.units).all() and (a.throttled == b.throttled).all()
    assert process_of(there).starts == 1


# -- what it can do wrong


@pytest.mark.parametrize(
    ("policy", "fault"),
    [("says_nan", "wrong"), ("raises", "raised"), ("crashes", "crashed"), ("exits", "crashed"), ("sleeps", "late"),
     ("spins_natively", "late"), ("stops", "late"), ("chatters", "crashed"), ("floods", "late")],
)  # fmt: skip
def test_what_it_did_is_found_and_told(policy: str, fault: str, host: Host, minds: list[Mind]) -> None:
    mind = opened(f"misbehaving:{policy}", host, minds)
    kinds = drive(mind, 60)
    assert kinds[""] >= 10, "it behaved at first"
    assert kinds[fault] and mind.standing.faults[fault] == kinds[fault]
    assert kinds["benched"] or kinds["starting"]


def test_the_signal_is_named(host: Host, minds: list[Mind]) -> None:
    mind = opened("misbehaving:crashes", host, minds)
    texts = set()
    for reading in readings(host, 40):
        texts.add(decide_tick(mind, reading).fault)
    assert any("SIGSEGV" in text or text == "its process ended" for text in texts), texts


def test_one_that_hangs_is_replaced_and_asked_again(host: Host, minds: list[Mind]) -> None:
    mind = opened("misbehaving:sleeps", host, minds)
    process = process_of(mind)
    process.options = ProcessOptions(hung_ns=50_000_000)
    first = process.pid
    until = time.monotonic() + 60
    while process.starts < 2 or not process._ready:
        drive(mind, 1, pause_s=0.002)
        assert time.monotonic() < until
    assert process.pid != first and first is not None
    assert not Path(f"/proc/{first}").exists() or "zombie" in Path(f"/proc/{first}/status").read_text()
    assert mind.standing.faults["hung"] >= 1
    while drive(mind, 1, pause_s=0.002)[""] == 0:
        assert time.monotonic() < until


def test_one_that_leaks_is_replaced(host: Host, minds: list[Mind]) -> None:
    mind = opened("misbehaving:leaks", host, minds)
    process = process_of(mind)
    process.options = ProcessOptions(memory_bytes=100 << 20)
    until = time.monotonic() + 60
    while "leaked" not in mind.standing.faults:
        drive(mind, 10)
        assert time.monotonic() < until
    assert process.starts >= 1


def test_its_own_memory_limit_makes_allocations_fail_there(host: Host) -> None:
    process = PolicyProcess(
        {"factory": "misbehaving:leaks"}, host, ProcessOptions(memory_bytes=64 << 20, most_wait_ns=5 * 10**9)
    )
    try:
        process.start()
        mind = open_mind("triage", host, UNHURRIED)
        mind.asker = process
        kinds = Counter(decide_tick(mind, reading).fault_kind for reading in readings(host, 60))
        assert kinds["raised"] + kinds["crashed"], kinds
    finally:
        process.close()


def test_a_late_answer_serves_the_next_tick_and_then_expires(host: Host, minds: list[Mind]) -> None:
    mind = opened("misbehaving:good", host, minds)
    process = process_of(mind)
    pid = process.pid
    assert pid is not None
    assert drive(mind, 5)[""] == 5
    os.kill(pid, signal.SIGSTOP)
    seen = [(d.by_policy, d.age) for d in (decide_tick(mind, r) for r in readings(host, 4))]
    assert seen == [(True, 1), (True, 2), (False, 0), (False, 0)], "two ticks, then it has expired"
    os.kill(pid, signal.SIGCONT)
    until = time.monotonic() + 30
    while not drive(mind, 1, pause_s=0.01)[""]:
        assert time.monotonic() < until
    assert process.starts == 1, "it was only stopped for a moment"


@pytest.mark.parametrize(
    ("policy", "why"),
    [("misbehaving:broken", "no weights"), ("misbehaving:absent", "absent"), ("no_such_module:x", "no_such_module"),
     ("os:getcwd", "no allocate"), ("no such policy", "no policy named")],
)  # fmt: skip
def test_one_that_cannot_be_loaded_is_refused_at_once(policy: str, why: str, host: Host) -> None:
    with pytest.raises(InputError, match=why):
        open_mind(policy, host, DecideOptions())


# -- what is left behind

PARENT = """
import sys, time
sys.path.insert(0, {tests!r})
from hosts import table, topology
from foreshare.policies.host import Host
from foreshare.policies.decide import DecideOptions
from foreshare.runtime.asking import open_mind
mind = open_mind({policy!r}, Host(topology(), table(2)), DecideOptions())
print(mind.asker.pid, flush=True)
time.sleep(60)
"""


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in {"Z", "X"}


def test_a_killed_parent_takes_the_process_along() -> None:
    script = PARENT.format(tests=str(TESTS), policy="misbehaving:good")
    before = set(os.listdir("/dev/shm"))
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert alive(child)
        parent.kill()
        parent.wait()
    until = time.monotonic() + 20
    while alive(child):
        assert time.monotonic() < until, "it outlived its parent"
        time.sleep(0.01)
    assert set(os.listdir("/dev/shm")) <= before


def test_closing_leaves_no_descriptor_and_no_process(host: Host) -> None:
    before = set(os.listdir("/proc/self/fd"))
    for policy in ("misbehaving:good", "misbehaving:stops"):
        mind = open_mind(policy, host, DecideOptions())
        drive(mind, 30)
        pid = process_of(mind).pid
        mind.close()
        mind.close()
        assert pid is None or not alive(pid)
        del mind  # and with it the memory that it shared
    assert set(os.listdir("/proc/self/fd")) == before
