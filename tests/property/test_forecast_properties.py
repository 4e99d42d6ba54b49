"""Whatever a host shows, forecasts are finite, at least 0, in order, and nothing warns."""

from __future__ import annotations

import numpy as np
import pytest
from hosts import table, topology
from hypothesis import given, settings
from hypothesis import strategies as st

from foreshare.policies.analyzer import Analyzer, shipped_network
from foreshare.policies.forecast import Forecast
from foreshare.policies.forecast.history import HORIZONS, MOST, History, K, Q
from foreshare.policies.forecast.lstm import LstmModel
from foreshare.policies.forecast.mixture import Mixture
from foreshare.policies.forecast.models import SeriesModel
from foreshare.policies.forecast.network import NetworkModel
from foreshare.policies.forecast.quality import ForecastQuality
from foreshare.policies.host import Host, R
from foreshare.policies.reading import Quality, Reading
from foreshare.runtime.bench_forecast import random_lstm

VALUES = st.sampled_from([0.0, 1e-9, 0.02, 1.0, 7.5, 20.0, 1e5, 1e30, -3.0, np.nan, np.inf, -np.inf])
NETWORK = shipped_network()


def models(size: int) -> dict[str, SeriesModel]:
    return {
        "mixture": Mixture(size, NETWORK), "plain mixture": Mixture(size, None), "network": NetworkModel(NETWORK, size),
        "lstm": LstmModel(random_lstm(4), size),
    }  # fmt: skip


def answers_well(out: np.ndarray) -> None:
    assert np.isfinite(out).all()
    assert (out >= 0.0).all()
    assert (np.diff(out, axis=1) >= 0.0).all()


@settings(deadline=None, max_examples=25)
@given(
    st.lists(
        st.tuples(st.lists(VALUES, min_size=2 * R, max_size=2 * R), st.integers(0, 2**R - 1), st.booleans()),
        min_size=1, max_size=40,
    ),
)  # fmt: skip
def test_any_sequence_of_readings_has_an_answer(ticks: list[tuple[list[float], int, bool]]) -> None:
    size = 2 * R
    every = models(size)
    histories = {name: History(size) for name in every}
    quality = ForecastQuality(size)
    out = np.zeros((K, Q, size), np.float32)
    for values, marks, gap in ticks:
        censored = np.array([marks >> (i % R) & 1 for i in range(size)], bool)
        for name, model in every.items():
            histories[name].push(np.array(values), np.array(values[::-1]), censored, gap=gap)
            model.step(histories[name], out)
            answers_well(out)
            if name == "mixture":
                quality.update(histories[name], histories[name].five, out)
                answers_well(out)
                assert np.isfinite(quality.mase).all() and np.isfinite(quality.coverage).all()


@pytest.mark.parametrize("value", [0.0, 3.0, 1e5])
def test_a_constant_is_forecast_as_it_is(value: float) -> None:
    history, mixture = History(R), Mixture(R, NETWORK)
    out = np.zeros((K, Q, R), np.float32)
    for _ in range(600):
        history.push(np.full(R, value), np.zeros(R), np.zeros(R, bool))
        mixture.step(history, out)
    assert np.abs(out[:, 0] - value).max() <= 0.05 * value + 0.02
    assert (out[:, 1] <= 1.2 * value + 0.05).all()


def test_after_a_step_the_forecast_is_there_within_five_ticks() -> None:
    history, mixture = History(R), Mixture(R, NETWORK)
    out = np.zeros((K, Q, R), np.float32)
    rng = np.random.default_rng(1)
    for _ in range(600):
        history.push(rng.normal(2.0, 0.05, R), np.zeros(R), np.zeros(R, bool))
        mixture.step(history, out)
    for _ in range(5):
        history.push(rng.normal(8.0, 0.2, R), np.zeros(R), np.zeros(R, bool))
        mixture.step(history, out)
    assert np.abs(out[1, 0] / 8.0 - 1.0).max() < 0.1


def test_after_a_gap_nothing_is_learnt_from_what_was_said_before() -> None:
    history = History(R)
    for t in range(30):
        history.push(np.full(R, 2.0), np.zeros(R), np.zeros(R, bool), gap=t == 20)
    assert not history.judged(HORIZONS[2]).any()
    for _ in range(2):
        history.push(np.full(R, 2.0), np.zeros(R), np.zeros(R, bool))
    assert history.judged(HORIZONS[2]).all()


def reading_of(host_size: int, rng: np.random.Generator, t: int, dt_ns: int = 10_000_000) -> Reading:
    reading = Reading.empty(host_size)
    reading.t_ns, reading.dt_ns = t * 10_000_000, dt_ns
    reading.usage[:] = rng.exponential(1.0, reading.usage.shape)
    reading.demand_low[:] = reading.usage
    reading.limit[:] = np.inf
    reading.wait_ns[:] = 0.0
    reading.quality[:] = Quality.OK
    return reading


@settings(deadline=None, max_examples=15)
@given(st.lists(st.sampled_from(["fine", "missing", "reset", "jump", "backwards", "huge"]), min_size=5, max_size=40))
def test_the_analyzer_answers_through_every_fault(faults: list[str]) -> None:
    host = Host(topology(), table(3))
    analyzer, into = Analyzer(host), Forecast.empty(3)
    rng = np.random.default_rng(0)
    for t, fault in enumerate(faults):
        reading = reading_of(3, rng, t, {"jump": 10**12, "backwards": -5}.get(fault, 10_000_000))
        if fault in ("missing", "reset"):
            reading.usage[1] = reading.demand_low[1] = np.nan
            reading.quality[1] = Quality.MISSING | (Quality.RESET if fault == "reset" else Quality.OK)
        if fault == "huge":
            reading.usage[2] = reading.demand_low[2] = 10 * MOST
        analyzer.update(reading, into)
        assert np.isfinite(into.mean).all() and np.isfinite(into.upper).all()
        assert (into.upper >= into.mean - 1e-6).all()


def test_a_vm_never_seen_is_forecast_at_its_reservation() -> None:
    host = Host(topology(), table(2))
    analyzer, into = Analyzer(host), Forecast.empty(2)
    analyzer.update(Reading.empty(2), into)
    assert (into.mean == host.reservation).all() and (into.upper == host.reservation).all()
