"""``foreshare tune-baseline``: search a policy's knobs on a suite, within a budget of simulator steps."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from foreshare.policies.registry import KNOBS

from .values import cpus, whole, writable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("policy", choices=sorted(KNOBS), metavar="POLICY", help=f"one of {', '.join(sorted(KNOBS))}")
    parser.add_argument("--suite", default="train", metavar="S", help="tune on these (default train)")
    parser.add_argument(
        "--steps", type=whole(1, 10**12), default=2_000_000, metavar="N",
        help="simulator steps (ticks of one VM) to spend (default 2000000)",
    )  # fmt: skip
    parser.add_argument("--seed", type=whole(0, 2**63 - 1), default=0, metavar="K", help="seed of the search")
    parser.add_argument(
        "--rollouts", type=whole(1, 256), default=2, metavar="N",
        help="hosts, each with a seed of its own, per scenario and candidate (default 2)",
    )  # fmt: skip
    parser.add_argument("--jobs", type=whole(1, 256), metavar="J", help="parallel processes (default: one a CPU)")
    parser.add_argument(
        "--write", type=Path, metavar="F.py", help="put the best values into this file (policies/tuned.py)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object, nothing else")


def execute(args: argparse.Namespace) -> int:
    """Run the verb."""
    from foreshare.envs.simulator.suites import load_suite, suite_hash
    from foreshare.training.processes import process_pool
    from foreshare.training.tune_baseline import Trial, TuneOptions, tune, write_tuned

    if args.write is not None:
        writable("--write", args.write)
    suite = load_suite(args.suite)
    at = [(s, load) for s in suite.scenarios for load, _ in suite.loads]
    best = float("inf")

    def progress(spent: int, trial: Trial) -> None:
        nonlocal best
        if trial.score < best:
            best = trial.score
            share = min(100.0 * spent / args.steps, 100.0)
            sys.stderr.write(f"{args.policy}: {share:5.1f} % of the steps, best score {best:.4f}\n")
            sys.stderr.flush()

    options = TuneOptions(steps=args.steps, seed=args.seed, rollouts=args.rollouts)
    with process_pool(args.jobs or cpus()) as pool:
        found = tune(args.policy, [suite.at(s, load) for s, load in at], options, progress, pool)
    command = f"foreshare tune-baseline {args.policy} --suite {args.suite} --steps {args.steps} --seed {args.seed}"
    if args.rollouts != TuneOptions().rollouts:
        command += f" --rollouts {args.rollouts}"
    if args.write is not None:
        write_tuned(args.write, args.policy, found.best, command)
    chosen = min(found.trials, key=lambda t: t.score)

    def by_load(trial: Trial) -> dict[str, float]:
        return {
            name: round(sum(v for v, (_, x) in zip(trial.slo_violation_pct, at, strict=True) if x == name)
                        / sum(x == name for _, x in at), 4)
            for name, _ in suite.loads
        }  # fmt: skip

    result: dict[str, Any] = {
        "policy": args.policy, "suite": suite.name, "suite_hash": suite_hash(suite), "command": command,
        "steps": found.steps, "candidates": len(found.trials), "score": round(chosen.score, 4),
        "defaults": by_load(found.trials[0]), "tuned": by_load(chosen), "knobs": asdict(found.best),
    }  # fmt: skip
    if args.json:
        sys.stdout.write(json.dumps(result) + "\n")
        return 0
    sys.stdout.write(
        f"{command}\n{len(found.trials)} candidates, {found.steps} steps; late requests, %, on what was tuned on:\n"
    )
    for what in ("defaults", "tuned"):
        sys.stdout.write(f"  {what:9s}" + "".join(f"  {k} {v:6.2f}" for k, v in result[what].items()) + "\n")
    for name, value in result["knobs"].items():
        sys.stdout.write(f"  {name} = {value}\n")
    if args.write is not None:
        sys.stdout.write(f"written: {args.write}\n")
    return 0
