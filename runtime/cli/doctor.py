"""``foreshare doctor``: what this host can measure and move, through which interface, and why not where not."""

from __future__ import annotations

import argparse
import sys


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--json", action="store_true", help="print one JSON object, nothing else")


def execute(args: argparse.Namespace) -> int:
    """Run the verb."""
    from foreshare.runtime.doctor import run_doctor

    return run_doctor(json=args.json, stream=sys.stdout)
