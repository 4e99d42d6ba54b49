"""A call that hangs in the kernel costs the host, not the loop."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from fake_hal import FakeHal
from hosts import table, topology

from foreshare.envs.hal import Plan, Reading, Receipt
from foreshare.envs.hal.types import Control
from foreshare.policies.allocators import WaterFilling
from foreshare.policies.decide import DecideOptions, Mind
from foreshare.policies.errors import HalError
from foreshare.policies.forecast import LastValue
from foreshare.policies.host import Host, IntArray, Placement
from foreshare.runtime.loop import ControlLoop, LoopOptions, Tick
from foreshare.runtime.patient import PatientHal

PATIENCE_S = 0.25  # a busy machine keeps a thread from its CPU for longer than 0.05 s


class Hanging(FakeHal):
    """Hangs where it is told, until it is let go."""

    def __init__(self, host: Host) -> None:
        super().__init__(host, lambda tick: 3.0 + tick % 5)
        self.hang_in = ""
        self.go_on = threading.Event()
        self.calls: list[str] = []

    def _maybe(self, what: str) -> None:
        self.calls.append(what)
        if self.hang_in == what:
            self.go_on.wait(60)

    def sample(self, reading: Reading) -> None:
        self._maybe("sample")
        super().sample(reading)

    def apply(self, plan: Plan, deadline_ns: int, receipt: Receipt) -> None:
        self._maybe("apply")
        super().apply(plan, deadline_ns, receipt)

    def read_back(self, into: Placement, rows: IntArray | None = None) -> None:
        self._maybe("read back")
        super().read_back(into, rows)

    def troubles(self) -> tuple[str, ...]:
        return ("a trouble",)


class Log:
    def __init__(self) -> None:
        self.ticks = 0
        self.events: list[tuple[str, str]] = []

    def on_tick(self, tick: Tick) -> None:
        self.ticks += 1

    def on_event(self, kind: str, vm: int, text: str) -> None:
        self.events.append((kind, text))


@pytest.fixture
def hanging() -> Iterator[tuple[Hanging, PatientHal]]:
    host = Host(topology(), table(4))
    hal = Hanging(host)
    patient = PatientHal(hal, PATIENCE_S)
    yield hal, patient
    hal.hang_in = ""
    hal.go_on.set()
    patient.close()


@pytest.mark.parametrize("call", ["sample", "apply", "read back"])
def test_a_call_that_hangs_does_not_take_the_loop_along(call: str, hanging: tuple[Hanging, PatientHal]) -> None:
    """Fault 15: the host is given up, nothing is tried on it again, and it is read afresh once the call returns."""
    hal, patient = hanging
    host = Host(hal.topology, hal.vms)
    log = Log()
    mind = Mind(host, LastValue(host), WaterFilling(), DecideOptions(expires_ticks=0))
    loop = ControlLoop(patient, mind, LoopOptions(verify_ticks=3), [log])
    loop.run(20)
    assert log.ticks == 20 and not loop.counts.host_faults
    hal.hang_in = call
    loop.run(10)
    assert patient.stuck == call and patient.times == 1
    made = len(hal.calls)
    loop.run(20)
    assert log.ticks == 50 and len(hal.calls) == made, "nothing is tried on a dead host"
    assert any(kind == "host-fault" and "hung in the kernel" in text for kind, text in log.events)
    assert any(kind == "host-fault" and "still hangs" in text for kind, text in log.events)
    hal.hang_in = ""
    hal.go_on.set()
    for _ in range(200):
        loop.run(1)
        if not patient.stuck:
            break
        threading.Event().wait(0.01)  # until the thread has come back from the call
    loop.run(30)
    assert not patient.stuck and patient.times == 1
    assert not loop.controls.unknown.any()
    assert (loop.controls.held.units == hal.held.units).all() and (loop.controls.held.cpus == hal.held.cpus).all()
    assert next(c for c in hal.calls[made:] if c != "sample") == "read back", "before anything is written"


def test_a_late_answer_spoils_nothing_and_the_end_says_what_was_left(hanging: tuple[Hanging, PatientHal]) -> None:
    """Fault 15."""
    hal, patient = hanging
    reading = Reading.empty(4)
    patient.sample(reading)
    was = reading.copy()
    hal.hang_in = "sample"
    with pytest.raises(HalError) as caught:
        patient.sample(reading)
    assert caught.value.errno == errno.ETIMEDOUT
    none = np.zeros(0, np.int64)
    for call in (
        lambda: patient.apply(Plan(none.astype(np.int8), none, none, np.zeros((0, 8), bool)), 0, Receipt()),
        lambda: patient.read_back(Placement.empty(4, 8)),
    ):
        with pytest.raises(HalError, match="still hangs"):
            call()
    with pytest.raises(HalError, match="still hangs"):
        PatientHal.close(patient)
    hal.go_on.set()
    assert (reading.usage == was.usage).all() and reading.t_ns == was.t_ns
    patient.close()


def test_otherwise_it_is_the_same_host(hanging: tuple[Hanging, PatientHal]) -> None:
    hal, patient = hanging
    assert (patient.name, patient.topology, patient.vms, patient.clock) == (hal.name, hal.topology, hal.vms, hal.clock)
    plan = Plan(np.array([Control.CPU], np.int8), np.array([1]), np.array([3]), np.zeros((0, 8), bool))
    assert patient.describe(plan) == hal.describe(plan)
    assert patient.troubles() == ("a trouble",)
    receipt, told = Receipt(), []
    patient.claim(told.append)
    patient.apply(plan, 0, receipt)
    assert (receipt.done, receipt.failures, len(told)) == (1, [], 1)
    into = Placement.empty(4, 8)
    patient.read_back(into)
    assert into.units[1, 0] == 3
    hal.refuse = lambda control, row: errno.EBUSY
    patient.apply(plan, 0, receipt)
    assert [f.errno for f in receipt.failures] == [errno.EBUSY]
