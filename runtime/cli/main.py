"""Parses the command line and runs a verb. Nothing heavy is imported before the verb is known."""

from __future__ import annotations

import argparse
import importlib
import os
import select
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from foreshare.policies.errors import ForeshareError

_VERBS = {
    "run": "partition a host: simulated, recorded or real",
    "doctor": "what this host can measure and move, and why not",
    "record": "write the host's telemetry to Parquet",
    "restore": "put back what a killed run left behind",
    "bench": "measure foreshare itself",
    "simulate": "run one simulated scenario and watch it",
    "evaluate": "compare policies on a suite of scenarios",
    "forecast": "fit forecasters to recordings, judge them, bring public traces in",
    "export": "make a signed bundle of a trained network",
    "models": "list the bundles in the registry",
    "promote": "make a bundle the champion, if the evidence says so",
    "rollback": "let the previous champion be the champion again",
    "pull": "fetch a bundle from the registry for this host",
    "keys": "make the key that signs bundles, say whose bundles this host takes",
    "tune-baseline": "search a policy's knobs on a suite of scenarios",
    "train": "learn a policy on Ray, tracked in MLflow",
    "tune": "search a training's settings with Ray Tune",
    "ablate": "train a configuration with each of its parts taken away, and compare",
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
            _module(name).add_arguments(sub)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code: 0 done, 1 the answer is no, 2 the input or the host is wrong."""
    try:
        try:
            code = _run(list(sys.argv[1:] if argv is None else argv))
        except SystemExit:  # argparse, after --help or an error: what it printed must get out as well
            sys.stdout.flush()
            raise
        sys.stdout.flush()
        return code
    except ForeshareError as error:
        return _wrong(str(error))
    except KeyboardInterrupt:
        sys.stderr.write("foreshare: interrupted\n")
        return 130
    except OSError as error:
        gone = isinstance(error, BrokenPipeError) and _reader_is_gone()
        # What is still buffered for stdout can go nowhere; the interpreter would complain about it at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if gone:
            return DONE  # the reader has seen enough (| head)
        where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
        return _wrong(f"{where}{error.strerror or error}")


def _run(arguments: list[str]) -> int:
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
    return int(_module(args.verb).execute(args))


def _module(verb: str) -> Any:
    return importlib.import_module(f"foreshare.runtime.cli.{verb.replace('-', '_')}")


def _wrong(text: str) -> int:
    sys.stderr.write(f"foreshare: {' '.join(text.split())}\n")
    return WRONG_INPUT


def _reader_is_gone() -> bool:
    """Return whether stdout is a pipe that nobody reads any more (POLLERR in poll(2)), so that it is what broke."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(events & select.POLLERR for _, events in poll.poll(0))


if __name__ == "__main__":
    sys.exit(main())
