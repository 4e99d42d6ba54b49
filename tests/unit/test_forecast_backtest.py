"""Fitting and judging: nothing of the future is seen, scores are what they say, and the commands work."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from foreshare.envs.hal.recording import RecordingWriter, read_host, recording_metadata
from foreshare.envs.simulator.scenario import load_scenario
from foreshare.envs.world import SimulatedWorld
from foreshare.policies.analyzer import Analyzer, shipped_network
from foreshare.policies.decide import UNHURRIED
from foreshare.policies.errors import InputError, TraceError
from foreshare.policies.host import CPU, IO, Host, R
from foreshare.policies.registry import make_mind
from foreshare.runtime.cli import main
from foreshare.training.forecast.apart import groups_of, run_apart
from foreshare.training.forecast.backtest import BacktestOptions, run_backtest
from foreshare.training.forecast.dataset import Session, load_session, load_sessions, truths
from foreshare.training.forecast.fit import FitOptions, collect
from foreshare.training.forecast.public_traces import import_trace
from foreshare.training.forecast.scores import coverage, gain, pinball
from foreshare.training.forecast.summary import summarise
from foreshare.training.forecast.weights import Fitted, load_fitted, read_arrays

DATA = Path(__file__).parents[1] / "recordings" / "data"
ALONE = DATA / "seed3-redis"


@pytest.fixture(scope="module")
def session() -> Session:
    return load_session(ALONE)


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first 1200 ticks of a recording."""
    from foreshare.envs.hal.recording import read_recording

    out = tmp_path_factory.mktemp("recordings") / "short"
    recording, host = read_recording(ALONE), read_host(ALONE)
    facts = recording_metadata(host.topology, host.vms, hal=host.hal, tick_ns=host.tick_ns, boot_id=host.boot_id,
                               monotonic_ns=host.monotonic_ns, utc_ns=host.utc_ns)  # fmt: skip
    with RecordingWriter(out, facts) as writer:
        fields = ("t_ns", "usage", "demand_low", "limit", "wait_ns", "quality", "present")
        writer.append({name: getattr(recording, name)[:1200] for name in fields})
    return out


def cut(session: Session, ticks: int) -> Session:
    return dataclasses.replace(
        session, **{name: getattr(session, name)[:ticks] for name in ("demand", "waiting", "censored", "gap")}
    )


def test_the_recordings_that_ship_are_whole() -> None:
    sessions = load_sessions([DATA])
    assert len(sessions) == 8
    assert len({u for s in sessions for u in s.uuid}) == 7
    assert all(s.tick_ms == 10.0 and s.ticks > 8000 for s in sessions)


