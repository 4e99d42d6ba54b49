"""The compiled ring and mixture give what their numpy forms give, tick after tick."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import numpy as np
import pytest
from forecasting import random_network

from foreshare.policies import kernel
from foreshare.policies.forecast.features import FeatureMaker
from foreshare.policies.forecast.history import History, K, Q
from foreshare.policies.forecast.lstm import LstmModel
from foreshare.policies.forecast.mixture import Mixture
from foreshare.policies.forecast.network import QuantileNetwork
from foreshare.policies.host import R
from foreshare.runtime.bench_forecast import random_lstm

if kernel.compiled is None:
    pytest.skip("nothing was compiled here: there is only one form", allow_module_level=True)
COMPILED = kernel.compiled


@pytest.fixture(autouse=True)
def compiled_again() -> Iterator[None]:
    yield
    kernel.compiled = COMPILED


def ticks(size: int, count: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, bool]]:
    """Demand with bursts, steps, zeros, holes, values that are none; what waits; what is censored; gaps."""
    rng = np.random.default_rng(seed)
    level = rng.exponential(3.0, size) * (rng.random(size) < 0.8)
    for t in range(count):
        if t % 300 == 299:
            level = rng.permutation(level) * rng.choice([0.2, 1.0, 6.0])
        demand = level * rng.gamma(3.0, 1 / 3, size) * np.where(rng.random(size) < 0.02, 30.0, 1.0)
        if t % 2:
            demand = np.where(rng.random(size) < 0.01, rng.choice([np.nan, -1.0, np.inf, 1e9]), demand)
        waiting = np.where(rng.random(size) < 0.01, np.nan, level * rng.choice([0.0, 0.2]))
        yield demand, waiting, rng.random(size) < 0.05, bool(rng.random() < 0.01)


@pytest.mark.parametrize("hidden", [None, (7, 6), (32, 32)])
@pytest.mark.parametrize("vms", [1, 5, 17, 33])
def test_both_forms_say_the_same(hidden: tuple[int, int] | None, vms: int) -> None:
    size = vms * R
    network = QuantileNetwork(random_network(*hidden)) if hidden else None
    pair = [(History(size), Mixture(size, network), np.zeros((K, Q, size), np.float32)) for _ in range(2)]
    for t, (demand, waiting, censored, gap) in enumerate(ticks(size, 700, vms)):
        for (history, mixture, out), compiled in zip(pair, (COMPILED, None), strict=True):
            kernel.compiled = compiled
            history.push(demand, waiting, censored, gap=gap)
            mixture.step(history, out)
            mixture.touch(history)  # reads only
        ours, theirs = pair
        np.testing.assert_allclose(ours[2], theirs[2], rtol=2e-3, atol=2e-3, err_msg=f"tick {t}")
        for name in ("seen", "clean", "loose", "age"):
            np.testing.assert_array_equal(getattr(ours[0], name), getattr(theirs[0], name), err_msg=name)
    for name in ("climate", "slow", "scale"):
        np.testing.assert_allclose(getattr(ours[0], name), getattr(theirs[0], name), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(ours[1].weights, theirs[1].weights, atol=2e-2)
    np.testing.assert_allclose(ours[1].weights.sum(axis=0), 1.0, atol=1e-4)


def test_both_forms_show_the_same() -> None:
    size = 18 * R
    pair = [(History(size), FeatureMaker(size)) for _ in range(2)]
    for t, (demand, waiting, censored, gap) in enumerate(ticks(size, 600, 3)):
        for (history, maker), compiled in zip(pair, (COMPILED, None), strict=True):
            kernel.compiled = compiled
            history.push(demand, waiting, censored, gap=gap)
            maker.make(history)
        np.testing.assert_allclose(pair[0][1].out, pair[1][1].out, rtol=2e-3, atol=2e-3, err_msg=f"tick {t}")


def test_an_empty_host_has_an_answer() -> None:
    history, mixture, out = History(0), Mixture(0, None), np.zeros((K, Q, 0), np.float32)
    for _ in range(20):
        mixture.touch(history)
        history.push(np.zeros(0), np.zeros(0), np.zeros(0, bool))
        mixture.step(history, out)


def test_arrays_that_do_not_fit_are_refused() -> None:
    history, mixture = History(R), Mixture(R, None)
    with pytest.raises(ValueError, match="numbers"):
        history.push(np.zeros(R + 1), np.zeros(R), np.zeros(R, bool))
    with pytest.raises(ValueError, match="numbers"):
        history.push(np.zeros(R), np.zeros(R, np.int64), np.zeros(R, bool))
    history.push(np.zeros(R), np.zeros(R), np.zeros(R, bool))
    with pytest.raises(ValueError, match="bytes"):
        mixture.step(history, np.zeros((K, Q, R + 1), np.float32))
    options, out = np.zeros(19, np.float32), np.zeros((K, Q, R), np.float32)
    with pytest.raises(ValueError, match="mixture"):
        COMPILED.hold_mixture((1, 2), R, R)
    with pytest.raises(ValueError, match="history"):
        COMPILED.hold_history((1,))
    with pytest.raises(ValueError, match="LSTM"):
        COMPILED.hold_lstm((1,), R)
    with pytest.raises(ValueError, match="row"):
        COMPILED.push(history.held, 1 << 20, 0, False, False, np.zeros(R), np.zeros(R), np.zeros(R, bool))
    with pytest.raises(ValueError, match="history"):
        COMPILED.mix(History(2 * R).held, 0, mixture._hold(), 1, options, out)
    with pytest.raises(ValueError, match="name"):
        COMPILED.mix(mixture._hold(), 0, history.held, 1, options, out)


@pytest.mark.parametrize("hidden", [3, 16])
@pytest.mark.parametrize("vms", [1, 17, 33])
def test_both_forms_of_the_lstm_say_the_same(hidden: int, vms: int) -> None:
    size = vms * R
    pair = [(History(size), LstmModel(random_lstm(hidden), size), np.zeros((K, Q, size), np.float32)) for _ in "12"]
    for t, (demand, waiting, censored, gap) in enumerate(ticks(size, 300, vms)):
        for (history, model, out), compiled in zip(pair, (COMPILED, None), strict=True):
            kernel.compiled = compiled
            history.push(demand, waiting, censored, gap=gap)
            model.step(history, out)
        np.testing.assert_allclose(pair[0][2], pair[1][2], rtol=1e-4, atol=1e-4, err_msg=f"tick {t}")


def test_a_copy_goes_its_own_way() -> None:
    size = 3 * R
    history, mixture, out = History(size), Mixture(size, None), np.zeros((K, Q, size), np.float32)
    ones, none = np.ones(size), np.zeros(size, bool)
    history.push(ones, ones, none)
    mixture.step(history, out)
    others = copy.deepcopy((history, mixture))
    before = others[0].newest.copy(), others[1].weights.copy()
    for _ in range(30):
        history.push(5 * ones, ones, none)
        mixture.step(history, out)
    np.testing.assert_array_equal(others[0].newest, before[0])
    np.testing.assert_array_equal(others[1].weights, before[1])
