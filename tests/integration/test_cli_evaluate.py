"""``foreshare evaluate`` and ``foreshare simulate`` from outside."""

from __future__ import annotations

import html.parser
import json
import os
import runpy
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import pytest

COMMAND = [sys.executable, "-c", "import sys; from foreshare.runtime.cli import main; sys.exit(main())"]
FIGURES = {
    "slo_violation_pct", "slo_violation_std", "closure_paying", "closure_paying_low", "closure_free", "late_vms_pct",
    "starved_vms_pct", "reservations_broken", "p99_alone_median", "p99_alone_worst_decile", "converge_ticks",
    "moves_per_tick", "fairness", "decision_us",
}  # fmt: skip
SUITE = """
version = 1
ticks = 40
warm_ticks = 10
emu_ticks = 20
emu_rounds = 1
step_ticks = 40
[[scenario]]
name = "a"
seed = 1
cpus = 8
vms = 4
[[scenario]]
name = "b"
seed = 2
cpus = 12
vms = 5
"""


def call(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=100, check=False)


def answer(*arguments: str) -> dict[str, Any]:
    done = call(*arguments)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert isinstance(said, dict)
    return said


def refused(*arguments: str) -> str:
    done = call(*arguments)
    assert done.returncode == 2 and not done.stdout and done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def test_all_policies_and_an_oracle_without_emu(suite: str) -> None:
    said = answer(
        "evaluate", "--suite", suite, "--policies", "all,oracle-state", "--seeds", "1", "--plain-only", "--cache",
        "none", "--json",
    )  # fmt: skip
    assert {"static", "triage", "bayesian", "oracle-state"} <= said["policies"].keys()
    assert all(value is None for value in said["emu"].values())
    for loads in said["policies"].values():
        assert loads["all"]["converge_ticks"] is None and loads["tight"]["slo_violation_pct"] >= 0


def test_tune_baseline_finds_writes_and_says(tmp_path: Path) -> None:
    path = tmp_path / "tuned.py"
    arguments = ["--suite", "smoke", "--steps", "80000", "--seed", "3", "--jobs", "2"]
    said = answer("tune-baseline", "backlog", *arguments, "--write", str(path), "--json")
    assert said["candidates"] >= 2 and said["steps"] >= 80000 and len(said["suite_hash"]) == 16
    assert said["score"] <= 1.0
    assert set(said["tuned"]) == set(said["defaults"]) == {"mild", "tight", "over"}
    module = runpy.run_path(str(path))
    assert module["TUNED"]["backlog"] == said["knobs"]
    assert module["COMMANDS"]["backlog"] == said["command"]
    people = call("tune-baseline", "backlog", *arguments)
    assert people.returncode == 0 and "clear_ticks = " in people.stdout and "%" in people.stderr


@pytest.fixture
def suite(tmp_path: Path) -> str:
    path = tmp_path / "tiny.toml"
    path.write_text(SUITE)
    return str(path)


def test_evaluate_says_what_other_programs_rely_on_and_remembers_it(suite: str, tmp_path: Path) -> None:
    arguments = ("evaluate", "--suite", suite, "--policies", "static,forecast", "--seeds", "2", "--json")
    cache = ("--cache", str(tmp_path / "cache"))
    said = answer(*arguments, *cache, "--jobs", "2")
    assert said.keys() >= {"policies", "emu", "scenarios", "suite_hash"}
    for policy in ("static", "forecast"):
        assert said["policies"][policy].keys() == {"mild", "tight", "over", "all"} and policy in said["emu"]
        for figures in said["policies"][policy].values():
            assert figures.keys() >= FIGURES
        for scenario in ("a", "b"):
            assert said["scenarios"][scenario][policy]["over"].keys() >= FIGURES
    begun = time.monotonic()
    again = answer(*arguments, *cache, "--jobs", "1")
    assert again == said and time.monotonic() - begun < 10
    assert [p.suffix for p in (tmp_path / "cache").rglob("*") if p.is_file()] == [".json"] * (2 * (12 + 6 + 2))


