"""VMs that migrate are left as they are."""

from __future__ import annotations

import ctypes
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from resctrl_host import FakeHost

from foreshare.envs.hal.linux.discovery.domains import from_json, to_json
from foreshare.envs.hal.linux.discovery.libvirt_api import Handle
from foreshare.envs.hal.linux.discovery.spec import Domain, Found
from foreshare.policies.host import CPU, Host
from foreshare.policies.registry import make_mind
from foreshare.runtime.loop import ControlLoop, Tick


class Life:
    """Uses CPU time between two ticks, as far as each VM has any, and waits for the rest."""

    def __init__(self, host: FakeHost) -> None:
        self._host = host
        self.cpus = np.zeros(host.n)
        self.held: list[np.ndarray] = []
        self._used_us, self._throttled_us = np.full(host.n, 1000.0), np.zeros(host.n)

    def on_tick(self, tick: Tick) -> None:
        units = tick.held.units
        self.held.append(units.copy())
        allowed = units[:, CPU] / 10
        self._used_us += np.minimum(self.cpus, allowed) * 10_000
        self._throttled_us += np.maximum(self.cpus - allowed, 0.0) * 10_000
        for i, (used, throttled) in enumerate(zip(self._used_us, self._throttled_us, strict=True)):
            self._host.cgroups.put(f"vm{i}", "cpu.stat", f"usage_usec {used:.0f}\nthrottled_usec {throttled:.0f}\n")

    def on_event(self, kind: str, vm: int, text: str) -> None:
        """Nothing to note."""


def moving(uuid: str, now: bool) -> Found:
    domain = Domain(uuid=uuid, name="a", number=3, vcpus=2, disks=(), nics=(), moving=now)
    assert from_json(to_json(domain)) == domain
    return Found(version=1 + now, domains=(domain,), asked=True)


def test_a_vm_that_migrates_keeps_exactly_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fault 28: until that is over; the others go on as before."""
    host = FakeHost(tmp_path, n=4, zones=lambda i: 0)
    uuid = "6f1d0b5e-6c57-4b0b-9a55-5f0e5ba5e001"
    host.specs = tuple(s if i != 1 else type(s)(**{**_fields(s), "uuid": uuid}) for i, s in enumerate(host.specs))
    hal = host.open()
    hal.claim(lambda doc: None)
    life = Life(host)
    loop = ControlLoop(hal, make_mind("triage", Host(hal.topology, hal.vms)), observers=[life])

    def busy(ticks: int, *cpus: float) -> np.ndarray:
        """Let the VMs use so many CPUs; return (ticks, N, R) what each held."""
        life.cpus, life.held = np.array(cpus), []
        loop.run(ticks)
        return np.array(life.held)

    before = busy(60, 0.1, 2.5, 0.1, 0.1)[-1]
    assert before[1, CPU] >= 20
    arrivals = type(hal._arrivals)
    monkeypatch.setattr(arrivals, "found", moving(uuid, True))
    during = busy(60, 0.1, 0.0, 2.5, 2.5)
    assert (loop.host.vms.still == [False, True, False, False]).all()
    assert (during[1:, 1] == during[1, 1]).all()
    assert during[1, 1, CPU] >= 20 and (during[-1, 2:, CPU].sum() <= 40 - during[1, 1, CPU])
    monkeypatch.setattr(arrivals, "found", moving(uuid, False))
    after = busy(60, 0.1, 0.0, 2.5, 2.5)
    assert not loop.host.vms.still.any() and loop.counts.failed == 0
    assert after[-1, 1, CPU] < during[1, 1, CPU], "and then it is as any other"
    hal.close()


def _fields(spec: object) -> dict[str, object]:
    return {name: getattr(spec, name) for name in spec.__slots__}  # type: ignore[attr-defined]  # a dataclass with slots


@pytest.mark.parametrize(
    ("job", "state", "expected"),
    [(0, (1, 1), False), (1, (1, 1), True), (2, (1, 1), True), (3, (1, 1), False), (None, (1, 1), False),
     (None, (3, 2), True), (None, (3, 1), False)],
)  # fmt: skip
def test_a_job_of_libvirts_is_a_migration_or_as_good_as_one(
    job: int | None, state: tuple[int, int], expected: bool
) -> None:
    """Fault 28: completed jobs are none; paused for a migration is one; who does not answer does not migrate."""

    def job_info(handle: object, info: object) -> int:
        if job is None:
            return -1
        ctypes.cast(info, ctypes.POINTER(ctypes.c_int))[0] = job
        return 0

    def get_state(handle: object, now: object, reason: object, flags: int) -> int:
        for where, value in ((now, state[0]), (reason, state[1])):
            ctypes.cast(where, ctypes.POINTER(ctypes.c_int))[0] = value
        return 0

    lib = SimpleNamespace(
        virDomainGetUUIDString=lambda handle, buffer: 0, virDomainGetName=lambda handle: b"a",
        virDomainGetID=lambda handle: 3, virDomainGetJobInfo=job_info, virDomainGetState=get_state,
    )  # fmt: skip
    assert Handle(lib, None, 1).moving() is expected  # type: ignore[arg-type]  # a library of our own making
