"""``foreshare tune``: a search that is killed goes on, and finds the best of its trials."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
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


@pytest.mark.filterwarnings("ignore")
@pytest.mark.timeout(600)
def test_a_killed_search_goes_on(tmp_path: Path, empty_registry: str) -> None:
    (tmp_path / "c.toml").write_text(CONFIG)
    out = tmp_path / "search"
    child = tune(tmp_path, empty_registry, "--config", "c.toml", "--out", "search")
    deadline = time.monotonic() + 280
    while len(list((out / "trials").glob("run_trial_*/checkpoint_*"))) < 1:
        assert child.poll() is None, child.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.1)
    os.killpg(child.pid, signal.SIGKILL)
    child.communicate()
    refused = tune(tmp_path, empty_registry, "--config", "c.toml", "--out", "search")
    assert "--resume" in refused.communicate()[1]
    assert refused.returncode == 2
    again = tune(tmp_path, empty_registry, "--resume", "search")
    answer, said = again.communicate(timeout=280)
    assert again.returncode == 0, said
    result = json.loads(answer)
    assert (result["trials"], result["failed"]) == (2, 0)
    assert all(row["iterations"] == 12 for row in result["rows"])
    assert result["best"]["score"] == min(row["score"] for row in result["rows"])
    chosen = from_values(json.loads((out / "best.json").read_text()))
    assert chosen.es.rate == pytest.approx(result["best"]["values"]["es.rate"])
    Network.load(out / "policy.npz")
