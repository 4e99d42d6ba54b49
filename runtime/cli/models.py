"""``foreshare models``: the bundles in the registry, and which of them hosts run."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

from .export import need_training

if TYPE_CHECKING:
    from foreshare.training.delivery.registry import Registry


def add_registry_options(parser: argparse.ArgumentParser) -> None:
    """Declare where the registry is."""
    parser.add_argument(
        "--registry", metavar="URI", help="MLflow's address (default: MLFLOW_TRACKING_URI, else sqlite:///mlruns/mlflow.db)"
    )  # fmt: skip
    parser.add_argument(
        "--rehearsal", action="store_true", help="work on the models for trying things out, which hosts never look at"
    )


def open_registry(args: argparse.Namespace) -> Registry:
    """Return the registry that the options name."""
    need_training("mlflow")
    from foreshare.training.delivery.registry import Registry

    return Registry(args.registry, rehearsal=args.rehearsal)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_registry_options(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object, nothing else")


def execute(args: argparse.Namespace) -> int:
    """Run the verb."""
    registry = open_registry(args)
    from foreshare.training.delivery.promote import listed

    found = listed(registry)
    if args.json:
        sys.stdout.write(json.dumps(found) + "\n")
        return 0
    names = {found["champion"]: "champion", found["previous"]: "previous"}
    sys.stdout.write(f"{found['model']} in {found['registry']}\n")
    for row in found["versions"]:
        closure = "" if row["closure_paying"] is None else f"  closure {row['closure_paying']:.1f} %"
        name = names.get(row["version"], "")
        sys.stdout.write(f"{row['version']:>5}  {row['created']}  {row['sha256'][:16]}  {name:<9}{closure}\n")
    if not found["versions"]:
        sys.stdout.write("nothing there yet\n")
    return 0
