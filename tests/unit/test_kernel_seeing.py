"""What a learned policy sees, what is made of its answer, how it is assessed: compiled as in numpy, tick by tick."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hosts import hosts
from hypothesis import given, settings
from hypothesis import strategies as st

from foreshare.policies import kernel
from foreshare.policies.allocators import Request, Triage
from foreshare.policies.allocators.corrected import ACTIONS, Corrected
from foreshare.policies.assess import Assessor
from foreshare.policies.deadlines import MOST_TICKS, Deadlines
from foreshare.policies.decide import Mind
from foreshare.policies.features import Encoder
from foreshare.policies.host import Host
from foreshare.policies.reading import Quality, Reading
from foreshare.policies.registry import make_mind

if kernel.compiled is None:
    pytest.skip("nothing was compiled here: there is only one form", allow_module_level=True)
COMPILED = kernel.compiled
BATCHES: tuple[tuple[int, ...], ...] = ((), (3,))


@pytest.fixture(autouse=True)
def compiled_again() -> Iterator[None]:
    yield
    kernel.compiled = COMPILED


def asked(rng: np.random.Generator, host: Host) -> Request:
    ask = np.clip(rng.exponential(rng.choice([2.0, 20.0, 80.0]), host.shape), host.floor, host.cap)
    need = np.clip(ask * rng.uniform(0.2, 1.2, host.shape), host.floor, host.cap)
    some = rng.random(host.shape[:-1]) < 0.6
    backlog = rng.exponential(30.0, host.shape) * some[..., None]
    return Request(ask, need, need * rng.random(host.shape), backlog, rng.exponential(5.0, host.shape[:-1]) * some)


@pytest.mark.parametrize("batch", BATCHES, ids=["one host", "three"])
@settings(max_examples=30)
@given(host=hosts(), seed=st.integers(0, 2**32 - 1))
def test_deadlines_agree(batch: tuple[int, ...], host: Host, seed: int) -> None:
    rng = np.random.default_rng(seed)
    host = Host(host.topology, host.vms, host.active, batch)
    fast, reference = Deadlines(10.0), Deadlines(10.0)
    for tick in range(MOST_TICKS + 12):
        if tick == 30:  # other rows
            order = rng.permutation(len(host))
            host = Host(host.topology, host.vms.take(order), host.active[order], batch)
        request = asked(rng, host)
        kernel.compiled = COMPILED
        fast.update(request, host)
        kernel.compiled = None
        reference.update(request, host)
        for name in ("overdue", "rates", "rate"):
            np.testing.assert_allclose(getattr(fast, name), getattr(reference, name), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("batch", BATCHES, ids=["one host", "three"])
@settings(max_examples=30)
@given(host=hosts(), seed=st.integers(0, 2**32 - 1))
def test_what_is_seen_agrees(batch: tuple[int, ...], host: Host, seed: int) -> None:
    rng = np.random.default_rng(seed)
    host = Host(host.topology, host.vms, host.active, batch)
    minds = [make_mind("triage", host) for _ in range(2)]
    encoders = [Encoder(mind) for mind in minds]
    for tick in range(8):
        if tick == 5:
            order = rng.permutation(len(host))
            host = Host(host.topology, host.vms.take(order), rng.random(len(host)) < 0.8, batch)
            for mind in minds:
                mind.rebind(host)
        request, held = asked(rng, host), rng.integers(0, host.cap + 1, host.shape)
        unsure = rng.random(host.shape[:-1]) < 0.5
        if tick == 3:
            request.backlog[rng.random(host.shape) < 0.3] *= 1e30
            request.delay_ticks[rng.random(host.shape[:-1]) < 0.3] = np.inf
        seen = []
        for mind, encoder, module in zip(minds, encoders, (COMPILED, None), strict=True):
            kernel.compiled = module
            for name in ("ask", "need", "usage", "backlog", "delay_ticks"):
                np.copyto(getattr(mind.request, name), getattr(request, name))
            np.copyto(mind.forecast.unsure, unsure)
            mind.held = held.copy()
            mind.deadlines.update(mind.request, host)
            mind._due = True
            seen.append(encoder.encode())
        for fast, reference in zip(*seen, strict=True):
            np.testing.assert_allclose(fast, reference, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("batch", BATCHES, ids=["one host", "three"])
@pytest.mark.parametrize("kind", [np.float64, np.float32])
@settings(max_examples=30)
@given(host=hosts(), seed=st.integers(0, 2**32 - 1))
def test_corrections_agree(batch: tuple[int, ...], kind: type[np.floating], host: Host, seed: int) -> None:
    rng = np.random.default_rng(seed)
    host = Host(host.topology, host.vms, host.active, batch)
    fast, reference = Corrected(Triage()), Corrected(Triage())
    for tick in range(4):
        request = asked(rng, host)
        action = rng.normal(0.0, 2.0, (*host.shape[:-1], ACTIONS)).astype(kind)
        action[rng.random(action.shape) < 0.05] = rng.choice([np.nan, np.inf, -np.inf])
        fast.action = reference.action = np.zeros_like(action) if tick == 2 else action
        kernel.compiled = COMPILED
        got = fast._correct(request, host)
        kernel.compiled = None
        wanted = reference._correct(request, host)
        assert (got is None) == (wanted is None)
        if got is None or wanted is None:
            continue
        np.testing.assert_allclose(got, wanted, rtol=1e-9)
        np.testing.assert_allclose(fast._asked.ask, reference._asked.ask, rtol=1e-9)
        np.testing.assert_allclose(fast._asked.need, reference._asked.need, rtol=1e-9)


@pytest.mark.parametrize("batch", BATCHES, ids=["one host", "three"])
@settings(max_examples=30)
@given(host=hosts(), seed=st.integers(0, 2**32 - 1))
def test_assessments_agree(batch: tuple[int, ...], host: Host, seed: int) -> None:
    rng = np.random.default_rng(seed)
    host = Host(host.topology, host.vms, host.active, batch)
    fast, reference, due, triage = Assessor(host), Assessor(host), Deadlines(10.0), Triage()
    for tick in range(12):
        request = asked(rng, host)
        due.update(request, host)
        policy = rng.integers(0, 3 * host.cap + 1, host.shape)
        given_out = policy * rng.random(host.shape) if tick % 2 else policy
        default = triage.allocate(request, host, tick)
        reading = spoiled(rng, host)
        for assessor, module in ((fast, COMPILED), (reference, None)):
            kernel.compiled = module
            assessor.propose(given_out, default, due)
            assessor.score(reading)
        assert np.isclose(fast.mean, reference.mean, rtol=1e-9, atol=1e-12)
        assert np.isclose(fast._square, reference._square, rtol=1e-9, atol=1e-12)


def spoiled(rng: np.random.Generator, host: Host) -> Reading:
    out, size = Reading.empty(len(host), host.batch), host.shape
    out.usage[:] = rng.exponential(10.0, size)
    out.demand_low[:] = out.usage + rng.exponential(5.0, size) * (rng.random(size) < 0.4)
    out.usage[rng.random(size) < 0.1] = rng.choice([0.0, np.nan, np.inf])
    out.demand_low[rng.random(size) < 0.1] = np.nan
    out.quality[:] = np.where(rng.random(size) < 0.4, Quality.CENSORED, Quality.OK)
    return out


def test_who_shares_a_mind_shares_its_deadlines() -> None:
    from foreshare.envs.simulator.host import Simulator
    from foreshare.envs.simulator.scenario import load_scenario

    model = Simulator(load_scenario("mixed"), hosts=1, seed=0).model
    host = Host(model.topology, model.vms)
    mind: Mind = make_mind("triage", host)
    mind.assess_against(Triage())
    one, two = Encoder(mind), Encoder(mind)
    before = mind.deadlines
    for first, second in zip(one.encode(), two.encode(), strict=True):
        np.testing.assert_array_equal(first, second)
    assert mind.deadlines is before
