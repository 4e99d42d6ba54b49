"""``foreshare tune``: search a training's settings with Ray Tune."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from .train import require, tell, what_to_learn
from .values import whole


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    what_to_learn(parser, "es")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the search (default out/tune/NAME-SEED)")
    parser.add_argument("--resume", type=Path, metavar="DIR", help="go on with the search in this folder")
    parser.add_argument("--at-once", type=whole(1, 1024), default=1, metavar="N", help="trials at a time (default 1)")


def execute(args: argparse.Namespace) -> int:
    """Run the verb."""
    require()
    from foreshare.training.learning.config import TrainConfig, load_config
    from foreshare.training.learning.tune import TuneOptions, search

    name = Path(args.config).stem
    resume = args.resume is not None
    config = TrainConfig() if resume else load_config(args.config)
    folder = args.resume or args.out or Path("out") / "tune" / f"{name}-{args.seed}"
    options = TuneOptions(
        name=name, config=config, seed=args.seed, folder=folder, resume=resume, at_once=args.at_once,
        address=args.address,
    )  # fmt: skip
    result = search(options, tell)
    if args.json:
        sys.stdout.write(json.dumps(result) + "\n")
        return 0
    sys.stdout.write(
        f"{result['trials']} trials, {result['failed']} failed; the best, score {result['best']['score']:.4f}:\n"
    )
    for key, value in result["best"]["values"].items():
        sys.stdout.write(f"  {key} = {value:g}\n")
    sys.stdout.write(f"written: {folder / 'best.json'}, {folder / 'policy.npz'}\n")
    return 0
