"""The loop runs under SCHED_FIFO where that is allowed, as before after it, and its children never do."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from fake_hal import FakeHal
from hosts import table, topology

from foreshare.policies.decide import UNHURRIED
from foreshare.policies.host import Host
from foreshare.policies.registry import make_mind
from foreshare.runtime.loop import ControlLoop, LoopOptions, Tick
from foreshare.runtime.priority import first_in_turn


def allowed() -> bool:
    with first_in_turn() as scheduling:
        return scheduling == "fifo"


def test_it_is_taken_back_and_children_do_not_inherit_it() -> None:
    before = os.sched_getscheduler(0)
    with first_in_turn() as scheduling:
        if scheduling == "fifo":
            assert os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK == os.SCHED_FIFO
        program = "import os; print(os.sched_getscheduler(0))"
        child = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        assert int(child.stdout) == os.SCHED_OTHER
    assert os.sched_getscheduler(0) == before


def test_who_is_not_allowed_goes_on_as_he_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise PermissionError("no")

    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    with first_in_turn() as scheduling:
        assert scheduling == "other"


@pytest.mark.parametrize("wanted", [False, True])
def test_the_loop_says_how_it_is_scheduled(wanted: bool) -> None:
    possible = allowed()
    host, seen = Host(topology(), table(2)), []

    class Looks:
        def on_tick(self, tick: Tick) -> None:
            seen.append(os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK)

        def on_event(self, kind: str, vm: int, text: str) -> None:
            pass

    hal = FakeHal(host, lambda tick: np.full((2, 4), 3.0))
    loop = ControlLoop(hal, make_mind("triage", host, UNHURRIED), LoopOptions(first_in_turn=wanted), [Looks()])
    loop.run(3)
    fifo = wanted and possible
    assert set(seen) == {os.SCHED_FIFO if fifo else os.SCHED_OTHER}
    assert loop.scheduling == ("fifo" if fifo else "other")
    assert os.sched_getscheduler(0) == os.SCHED_OTHER