def test_truth_is_the_mean_of_the_ticks_it_names(session: Session) -> None:
    truth, t = truths(session), 5000
    demand = session.demand
    np.testing.assert_allclose(truth.value[t, 0, CPU], demand[t + 1, CPU], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(truth.value[t, 1, CPU], demand[t + 1 : t + 6, CPU].mean(), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(truth.value[t, 2, CPU], demand[t + 6 : t + 11, CPU].mean(), rtol=1e-5, atol=1e-5)
    assert not truth.known[-1].any()
    late = int(np.flatnonzero(session.gap)[-1])
    assert not truth.known[late - 1].any()


def test_samples_never_reach_beyond_the_split(session: Session) -> None:
    whole = collect(cut(session, 2000), 0.5)
    changed = cut(session, 2000)
    changed.demand[1000:] = 99.0
    again = collect(changed, 0.5)
    assert len(whole.x) == len(again.x) > 100
    np.testing.assert_array_equal(whole.x, again.x)
    np.testing.assert_array_equal(whole.y, again.y)


def test_pinball_and_coverage_follow_their_formulas() -> None:
    y, q = np.array([3.0, 1.0], np.float32), np.array([[2.0, 4.0, 5.0], [2.0, 4.0, 5.0]], np.float32)
    loss = pinball(y, q, np.array([False, True]))
    np.testing.assert_allclose(loss, [[0.5, 0.1, 0.02], [0.0, 0.0, 0.0]], atol=1e-6)
    np.testing.assert_array_equal(coverage(y, q), [[0, 1, 1], [1, 1, 1]])
    idle = coverage(np.zeros(1, np.float32), np.zeros((1, 3), np.float32))
    np.testing.assert_allclose(idle, [[0.5, 0.9, 0.99]], rtol=1e-6)
    seldom = coverage(
        np.array([0.0] * 8 + [1.0] * 2, np.float32), np.tile(np.array([0.0, 0.0, 2.0], np.float32), (10, 1))
    )
    np.testing.assert_allclose(seldom.mean(axis=0), [0.5, 0.8, 1.0], rtol=1e-6)
    tied = coverage(np.full(1, 3.0, np.float32), np.full((1, 3), 3.0, np.float32))
    np.testing.assert_allclose(tied, np.array([[0.5, 0.9, 0.99]]) / 0.995, rtol=1e-6)


def test_gain_is_paired_over_programs() -> None:
    theirs = np.array([1.0, 2.0, 4.0, 8.0])
    share, low, high = gain(0.8 * theirs, theirs, np.array([0, 0, 1, 2]))
    assert share == pytest.approx(0.2) and low == pytest.approx(0.2) and high == pytest.approx(0.2)


def test_a_backtest_has_the_promised_keys(session: Session) -> None:
    options = BacktestOptions(models=("last", "ewma", "holt", "ar", "seasonal", "network", "mixture"))
    done = run_backtest([cut(session, 3000)], options, Fitted(network=shipped_network()))
    result = summarise(done)
    for rows in result["models"].values():
        for horizon in ("50", "100"):
            assert {"mase", "pinball_q50", "pinball_q90", "pinball_q99", "coverage_q90"} <= rows[horizon].keys()
    assert result["series"] >= 1 and result["programs"] == 1 and result["censored_share"] == 0.0
    assert set(result["gain"]["50"]) == set(result["gain_by_vm"][session.uuid[0]]["50"]) == {"q50", "q90", "q99"}
    assert set(result["gain_by_resource"]) == set(result["resources"])
    covered = result["coverage_by_vm"][session.uuid[0]]["50"]
    assert set(covered) == {"all", *result["resources"]} and result["coverage_by_vm_worst"] is None  # so few ticks
    assert covered["all"]["ticks"] == sum(covered[r]["ticks"] for r in result["resources"])
    assert covered["cpu"]["q50"] < covered["cpu"]["q90"] < covered["cpu"]["q99"] <= 1.0
    assert result["models"]["mixture"]["50"]["pinball_q90"] < result["models"]["last"]["50"]["pinball_q90"]


def test_the_commands_fit_and_judge(short: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = tmp_path / "weights"
    fit = ["forecast", "fit", str(short), "--out", str(weights), "--epochs", "1", "--hidden", "4", "--json"]
    assert main([*fit, "--model", "lstm"]) == 2  # so short a recording
    assert "too few" in capsys.readouterr().err
    options = FitOptions(hidden=4, epochs=1, batch=256)
    from foreshare.training.forecast.weights import fit_and_write

    record = fit_and_write([load_session(short)], "network", options, weights)
    assert record["sessions"][0]["fitted_to_ticks"] == 720
    assert load_fitted(weights).network is not None
    report = tmp_path / "report.html"
    back = ["forecast", "backtest", str(short), "--weights", str(weights), "--report", str(report), "--json"]
    assert main([*back, "--models", "last,network,mixture"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert set(said["models"]) == {"last", "network", "mixture"}
    assert "<svg" in report.read_text() and "Forecast backtest" in report.read_text()
    assert main(["forecast", "backtest", str(short), "--models", "last"]) == 0
    assert "MASE" in capsys.readouterr().out


def test_programs_are_held_apart(session: Session) -> None:
    names = [f"{letter}{session.uuid[0][1:]}" for letter in "bac"]
    short = cut(session, 1500)
    three = [dataclasses.replace(short, name=name, uuid=(name,)) for name in names]
    groups = groups_of(three, 2)
    assert sorted(u for group in groups for u in group) == sorted(names) and len(groups) == 2
    told: list[str] = []
    options = BacktestOptions(models=("ewma", "network", "mixture"))
    done = run_apart(three, 2, options, FitOptions(hidden=4, epochs=1, batch=256), progress=told.append)
    assert sum(text.startswith("without") for text in told) == 2
    assert {s.uuid for s in done.series} == set(names)
    assert summarise(done)["programs"] == 3
    with pytest.raises(InputError, match="there are 3 VMs"):
        groups_of(three, 4)


def test_an_lstm_is_fitted(session: Session) -> None:
    from foreshare.training.forecast.fit import fit_lstm

    arrays, scores = fit_lstm([session], FitOptions(hidden=4, epochs=1, batch=192, split=0.6))
    assert arrays["u"].shape == (16, 4) and scores["validation_loss"] > 0


@pytest.mark.timeout(240)
def test_actors_fit_the_same_lstm(session: Session) -> None:
    from foreshare.training.forecast.fit import fit_lstm

    two = [session, dataclasses.replace(session, name="another", uuid=tuple(f"x{u}" for u in session.uuid))]
    options = FitOptions(hidden=4, epochs=1, batch=192)
    here, scores = fit_lstm(two, options)
    told: list[str] = []
    there, others = fit_lstm(two, dataclasses.replace(options, workers=3), told.append)
    assert told[0].startswith("2 actors, not 3"), "never more than can begin"
    assert others["samples"] == scores["samples"]
    assert others["validation_loss"] == pytest.approx(scores["validation_loss"], rel=0.05)
    assert there["u"].shape == here["u"].shape


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["backtest", "nowhere"], "holds no recording"),
        (["backtest", str(ALONE), "--models", "oracle"], "no model named 'oracle'"),
        (["backtest", str(ALONE), "--models", "lstm"], "has no weights"),
        (["backtest", str(ALONE), "--weights", str(DATA)], "holds neither"),
        (["backtest", str(ALONE), "--apart", "2"], "there are 1 VMs"),
        (["backtest", str(ALONE), "--apart", "2", "--only", "a"], "do not go with it"),
        (["backtest", str(ALONE), "--also", str(ALONE)], "goes with --apart"),
    ],
)
def test_wrong_input_is_one_line(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["forecast", *arguments]) == 2
    assert says in capsys.readouterr().err.splitlines()[-1]


def test_weights_are_never_pickles(tmp_path: Path) -> None:
    path = tmp_path / "network.npz"
    np.savez(path, w1=np.array([object()], dtype=object))
    with pytest.raises(InputError, match="is no file of weights"):
        read_arrays(path)


PUBLIC = {
    "request stamps": "TIMESTAMP,ContextTokens\n2023-11-16 18:15:46.68,1\n2023-11-16 18:15:50.99,2\n",
    "machine averages": "cpu_util_percent,disk_io_percent\n16.1,4.0\n21.5,5.0\n",
    "VM averages": "Timestamp [ms];\tCPU usage [%];\tDisk write throughput [KB/s]\n100;\t0.7;\t1\n400;\t0.8;\t2\n",
    "one metric": "timestamp,value\n2014-02-14 14:27:00,51.8\n2014-02-14 14:32:00,44.5\n",
    "percentiles": "time,p0_cpu_usage,p50_cpu_usage,max_cpu_usage\n0,0.1,0.2,0.3\n1000000,0.1,0.2,0.4\n",
}


@pytest.mark.parametrize("kind", list(PUBLIC))
def test_public_traces_become_recordings(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(PUBLIC[kind])
    found = import_trace(path, tmp_path / "out")
    assert found["kind"] == kind
    host = read_host(tmp_path / "out")
    assert host.tick_ns == round(found["tick_ms"] * 1e6) and len(host.vms) == 1


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(TraceError, match="none of the public formats"):
        import_trace(path, tmp_path / "out")


def test_censored_demand_is_estimated_better_than_by_usage() -> None:
    world = SimulatedWorld(
        dataclasses.replace(load_scenario("mixed"), load=0.9),
        # Water-filling's; triage's is tuned for whom it then serves in time, not for how close its estimates come.
        lambda host: make_mind("backlog", host, UNHURRIED),
        hosts=2,
        seed=(3, 4),
    )
    estimator = world.mind.forecaster.estimator  # type: ignore[attr-defined] # this policy's forecaster has one
    ours, usage, count = np.zeros(R), np.zeros(R), np.zeros(R)
    for t in range(300):
        world.sense()
        if t > 50:
            truth, reading = world.simulator.demand, world.reading
            limited = (reading.quality & 4 != 0) & np.isfinite(reading.usage)
            ours += (np.abs(estimator.demand - truth) * limited).sum(axis=(0, 1))
            usage += (np.abs(np.nan_to_num(reading.usage) - truth) * limited).sum(axis=(0, 1))
            count += limited.sum(axis=(0, 1))
        world.act()
    assert count[CPU] > 100
    assert ours[CPU] < usage[CPU] and ours[IO] < usage[IO]


def test_the_analyzer_feeds_triage() -> None:
    world = SimulatedWorld(
        load_scenario("mixed"), lambda host: make_mind("triage-mixture", host, UNHURRIED), hosts=2, seed=(1, 2)
    )
    for _ in range(40):
        world.sense()
        decision = world.act()
        assert decision.by_policy, decision.fault
    analyzer = world.mind.forecaster
    assert isinstance(analyzer, Analyzer)
    assert analyzer.bad.shape == world.mind.host.shape
    host = world.mind.host
    analyzer.rebind(Host(host.topology, host.vms, host.active, host.batch), np.arange(len(host)))
    world.sense()
    assert np.isfinite(world.mind.request.ask).all()


def test_the_bench_has_the_promised_keys(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("foreshare.runtime.bench_forecast.WARM_TICKS", 20)
    assert main(["bench", "forecast", "--ticks", "10", "--tick-ms", "1", "--json"]) == 0
    models = json.loads(capsys.readouterr().out)["models"]
    assert {"mixture", "lstm-refresh", "network"} <= models.keys()
    for rows in models.values():
        assert rows["64"].keys() >= {"slept_p50", "warm_p50"} and rows["64"]["p50"] > 0 and rows["512"]["p99"] > 0
