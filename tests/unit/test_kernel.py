"""The compiled inner loops give what their numpy forms give, on hosts of every shape."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
from hosts import hosts
from hypothesis import given
from hypothesis import strategies as st

from foreshare.envs.simulator import host as simulator_host
from foreshare.envs.simulator.host import Simulator
from foreshare.envs.simulator.scenario import Scenario
from foreshare.envs.simulator.scenario_draw import draw
from foreshare.envs.simulator.suites import load_suite
from foreshare.policies import kernel
from foreshare.policies.allocators import Allocator, PrioritySort, Request, Triage, WaterFilling
from foreshare.policies.allocators.base import make_request
from foreshare.policies.backlog_forecast import BacklogForecaster, BacklogKnobs
from foreshare.policies.features import Encoder
from foreshare.policies.forecast import Forecast
from foreshare.policies.guard import Guard, GuardOptions
from foreshare.policies.host import Host
from foreshare.policies.reading import Quality, Reading
from foreshare.policies.registry import make_mind
from foreshare.policies.trust import Trust

if kernel.compiled is None:
    pytest.skip("nothing was compiled here: there is only one form", allow_module_level=True)
COMPILED, STEP = kernel.compiled, simulator_host.compiled_step


@pytest.fixture(autouse=True)
def compiled_again() -> Iterator[None]:
    yield
    use(True)


def use(compiled: bool) -> None:
    kernel.compiled, simulator_host.compiled_step = (COMPILED, STEP) if compiled else (None, None)


def in_batch(host: Host, count: int) -> Host:
    return Host(host.topology, host.vms, host.active, (count,))


def asked(rng: np.random.Generator, host: Host) -> Request:
    """Requests between next to nothing and far too much, some of them round numbers."""
    ask = np.clip(rng.exponential(rng.choice([2.0, 20.0, 80.0]), host.shape), host.floor, host.cap)
    ask = np.where(rng.random(host.shape) < 0.3, np.round(ask), ask)
    need = np.clip(ask * rng.random(host.shape), host.floor, host.cap)
    backlog = rng.exponential(30.0, host.shape) * (rng.random(host.shape) < 0.5)
    return Request(ask, need, backlog=backlog)


@pytest.mark.parametrize("kind", [Triage, WaterFilling, PrioritySort])
@given(host=hosts(), seed=st.integers(0, 2**32 - 1))
def test_allocators_agree_tick_by_tick(kind: type[Allocator], host: Host, seed: int) -> None:
    rng, batch = np.random.default_rng(seed), in_batch(host, 3)
    fast, reference = kind(), kind()
    for tick in range(8, 12):
        request = asked(rng, batch)
        use(True)
        got = fast.allocate(request, batch, tick)
        use(False)
        np.testing.assert_array_equal(got, reference.allocate(request, batch, tick))
        if isinstance(fast, Triage) and isinstance(reference, Triage):
            np.testing.assert_array_equal(fast.admitted, reference.admitted)
        if isinstance(fast, PrioritySort) and isinstance(reference, PrioritySort):
            np.testing.assert_array_equal(fast.refused, reference.refused)


@given(host=hosts(), seed=st.integers(0, 2**32 - 1), throttle=st.booleans())
def test_the_guard_agrees_whatever_is_proposed(host: Host, seed: int, throttle: bool) -> None:
    rng, batch = np.random.default_rng(seed), in_batch(host, 3)
    guard, triage = Guard(batch, GuardOptions(radius=float(rng.choice([0.0, 0.25, 0.6])))), Triage()
    held = np.broadcast_to(batch.reservation, batch.shape).copy()
    for _ in range(4):
        ask = asked(rng, batch).ask
        ask[rng.random(batch.shape) < 0.1] = np.nan
        proposal = rng.integers(-5, 2 * batch.cap + 5, batch.shape)
        frozen = rng.random(batch.shape[:-1]) < 0.3 if throttle else None
        anchor = triage.allocate(asked(rng, batch), batch, 1) if throttle else None
        use(True)
        got, changed = guard.admit(proposal, ask, held, frozen=frozen, anchor=anchor), (guard.changed, guard.raised)
        use(False)
        np.testing.assert_array_equal(got, guard.admit(proposal, ask, held, frozen=frozen, anchor=anchor))
        assert changed == (guard.changed, guard.raised)
        held = got


def spoiled(rng: np.random.Generator, host: Host) -> Reading:
    """A reading with everything that counters do: gaps, frozen ones, limits, waits, nonsense."""
    out, size = Reading.empty(len(host), host.batch), host.shape
    out.dt_ns = int(rng.choice([0, 10_000_000, 30_000_000]))
    out.limit[:] = np.where(rng.random(size) < 0.1, np.inf, rng.integers(0, 40, size))
    out.limit[rng.random(size) < 0.05] = np.nan
    out.usage[:] = np.minimum(rng.exponential(10.0, size), out.limit)
    out.usage[rng.random(size) < 0.1] = 0.0
    out.demand_low[:] = out.usage + rng.exponential(5.0, size) * (rng.random(size) < 0.4)
    out.usage[rng.random(size) < 0.05] = rng.choice([np.nan, -1.0, 1e30, np.inf])
    out.demand_low[rng.random(size) < 0.05] = np.nan
    out.wait_ns[:] = rng.exponential(1e7, size[:-1]) * (rng.random(size[:-1]) < 0.5)
    out.wait_ns[rng.random(size[:-1]) < 0.1] = np.nan
    out.quality[:] = np.where(rng.random(size) < 0.4, Quality.CENSORED, Quality.OK)
    return out


@given(host=hosts(), seed=st.integers(0, 2**32 - 1))
def test_estimate_and_forecast_agree_over_many_readings(host: Host, seed: int) -> None:
    rng, batch = np.random.default_rng(seed), in_batch(host, 3)
    knobs = BacklogKnobs(cache_share=0.5)
    fast, reference = BacklogForecaster(batch, knobs), BacklogForecaster(batch, knobs)
    a, b = (Forecast.empty(len(host), batch.batch) for _ in range(2))
    for _ in range(12):
        reading = spoiled(rng, batch)
        use(True)
        fast.update(reading, a)
        use(False)
        reference.update(reading, b)
        for name in ("mean", "upper", "clearing", "usage", "backlog", "delay_ticks"):
            np.testing.assert_allclose(getattr(a, name), getattr(b, name), rtol=1e-9, atol=1e-9, err_msg=name)
        np.testing.assert_allclose(fast.estimator.demand, reference.estimator.demand, rtol=1e-9, atol=1e-9)


@given(host=hosts(), seed=st.integers(0, 2**32 - 1))
def test_the_same_is_believed_and_asked(host: Host, seed: int) -> None:
    """Readings that stand still, are stale, lie together or cannot be; VMs that come and go."""
    rng, batch = np.random.default_rng(seed), in_batch(host, 3)
    fast, reference = Trust(batch), Trust(batch)
    a, b = (Request.empty(len(host), batch.batch) for _ in range(2))
    reading = spoiled(rng, batch)
    for tick in range(16):
        if tick == 8:
            host = Host(host.topology, host.vms, rng.random(len(host)) < 0.7)
            batch = in_batch(host, 3)
            for trust in (fast, reference):
                trust.rebind(batch, np.arange(len(host)))
        new = spoiled(rng, batch)
        kept = rng.random(batch.shape) < rng.choice([0.0, 0.5, 1.0])  # what stands still
        for name in ("usage", "demand_low", "quality"):
            np.copyto(getattr(new, name), getattr(reading, name), where=kept)
        new.quality[rng.random(batch.shape) < 0.1] |= np.uint8(Quality.STALE)
        new.usage[rng.random(batch.shape) < 0.1] = 0.0
        new.present[:] = rng.random(len(host)) < 0.9
        reading = new
        held = rng.integers(0, host.cap + 1, batch.shape)
        forecast = Forecast.empty(len(host), batch.batch)
        for name in ("mean", "upper", "clearing", "usage", "backlog"):
            getattr(forecast, name)[:] = rng.exponential(20.0, batch.shape)
        forecast.unsure[:] = rng.random(batch.shape[:-1]) < 0.2
        forecast.exact = tick % 5 == 4
        forecast.mean[rng.random(batch.shape) < 0.05] = np.nan
        use(True)
        got = fast.check(reading, held)
        make_request(forecast, batch, got, 1.05, a)
        fast.entitle(a, got)
        use(False)
        wanted = reference.check(reading, held)
        make_request(forecast, batch, wanted, 1.05, b)
        reference.entitle(b, wanted)
        for name in ("usage", "demand_low", "wait_ns", "quality"):
            np.testing.assert_array_equal(getattr(got, name), getattr(wanted, name), err_msg=name)
        for name in ("ask", "need", "usage", "backlog", "delay_ticks"):
            np.testing.assert_allclose(getattr(a, name), getattr(b, name), rtol=1e-12, err_msg=name)
        np.testing.assert_array_equal(fast.doubted_vms(reading.present), reference.doubted_vms(reading.present))


@given(host=hosts(), seed=st.integers(0, 2**32 - 1))
def test_features_agree(host: Host, seed: int) -> None:
    rng, batch = np.random.default_rng(seed), in_batch(host, 3)
    mind = make_mind("triage", batch)
    request = asked(rng, batch)
    for name in ("ask", "need", "backlog"):
        np.copyto(getattr(mind.request, name), getattr(request, name))
    use(True)
    got = Encoder(mind).encode()
    use(False)
    for fast, reference in zip(got, Encoder(mind).encode(), strict=True):
        np.testing.assert_allclose(fast, reference, rtol=1e-6, atol=1e-6)


STANDARD = load_suite("standard")
SCENARIOS = [STANDARD.at(s, "over") for s in STANDARD.scenarios]
SCENARIOS += [draw(seed) for seed in range(6)]


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: f"{s.name}-{s.load:.2f}")
def test_the_simulated_hosts_agree_tick_by_tick(scenario: Scenario) -> None:
    rng = np.random.default_rng(7)
    use(True)
    fast, reference = Simulator(scenario, hosts=2, seed=3), Simulator(scenario, hosts=2, seed=3)
    cap = reference.model.vms.cap
    for t in range(120):
        if t % 3 == 0:
            units = np.maximum(rng.integers(0, cap + 1, (2, *cap.shape)) // rng.integers(1, len(cap) + 1), 1)
            units[..., 1] *= rng.random((2, len(cap))) < 0.5
        for simulator, compiled in ((fast, True), (reference, False)):
            use(compiled)
            simulator.command(units)
            simulator.step()
            simulator.counters.collect()
        for name in ("backlog", "served", "ways", "need", "used", "demand", "served_total"):
            got, wanted = getattr(fast, name), getattr(reference, name)
            np.testing.assert_allclose(got, wanted, rtol=1e-7, atol=1e-9, err_msg=f"{name} in tick {t}")
        for name in ("usage", "demand_low", "limit", "wait_ns"):
            got, wanted = getattr(fast.counters, name), getattr(reference.counters, name)
            least = 1e-3 if name == "wait_ns" else 1e-9
            np.testing.assert_allclose(got, wanted, rtol=1e-7, atol=least, err_msg=f"{name} in tick {t}")
        np.testing.assert_array_equal(fast.counters.quality & Quality.MISSING, reference.counters.quality & 1)
    np.testing.assert_allclose(fast.lateness.late_total, reference.lateness.late_total, rtol=1e-7, atol=1e-9)
    # A queue that is empty but for rounding counts as one that did not run dry (requests.py).
    np.testing.assert_allclose(fast.latency.mean_ticks(), reference.latency.mean_ticks(), rtol=1e-4)
    np.testing.assert_allclose(fast.utilisation.pct(), reference.utilisation.pct(), rtol=1e-7)


@pytest.mark.parametrize("bad", ["short", "type", "strided", "rows"])
def test_arrays_that_do_not_fit_are_refused(bad: str) -> None:
    host = draw_host()
    packed, ask, out = kernel.tables(host).copy(), np.ones(host.shape), np.zeros(host.shape, np.int64)
    if bad == "short":
        ask = ask[:-1]
    elif bad == "type":
        ask = ask.astype(np.float32)  # type: ignore[assignment]
    elif bad == "strided":
        ask = np.ones((len(host), 8))[:, ::2]
    else:
        packed[-1] = len(host)
    with pytest.raises(ValueError, match=r"array|tables|contiguous"):
        COMPILED.water_fill(packed, 1, ask, out)


def draw_host() -> Host:
    model = Simulator(draw(1)).model
    return Host(model.topology, model.vms)


def test_a_variable_takes_the_numpy_forms() -> None:
    program = "from foreshare.policies import kernel; print(kernel.kind())"
    env = {**os.environ, kernel.VARIABLE: "numpy"}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "numpy"
