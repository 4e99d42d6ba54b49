"""``foreshare restore``: put a host back as it was found, after a run that was killed."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from foreshare.runtime.cli.main import ANSWER_IS_NO, DONE
from foreshare.runtime.config import load_config
from foreshare.runtime.journal import StateDir, default_state_dir


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--config", type=Path, metavar="FILE.toml", help="takes the state directory from there")
    parser.add_argument("--state-dir", metavar="DIR", help="where the killed run kept its journal")
    parser.add_argument("--json", action="store_true", help="print one JSON object, nothing else")


def execute(args: argparse.Namespace) -> int:
    """Run the verb: exit code 1 if something could not be put back."""
    from foreshare.envs.hal.linux.restore import restore
    from foreshare.envs.hal.linux.roots import Roots

    folder = args.state_dir or (load_config(args.config).host.state_dir if args.config else default_state_dir())
    restored, gone, failed, why = 0, 0, [], ""
    with StateDir(folder) as state:
        entry = state.read()
        if state.sidelined:
            why = f"the journal was corrupt and was put aside as {state.sidelined}"
        elif entry is None:
            why = "nothing to put back: no run was cut off"
        elif not entry.same_boot:
            why = "the machine has been restarted since: nothing is left to put back"
            state.clear()
        else:
            report = restore(entry.originals, Roots())
            restored, gone, failed = report.restored, report.gone, list(report.failed)
            if not failed:
                state.clear()
    if args.json:
        sys.stdout.write(json.dumps({"restored": restored, "gone": gone, "failed": failed, "why": why}) + "\n")
    else:
        text = why or f"put back {restored} controls; {gone} were gone with their VMs"
        sys.stdout.write("".join(f"{line}\n" for line in [text, *failed]))
    return ANSWER_IS_NO if failed or state.sidelined else DONE
