"""``foreshare tune``: settings of a training searched with Ray Tune, many short trainings given up early.

ASHA (Li et al. 2020, MLSys): a trial whose validation score is not among the best of those that came as far ends there.
Trials keep their own checkpoints in their folders (state.py), so that a search that was killed goes on where each of
them stood: ``--resume`` finds what Ray Tune knows of them in the search's folder.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from foreshare.policies.errors import ConfigError, InputError
from foreshare.policies.features import schema_hash
from foreshare.policies.learned import Network
from foreshare.training.cluster import ray_session

from .config import DEADLINE, TrainConfig, as_table, config_hash, from_values, with_value
from .judge import Judge, play_here
from .state import POLICY, Progress, load, save, write_whole
from .tracking import Tracker, git_commit
from .train import make_learner, starting_network

Tell = Callable[[str], None]
SCORE, ITERATION = "score", "training_iteration"
SEARCH = "search.json"
_NAME = "trials"


@dataclass(frozen=True, kw_only=True, slots=True)
class TuneOptions:
    """What the command line adds to a configuration."""

    name: str
    config: TrainConfig
    seed: int
    folder: Path
    resume: bool = False
    at_once: int = 1
    """Trials at a time."""
    experiment: str = "foreshare-tune"
    address: str = "local"
    """Of the Ray cluster."""


def trial_config(config: TrainConfig, values: dict[str, float]) -> TrainConfig:
    """Return ``config`` with a trial's values. Raises ConfigError for a key that is no number of one."""
    for key, value in values.items():
        config = with_value(config, key, value)
    return config


def run_trial(values: dict[str, Any], table: dict[str, Any], seed: int, iterations: int) -> None:
    """Be one trial, in a process of Ray Tune's: iterate, judge, report; go on where its last checkpoint stands."""
    import tempfile

    from ray import tune

    config = trial_config(from_values(table), {k: float(v) for k, v in values.items()})
    judge = Judge(config, seed)
    checkpoint = tune.get_checkpoint()
    progress = Progress(name="trial", seed=seed, config=as_table(config))
    state: dict[str, Any] = {}
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            progress, state, _ = load(Path(folder))
    network = starting_network(config, seed) if not state else Network.random(seed, config.network.widths)
    learner = make_learner(config, network, seed, play_here)
    try:
        if state:
            learner.restore(state)
        while learner.iteration < iterations:
            row = learner.iterate()
            progress.iteration = learner.iteration
            progress.simulator_steps += int(row["simulator_steps"])
            found = judge.judge(learner.network, play_here)
            with tempfile.TemporaryDirectory() as scratch:
                best = learner.network.packed()
                save(Path(scratch), progress, learner.state(), best)
                tune.report(
                    {SCORE: found["score"], "simulator_steps": progress.simulator_steps,
                     "iteration": learner.iteration, "loads": found["loads"]},
                    checkpoint=tune.Checkpoint.from_directory(scratch),
                )  # fmt: skip
    finally:
        learner.close()


