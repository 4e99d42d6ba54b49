"""``foreshare tune``: a search that is killed goes on, and finds the best of its trials."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from foreshare.policies.learned import Network
from foreshare.training.learning.config import from_values

CONFIG = """
learner = "es"
[scenes]
suite = "smoke"
most_vms = 12
ticks = 12
warm_ticks = 4
[network]
encoder = 0
context = 0
head = 0
[es]
pairs = 2
scenarios = 2
[validate]
suite = "smoke"
ticks = 12
[search]
trials = 2
iterations = 12
grace = 12
[[search.range]]
key = "es.rate"
low = 1e-3
high = 1e-1
log = 1
"""


def tune(folder: Path, uri: str, *argv: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "foreshare.runtime.cli.main", "tune", "--json", *argv]
    return subprocess.Popen(command, cwd=folder, env=os.environ | {"MLFLOW_TRACKING_URI": uri}, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)  # fmt: skip


@pytest.fixture
def searches() -> Iterator[list[subprocess.Popen[str]]]:
    """Those that a test has begun: none outlives it."""
    begun: list[subprocess.Popen[str]] = []
    yield begun
    for child in begun:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
        child.communicate()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.timeout(1200)  # Ray starts twice, and a process for each trial, whatever else the machine does
def test_a_killed_search_goes_on(tmp_path: Path, empty_registry: str, searches: list[subprocess.Popen[str]]) -> None:
    (tmp_path / "c.toml").write_text(CONFIG)
    out = tmp_path / "search"
    child = tune(tmp_path, empty_registry, "--config", "c.toml", "--out", "search")
    searches.append(child)
    while not list((out / "trials").glob("run_trial_*/checkpoint_*")):
        assert child.poll() is None, child.communicate()[1]
        time.sleep(0.1)
    os.killpg(child.pid, signal.SIGKILL)
    child.communicate()
    for argv, code in ((("--config", "c.toml", "--out", "search"), 2), (("--resume", "search"), 0)):
        again = tune(tmp_path, empty_registry, *argv)
        searches.append(again)
        answer, said = again.communicate()
        assert again.returncode == code, said
    result = json.loads(answer)
    assert (result["trials"], result["failed"]) == (2, 0)
    assert all(row["iterations"] == 12 for row in result["rows"])
    assert result["best"]["score"] == min(row["score"] for row in result["rows"])
    chosen = from_values(json.loads((out / "best.json").read_text()))
    assert chosen.es.rate == pytest.approx(result["best"]["values"]["es.rate"])
    Network.load(out / "policy.npz")
