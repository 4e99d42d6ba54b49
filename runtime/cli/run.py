"""``foreshare run``: partition a host for a while, show it, put it back, sum up."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from foreshare.envs.hal.spec import MAX_VMS
from foreshare.policies.errors import HostError, InputError
from foreshare.policies.registry import DEFAULT, POLICIES
from foreshare.runtime.asking import PLUG_IN_RADIUS, WHERE, Where, check_policy
from foreshare.runtime.cli.values import number, whole
from foreshare.runtime.config import Config, describe_config, load_config
from foreshare.runtime.journal import default_state_dir
from foreshare.runtime.runlog import RunLog
from foreshare.runtime.session import HalChoice, Outcome, Session, dry_run, stop_on_signals, ticks_for

DEFAULT_SECONDS = 30.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--hal", choices=("simulated", "linux", "replay"), default="simulated", help="which host")
    parser.add_argument("--config", type=Path, metavar="FILE.toml", help="VMs and settings of a real host")
    parser.add_argument("--help-config", action="store_true", help="print every key that the configuration may have")
    parser.add_argument("--scenario", default="mixed", help="simulated: name or TOML file (default mixed)")
    parser.add_argument("--vms", type=whole(0, MAX_VMS), metavar="N", help="simulated: number of VMs")
    parser.add_argument("--trace", type=Path, metavar="DIR", help="replay: the recording")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--ticks", type=whole(1, 10**9), metavar="N", help="how many ticks to run")
    length.add_argument(
        "--seconds", type=number(0.01, 1e9, "seconds"), metavar="S", help="host time to run (default 30)"
    )
    parser.add_argument(
        "--tick-ms", type=number(5, 1000, "ms"), metavar="MS", help="time between decisions (default 10)"
    )
    parser.add_argument(
        "--policy", metavar="NAME",
        help=f"who decides: {', '.join(POLICIES)}; champion, or a bundle's folder (default {DEFAULT})",
    )  # fmt: skip
    parser.add_argument(
        "--policy-in", choices=WHERE,
        help="where it runs: inline, or in a process of its own; auto (default): plug-ins (package.module:callable) do",
    )  # fmt: skip
    parser.add_argument(
        "--trust-radius", type=number(0.0, 1.0, "shares"), metavar="R", default=PLUG_IN_RADIUS,
        help="a plug-in leaves every VM at least 1 - R of what triage would give it "
        f"(default {PLUG_IN_RADIUS}; 1: whatever it says)",
    )  # fmt: skip
    parser.add_argument(
        "--forecast",
        metavar="DIR",
        help="what forecast fit wrote, for triage-mixture to use (default: what ships)",
    )
    parser.add_argument(
        "--scheduling", choices=("fifo", "other"), default="fifo",
        help="real hosts: run as a real-time process, where allowed (default), or as any other",
    )  # fmt: skip
    parser.add_argument("--seed", type=whole(0, 2**63 - 1), default=0, metavar="K", help="simulated: seed")
    parser.add_argument(
        "--baseline", metavar="NAME", help="simulated: policy to compare with on the same demand, or none"
    )
    parser.add_argument(
        "--state-dir", metavar="DIR", help="where lease and journal live (default: the configuration's)"
    )
    parser.add_argument("--dry-run", action="store_true", help="print what the first tick would write; write nothing")
    parser.add_argument("--report", type=Path, metavar="F.html", help="write a self-contained report")
    parser.add_argument("--json", action="store_true", help="print one JSON object, nothing else")


def execute(args: argparse.Namespace) -> int:
    """Run the verb."""
    if args.help_config:
        sys.stdout.write(describe_config())
        return 0
    config, choice = read_choice(args)
    policy = check_policy(args.policy or (config.policy.name if config else DEFAULT))
    policy_in = args.policy_in or (config.policy.run_in if config else "auto")
    baseline = args.baseline or ("static" if args.hal == "simulated" and not args.json else "none")
    if baseline != "none" and (baseline not in POLICIES or args.hal != "simulated"):
        raise InputError(f"--baseline {baseline}: needs the simulated host and one of {', '.join(POLICIES)}, or none")
    if args.dry_run:
        return _dry_run(args, choice, policy, policy_in)
    _check_report(args.report)
    ticks = args.ticks or ticks_for(args.seconds or DEFAULT_SECONDS, choice.tick_ms)
    session = Session(
        choice=choice, policy=policy, policy_in=policy_in, ticks=ticks, radius=args.trust_radius,
        first_in_turn=args.scheduling == "fifo", forecast=args.forecast or (config.policy.forecast if config else ""),
        state_dir=args.state_dir or (config.host.state_dir if config else default_state_dir()), say=_say,
    )  # fmt: skip
    outcome = _shown(session, args, ticks * choice.tick_ms * 1e-3)
    other = _baseline(session, baseline, outcome.log.summary["ticks"]) if baseline != "none" else None
    for note in outcome.notes:
        _say(note)
    if args.report:
        write_report(outcome.log, args.report, other)
    _print(args, outcome, other)
    return 0


def _say(text: str) -> None:
    """Tell people something on stderr, at once."""
    sys.stderr.write(f"foreshare: {text}\n")
    sys.stderr.flush()


def read_choice(args: argparse.Namespace) -> tuple[Config | None, HalChoice]:
    """Return the configuration, if one is named, and which host to open. Raises InputError for what does not fit."""
    if args.trace is not None and args.hal != "replay":
        raise InputError(f"--trace is played back by --hal replay (the HAL is {args.hal})")
    if args.vms is not None and args.hal != "simulated":
        raise InputError(f"--vms is for the simulated host; the HAL is {args.hal}, which says itself what VMs it has")
    config = None
    if args.config:
        config = load_config(args.config, policies=frozenset(POLICIES), need_cgroups=args.hal == "linux")
        if args.hal != "linux":
            raise InputError(f"--config describes a real host: add --hal linux (the HAL is {args.hal})")
    choice = HalChoice(
        hal=args.hal,
        config=config,
        scenario=args.scenario,
        vms=args.vms,
        trace=args.trace,
        seed=args.seed,
        tick_ms=args.tick_ms or (config.host.tick_ms if config else 10.0),
    )
    return config, choice


def _dry_run(args: argparse.Namespace, choice: HalChoice, policy: str, policy_in: Where) -> int:
    lines = dry_run(choice, policy, policy_in)
    if args.json:
        sys.stdout.write(json.dumps({"dry_run": True, "writes": lines}) + "\n")
    else:
        sys.stdout.write("".join(f"{line}\n" for line in lines) or "nothing to write\n")
    return 0


def _shown(session: Session, args: argparse.Namespace, seconds: float) -> Outcome:
    """Run with a live view on a terminal, a progress line elsewhere, silently with --json."""
    with ExitStack() as stack:
        session.stop = stack.enter_context(stop_on_signals())
        if not args.json:
            from foreshare.runtime.show import show_on

            session.watchers = lambda facts, loop: [stack.enter_context(show_on(sys.stdout, facts, loop, seconds))]
        return session.run()


def _baseline(session: Session, policy: str, ticks: int) -> RunLog | None:
    """Run the other policy for as many ticks as there were; None if none, or somebody would not wait."""
    if not ticks:
        return None
    with stop_on_signals() as stop:
        other = replace(session, policy=policy, policy_in="auto", forecast="", ticks=ticks, stop=stop, watchers=None)
        log = other.run().log
        return None if stop() else log


def _check_report(path: Path | None) -> None:
    if path is None:
        return
    from foreshare.runtime.report import report_available

    why = report_available()
    if why:
        raise HostError(why)
    if not path.parent.is_dir():
        raise InputError(f"--report {path}: the folder {path.parent} does not exist")
    if path.is_dir():
        raise InputError(f"--report {path}: is a folder; name a file")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise InputError(f"--report {path}: no permission to write it")


def write_report(log: RunLog, path: Path, baseline: RunLog | None) -> None:
    """Render the report in a process of its own: what it needs in memory is not the run's to carry."""
    with tempfile.TemporaryDirectory(prefix="foreshare-") as folder:
        ours, theirs = Path(folder) / "run.npz", Path(folder) / "baseline.npz"
        log.save(ours)
        argv = [sys.executable, "-m", "foreshare.runtime.report", str(ours), str(path)]
        if baseline is not None:
            baseline.save(theirs)
            argv += ["--baseline", str(theirs)]
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip() or f"it ended with {done.returncode}").splitlines()[-1]
        raise HostError(f"the report was not written: {last}")


def _print(args: argparse.Namespace, outcome: Outcome, baseline: RunLog | None) -> None:
    summary: dict[str, Any] = outcome.log.summary | {"restored": outcome.restored}
    if args.json:
        if baseline is not None:
            summary["baseline"] = baseline.summary
        sys.stdout.write(json.dumps(summary) + "\n")
        return
    from foreshare.runtime.tables import summary_table

    sys.stdout.write(summary_table(summary, baseline.summary if baseline else None, sys.stdout))
    if args.report:
        sys.stdout.write(f"report: {args.report}\n")