def search(options: TuneOptions, tell: Tell = lambda line: None) -> dict[str, Any]:
    """Search; return what ``foreshare tune --json`` prints.

    Raises InputError or ConfigError for a search without ranges, a folder that holds one already or none to resume.
    """
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler

    folder, where = options.folder.resolve(), options.folder.resolve() / _NAME
    config, seed = _told(options, folder)
    s = config.search
    if not s.range:
        raise ConfigError("search.range: nothing to search; give some [[search.range]] tables")
    space: dict[str, Any] = {}
    for r in s.range:
        with_value(config, r.key, r.low), with_value(config, r.key, r.high)
        if r.low >= r.high or (r.log and r.low <= 0.0):
            raise ConfigError(f"search.range: {r.key} cannot be drawn from {r.low:g} to {r.high:g}")
        space[r.key] = tune.loguniform(r.low, r.high) if r.log else tune.uniform(r.low, r.high)
    tracker = Tracker(f"tune-{options.name}-{seed}", {"trials": s.trials, "iterations": s.iterations, "seed": seed},
                      {"git_commit": git_commit(), "config_hash": config_hash(config), "schema_hash": schema_hash()},
                      experiment=options.experiment)  # fmt: skip
    try:
        with ray_session(options.address):
            trainable = tune.with_resources(
                tune.with_parameters(run_trial, table=as_table(config), seed=seed, iterations=s.iterations), {"cpu": 1}
            )
            if options.resume and tune.Tuner.can_restore(str(where)):
                tuner = tune.Tuner.restore(str(where), trainable, param_space=space, resume_unfinished=True,
                                           resume_errored=True)  # fmt: skip
            else:
                tuner = tune.Tuner(
                    trainable,
                    param_space=space,
                    tune_config=tune.TuneConfig(
                        metric=SCORE, mode="min", num_samples=s.trials, max_concurrent_trials=options.at_once,
                        scheduler=ASHAScheduler(time_attr=ITERATION, max_t=s.iterations,
                                                grace_period=min(s.grace, s.iterations), reduction_factor=s.reduction),
                        search_alg=tune.search.BasicVariantGenerator(random_state=np.random.RandomState(seed)),
                    ),
                    run_config=tune.RunConfig(
                        name=_NAME, storage_path=str(folder), verbose=0,
                        checkpoint_config=tune.CheckpointConfig(num_to_keep=1),
                    ),
                )  # fmt: skip
            with redirect_stdout(sys.stderr):  # Tune says how it goes wherever it likes
                results = tuner.fit()
        return _conclude(options, config, seed, folder, results, tracker, tell)
    except BaseException:
        with suppress(InputError):  # what happened first is what is said
            tracker.finish(failed=True)
        raise


def _told(options: TuneOptions, folder: Path) -> tuple[TrainConfig, int]:
    """Return configuration and seed: what the folder says of a search to go on with, else the options'."""
    path = folder / SEARCH
    if options.resume:
        try:
            told = json.loads(path.read_text())
            return from_values(told["config"]), int(told["seed"])
        except OSError as e:
            raise InputError(f"{path}: {e.strerror}") from e
        except (ValueError, KeyError, TypeError) as e:
            raise InputError(f"{path} is no search, or damaged ({e})") from e
    if path.exists():
        raise InputError(f"{folder} holds a search already: --resume {folder} goes on with it")
    folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(folder / _NAME, ignore_errors=True)
    # Trials have folders of their own.
    config = replace(options.config, init=_absolute(options.config.init))
    write_whole(path, json.dumps({"config": as_table(config), "seed": options.seed}).encode())
    return config, options.seed


def _absolute(init: str) -> str:
    return init if init in ("", DEADLINE) else str(Path(init).resolve())


def _conclude(
    options: TuneOptions, config: TrainConfig, seed: int, folder: Path, results: Any, tracker: Tracker, tell: Tell
) -> dict[str, Any]:
    """Return the table of trials, the best of them first; leave the best's configuration and network in the folder."""
    rows: list[tuple[dict[str, Any], Any]] = []
    failed = 0
    for result in results:
        if result.error is not None or not result.metrics or SCORE not in result.metrics:
            failed += 1
            continue
        rows.append(
            (
                {
                    "values": {k: float(v) for k, v in result.config.items()},
                    "score": round(float(result.metrics[SCORE]), 5),
                    "iterations": int(result.metrics["iteration"]),
                    "simulator_steps": int(result.metrics["simulator_steps"]),
                },
                result,
            )
        )
    if not rows:
        raise InputError(f"all {failed} trials of the search failed: see {folder / _NAME}")
    rows.sort(key=lambda row: float(row[0]["score"]))
    best, result = rows[0]
    for number, (row, _) in enumerate(rows):
        tracker.metrics({"score": float(row["score"]), "iterations": float(row["iterations"])}, number)
        tell(f"score {row['score']:.4f} after {row['iterations']} iterations: {row['values']}")
    chosen = trial_config(config, best["values"])
    write_whole(folder / "best.json", json.dumps(as_table(chosen), indent=1).encode())
    with result.checkpoint.as_directory() as held:
        write_whole(folder / POLICY, load(Path(held))[2])
    table = {
        "folder": str(options.folder), "seed": seed, "trials": len(rows), "failed": failed, "best": best,
        "rows": [row for row, _ in rows], "run_id": tracker.run_id, "tracking_uri": tracker.uri,
    }  # fmt: skip
    tracker.artifact("search.json", json.dumps(table, indent=1).encode())
    tracker.artifact("best.json", json.dumps(as_table(chosen), indent=1).encode())
    tracker.finish()
    return table
