"""``foreshare train``: learn a policy on Ray, tracked in MLflow."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from foreshare.policies.errors import HostError

from .values import whole

NEEDED = ("ray", "torch", "mlflow", "gymnasium")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    what_to_learn(parser, "champion")
    parser.add_argument(
        "--steps", type=whole(1, 10**12), metavar="N", help="simulator steps (ticks of one VM) to spend"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the training (default out/train/NAME-SEED)")
    parser.add_argument("--resume", type=Path, metavar="DIR", help="go on with the training in this folder")
    add_experiment(parser)


def what_to_learn(parser: argparse.ArgumentParser, config: str) -> None:
    """Declare what all verbs that learn have; ``config``: the default."""
    parser.add_argument(
        "--config", default=config, metavar="F.toml", help=f"a file, or a shipped one (default {config})"
    )
    parser.add_argument(
        "--seed", type=whole(0, 2**31 - 1), default=0, metavar="K", help="seed of everything (default 0)"
    )
    parser.add_argument(
        "--address", default="local", metavar="A", help="a Ray cluster; auto finds it (default: this machine)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object, nothing else")


def add_experiment(parser: argparse.ArgumentParser) -> None:
    """Declare where in MLflow the runs go."""
    parser.add_argument(
        "--experiment", default="foreshare", metavar="NAME", help="experiment in MLflow (default foreshare)"
    )


def require() -> None:
    """Raise HostError where what learning needs is not installed."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise HostError(f"learning needs {', '.join(missing)}: pip install 'foreshare[train]'")


def tell(line: str) -> None:
    """Write a line of progress."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def execute(args: argparse.Namespace) -> int:
    """Run the verb."""
    require()
    from foreshare.training.learning.config import from_values, load_config
    from foreshare.training.learning.state import load
    from foreshare.training.learning.train import TrainOptions, train

    name = Path(args.config).stem
    if args.resume is not None:
        progress = load(args.resume)[0]
        config, folder, seed = from_values(progress.config), args.resume, progress.seed
    else:
        config, seed = load_config(args.config), args.seed
        folder = args.out or Path("out") / "train" / f"{name}-{seed}"
    if args.steps is not None:
        config = replace(config, steps=args.steps)
    options = TrainOptions(
        name=name, config=config, seed=seed, folder=folder, resume=args.resume is not None, experiment=args.experiment,
        address=args.address,
    )  # fmt: skip
    result = train(options, tell)
    if args.json:
        sys.stdout.write(json.dumps(result) + "\n")
        return 0
    loads = result["evaluation"].get("loads", {})
    sys.stdout.write(
        f"{result['learner']}, {result['iterations']} iterations, {result['simulator_steps'] / 1e6:.1f} M simulator"
        f" steps in {result['seconds'] / 60:.1f} min, ended: {result['finished']}\n"
        f"best score {result['best_score']:.4f} after iteration {result['best_iteration']} (1: {config.base})\n"
    )
    for load_name, v in loads.items():
        sys.stdout.write(
            f"  late requests, {load_name:6s} {config.base} {v['base']:6.2f} %, learned {v['policy']:6.2f} %\n"
        )
    sys.stdout.write(f"written: {result['policy']}\nMLflow run {result['run_id']} at {result['tracking_uri']}\n")
    return 0
