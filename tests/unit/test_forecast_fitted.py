"""Fitted models on a host: what forecast fit wrote is loaded, checked, used, and told apart when it is bad."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from forecasting import random_network
from hosts import table, topology

from foreshare.policies.analyzer import Analyzer
from foreshare.policies.decide import UNHURRIED
from foreshare.policies.errors import InputError
from foreshare.policies.forecast import Forecast
from foreshare.policies.forecast.fitted import last_value_matrices, load_fitted
from foreshare.policies.forecast.history import History, K, Q
from foreshare.policies.forecast.lstm import INPUTS, WEIGHTS, LstmModel
from foreshare.policies.forecast.margins import WithMargins
from foreshare.policies.forecast.mixture import Mixture
from foreshare.policies.forecast.points import Last
from foreshare.policies.host import CPU, Host, R
from foreshare.policies.reading import Quality, Reading
from foreshare.runtime.asking import open_mind
from foreshare.runtime.forecast_watch import EVERY, ForecastWatch

N = 3


def write_lstm(folder: Path) -> None:
    shapes = ((16, INPUTS), (16, 4), (16,), (K * Q, 4), (K * Q,))
    rng = np.random.default_rng(0)
    np.savez(folder / "lstm.npz", **{n: rng.normal(0.0, 0.2, s) for n, s in zip(WEIGHTS, shapes, strict=True)})


def write_arima(folder: Path, uuid: list[str], decay: float) -> None:
    """Around 4, what is left of a deviation after each tick."""
    matrices = last_value_matrices(len(uuid) * R, 1)
    matrices["transition"][:] = decay
    matrices["offset"][:] = 4.0
    np.savez(folder / "arima-here.npz", **matrices)
    (folder / "arima.json").write_text(json.dumps({"sessions": [{"name": "here", "all_vms": uuid}]}))


def reading(cpu: float) -> Reading:
    out = Reading.empty(N)
    out.t_ns, out.dt_ns = 1, 10_000_000
    out.usage[:] = [cpu, 1.0, 1.0, 1.0]
    out.demand_low[:] = out.usage
    out.limit[:] = np.inf
    out.wait_ns[:] = 0.0
    out.quality[:] = Quality.OK
    return out


def test_each_kind_of_weights_is_used(tmp_path: Path) -> None:
    host = Host(topology(), table(N))
    write_lstm(tmp_path)
    assert isinstance(Analyzer(host, fitted=load_fitted(tmp_path)).model, LstmModel)
    np.savez(tmp_path / "network.npz", **random_network())
    assert isinstance(Analyzer(host, fitted=load_fitted(tmp_path)).model, Mixture)


def test_arima_goes_to_the_vm_that_it_was_fitted_to(tmp_path: Path) -> None:
    host = Host(topology(), table(N))
    write_arima(tmp_path, [host.vms.uuid[1]], decay=0.5)
    analyzer, into = Analyzer(host, fitted=load_fitted(tmp_path)), Forecast.empty(N)
    for _ in range(10):
        analyzer.update(reading(6.0), into)
    quantiles = analyzer.quantiles.reshape(K, Q, N, R)
    assert quantiles[0, 0, :, CPU] == pytest.approx([6.0, 4.0 + 0.5 * 2.0, 6.0], abs=0.3)
    analyzer.rebind(Host(topology(), table(N)), np.array([0, -1, 1]))
    analyzer.update(reading(6.0), into)
    quantiles = analyzer.quantiles.reshape(K, Q, N, R)
    assert quantiles[0, 0, :, CPU] == pytest.approx([6.0, 6.0, 5.0], abs=0.5), "who is new: the last value"


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds neither"):
        load_fitted(tmp_path)
    write_arima(tmp_path, ["a", "b"], decay=0.5)
    (tmp_path / "arima.json").write_text(json.dumps({"sessions": [{"name": "here", "all_vms": ["a"]}]}))
    with pytest.raises(InputError, match="not those of its VMs"):
        load_fitted(tmp_path)
    (tmp_path / "arima.json").write_text("[]")
    with pytest.raises(InputError, match="no record"):
        load_fitted(tmp_path)


def test_a_policy_that_does_not_forecast_with_them_refuses_them(tmp_path: Path) -> None:
    write_lstm(tmp_path)
    host = Host(topology(), table(N))
    assert isinstance(open_mind("triage-mixture", host, UNHURRIED, forecast=str(tmp_path)).forecaster, Analyzer)
    with pytest.raises(InputError, match="triage-mixture does"):
        open_mind("triage", host, UNHURRIED, forecast=str(tmp_path))
    with pytest.raises(InputError, match="holds neither"):
        open_mind("triage-mixture", host, UNHURRIED, forecast=str(tmp_path / "none"))


def test_margins_are_learnt() -> None:
    rng, history, model = np.random.default_rng(1), History(R), WithMargins(Last(), R)  # type: ignore[arg-type] # not rebound
    out, over = np.zeros((K, Q, R), np.float32), []
    for t in range(4000):
        y = rng.gamma(4.0, 1.0, R)
        if t > 2000:
            over.append(y <= out[0, 1])
        history.push(y, y * 0.0, np.zeros(R, bool))
        model.step(history, out)
        assert (np.diff(out, axis=1) >= 0.0).all()
    assert np.mean(over) == pytest.approx(0.9, abs=0.03)


class Heard:
    def __init__(self) -> None:
        self.events: list[tuple[str, int, str]] = []

    def on_event(self, kind: str, vm: int, text: str) -> None:
        self.events.append((kind, vm, text))

    def on_tick(self, tick: object) -> None: ...


def test_a_forecast_gone_bad_is_told_of_and_summed_up() -> None:
    analyzer, heard = Analyzer(Host(topology(), table(N))), Heard()
    watch = ForecastWatch(analyzer, ["a", "b", "c"], [heard])
    into = Forecast.empty(N)
    rng = np.random.default_rng(2)
    for _ in range(40):
        analyzer.update(reading(float(rng.gamma(3.0, 1.0))), into)

    class At:
        number = 0

    def look() -> None:
        At.number += EVERY
        watch.on_tick(At())  # type: ignore[arg-type] # no more of a tick is looked at

    look()
    assert not heard.events
    analyzer.quality.bad[:] = np.arange(N * R) == 2 * R
    look()
    analyzer.quality.bad[:] = False
    look()
    vm = heard.events[0][1]
    assert [(kind, row) for kind, row, _ in heard.events] == [("forecast-bad", vm), ("forecast-good", vm)]
    assert "cpu" in heard.events[0][2]
    rows = watch.summary()
    assert {row["vm"] for row in rows} == {"a", "b", "c"}
    assert sum(row["bad_pct"] > 0 for row in rows) == 1
