"""``foreshare train``: a learner's iterations, with checkpoints, validation, an early end, and a run in MLflow."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy.typing as npt

from foreshare.envs.simulator.suites import load_suite, suite_hash
from foreshare.policies.errors import InputError
from foreshare.policies.features import schema_hash
from foreshare.policies.learned import Network
from foreshare.training.cluster import ray_session
from foreshare.training.evaluate_cache import code_version

from .config import DEADLINE, Learner, TrainConfig, as_table, config_hash, from_values
from .curve import plotted
from .judge import Judge, Play, play_on_ray
from .scenes import STATISTICS, blinded, hurrying, normalised, sequence_seed
from .state import CHECKPOINT, CURVE, POLICY, RESULT, Progress, load, save, write_whole
from .tracking import Tracker, flat, git_commit

Tell = Callable[[str], None]


class Learning(Protocol):
    """A learner: what it does next depends on what :meth:`state` returns, configuration and seed, and nothing else."""

    iteration: int

    @property
    def network(self) -> Network:
        """The network as it is now."""
        ...

    def iterate(self) -> dict[str, float]:
        """Do one iteration; return its figures, ``env_steps`` and ``simulator_steps`` that it took among them."""
        ...

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """Return everything that the next iteration depends on."""
        ...

    def restore(self, state: dict[str, npt.NDArray[Any]]) -> None:
        """Go on from what :meth:`state` returned."""
        ...

    def close(self) -> None:
        """Let go of what is held."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainOptions:
    """What the command line adds to a configuration."""

    name: str
    config: TrainConfig
    seed: int
    folder: Path
    resume: bool = False
    experiment: str = "foreshare"
    address: str = "local"
    """Of the Ray cluster; empty: Ray is not needed (an evolution strategy that plays here)."""


def starting_network(config: TrainConfig, seed: int) -> Network:
    """Return the network that a training begins with: a file's, or one that corrects nothing, inputs normalised."""
    if config.init in ("", DEADLINE):
        fresh = Network.random(seed, config.network.widths, gain=0.0)
        found = normalised(fresh, config.scenes, config.base, sequence_seed(seed, STATISTICS))
    else:
        found = Network.load(config.init)
    found = blinded(found, config.network.hidden)
    return hurrying(found) if config.init == DEADLINE else found


def make_learner(config: TrainConfig, network: Network, seed: int, play: Play = play_on_ray) -> Learning:
    """Return the learner that the configuration names."""
    if config.learner is Learner.ES:
        from .es import EvolutionStrategy

        return EvolutionStrategy(config, network, seed, play)
    from .ppo import Ppo

    return Ppo(config, network, seed)


def train(options: TrainOptions, tell: Tell = lambda line: None, play: Play = play_on_ray) -> dict[str, Any]:
    """Train until the steps are spent or validation gets no better; return what ``foreshare train --json`` prints.

    Raises InputError for a folder that cannot be used, a registry that does not answer, or no cluster where one was
    named: before training begins.
    """
    folder = options.folder
    progress, state, best = _progress(options)
    config, seed = replace(from_values(progress.config), steps=options.config.steps), progress.seed
    if progress.finished and progress.simulator_steps < config.steps and progress.finished == "steps":
        progress.finished = ""
    judge = Judge(config, seed)
    tracker = _tracker(options, config, progress, judge)
    progress.run_id = tracker.run_id
    try:
        if not progress.finished:
            with ray_session(options.address):
                network = starting_network(config, seed) if not state else Network.random(seed, config.network.widths)
                learner = make_learner(config, network, seed, play)
                try:
                    if state:
                        learner.restore(state)
                    best = _iterate(learner, config, judge, progress, best, folder, tracker, tell, play)
                finally:
                    learner.close()
        return _conclude(config, progress, best, folder, tracker)
    except BaseException:
        with suppress(InputError):  # what happened first is what is said
            tracker.finish(failed=True)
        raise


def _progress(options: TrainOptions) -> tuple[Progress, dict[str, npt.NDArray[Any]], bytes]:
    folder = options.folder
    if options.resume:
        return load(folder)
    if (folder / CHECKPOINT).exists():
        raise InputError(f"{folder} holds a training already: --resume {folder} goes on with it")
    folder.mkdir(parents=True, exist_ok=True)
    return Progress(name=options.name, seed=options.seed, config=as_table(options.config)), {}, b""