def test_evaluate_for_people(suite: str, tmp_path: Path) -> None:
    report = tmp_path / "r.html"
    done = call(
        "evaluate", "--suite", suite, "--policies", "static,forecast", "--seeds", "1", "--cache", "none",
        "--report", str(report),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "over load" in done.stdout and "hash " in done.stdout
    assert "closure: not shown, it takes oracle-paying" in done.stdout
    assert "runs" in done.stderr
    page = report.read_text()
    html.parser.HTMLParser().feed(page)
    assert (
        "<svg" in page and "static" in page and "<script" not in page and "http" not in page.replace("http-equiv", "")
    )


@pytest.mark.parametrize(
    "wrong",
    [
        ("--suite", "nosuch"), ("--policies", "nosuch"), ("--policies", ""), ("--seeds", "0"), ("--jobs", "0"),
        ("--suite", "draw:x"), ("--report", "/nosuch/r.html"), ("--cache", "/dev/null/x"),
    ],
)  # fmt: skip
def test_evaluate_refuses_in_one_line(wrong: tuple[str, str]) -> None:
    assert "foreshare" in refused("evaluate", *wrong, "--json")


def test_evaluate_interrupted_keeps_what_is_done(tmp_path: Path) -> None:
    path = tmp_path / "long.toml"
    path.write_text(SUITE.replace("ticks = 40\nwarm", "ticks = 6000\nwarm", 1))
    cache = tmp_path / "cache"
    with subprocess.Popen(
        [*COMMAND, "evaluate", "--suite", str(path), "--seeds", "3", "--cache", str(cache), "--jobs", "2", "--json"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        deadline = time.monotonic() + 60
        while not list(cache.rglob("*.json")):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and not out and "Traceback" not in err
    done = len(list(cache.rglob("*.json")))
    assert 0 < done < 2 * (2 * 3 * 3 + 6 + 2)
    for kept in cache.rglob("*.json"):
        assert json.loads(kept.read_text())


def of_this_test(mark: str) -> list[str]:
    """Return the processes with ``mark`` in their environment."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            environment = (process / "environ").read_bytes() if process.name.isdigit() else b""
        except OSError:  # gone, or somebody else's
            continue
        if mark.encode() in environment:
            found.append(process.name)
    return found


def test_evaluate_killed_leaves_no_process_behind(tmp_path: Path) -> None:
    path, cache = tmp_path / "long.toml", tmp_path / "cache"
    path.write_text(SUITE.replace("ticks = 40\nwarm", "ticks = 6000\nwarm", 1))
    mark = f"FORESHARE_TEST_MARK={uuid.uuid4()}"
    with subprocess.Popen(
        [*COMMAND, "evaluate", "--suite", str(path), "--cache", str(cache), "--jobs", "2", "--json"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, **dict([mark.split("=")])},
    ) as process:  # fmt: skip
        deadline = time.monotonic() + 60
        while not list(cache.rglob("*.json")):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.02)
        assert len(of_this_test(mark)) >= 3
        process.kill()
        process.wait()
    while of_this_test(mark):
        assert time.monotonic() < deadline, of_this_test(mark)
        time.sleep(0.05)


def test_simulate_runs_a_drawn_scenario_and_writes_it(tmp_path: Path) -> None:
    said = answer("simulate", "--draw", "7", "--vms", "5", "--load", "0.8", "--seconds", "0.5", "--json")
    assert said["ticks"] == 50 and said["slo_measured_by"] == "late requests"
    path = tmp_path / "drawn.toml"
    written = call("simulate", "--draw", "7", "--vms", "5", "--load", "0.8", "--write", str(path))
    assert written.returncode == 0 and str(path) in written.stdout
    again = answer("simulate", "--scenario", str(path), "--seconds", "0.5", "--json")
    same = answer("run", "--scenario", str(path), "--seconds", "0.5", "--json")
    assert again["slo_violation_pct"] == said["slo_violation_pct"] == same["slo_violation_pct"]
    assert again["utilisation_pct"] == said["utilisation_pct"] == same["utilisation_pct"]


def test_simulate_for_people() -> None:
    done = call("simulate", "--scenario", "churn", "--vms", "4", "--seconds", "0.3", "--policy", "priority")
    assert done.returncode == 0 and "SLO" in done.stdout, done.stderr


@pytest.mark.parametrize(
    "wrong",
    [
        ("--scenario", "nosuch"), ("--draw", "-1"), ("--draw", "x"), ("--draw", "1", "--scenario", "mixed"),
        ("--load", "0"), ("--policy", "nosuch"), ("--vms", "0"), ("--write", "/nosuch/f.toml"),
    ],
)  # fmt: skip
def test_simulate_refuses_in_one_line(wrong: tuple[str, ...]) -> None:
    assert "foreshare" in refused("simulate", *wrong, "--seconds", "0.1", "--json")
