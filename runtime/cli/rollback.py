"""``foreshare rollback``: let the previous champion be the champion again."""

from __future__ import annotations

import argparse
import json
import sys

from .models import add_registry_options, open_registry


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_registry_options(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object, nothing else")


def execute(args: argparse.Namespace) -> int:
    """Run the verb."""
    registry = open_registry(args)
    from foreshare.training.delivery.promote import rollback

    found = rollback(registry)
    if args.json:
        sys.stdout.write(json.dumps(found) + "\n")
    else:
        sys.stdout.write(
            f"version {found['champion']} is the champion again; {found['previous']} is the previous one\n"
        )
    return 0