def _tracker(options: TrainOptions, config: TrainConfig, progress: Progress, judge: Judge) -> Tracker:
    tags = {
        "git_commit": git_commit(), "code_version": code_version(), "config_hash": config_hash(config),
        "schema_hash": schema_hash(), "train_suite_hash": suite_hash(load_suite(config.scenes.suite)),
        "validate_suite_hash": judge.suite_hash, "seed": str(progress.seed), "config_name": progress.name,
        "folder": str(options.folder),
    }  # fmt: skip
    parameters = {k: v for k, v in flat(as_table(config)).items() if k != "search.range"} | {"seed": progress.seed}
    return Tracker(f"{progress.name}-{progress.seed}", parameters, tags, run_id=progress.run_id,
                   experiment=options.experiment)  # fmt: skip


def _iterate(
    learner: Learning, config: TrainConfig, judge: Judge, progress: Progress, best: bytes, folder: Path,
    tracker: Tracker, tell: Tell, play: Play,
) -> bytes:  # fmt: skip
    """Iterate to the end; return the file of the best network."""
    began, at_first = time.monotonic(), progress.simulator_steps
    before = progress.seconds
    while not progress.finished:
        row = learner.iterate()
        progress.iteration = learner.iteration
        progress.env_steps += int(row.pop("env_steps"))
        progress.simulator_steps += int(row.pop("simulator_steps"))
        spent = progress.simulator_steps >= config.steps
        if learner.iteration % config.validate.every == 0 or spent:
            network = learner.network
            found = judge.judge(network, play)
            row["validate_score"] = found["score"]
            for load, v in found["loads"].items():
                row[f"validate_{load}"] = v["policy"]
            progress.looks_since += 1
            if found["score"] < progress.best_score:
                progress.best_score, progress.best_at, progress.looks_since = found["score"], learner.iteration, 0
                progress.evaluation, best = found, network.packed()
        seconds = time.monotonic() - began
        progress.seconds = before + seconds
        rate = (progress.simulator_steps - at_first) / max(seconds, 1e-9)
        row |= {"simulator_steps": float(progress.simulator_steps), "steps_per_s": rate}
        if spent:
            progress.finished = "steps"
        elif progress.looks_since >= config.validate.patience:
            progress.finished = "no better"
        progress.curve.append(
            {"iteration": float(learner.iteration), "env_steps": float(progress.env_steps), **row}
        )  # fmt: skip
        save(folder, progress, learner.state(), best)
        tracker.metrics(row, progress.env_steps)
        left = max(config.steps - progress.simulator_steps, 0) / max(rate, 1e-9)
        tell(_line(progress, config, row, rate, left))
    return best


def _line(progress: Progress, config: TrainConfig, row: dict[str, float], rate: float, left: float) -> str:
    score = (
        f", validation {row['validate_score']:.4f} (best {progress.best_score:.4f})" if "validate_score" in row else ""
    )
    return (
        f"iteration {progress.iteration}: {progress.simulator_steps / 1e6:.2f} of {config.steps / 1e6:.2f} M simulator"
        f" steps, {rate / 1e3:.0f} k/s, {left / 60.0:.1f} min left; score {row['train_score']:.4f}{score}"
    )


def _conclude(config: TrainConfig, progress: Progress, best: bytes, folder: Path, tracker: Tracker) -> dict[str, Any]:
    """Leave the best network and the curve in folder and run; return the result."""
    curve = json.dumps(progress.curve).encode()
    write_whole(folder / POLICY, best)
    write_whole(folder / CURVE, curve)
    tracker.artifact(POLICY, best)
    tracker.artifact("curve.json", curve)
    tracker.artifact("evaluation.json", json.dumps(progress.evaluation, indent=1).encode())
    tracker.artifact("config.json", json.dumps(as_table(config), indent=1).encode())
    tracker.artifact("curve.svg", plotted(progress.curve))
    tracker.metrics({"best_score": progress.best_score}, progress.env_steps)
    tracker.finish(tags={"finished": progress.finished, "best_iteration": str(progress.best_at)})
    result = {
        "run_id": progress.run_id, "tracking_uri": tracker.uri, "folder": str(folder), "seed": progress.seed,
        "learner": config.learner.name.lower(), "iterations": progress.iteration, "env_steps": progress.env_steps,
        "simulator_steps": progress.simulator_steps, "seconds": round(progress.seconds, 1),
        "finished": progress.finished, "best_score": round(progress.best_score, 5), "best_iteration": progress.best_at,
        "evaluation": {k: v for k, v in progress.evaluation.items() if k != "rows"},
        "policy": str(folder / POLICY), "config_hash": config_hash(config), "schema_hash": schema_hash(),
        "train_suite": config.scenes.suite, "git_commit": git_commit(),
        "command": f"foreshare train --config {progress.name} --seed {progress.seed} --steps {config.steps}",
    }  # fmt: skip
    write_whole(folder / RESULT, json.dumps(result, indent=1).encode())
    return result
