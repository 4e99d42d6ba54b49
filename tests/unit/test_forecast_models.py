"""Forecasters against the libraries that fitted them, against plain arithmetic, and against each other."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from forecasting import random_network

from foreshare.policies.errors import InputError
from foreshare.policies.forecast.autoregression import Autoregression
from foreshare.policies.forecast.climate import AT_LEVELS, BETWEEN, SINCE
from foreshare.policies.forecast.features import F, FeatureMaker
from foreshare.policies.forecast.history import FLOOR, HORIZONS, WINDOW, History, K, Q
from foreshare.policies.forecast.lstm import INPUTS, Lstm, LstmModel
from foreshare.policies.forecast.mixture import Mixture
from foreshare.policies.forecast.network import NetworkModel, QuantileNetwork
from foreshare.policies.forecast.points import Seasonal
from foreshare.policies.forecast.quality import MIN_JUDGED, ForecastQuality
from foreshare.policies.forecast.statespace import LinearStateSpace, exponential_smoothing, state_space_of
from foreshare.policies.host import R
from foreshare.training.forecast.export import torch_lstm, torch_network
from foreshare.training.forecast.sequences import LstmModule


def quiet(size: int) -> np.ndarray:
    return np.zeros(size, bool)


def run(history: History, rows: np.ndarray) -> None:
    for row in rows:
        history.push(row, row * 0.25, quiet(history.size))


def test_running_means_are_the_means_of_the_ring() -> None:
    rows = np.random.default_rng(0).exponential(2.0, (700, 2 * R))
    history = History(2 * R)
    run(history, rows)
    np.testing.assert_allclose(history.mean(3, 100), rows[-100:-3].mean(axis=0))
    np.testing.assert_allclose(history.demand(40), rows[-40:].astype(np.float32))
    truth = np.zeros((K, 2 * R), np.float32)
    history.truth(truth)
    np.testing.assert_allclose(truth[1], rows[-5:].mean(axis=0), rtol=1e-6)
    usual = 0.5 * (rows[-20:].mean(axis=0) + history.slow)
    np.testing.assert_allclose(history.scale, np.maximum(usual, FLOOR), rtol=1e-5)


def test_a_series_that_appears_has_its_first_value_as_its_past() -> None:
    history = History(R)
    run(history, np.full((5, R), np.nan))
    history.push(np.full(R, 4.0), np.zeros(R), quiet(R))
    np.testing.assert_allclose(history.demand(WINDOW - 1), 4.0)
    np.testing.assert_allclose(history.mean(0, 200), 4.0)


def test_smoothing_follows_its_definition() -> None:
    y = np.random.default_rng(1).exponential(1.0, 60)
    alpha, beta, phi = 0.4, 0.1, 0.9
    one = np.ones(1)
    model = exponential_smoothing(y[:1], alpha * one, beta * one, phi * one)
    level, trend = y[0], 0.0
    out = np.zeros((K, 1))
    for value in y:
        model.update(np.array([value]))
        error = value - level - phi * trend
        level, trend = level + phi * trend + alpha * error, phi * trend + beta * error
    model.forecast(out)
    ahead = [level + sum(phi**i for i in range(1, j + 1)) * trend for j in range(1, 11)]
    for k, h in enumerate(HORIZONS):
        assert out[k, 0] == pytest.approx(np.mean(ahead[h.ahead - h.width : h.ahead]))


@pytest.mark.parametrize("order", [(2, 0, 1), (1, 1, 1)])
def test_the_recursion_reproduces_the_librarys_forecast(order: tuple[int, int, int]) -> None:
    statespace = pytest.importorskip("statsmodels.tsa.statespace.sarimax")
    rng = np.random.default_rng(3)
    y = np.zeros(400)
    for t in range(2, 400):
        y[t] = 1.0 + 0.6 * y[t - 1] - 0.2 * y[t - 2] + rng.normal()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its optimiser
        fitted = statespace.SARIMAX(y[:300], order=order, trend="n").fit(disp=False)
    ssm, filtered = fitted.model.ssm, fitted.filter_results
    selection = ssm["selection"]
    mine = LinearStateSpace(
        transition=ssm["transition"][None], design=ssm["design"], state=filtered.predicted_state[:, -1][None],
        covariance=filtered.predicted_state_cov[:, :, -1][None],
        noise=(selection @ ssm["state_cov"] @ selection.T)[None],
    )  # fmt: skip
    out = np.zeros((K, 1))
    for t in range(300, 330):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = fitted.append(y[300 : t + 1]).forecast(10)
        mine.update(y[t : t + 1])
        mine.forecast(out)
        for k, h in enumerate(HORIZONS):
            assert out[k, 0] == pytest.approx(theirs[h.ahead - h.width : h.ahead].mean(), abs=1e-6)


def test_a_fitted_arima_goes_on_as_the_library_would() -> None:
    models = pytest.importorskip("statsforecast.models")
    from foreshare.training.forecast.baselines import arima_matrices

    rng = np.random.default_rng(4)
    y = np.zeros(300)
    for t in range(1, 300):
        y[t] = 0.5 + 0.7 * y[t - 1] + rng.normal()
    z, transition, noise, state, covariance, offset, slope = arima_matrices(y)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = models.AutoARIMA(season_length=1, ic="aicc").fit(y).predict(10)["mean"]
    weights = {
        "design": z[None], "transition": transition[None], "noise": noise[None], "state": state[None],
        "covariance": covariance[None], "offset": np.array([offset + slope * len(y)]), "slope": np.array([slope]),
    }  # fmt: skip
    mine, out = state_space_of(weights), np.zeros((K, 1))
    mine.forecast(out)
    for k, h in enumerate(HORIZONS):
        assert out[k, 0] == pytest.approx(theirs[h.ahead - h.width : h.ahead].mean(), abs=1e-6)
    with pytest.raises(InputError, match="has no slope"):
        state_space_of({k: v for k, v in weights.items() if k != "slope"})


def test_the_network_in_numpy_is_the_one_in_torch() -> None:
    weights = random_network()
    history, features = History(2 * R), FeatureMaker(2 * R)
    run(history, np.random.default_rng(2).exponential(2.0, (300, 2 * R)))
    out = np.zeros((K, Q, 2 * R), np.float32)
    NetworkModel(QuantileNetwork(weights), 2 * R).step(history, out)
    with torch.no_grad():
        theirs = torch_network(weights)(torch.from_numpy(features.make(history).T.copy())).numpy()
    np.testing.assert_allclose(out / history.scale, theirs.transpose(1, 2, 0), atol=1e-5, rtol=1e-5)


def test_the_lstm_in_numpy_is_the_one_in_torch() -> None:
    torch.manual_seed(0)
    weights = LstmModule(8).arrays()
    lstm, size, steps = Lstm(weights), 6, 50
    x = np.random.default_rng(3).exponential(1.0, (steps, INPUTS, size)).astype(np.float32)
    h, c = np.zeros((8, size), np.float32), np.zeros((8, size), np.float32)
    out = np.zeros((steps, K, Q, size), np.float32)
    for t in range(steps):
        lstm.refresh(x[t], h, c, np.ones(size, np.float32), out[t])
    with torch.no_grad():
        theirs = torch_lstm(weights)(torch.from_numpy(x.transpose(2, 0, 1).copy())).numpy()
    np.testing.assert_allclose(out, theirs.transpose(1, 2, 3, 0), atol=1e-5)


@pytest.mark.filterwarnings("ignore")  # of the exporter, about itself
@pytest.mark.parametrize("model", ["network", "lstm"])
def test_onnx_answers_as_torch_does(model: str, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from foreshare.training.forecast.export import export_onnx

    torch.manual_seed(1)
    weights = random_network() if model == "network" else LstmModule(4).arrays()
    export_onnx(model, weights, tmp_path / "m.onnx")
    rng = np.random.default_rng(0)
    x = rng.exponential(1.0, (7, F) if model == "network" else (7, 12, INPUTS)).astype(np.float32)
    (got,) = runtime.InferenceSession(str(tmp_path / "m.onnx")).run(None, {"x": x})
    with torch.no_grad():
        theirs = (torch_network if model == "network" else torch_lstm)(weights)(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(got, theirs, atol=1e-5, rtol=1e-5)


def test_a_season_is_found_and_continued() -> None:
    t = np.arange(400)
    rows = np.repeat((2.0 + np.sin(2 * np.pi * t / 16))[:, None], R, axis=1)
    history, model, out = History(R), Seasonal(R, every=4), np.zeros((K, R), np.float32)
    for row in rows:
        history.push(row, row * 0.0, quiet(R))
        model.step(history, out)
    assert (model.period == 16).all()
    ahead = 2.0 + np.sin(2 * np.pi * (400 + np.arange(10)) / 16)
    for k, h in enumerate(HORIZONS):
        np.testing.assert_allclose(out[k], ahead[h.ahead - h.width : h.ahead].mean(), atol=1e-3)


def test_an_autoregression_learns_what_is_linear() -> None:
    rng = np.random.default_rng(5)
    history, model, out = History(R), Autoregression(R), np.zeros((K, R), np.float32)
    y, errors, naive = np.full(R, 5.0), [], []
    for t in range(6000):
        before, last = out[0].copy(), y
        y = 5.0 - 0.6 * (y - 5.0) + rng.normal(0.0, 0.2, R)
        if t > 3000:
            errors.append(np.abs(y - before).mean())
            naive.append(np.abs(y - last).mean())
        history.push(y, y * 0.0, quiet(R))
        model.learn(history)
        model.predict(history, out)
    assert np.mean(errors) < 0.6 * np.mean(naive)


def test_the_climate_has_the_quantiles_of_the_past() -> None:
    rng, history = np.random.default_rng(6), History(R)
    rows = rng.exponential(1.0, (9600, R))
    run(history, rows)
    five = np.lib.stride_tricks.sliding_window_view(rows, 5, axis=0).mean(axis=-1)
    for row, level in zip(history.climate[AT_LEVELS], (0.5, 0.9, 0.99), strict=True):
        np.testing.assert_allclose(row, np.quantile(five, level), rtol=0.15)


def test_the_climate_knows_the_rhythm_of_bursts() -> None:
    history = History(R)
    for t in range(2000):
        history.push(np.full(R, 40.0 if t % 97 == 0 else 0.0), np.zeros(R), quiet(R))
    np.testing.assert_allclose(history.climate[BETWEEN], 97.0, rtol=0.1)
    np.testing.assert_allclose(history.climate[SINCE], 1999 % 97)


def mixture_after(rows: np.ndarray, network: QuantileNetwork | None) -> np.ndarray:
    """Hosts of one VM each, side by side."""
    history, mixture = History(rows.shape[1]), Mixture(rows.shape[1], network)
    out = np.zeros((K, Q, rows.shape[1]), np.float32)
    for row in rows:
        history.push(row, row * 0.1, quiet(len(row)))
        mixture.step(history, out)
    return out


def test_a_host_is_forecast_alike_whichever_stand_beside_it() -> None:
    rows = np.random.default_rng(7).exponential(2.0, (400, 3 * R))
    network = QuantileNetwork(random_network())
    together = mixture_after(rows, network)
    alone = mixture_after(rows[:, R : 2 * R], network)
    np.testing.assert_allclose(together[:, :, R : 2 * R], alone, rtol=1e-4, atol=1e-5)


def test_quantiles_cover_what_they_should() -> None:
    rng = np.random.default_rng(8)
    history, mixture, said = History(R), Mixture(R, None), []
    out = np.zeros((K, Q, R), np.float32)
    rows = rng.gamma(2.0, 1.0, (6000, R))
    for row in rows:
        history.push(row, row * 0.0, quiet(R))
        mixture.step(history, out)
        said.append(out[0, 1].copy())
    assert np.mean(rows[3001:] <= np.array(said)[3000:-1]) == pytest.approx(0.9, abs=0.02)


def test_what_is_censored_is_never_evidence_against_a_higher_quantile() -> None:
    history, mixture = History(R), Mixture(R, None)
    out = np.zeros((K, Q, R), np.float32)
    for t in range(800):
        censored = np.full(R, t > 300)
        history.push(np.full(R, 4.0 if t <= 300 else 2.0), np.zeros(R), censored)
        mixture.step(history, out)
        if t == 300:
            factor = mixture.factor.copy()
    assert (mixture.factor >= factor - 1e-6).all()


def test_a_forecast_that_has_gone_bad_is_replaced_and_comes_back() -> None:
    history, quality, out = History(R), ForecastQuality(R), np.zeros((K, Q, R), np.float32)
    truth = np.zeros((K, R), np.float32)
    rng = np.random.default_rng(9)
    for t in range(4000):
        history.push(rng.normal(3.0, 0.1, R), np.zeros(R), quiet(R))
        history.truth(truth)
        out[:, 0], out[:, 1], out[:, 2] = (9.0, 9.5, 10.0) if t < 1000 else (3.0, 3.2, 3.5)
        quality.update(history, truth[1], out)
        if t == MIN_JUDGED * 3:
            assert quality.bad.all()
            np.testing.assert_allclose(out[1, 0], history.newest, rtol=1e-6)
    assert not quality.bad.any()
    assert (quality.against_last < 1.2).all()


def test_another_set_of_vms_keeps_what_was_learnt() -> None:
    network = QuantileNetwork(random_network())
    rows = np.random.default_rng(10).exponential(2.0, (300, 3 * R))
    history, mixture = History(3 * R), Mixture(3 * R, network)
    out = np.zeros((K, Q, 3 * R), np.float32)
    for row in rows:
        history.push(row, row * 0.1, quiet(3 * R))
        mixture.step(history, out)
    order = np.array([2, -1, 0])
    moved, carried = history.rebind(order, ()), mixture.rebind(order, (), 3 * R)
    row = np.random.default_rng(11).exponential(2.0, 3 * R)
    history.push(row, row * 0.1, quiet(3 * R))
    mixture.step(history, out)
    kept = row.reshape(3, R)[[2, 1, 0]].ravel()
    again = np.zeros_like(out)
    moved.push(kept, kept * 0.1, quiet(3 * R))
    carried.step(moved, again)
    np.testing.assert_allclose(again[:, :, :R], out[:, :, 2 * R :], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(again[:, :, 2 * R :], out[:, :, :R], rtol=1e-4, atol=1e-5)


def test_weights_that_do_not_fit_are_refused() -> None:
    weights = random_network()
    with pytest.raises(InputError, match="other features"):
        QuantileNetwork({**weights, "w1": weights["w1"][:, 1:]})
    with pytest.raises(InputError, match="'b3' is missing"):
        QuantileNetwork({k: v for k, v in weights.items() if k != "b3"})
    with pytest.raises(InputError, match="finite"):
        QuantileNetwork({**weights, "b1": np.full_like(weights["b1"], np.nan)})
    with pytest.raises(InputError, match="LSTM"):
        Lstm({**LstmModule(4).arrays(), "d": np.zeros(3, np.float32)})


def test_the_lstm_stands_between_refreshes() -> None:
    model = LstmModel(Lstm(LstmModule(4).arrays()), R)
    history, out = History(R), np.zeros((K, Q, R), np.float32)
    seen = []
    for row in np.random.default_rng(12).exponential(2.0, (8, R)):
        history.push(row, row * 0.1, quiet(R))
        model.step(history, out)
        seen.append(out.copy())
    assert (seen[3] == seen[4]).all() and (seen[4] != seen[5]).any()
