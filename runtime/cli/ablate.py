"""``foreshare ablate``: train a configuration with each of its parts taken away, and compare."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from .train import add_experiment, require, tell, what_to_learn
from .values import whole


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    what_to_learn(parser, "champion")
    parser.add_argument(
        "--steps", type=whole(1, 10**12), metavar="N",
        help="simulator steps (ticks of one VM) for each variant; running means shrink alike",
    )  # fmt: skip
    parser.add_argument("--only", default="", metavar="A,B", help="variants by name (default all)")
    parser.add_argument("--suite", default="standard", metavar="S", help="the suite that judges (default standard)")
    parser.add_argument("--seeds", type=whole(1, 1000), default=3, metavar="N", help="runs of each (default 3)")
    parser.add_argument("--ticks", type=whole(1, 10**6), metavar="T", help="of a run (default: as the suite says)")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder of the trainings (default out/ablate/NAME-SEED); gone on with"
    )
    add_experiment(parser)


def execute(args: argparse.Namespace) -> int:
    """Run the verb."""
    require()
    from foreshare.training.learning.ablation import AblateOptions, ablate, as_lines, shortened
    from foreshare.training.learning.config import load_config

    name, config = Path(args.config).stem, load_config(args.config)
    if args.steps is not None:
        config = shortened(config, args.steps)
    only = tuple(part.strip() for part in args.only.split(",") if part.strip())
    options = AblateOptions(
        name=name, config=config, seed=args.seed, folder=args.out or Path("out") / "ablate" / f"{name}-{args.seed}",
        only=only, suite=args.suite, seeds=args.seeds, ticks=args.ticks or 0, experiment=args.experiment,
        address=args.address,
    )  # fmt: skip
    result = ablate(options, tell)
    sys.stdout.write((json.dumps(result) if args.json else "\n".join(as_lines(result))) + "\n")
    return 0
