"""A tick in few compiled calls decides to the bit what it decides step by step, and refuses what is none."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
from hosts import hosts, table, topology
from hypothesis import given, settings
from hypothesis import strategies as st

from foreshare.envs.hal.plan import Planner, build_plan
from foreshare.policies import kernel
from foreshare.policies.allocators import Request, Triage
from foreshare.policies.backlog_forecast import BacklogForecaster
from foreshare.policies.decide import UNHURRIED, Mind, decide_tick
from foreshare.policies.features import _KEPT_AT, VM_FEATURES
from foreshare.policies.guard import Guard
from foreshare.policies.host import Host, IntArray, Placement
from foreshare.policies.learned.network import Network
from foreshare.policies.learned.policy import Learned
from foreshare.policies.learned.weights import Widths
from foreshare.policies.placement import Placer
from foreshare.policies.reading import Quality, Reading
from foreshare.policies.trust import Trust

if kernel.compiled is None:
    pytest.skip("nothing was compiled here: there is only one form", allow_module_level=True)


class Steps(BacklogForecaster):
    """The same, but another class: its mind goes step by step."""


class StepByStep(Triage):
    """Triage under a correction that corrects nothing, which one call does not take."""

    def allocate(self, request: Request, host: Host, tick: int) -> IntArray:
        self.favour = np.ones(len(host))
        return super().allocate(request, host, tick)


class Apart(Mind):
    """A mind that does not know its own request: whoever sees with it sees step by step."""

    def asks(self, request: Request) -> bool:
        return False


def read(rng: np.random.Generator, host: Host, reading: Reading) -> None:
    """What a host may say, some of it missing, stale, impossible or a lie."""
    shape, kind = host.shape, rng.random(host.shape)
    reading.dt_ns = int(rng.choice([10_000_000, 10_000_001, 0], p=[0.6, 0.35, 0.05]))
    reading.t_ns += 10_000_000
    usage = rng.exponential(rng.choice([2.0, 20.0, 80.0]), shape)
    usage[kind < 0.1] = 0.0
    usage[(kind > 0.1) & (kind < 0.15)] = np.nan
    usage[(kind > 0.15) & (kind < 0.15 + 0.1 * (rng.random() < 0.3))] = rng.choice([-1.0, 1e9, np.inf])
    reading.usage[:] = np.where(rng.random(shape) < 0.2, reading.usage, usage)
    reading.demand_low[:] = reading.usage * rng.uniform(1.0, 1.5, shape)
    reading.limit[:] = rng.choice([np.inf, 20.0], shape)
    reading.wait_ns[:] = rng.exponential(1e6, len(host))
    reading.quality[:] = rng.choice(
        [0, Quality.STALE, Quality.CENSORED, Quality.MISSING], shape, p=[0.7, 0.1, 0.15, 0.05]
    )
    reading.present[:] = rng.random(len(host)) < 0.95


def network(seed: int, deep: bool) -> Network:
    widths = Widths(encoder=9, context=5, head=7) if deep else Widths(encoder=0, context=0, head=0)
    return Network.random(seed, widths, gain=1.0)


def minds(host: Host, seed: int, policy: str) -> list[Mind]:
    if policy == "triage":
        return [Mind(host, BacklogForecaster(host), Triage(), UNHURRIED, default=Triage()),
                Mind(host, Steps(host), StepByStep(), UNHURRIED, default=Triage())]  # fmt: skip
    net = network(seed, policy == "deep")
    return [Mind(host, BacklogForecaster(host), Learned(Triage(), net), UNHURRIED),
            Apart(host, Steps(host), Learned(Triage(), net), UNHURRIED)]  # fmt: skip


@pytest.mark.parametrize("policy", ["triage", "linear", "deep"])
@settings(max_examples=15)
@given(host=hosts(), seed=st.integers(0, 2**32 - 1))
def test_few_calls_decide_what_many_do(policy: str, host: Host, seed: int) -> None:
    rng = np.random.default_rng(seed)
    both, reading = minds(host, seed, policy), Reading.empty(len(host))
    for tick in range(14):
        if tick in (6, 11):
            order = rng.permutation(len(host))
            host = Host(host.topology, host.vms.take(order), rng.random(len(host)) < 0.9)
            for mind in both:
                mind.rebind(host)
        if tick == 9:
            for mind in both:
                mind.pinned[: len(host) // 3] = True
        if tick == 12:  # another array in its place
            for mind in both:
                mind.held = mind.held.copy()
        read(rng, host, reading)
        for mind in both:
            mind.rests = True
        fast, slow = (decide_tick(mind, reading) for mind in both)
        for one, other in zip(*(vars_of(mind) for mind in both), strict=True):
            np.testing.assert_array_equal(one, other)
        np.testing.assert_array_equal(fast.contended, slow.contended)
        np.testing.assert_array_equal(fast.placement.cpus, slow.placement.cpus)
        np.testing.assert_array_equal(fast.placement.ways, slow.placement.ways)
        assert (fast.fault_kind, fast.by_policy) == (slow.fault_kind, slow.by_policy)
        for mind in both:
            mind.assess()


def vars_of(mind: Mind) -> list[np.ndarray]:
    q, f, d, r = mind.request, mind.forecast, mind.deadlines, mind._checked
    seen = [] if r is None else [r.usage, r.demand_low, r.wait_ns, r.quality]
    return [q.ask, q.need, q.usage, q.backlog, q.delay_ticks, f.mean, f.upper, f.clearing, f.unsure, d.rates, d.rate,
            d.overdue, mind.held, mind.decision.placement.units, *seen]  # fmt: skip


def test_a_rehearsal_leaves_no_trace() -> None:
    rng, host = np.random.default_rng(1), Host(topology(), table(6))
    rehearsed, other = (minds(host, 3, "linear")[0] for _ in range(2))
    reading = Reading.empty(6)
    for _ in range(20):
        rehearsed.rehearse(reading)
        read(rng, host, reading)
        decide_tick(rehearsed, reading)
        decide_tick(other, reading)
        np.testing.assert_array_equal(rehearsed.held, other.held)


def test_what_is_remembered_is_not_copied() -> None:
    memo = kernel.Memo()
    twin = copy.deepcopy(memo)
    assert twin.held is not memo.held
    host, reading = Host(topology(), table(3)), Reading.empty(3)
    mind = minds(host, 0, "triage")[0]
    decide_tick(mind, reading)
    copy.deepcopy((mind.policy, mind.forecaster, mind.guard, mind.placer))


def test_a_lie_is_missing_in_the_copy_alone() -> None:
    host, reading = Host(topology(), table(3)), Reading.empty(3)
    reading.dt_ns, reading.quality[:], reading.usage[:], reading.demand_low[:] = 10**7, 0, 2.0, 2.0
    reading.usage[1, 0] = 1e12
    mind = minds(host, 0, "triage")[0]
    mind.rests = True
    decide_tick(mind, reading)
    assert reading.usage[1, 0] == 1e12
    assert mind._checked is not None
    assert np.isnan(mind._checked.usage[1, 0])
    assert np.isnan(mind._checked.usage).sum() == 1
    assert mind.trust.doubted_vms(reading.present).sum() == 0
    assert isinstance(mind.trust, Trust)


def test_plans_of_one_planner_are_those_of_fresh_ones() -> None:
    rng, host = np.random.default_rng(4), Host(topology(zones=2), table(9, zone=[0, 1, 0] * 3, isolation=[0, 1, 2] * 3))
    planner, placer = Planner(), minds(host, 0, "triage")[0].placer
    state, targets = Placement.empty(9, host.topology.cpus), [Placement.empty(9, host.topology.cpus) for _ in range(2)]
    for tick in range(12):
        target = targets[tick % 5 == 0]
        placer.place(np.minimum(host.reservation + host.granule * rng.integers(0, 2, (9, 1)), host.cap), target)
        got, wanted = planner.build(host, state, target), build_plan(host, state, target)
        for name in ("control", "vm", "value", "cpu_sets"):
            np.testing.assert_array_equal(getattr(got, name), getattr(wanted, name))
        assert got.whole == wanted.whole
        state.copy_from(target)


@pytest.mark.parametrize("n", [31, 32, 33, 70, 150])
def test_more_vms_than_are_sorted_at_once(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(n)
    host = Host(topology(cores=2 * n, memory=4 * n, io=3 * n), table(n, priority=rng.integers(0, 3, n).tolist()))
    triage, guard, placer = [[kind() for _ in range(2)] for kind in (Triage, lambda: Guard(host), lambda: Placer(host))]
    into, held = [Placement.empty(n, host.topology.cpus) for _ in range(2)], host.reservation
    for tick in range(6):
        ask = np.clip(np.round(rng.exponential(20.0, host.shape), int(rng.integers(0, 3))), host.floor, host.cap)
        request = Request(ask, np.clip(0.8 * ask, host.floor, None), backlog=rng.exponential(9.0, host.shape))
        given_out = []
        for i, module in enumerate((kernel.compiled, None)):
            with monkeypatch.context() as patch:
                patch.setattr(kernel, "compiled", module)
                units = guard[i].admit(triage[i].allocate(request, host, tick), ask, held)
                placer[i].place(units, into[i])
            given_out.append((units, triage[i].admitted.copy(), into[i].units, into[i].cpus, into[i].ways))
        for one, other in zip(*given_out, strict=True):
            np.testing.assert_array_equal(one, other)
        held = given_out[0][0]


def short(arrays: tuple[object, ...]) -> tuple[object, ...]:
    return arrays[:-1]


def other_type(arrays: tuple[object, ...]) -> tuple[object, ...]:
    return (*arrays[:-1], np.zeros(np.asarray(arrays[-1]).shape, np.complex128))


def no_tables(arrays: tuple[object, ...]) -> tuple[object, ...]:
    return (np.full(3, 2), *arrays[1:])


@pytest.mark.parametrize("spoil", [short, other_type, no_tables])
def test_what_is_no_tick_is_refused(spoil: Callable[[tuple[object, ...]], tuple[object, ...]]) -> None:
    module = kernel.compiled
    assert module is not None
    host, r = Host(topology(), table(3)), Reading.empty(3)
    mind = minds(host, 0, "linear")[0]
    decide_tick(mind, r)
    policy, q, out = mind.policy, mind.request, np.zeros(host.shape, np.int64)
    assert isinstance(policy, Learned)
    assert mind._foresight is not None
    assert mind._conclusion is not None
    policy.base.allocate(q, host, 0)
    reading = r.usage, r.demand_low, r.limit, r.wait_ns, r.quality, r.present
    rest = False, False, 10**7, 10.0, 0.5, 1.05, 0
    for _ in range(2):  # a memo that refused is as good as new
        memo = kernel.Memo().held
        with pytest.raises(ValueError, match=r"arra|tables"):
            module.foresee(memo, spoil(mind._foresight._arrays), *reading, *rest)
        with pytest.raises(ValueError, match=r"arra|tables"):
            module.consult(memo, spoil(policy._arrays), 2.5, out)
        with pytest.raises(ValueError, match=r"arra|tables"):
            module.serve(memo, spoil(policy.base._kept), q.ask, q.need, q.backlog, out)
        with pytest.raises(ValueError, match=r"arra|tables"):
            module.conclude(memo, spoil(mind._conclusion._arrays), out, None, True, 0.0)
        with pytest.raises(ValueError, match=r"arra|layout"):
            module.settle(memo, spoil(mind.placer._arrays), out)  # type: ignore[union-attr]
        module.consult(memo, policy._arrays, 2.5, out)
    columns = tuple(a + len(VM_FEATURES) if a is _KEPT_AT else a for a in policy._arrays)  # type: ignore[operator]
    with pytest.raises(ValueError, match="tables"):
        module.consult(kernel.Memo().held, columns, 2.5, out)
    with pytest.raises(ValueError, match="slot"):
        module.foresee(kernel.Memo().held, mind._foresight._arrays, *reading, *rest[:-1], 64)
    with pytest.raises(ValueError, match="Capsule"):
        module.conclude(object(), mind._conclusion._arrays, out, None, True, 0.0)
    with pytest.raises(TypeError, match="argument"):
        module.consult(memo)  # type: ignore[call-arg]
