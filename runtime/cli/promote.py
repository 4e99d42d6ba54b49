"""``foreshare promote``: make a bundle the champion, if the evidence says so."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from foreshare.runtime.keys import Keys

from .evaluate import show_progress
from .export import need_training
from .keys import add_keys_option
from .main import ANSWER_IS_NO, DONE
from .models import add_registry_options, open_registry
from .values import cpus, whole


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("candidate", metavar="CANDIDATE", help="a bundle's folder, or a version in the registry")
    parser.add_argument("--suite", default="standard", metavar="S", help="judge on these (default standard)")
    parser.add_argument("--seeds", type=whole(1, 1000), default=5, metavar="K", help="seeds per scenario (default 5)")
    parser.add_argument(
        "--jobs", type=whole(1, 256), metavar="J", help="parallel processes (default: one for each CPU)"
    )
    parser.add_argument("--cache", metavar="DIR", help="where finished runs are kept, or none (default: ~/.cache)")
    add_registry_options(parser)
    add_keys_option(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object, nothing else")


def execute(args: argparse.Namespace) -> int:
    """Run the verb."""
    registry = open_registry(args)
    need_training("torch", "onnx", "onnxruntime")
    from foreshare.training.delivery.promote import PromoteOptions, promote
    from foreshare.training.evaluate_cache import default_cache

    cache = None if args.cache == "none" else Path(args.cache) if args.cache else default_cache()
    options = PromoteOptions(
        suite=args.suite, seeds=args.seeds, jobs=args.jobs or cpus(), cache=cache, rehearsal=args.rehearsal
    )
    with show_progress(f"{args.suite}: candidate, champion and triage x {args.seeds} seeds") as tell:
        found = promote(args.candidate, registry, Keys(args.keys).verify, options, tell)
    if args.json:
        sys.stdout.write(json.dumps(found) + "\n")
    else:
        said = "passed over, as this is a rehearsal" if found["promoted"] else "not promoted"
        sys.stdout.write("".join(f"{said}: {reason}\n" for reason in found["reasons"]))
        if found["promoted"]:
            sys.stdout.write(f"version {found['version']} is the champion of {registry.model} in {registry.uri}\n")
    return DONE if found["promoted"] else ANSWER_IS_NO
