"""``foreshare ablate``: what a trained policy owes to what it sees, to what it corrects and to its network's form.

A configuration is trained once as it is, and once with each part of it taken away, all from the same seed and with the
same simulator steps; a suite that none was trained on judges them on the same arrivals (judge.py).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from foreshare.policies.errors import InputError

from .config import GROUPS, LEAST_AVERAGE, Layers, NetworkConfig, TrainConfig, config_hash, from_values
from .judge import Play, play_on_ray
from .state import CHECKPOINT, load
from .train import Tell, TrainOptions, train

WHOLE = "whole"
WATER_FILLING = "backlog"
"""What is corrected where it is not triage: the same asks, shared out by water-filling, and nobody turned away."""
LAYERS = NetworkConfig(encoder=16, context=8, head=16)
"""The hidden layers that a linear configuration is compared with."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AblateOptions:
    """What the command line says."""

    name: str
    config: TrainConfig
    seed: int
    folder: Path
    only: tuple[str, ...] = ()
    """Variants by name; empty: all."""
    suite: str = "standard"
    seeds: int = 3
    """Runs of each scenario and load."""
    ticks: int = 0
    """Ticks of a run; 0: as the suite says."""
    experiment: str = "foreshare"
    address: str = "local"


def shortened(config: TrainConfig, steps: int) -> TrainConfig:
    """Return ``config`` with another length, and a running mean of the weights over the same share of it."""
    average = min(config.es.average * config.steps / steps, 1.0)
    return replace(config, steps=steps, es=replace(config.es, average=max(average, LEAST_AVERAGE)))


def variants(config: TrainConfig) -> dict[str, tuple[str, TrainConfig]]:
    """Return what is trained: by name, what it means for people, and the configuration."""
    network = config.network
    out = {WHOLE: ("as it is", config)}
    for group in GROUPS:
        hidden = ",".join(dict.fromkeys([*network.hidden, group]))
        out[group] = (f"blind to features of {group}", replace(config, network=replace(network, without=hidden)))
    out["triage"] = ("water-filling below, not triage", replace(config, base=WATER_FILLING))
    if any(network.widths):
        bare = replace(network, encoder=0, context=0, head=0)
        out["linear"] = ("no hidden layers", replace(config, network=bare))
    else:
        deep = replace(LAYERS, without=network.without)
        es = replace(config.es, layers=Layers.ALL, whiten=0.0)
        out["layers"] = ("hidden layers as well", replace(config, network=deep, es=es))
    return out


def ablate(options: AblateOptions, tell: Tell = lambda line: None, play: Play = play_on_ray) -> dict[str, Any]:
    """Train and judge every variant; return what ``foreshare ablate --json`` prints.

    A folder that holds some of them already is gone on with. Raises InputError for a variant that does not exist, or a
    folder of another ablation.
    """
    config = options.config
    judged = replace(config.validate, suite=options.suite, seeds=options.seeds, ticks=options.ticks)
    every = variants(replace(config, validate=judged))
    unknown = [name for name in options.only if name not in every]
    if unknown:
        raise InputError(f"no variant {unknown[0]!r}: there are {', '.join(every)}")
    rows: dict[str, Any] = {}
    for name in options.only or every:
        says, variant = every[name]
        folder = options.folder / name
        tell(f"{name}: {says}")
        result = train(
            TrainOptions(
                name=f"{options.name}-{name}", config=variant, seed=options.seed, folder=folder,
                resume=_begun(folder, variant, options.seed), experiment=options.experiment, address=options.address,
            ),
            tell, play,
        )  # fmt: skip
        found = result["evaluation"]
        rows[name] = {
            "says": says, "base": variant.base, "score": found["score"], "loads": found["loads"],
            "simulator_steps": result["simulator_steps"], "policy": result["policy"], "suite_hash": found["suite_hash"],
        }  # fmt: skip
    return {
        "config": options.name, "config_hash": config_hash(config), "seed": options.seed, "steps": config.steps,
        "suite": options.suite, "seeds": options.seeds, "folder": str(options.folder), "variants": rows,
    }  # fmt: skip


def _begun(folder: Path, config: TrainConfig, seed: int) -> bool:
    """Return whether ``folder`` holds this very training. Raises InputError where it is another one."""
    if not (folder / CHECKPOINT).exists():
        return False
    progress = load(folder)[0]
    if progress.seed != seed or from_values(progress.config) != config:
        raise InputError(f"{folder} holds a training with another configuration: give an empty folder")
    return True


def as_lines(result: dict[str, Any]) -> list[str]:
    """Return the table for people: V in percent by load, above it that of the policy that is corrected."""
    rows = result["variants"]
    first = next(iter(rows.values()))
    loads = list(first["loads"])
    table = {f"{first['base']}, not corrected": [first["loads"][load]["base"] for load in loads]}
    for name, row in rows.items():
        table[f"{name}: {row['says']}"] = [row["loads"][load]["policy"] for load in loads]
    width = max(map(len, table)) + 2
    lines = [f"{'late requests, %':<{width}}" + "".join(f"{load:>8}" for load in loads)]
    return lines + [f"{label:<{width}}" + "".join(f"{v:8.2f}" for v in values) for label, values in table.items()]
