"""``foreshare record``: the host's telemetry at tick rate, as Parquet, without touching any control."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

from foreshare.envs.hal import Host
from foreshare.envs.hal.spec import MAX_VMS
from foreshare.policies.errors import InputError
from foreshare.runtime.session import open_hal, stop_on_signals, ticks_for
from foreshare.runtime.telemetry import record

from .run import read_choice
from .values import number, whole


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder for the recording (new or empty)"
    )
    parser.add_argument("--seconds", type=number(0.01, 1e9, "seconds"), required=True, metavar="S", help="how long")
    parser.add_argument("--hal", choices=("linux", "simulated"), default="linux", help="which host (default linux)")
    parser.add_argument("--config", type=Path, metavar="FILE.toml", help="VMs and settings of a real host")
    parser.add_argument("--scenario", default="mixed", help="simulated: name or TOML file")
    parser.add_argument("--vms", type=whole(0, MAX_VMS), metavar="N", help="simulated: number of VMs")
    parser.add_argument("--seed", type=whole(0, 2**63 - 1), default=0, metavar="K", help="simulated: seed")
    parser.add_argument("--tick-ms", type=number(5, 1000, "ms"), metavar="MS", help="time between samples (default 10)")
    parser.add_argument("--json", action="store_true", help="print one JSON object, nothing else")


def execute(args: argparse.Namespace) -> int:
    """Run the verb."""
    args.trace = None
    _, choice = read_choice(args)
    out: Path = args.out
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"--out {out}: is there already and is not an empty folder")
    hal = open_hal(replace(choice, read_only=True))
    try:
        with stop_on_signals() as stop:
            written, dropped = record(
                hal,
                Host(hal.topology, hal.vms),
                out,
                ticks=ticks_for(args.seconds, choice.tick_ms),
                tick_ms=choice.tick_ms,
                stop=stop,
            )
    finally:
        hal.close()
    if args.json:
        sys.stdout.write(
            json.dumps({"ticks": written, "dropped": dropped, "vms": len(hal.vms), "out": str(out)}) + "\n"
        )
    else:
        sys.stdout.write(f"{written} ticks of {len(hal.vms)} VMs in {out}; {dropped} dropped\n")
    return 0
