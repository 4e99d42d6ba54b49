"""Parses the command line and runs a verb. Nothing heavy is imported before the verb is known."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

_VERBS = {
    "run": "partition a host: simulated, recorded or real",
    "doctor": "what this host can measure and move, and why not",
    "record": "write the host's telemetry to Parquet",
    "restore": "put back what a killed run left behind",
    "bench": "measure foreshare itself",
}
DONE, ANSWER_IS_NO, WRONG_INPUT = 0, 1, 2


class Parser(argparse.ArgumentParser):
    """argparse, with one line for an error."""

    def error(self, message: str) -> NoReturn:
        """Print one line and leave with exit code 2."""
        sys.stderr.write(f"{self.prog}: {message} (see {self.prog} --help)\n")
        raise SystemExit(WRONG_INPUT)


def make_parser(verb: str | None) -> Parser:
    """Return the parser; only ``verb``'s own options are filled in, so that nothing else need be imported."""
    parser = Parser(
        prog="foreshare",
        description="Re-partitions one host's CPU cores, cache ways, memory and IO bandwidth between its VMs,"
        " ahead of their demand.",
    )
    parser.add_argument("--version", action="store_true", help="print the version")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", parser_class=Parser)
    for name, text in _VERBS.items():
        sub = verbs.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        if name == verb:
            importlib.import_module(f"foreshare.runtime.cli.{name}").add_arguments(sub)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code: 0 done, 1 the answer is no, 2 the input or the host is wrong."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    verb = next((a for a in arguments if a in _VERBS), None)
    parser = make_parser(verb)
    args = parser.parse_args(arguments)
    if args.version:
        from importlib.metadata import version

        sys.stdout.write(f"foreshare {version('foreshare')}\n")
        return DONE
    if args.verb is None:
        parser.print_help()
        return WRONG_INPUT
    from foreshare.policies.errors import ForeshareError

    try:
        return int(importlib.import_module(f"foreshare.runtime.cli.{args.verb}").execute(args))
    except ForeshareError as error:
        sys.stderr.write(f"foreshare: {' '.join(str(error).split())}\n")
        return WRONG_INPUT
    except KeyboardInterrupt:
        sys.stderr.write("foreshare: interrupted\n")
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE


if __name__ == "__main__":
    sys.exit(main())
