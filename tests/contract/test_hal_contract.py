"""What every backend must do, whatever stands behind it.

A backend joins by adding a function to ``BACKENDS`` that takes a scratch folder and returns an open backend whose VM 0
is shared, with ``vanish(row)`` making a VM disappear (None where nothing can).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from resctrl_host import DISK, FakeHost

from foreshare.envs.hal import Control, Hal, Plan, Receipt
from foreshare.envs.hal.linux.cgroups import find_hierarchies
from foreshare.envs.hal.linux.hal import LinuxHal
from foreshare.envs.hal.linux.resctrl.spec import ResctrlSpec
from foreshare.envs.hal.linux.roots import Roots
from foreshare.envs.hal.linux.spec import IoDevice, LinuxSpec
from foreshare.envs.hal.linux.temporary import temporary_cgroups
from foreshare.envs.hal.recording import RecordingWriter, recording_metadata
from foreshare.envs.hal.replay import ReplayHal
from foreshare.envs.hal.simulated import SimulatedHal
from foreshare.envs.hal.spec import VmSpec
from foreshare.envs.simulator.scenario import load_scenario
from foreshare.policies.errors import HostError
from foreshare.policies.host import RESOURCES, Host, Isolation, Placement, Resource
from foreshare.policies.reading import Quality, Reading

TICK_NS = 10_000_000
GONE_AT = 6


@dataclass
class Backend:
    hal: Hal
    vanish: Callable[[int], None] | None
    clean_up: Callable[[], object] = lambda: None

    def tick(self) -> None:
        self.hal.clock.sleep_until(self.hal.clock.now_ns() + TICK_NS)

    def reading(self) -> Reading:
        r = Reading.empty(len(self.hal.vms))
        self.hal.sample(r)
        return r


def simulated(folder: Path) -> Backend:
    hal = SimulatedHal(load_scenario("mixed", vms=6), seed=3)
    return Backend(hal, hal.remove_vm)


def replay(folder: Path) -> Backend:
    source = SimulatedHal(load_scenario("mixed", vms=6), seed=3)
    n = len(source.vms)
    facts = recording_metadata(
        source.topology, source.vms, hal=source.name, tick_ns=TICK_NS, boot_id="b", monotonic_ns=5, utc_ns=7
    )
    with RecordingWriter(folder / "trace", facts) as writer:
        for t in range(30):
            r = Reading.empty(n)
            source.sample(r)
            r.present[n - 1] = t < GONE_AT
            fields = ("usage", "demand_low", "limit", "wait_ns", "quality", "present")
            writer.append({"t_ns": np.array([r.t_ns]), **{f: getattr(r, f)[None] for f in fields}})
            source.clock.sleep_until(source.clock.now_ns() + TICK_NS)
    hal = ReplayHal(folder / "trace")

    def vanish(vm: int) -> None:
        assert vm == n - 1
        hal.clock.sleep_until(hal.clock.now_ns() + GONE_AT * TICK_NS)

    return Backend(hal, vanish)


def linux(folder: Path) -> Backend:
    if os.geteuid() != 0 or (os.cpu_count() or 1) < 2:
        pytest.skip("needs root to make cgroups, and two CPUs")
    stack = contextlib.ExitStack()
    try:
        paths = stack.enter_context(temporary_cgroups(4))
    except (HostError, OSError) as error:
        pytest.skip(f"cgroups cannot be made here: {error}")
    apart = [Isolation.ISOLATED if i == 1 else Isolation.SHARED for i in range(len(paths))]
    vms = tuple(VmSpec(name=p, cgroup=p, isolation=a) for p, a in zip(paths, apart, strict=True))
    disks = sorted(d for d in os.listdir("/sys/block") if d.startswith(("vd", "sd", "nvme", "xvd")))
    number = [(Path("/sys/block") / d / "dev").read_text().strip() for d in disks[:1]]
    try:
        io = tuple(IoDevice(device=n, bandwidth_bytes=1e9) for n in number)
        hal = LinuxHal(LinuxSpec(vms=vms, io=io, resctrl=ResctrlSpec(memory_bandwidth=50e9)))
    except BaseException:
        stack.close()
        raise

    def vanish(row: int) -> None:
        for mount in {m.path for m in find_hierarchies(Roots()).controllers.values()}:
            with contextlib.suppress(FileNotFoundError):
                os.rmdir(f"{mount}/{paths[row]}")

    return Backend(hal, vanish, stack.close)


def fakes(folder: Path) -> Backend:
    """Cgroup v2 and resctrl that refuse what the kernel refuses."""
    host = FakeHost(folder, n=9, isolated=(1,))
    return Backend(host.open(io=(DISK,)), host.vanish)


BACKENDS = {"simulated": simulated, "replay": replay, "linux": linux, "fake trees": fakes}


def params() -> list[object]:
    return [pytest.param(b, marks=[pytest.mark.linux_cgroup] if b == "linux" else []) for b in sorted(BACKENDS)]


@pytest.fixture(params=params())
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Backend]:
    b = BACKENDS[request.param](tmp_path)
    try:
        yield b
        b.hal.close()
    finally:
        b.clean_up()


def claim(hal: Hal) -> list[dict[str, object]]:
    said: list[dict[str, object]] = []
    hal.claim(lambda doc: said.append(dict(doc)))
    return said


def shared_rows(hal: Hal) -> np.ndarray:
    return np.flatnonzero(hal.vms.isolation == Isolation.SHARED)


def some_plan(hal: Hal) -> Plan:
    """One write of every kind that this backend has units for, to two shared VMs."""
    movable = hal.topology.movable()
    first, second = shared_rows(hal)[:2]
    writes = []
    if movable[Resource.CPU]:
        writes += [(Control.CPUS, first, 0), (Control.CPU, first, 3), (Control.CPU, second, 2)]
    if movable[Resource.CACHE]:
        low = hal.topology.shared_ways
        writes += [(Control.WAYS, first, 0b11 << low)]
    if movable[Resource.MEMORY]:
        writes += [(Control.MEMORY, first, 2)]
    if movable[Resource.IO]:
        writes += [(Control.IO, second, 1)]
    sets = np.zeros((1, hal.topology.cpus), bool)
    sets[0, 0] = True
    control, vm, value = zip(*writes, strict=True)
    return Plan(np.array(control, np.int8), np.array(vm, np.int64), np.array(value, np.int64), sets)


def empty_plan(hal: Hal) -> Plan:
    none = np.zeros(0, np.int64)
    return Plan(none.astype(np.int8), none, none, np.zeros((0, hal.topology.cpus), bool))


def held(hal: Hal) -> Placement:
    p = Placement.empty(len(hal.vms), hal.topology.cpus)
    hal.read_back(p)
    return p


def test_topology_is_dense_and_the_contracts_fit(backend: Backend) -> None:
    t, v = backend.hal.topology, backend.hal.vms
    assert (np.diff(t.cpu_id) > 0).all()
    assert set(t.core) == set(range(t.core.max() + 1))
    assert set(t.zone) == set(range(t.zones))
    for z in range(t.zones):
        for r in Resource:
            assert t.pool(r, z).units >= 0
        assert t.pool(Resource.CPU, z).units == (t.zone == z).sum() * t.units_per_cpu
    assert t.ways + t.shared_ways <= t.way_bits
    assert len(Host(t, v)) == len(v) > 2
    assert backend.hal.name in ("simulated", "linux", "replay")


def test_the_first_sample_has_no_rates_and_the_second_has(backend: Backend) -> None:
    first = backend.reading()
    assert first.dt_ns == 0
    assert np.isnan(first.usage).all() and np.isnan(first.wait_ns).all()
    assert (first.quality & Quality.MISSING).all()
    backend.tick()
    second = backend.reading()
    assert second.t_ns - first.t_ns == second.dt_ns > 0
    assert np.isfinite(second.usage[:, Resource.CPU]).any()
    assert (np.isnan(second.usage) == ((second.quality & Quality.MISSING) > 0)).all()
    known = ~np.isnan(second.usage)
    assert (second.usage[known] >= 0).all()
    assert (second.demand_low[known] >= second.usage[known] - 1e-4).all()


def test_a_sample_does_not_look_at_what_the_reading_held(backend: Backend) -> None:
    backend.reading()
    backend.tick()
    r = Reading.empty(len(backend.hal.vms))
    for junk in (r.usage, r.demand_low, r.limit):
        junk[:] = 1e30
    r.wait_ns[:], r.quality[:], r.present[:] = -1, 255, False
    backend.hal.sample(r)
    assert np.nanmax(r.usage) < 1e6 and r.present.any() and not (r.quality == 255).any()
    kept = r.copy()
    r.usage[:] = np.inf
    backend.tick()
    backend.hal.sample(r)
    assert not np.isinf(r.usage).any()
    assert not np.shares_memory(kept.usage, r.usage)


def test_claim_apply_and_read_back_agree(backend: Backend) -> None:
    hal = backend.hal
    assert len(claim(hal)) == 1
    plan, receipt = some_plan(hal), Receipt()
    hal.apply(plan, 0, receipt)
    assert receipt.done == len(plan) and not receipt.failures
    assert receipt.system_calls >= len(plan) and receipt.last_write_ns > 0
    now = held(hal)
    for control, vm, value in zip(plan.control, plan.vm, plan.value, strict=True):
        match Control(int(control)):
            case Control.CPUS:
                assert (now.cpus[vm] == plan.cpu_sets[value]).all()
            case Control.CPU:
                assert now.units[vm, Resource.CPU] == value
            case Control.WAYS:
                assert now.ways[vm] == value
                assert now.units[vm, Resource.CACHE] == int(value).bit_count()
            case Control.MEMORY:
                assert now.units[vm, Resource.MEMORY] == value
            case Control.IO:
                assert now.units[vm, Resource.IO] == value


def test_the_last_of_two_writes_to_one_knob_wins(backend: Backend) -> None:
    hal = backend.hal
    claim(hal)
    row = shared_rows(hal)[0]
    plan = Plan(
        np.full(3, Control.CPU, np.int8), np.full(3, row), np.array([9, 1, 4]), np.zeros((0, hal.topology.cpus), bool)
    )
    hal.apply(plan, 0, Receipt())
    assert held(hal).units[row, Resource.CPU] == 4


def test_read_back_of_some_rows_leaves_the_others(backend: Backend) -> None:
    hal = backend.hal
    row = int(shared_rows(hal)[1])
    into = Placement.empty(len(hal.vms), hal.topology.cpus)
    into.units[:] = -7
    hal.read_back(into, np.array([row]))
    assert (into.units[row] >= 0).all()
    assert (np.delete(into.units, row, axis=0) == -7).all()


def test_an_empty_plan_changes_nothing(backend: Backend) -> None:
    hal = backend.hal
    claim(hal)
    before = held(hal)
    receipt = Receipt(done=5, system_calls=5, last_write_ns=5)
    hal.apply(empty_plan(hal), 0, receipt)
    assert (receipt.done, receipt.system_calls, receipt.last_write_ns) == (0, 0, 0)
    assert (held(hal).units == before.units).all()


def test_a_deadline_in_the_past_does_nothing(backend: Backend) -> None:
    hal = backend.hal
    claim(hal)
    before, receipt = held(hal), Receipt()
    hal.apply(some_plan(hal), hal.clock.now_ns() - 1, receipt)
    assert receipt.done == 0 and not receipt.failures
    after = held(hal)
    assert (after.units == before.units).all() and (after.cpus == before.cpus).all()


def test_a_vm_that_vanished_is_absent_and_its_writes_are_gone(backend: Backend) -> None:
    if backend.vanish is None:
        pytest.skip("this backend cannot lose a VM on demand")
    hal, row = backend.hal, len(backend.hal.vms) - 1
    claim(hal)
    backend.reading()
    backend.tick()
    assert backend.reading().present[row]
    backend.vanish(row)
    backend.tick()
    r = backend.reading()
    assert not r.present[row] and r.present[:row].all()
    assert np.isnan(r.usage[row]).all()
    other = shared_rows(hal)[0]
    plan = Plan(
        np.full(2, Control.CPU, np.int8),
        np.array([row, other]),
        np.array([1, 2]),
        np.zeros((0, hal.topology.cpus), bool),
    )
    receipt = Receipt()
    hal.apply(plan, 0, receipt)
    assert receipt.done == 2
    assert [(f.index, f.gone) for f in receipt.failures] == [(0, True)]
    assert held(hal).units[other, Resource.CPU] == 2


def test_describe_has_a_line_for_each_write(backend: Backend) -> None:
    plan = some_plan(backend.hal)
    before = held(backend.hal)
    lines = backend.hal.describe(plan)
    assert len(lines) == len(plan) and all(line and "\n" not in line for line in lines)
    assert (held(backend.hal).units == before.units).all()
    assert backend.hal.describe(empty_plan(backend.hal)) == []


def test_close_puts_back_what_was_found_and_may_be_called_twice(backend: Backend) -> None:
    hal = backend.hal
    found = held(hal)
    claim(hal)
    hal.apply(some_plan(hal), 0, Receipt())
    if isinstance(hal, SimulatedHal | ReplayHal):
        assert (held(hal).units != found.units).any()
    hal.close()
    hal.close()
    if isinstance(hal, SimulatedHal | ReplayHal):  # a real backend's files are closed by now: its own tests look
        assert (held(hal).units == found.units).all() and (held(hal).ways == found.ways).all()


def test_time_does_not_go_back(backend: Backend) -> None:
    """Fault 36."""
    clock = backend.hal.clock
    a = clock.now_ns()
    clock.sleep_until(a + 2 * TICK_NS)
    b = clock.now_ns()
    assert b >= a + 2 * TICK_NS
    clock.sleep_until(a)
    assert clock.now_ns() >= b


def test_resources_are_the_four(backend: Backend) -> None:
    assert {RESOURCES[p.resource] for p in backend.hal.topology.pools} == set(RESOURCES)
