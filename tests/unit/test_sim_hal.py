"""What the simulated backend does beyond the contract of all backends."""

from __future__ import annotations

import errno
import pickle

import numpy as np
import pytest

from foreshare.envs.hal import Control, Plan, Receipt
from foreshare.envs.hal.simulated import MAX_CATCH_UP_TICKS, SimulatedHal
from foreshare.envs.simulator.scenario import load_scenario
from foreshare.policies.errors import HalError
from foreshare.policies.host import Isolation, Resource
from foreshare.policies.reading import Reading

TICK = 10_000_000


def opened(vms: int = 6, **more: object) -> SimulatedHal:
    hal = SimulatedHal(load_scenario("mixed", vms=vms), **more)  # type: ignore[arg-type] # keywords by name
    hal.claim(lambda doc: None)
    return hal


def plan(hal: SimulatedHal, *writes: tuple[Control, int, int], sets: np.ndarray | None = None) -> Plan:
    control, vm, value = zip(*writes, strict=True)
    none = np.zeros((0, hal.topology.cpus), bool)
    return Plan(np.array(control, np.int8), np.array(vm), np.array(value), none if sets is None else sets)


def test_the_virtual_clock_steps_the_host_tick_by_tick() -> None:
    hal = opened()
    start = hal.clock.now_ns()
    hal.clock.sleep_until(start + 7 * TICK + 3)
    assert hal.simulator.t == 7
    hal.clock.sleep_until(start)
    assert hal.simulator.t == 7 and hal.clock.now_ns() == start + 7 * TICK + 3


def test_a_plan_is_in_force_in_the_next_tick() -> None:
    hal = opened()
    apart = np.flatnonzero(hal.vms.isolation == Isolation.ISOLATED)[0]
    shared = np.flatnonzero(hal.vms.isolation == Isolation.SHARED)[0]
    sets = np.zeros((2, hal.topology.cpus), bool)
    sets[0, :3], sets[1, 3:5] = True, True
    hal.apply(
        plan(
            hal, (Control.CPUS, apart, 0), (Control.CPUS, shared, 1), (Control.CPU, shared, 35),
            (Control.WAYS, apart, 0b1100), (Control.MEMORY, shared, 5), (Control.IO, shared, 6), sets=sets,
        ), 0, Receipt(),
    )  # fmt: skip
    hal.clock.sleep_until(hal.clock.now_ns() + TICK)
    now = hal.simulator.holding[0]
    assert now[apart, Resource.CPU] == 30 and now[apart, Resource.CACHE] == 2
    assert now[shared].tolist() == [20, 0, 5, 6], "a quota buys no more than the CPUs of the set"


@pytest.mark.parametrize(
    "write",
    [
        (Control.CPU, 1, -1), (Control.CPU, 1, 10**6), (Control.MEMORY, 1, 10**6), (Control.IO, 1, 10**6),
        (Control.WAYS, 1, 0b101), (Control.WAYS, 1, 1 << 40), (Control.WAYS, 1, -4), (Control.CPUS, 1, 0),
        (Control.CPUS, 1, 9), (Control.CPUS, 1, -1),
    ],
)  # fmt: skip
def test_what_a_kernel_would_refuse_is_refused_and_the_rest_is_done(write: tuple[Control, int, int]) -> None:
    hal = opened()
    before = hal.simulator.commanded.copy()
    receipt = Receipt()
    empty_set = np.zeros((1, hal.topology.cpus), bool)
    hal.apply(plan(hal, write, (Control.IO, 1, 2), sets=empty_set), 0, receipt)
    assert [(f.index, f.errno, f.gone) for f in receipt.failures] == [(0, errno.EINVAL, False)]
    after = hal.simulator.commanded.copy()
    assert after[0, 1, Resource.IO] == 2
    after[0, 1, Resource.IO] = before[0, 1, Resource.IO]
    assert (after == before).all()


def test_writes_need_a_claim() -> None:
    hal = SimulatedHal(load_scenario("mixed", vms=3))
    with pytest.raises(HalError) as e:
        hal.apply(plan(hal, (Control.IO, 0, 1)), 0, Receipt())
    assert e.value.errno == errno.EPERM
    assert str(pickle.loads(pickle.dumps(e.value))) == str(e.value)


def test_truth_is_a_copy_and_figures_start_at_zero() -> None:
    hal = opened()
    assert hal.slo() == 0 and hal.utilisation() == 0
    hal.clock.sleep_until(hal.clock.now_ns() + 50 * TICK)
    hal.truth[:] = -1
    assert (hal.truth >= 0).all() and hal.truth.shape == (6, 4)
    assert 0 <= hal.slo() <= 100 and 0 < hal.utilisation() <= 100


def test_no_vms_at_all() -> None:
    hal = opened(0)
    r = Reading.empty(0)
    hal.sample(r)
    hal.clock.sleep_until(hal.clock.now_ns() + 5 * TICK)
    hal.sample(r)
    assert hal.slo() == 0 and hal.utilisation() == 0 and hal.truth.shape == (0, 4)


class Hand:
    """A clock moved by hand, in place of the kernel's."""

    def __init__(self, now: int) -> None:
        self.now = now

    def now_ns(self) -> int:
        return self.now

    def sleep_until(self, t_ns: int) -> None:
        self.now = max(self.now, t_ns)


def test_in_real_time_each_wake_up_is_one_tick_in_spite_of_jitter() -> None:
    hal = opened(realtime=True)
    clock = hal.clock = Hand(5 * 10**9)
    r = Reading.empty(6)
    hal.sample(r)
    rng = np.random.default_rng(0)
    for i in range(1, 50):
        clock.now = 5 * 10**9 + i * TICK + int(rng.integers(-4_000_000, 4_900_000))
        hal.sample(r)
        assert hal.simulator.t == i and np.isfinite(r.usage).any()
    clock.now += 4 * TICK
    hal.sample(r)
    assert 52 <= hal.simulator.t <= 54
    before = hal.simulator.t
    clock.now += 100 * MAX_CATCH_UP_TICKS * TICK
    hal.sample(r)
    assert hal.simulator.t == before + 1
    clock.now += TICK
    hal.sample(r)
    assert hal.simulator.t == before + 2
