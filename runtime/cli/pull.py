"""``foreshare pull``: fetch a bundle from the registry, verify it, put it in place in one step."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from foreshare.policies.learned.lay import check_place, lay
from foreshare.runtime.keys import Keys

from .keys import add_keys_option
from .models import add_registry_options, open_registry


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--alias", default="champion", metavar="A", help="which: champion (default), previous, a version"
    )
    parser.add_argument("--to", type=Path, required=True, metavar="DIR", help="folder for the bundle")
    add_registry_options(parser)
    add_keys_option(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object, nothing else")


def execute(args: argparse.Namespace) -> int:
    """Run the verb."""
    check_place(args.to)
    registry = open_registry(args)
    version = registry.version(args.alias)
    bundle = registry.fetch(version, Keys(args.keys).verify)
    lay(bundle.contents, args.to)
    found = {
        "version": version.number, "sha256": bundle.sha256, "verified": True, "signer": bundle.signer,
        "to": str(args.to),
    }  # fmt: skip
    if args.json:
        sys.stdout.write(json.dumps(found) + "\n")
    else:
        sys.stdout.write(
            f"version {version.number} ({bundle.sha256[:16]}), signed by {bundle.signer}, is in {args.to}\n"
        )
    return 0
