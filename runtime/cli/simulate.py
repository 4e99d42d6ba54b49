"""``foreshare simulate``: one scenario, shipped, drawn at random or from a file, to be watched in the terminal."""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from foreshare.envs.hal.spec import MAX_VMS
from foreshare.policies.errors import InputError
from foreshare.policies.registry import DEFAULT, POLICIES

from . import run
from .values import number, whole


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--scenario", default="mixed", metavar="S", help="name or TOML file (default mixed)")
    what.add_argument("--draw", type=whole(0, 2**63 - 1), metavar="SEED", help="a scenario nobody has seen, by number")
    parser.add_argument("--load", type=number(0.01, 10, "capacity"), metavar="L", help="mean demand over capacity")
    parser.add_argument("--vms", type=whole(1, MAX_VMS), metavar="N", help="number of VMs")
    parser.add_argument("--policy", metavar="P", help=f"who decides: {', '.join(POLICIES)} (default {DEFAULT})")
    parser.add_argument("--seconds", type=number(0.01, 1e9, "seconds"), metavar="S", help="host time (default 30)")
    parser.add_argument("--seed", type=whole(0, 2**63 - 1), default=0, metavar="K", help="seed of the demand")
    parser.add_argument("--report", type=Path, metavar="F.html", help="write a self-contained report")
    parser.add_argument("--write", type=Path, metavar="F.toml", help="write the scenario to a file; run nothing")
    parser.add_argument("--json", action="store_true", help="print one JSON object, nothing else")


def execute(args: argparse.Namespace) -> int:
    """Run the verb: ``foreshare run`` on the simulated host, with a scenario made to order."""
    from foreshare.envs.simulator.scenario import load_scenario
    from foreshare.envs.simulator.scenario_draw import draw, to_toml

    if args.draw is not None:
        scenario = draw(args.draw, vms=args.vms)
    else:
        scenario = load_scenario(args.scenario, vms=args.vms, seed=args.seed)
    if args.load is not None:
        scenario = replace(scenario, load=args.load)
    if args.write is not None:
        args.write.write_text(to_toml(scenario), encoding="utf-8")
        if not args.json:
            sys.stdout.write(
                f"scenario {scenario.name!r}: {scenario.about or 'no description'}\nwritten: {args.write}\n"
            )
        return 0
    if not scenario.vm:
        raise InputError(f"scenario {scenario.name!r} has no VM: nothing would happen")
    options = ["--seconds", str(args.seconds or run.DEFAULT_SECONDS), "--seed", str(args.seed)]
    options += ["--policy", args.policy] if args.policy else []
    options += ["--report", str(args.report)] if args.report else []
    options += ["--json"] if args.json else []
    parser = argparse.ArgumentParser()
    run.add_arguments(parser)
    with tempfile.TemporaryDirectory(prefix="foreshare-") as folder:
        path = Path(folder) / f"{scenario.name}.toml"
        path.write_text(to_toml(scenario), encoding="utf-8")
        return run.execute(parser.parse_args(["--scenario", str(path), *options]))
