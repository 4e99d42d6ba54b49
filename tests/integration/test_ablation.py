"""``foreshare ablate``: every part of a configuration is taken away; a folder that holds some of it is gone on with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from foreshare.policies.errors import InputError
from foreshare.policies.features import VM_FEATURES, remembered_of
from foreshare.policies.learned import Network
from foreshare.runtime.cli.main import main
from foreshare.training.learning.ablation import WATER_FILLING, AblateOptions, ablate, as_lines, shortened, variants
from foreshare.training.learning.config import TrainConfig, load_config
from foreshare.training.learning.judge import play_here
from foreshare.training.learning.state import CHECKPOINT

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(600)]  # MLflow's
CHAMPION = load_config("champion")
SMALL = replace(
    CHAMPION,
    steps=4000,
    scenes=replace(CHAMPION.scenes, suite="smoke", ticks=12, warm_ticks=4, most_vms=12),
    es=replace(CHAMPION.es, pairs=2, scenarios=2),
)


def options(folder: Path, config: TrainConfig = SMALL, only: tuple[str, ...] = ()) -> AblateOptions:
    return AblateOptions(
        name="small", config=config, seed=1, folder=folder, only=only, suite="smoke", seeds=1, ticks=20, address=""
    )


def test_every_part_is_taken_away_and_what_is_done_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_registry: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", empty_registry)
    result = ablate(options(tmp_path), play=play_here)
    rows = result["variants"]
    assert list(rows) == ["whole", "forecast", "backlog", "reservations", "memory", "standby", "triage", "layers"]
    assert {name: row["base"] for name, row in rows.items() if row["base"] != "triage"} == {"triage": WATER_FILLING}
    bases = [row["loads"] for name, row in rows.items() if name != "triage"]
    assert all(loads[x]["base"] == bases[0][x]["base"] for loads in bases for x in loads)  # the same arrivals
    names = [feature.name for feature in VM_FEATURES]
    blind = Network.load(rows["backlog"]["policy"]).arrays["vm_scale"]
    assert not blind[names.index("rate")] and blind[names.index("need_cpu")]
    assert not blind[names.index("lately_rate")] and blind[names.index("swing_need_cpu")]
    forgetful = Network.load(rows["memory"]["policy"]).arrays["vm_scale"]
    assert [name for name, scale in zip(names, forgetful, strict=True) if not scale] == [
        name for name in names if name != remembered_of(name)
    ]
    unready = Network.load(rows["standby"]["policy"]).arrays["vm_scale"]
    assert [name for name, scale in zip(names, unready, strict=True) if not scale] == ["below", "standby"]
    assert any(Network.load(rows["layers"]["policy"]).widths) and not any(Network.load(rows["whole"]["policy"]).widths)
    networks = [np.concatenate([a.ravel() for a in Network.load(r["policy"]).arrays.values()]) for r in rows.values()]
    assert len({n.tobytes() for n in networks}) == len(networks)

    checkpoints = sorted(tmp_path.glob(f"*/{CHECKPOINT}"))
    kept = [path.stat().st_mtime_ns for path in checkpoints]
    assert len(kept) == len(rows)
    again = ablate(options(tmp_path), tell=(said := []).append, play=play_here)
    assert again["variants"] == rows
    assert len(said) == len(rows) and not any("iteration" in line for line in said)
    assert [path.stat().st_mtime_ns for path in checkpoints] == kept  # nothing was trained again
    lines = as_lines(result)
    assert len(lines) == 2 + len(rows) and lines[1].startswith("triage, not corrected")

    with pytest.raises(InputError, match="another configuration"):
        ablate(options(tmp_path, replace(SMALL, base="backlog")), play=play_here)


def test_a_shorter_training_has_a_running_mean_over_the_same_share_of_it() -> None:
    eighth = shortened(CHAMPION, CHAMPION.steps // 8)
    assert eighth.es.average == pytest.approx(8 * CHAMPION.es.average)
    assert eighth == replace(CHAMPION, steps=eighth.steps, es=replace(CHAMPION.es, average=eighth.es.average))
    assert shortened(CHAMPION, 1000).es.average == 1.0


def test_a_network_with_hidden_layers_loses_them() -> None:
    assert not any(variants(load_config("ppo"))["linear"][1].network.widths)


def test_what_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="no variant 'magic': there are whole, forecast"):
        ablate(options(tmp_path, only=("magic",)))
    assert main(["ablate", "--config", "none"]) == 2
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 1 and not list(tmp_path.iterdir())
