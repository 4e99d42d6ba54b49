"""``foreshare forecast``: fit forecasters to recordings, judge them by rolling origin, bring public traces in."""

from __future__ import annotations

import argparse
import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from foreshare.policies.errors import HostError, InputError

from .main import Parser
from .values import number, whole, writable

MODELS = ("last", "ewma", "holt", "seasonal", "ar", "auto-arima", "auto-ets", "network", "lstm", "mixture")
DEFAULT = "last,ewma,holt,network,mixture"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what can be done."""
    what = parser.add_subparsers(dest="what", metavar="WHAT", required=True, parser_class=Parser)
    fit = what.add_parser("fit", help="fit a model to recordings")
    fit.add_argument("traces", nargs="+", type=Path, metavar="TRACE", help="a recording, or a folder of recordings")
    fit.add_argument("--model", choices=("network", "lstm", "arima"), required=True, help="what to fit")
    fit.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for MODEL.npz and MODEL.json")
    fit.add_argument("--without", action="append", default=[], metavar="UUID", help="leave this VM out (its beginning)")
    fit.add_argument("--split", type=number(0.1, 1.0, "share"), default=0.6, metavar="X",
                     help="fit to this share of each recording, its beginning (default 0.6)")  # fmt: skip
    fit.add_argument(
        "--hidden", type=whole(2, 512), default=24, metavar="N", help="units of a hidden layer (default 24)"
    )
    fit.add_argument(
        "--epochs", type=whole(1, 10000), default=12, metavar="N", help="passes over the data (default 12)"
    )
    fit.add_argument("--seed", type=whole(0, 2**31 - 1), default=0, metavar="K", help="seed of weights and batches")
    fit.add_argument("--workers", type=whole(0, 4096), default=0, metavar="N",
                     help="spread an LSTM's recordings over N Ray actors (default 0: none)")  # fmt: skip
    fit.add_argument("--ray-address", default="local", metavar="ADDRESS",
                     help="the Ray cluster of these (default: one on this machine)")  # fmt: skip
    fit.add_argument("--onnx", action="store_true", help="write MODEL.onnx as well")
    fit.add_argument("--json", action="store_true", help="print one JSON object, nothing else")
    back = what.add_parser("backtest", help="judge models by rolling origin")
    back.add_argument("traces", nargs="+", type=Path, metavar="TRACE", help="a recording, or a folder of recordings")
    back.add_argument("--models", default=DEFAULT, metavar="A,B",
                      help=f"of {', '.join(MODELS)}; all: all of these (default {DEFAULT})")  # fmt: skip
    back.add_argument("--weights", type=Path, metavar="DIR", help="what forecast fit wrote (default: what ships)")
    back.add_argument("--only", action="append", default=[], metavar="UUID", help="judge by this VM (its beginning)")
    back.add_argument("--split", type=number(0.1, 0.95, "share"), default=0.6, metavar="X",
                      help="judge by what comes after this share of each recording (default 0.6)")  # fmt: skip
    back.add_argument("--apart", type=whole(2, 64), metavar="N",
                      help="fit a network without each of N groups of VMs, and judge each by its own")  # fmt: skip
    back.add_argument("--also", action="append", default=[], type=Path, metavar="TRACE",
                      help="with --apart: fit to this recording too, without judging by it")  # fmt: skip
    back.add_argument("--report", type=Path, metavar="FILE.html", help="write a self-contained report")
    back.add_argument("--json", action="store_true", help="print one JSON object, nothing else")
    bring = what.add_parser("import", help="make a recording of a public trace")
    bring.add_argument(
        "trace", type=Path, metavar="FILE.csv", help="request stamps, machine or VM averages, percentiles"
    )
    bring.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the recording (new or empty)")
    bring.add_argument("--json", action="store_true", help="print one JSON object, nothing else")


def execute(args: argparse.Namespace) -> int:
    """Run the verb."""
    return {"fit": _fit, "backtest": _backtest, "import": _import}[args.what](args)


def _tell(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def _fit(args: argparse.Namespace) -> int:
    if args.model != "arima" and find_spec("torch") is None:
        raise HostError("fitting a network needs torch: pip install 'foreshare[train]'")
    if args.workers and args.model != "lstm":
        raise InputError("--workers goes with --model lstm: the others are fitted in one process")
    if args.workers and find_spec("ray") is None:
        raise HostError("--workers needs Ray: pip install 'foreshare[train]'")
    from foreshare.training.forecast.dataset import load_sessions
    from foreshare.training.forecast.fit import FitOptions
    from foreshare.training.forecast.weights import fit_and_write

    sessions = load_sessions(args.traces)
    options = FitOptions(split=args.split, hidden=args.hidden, epochs=args.epochs, seed=args.seed,
                         without=tuple(args.without), workers=args.workers, ray_address=args.ray_address)  # fmt: skip
    result = fit_and_write(sessions, args.model, options, args.out, onnx=args.onnx, progress=_tell)
    if args.json:
        sys.stdout.write(json.dumps(result) + "\n")
    else:
        scores = ", ".join(f"{k} {v:g}" for k, v in result["scores"].items())
        sys.stdout.write(f"{args.model} fitted to {len(result['sessions'])} recordings: {scores}\n")
        sys.stdout.write("".join(f"written: {path}\n" for path in result["files"]))
    return 0


def _backtest(args: argparse.Namespace) -> int:
    from foreshare.training.forecast.backtest import BacktestOptions, run_backtest
    from foreshare.training.forecast.dataset import load_sessions
    from foreshare.training.forecast.summary import summarise
    from foreshare.training.forecast.weights import load_fitted, shipped

    if args.apart is not None and find_spec("torch") is None:
        raise HostError("fitting a network needs torch: pip install 'foreshare[train]'")
    if args.apart is not None and (args.weights is not None or args.only):
        raise InputError("--apart fits its own weights and judges all VMs: --weights and --only do not go with it")
    if args.also and args.apart is None:
        raise InputError("--also goes with --apart")
    if args.report is not None:
        writable("--report", args.report)
    named = tuple(m for name in args.models.split(",") if name for m in (MODELS if name == "all" else (name,)))
    fitted = load_fitted(args.weights) if args.weights is not None else shipped()
    options = BacktestOptions(models=named, split=args.split, only=tuple(args.only))
    sessions = load_sessions(args.traces)
    if args.apart is None:
        done = run_backtest(sessions, options, fitted, _tell)
    else:
        from foreshare.training.forecast.apart import run_apart
        from foreshare.training.forecast.fit import FitOptions

        also = load_sessions(args.also) if args.also else []
        fit = FitOptions(epochs=6, most_samples=150_000)  # more does not judge better
        done = run_apart(sessions, args.apart, options, fit, also, _tell)
    result = summarise(done)
    if args.report is not None:
        from foreshare.runtime.forecast_report import render

        args.report.write_text(render(result, done.fans), encoding="utf-8")
    sys.stdout.write(json.dumps(result) + "\n" if args.json else _people(result))
    return 0


def _people(result: dict[str, Any]) -> str:
    lines = [
        f"{result['series']} series of {result['programs']} VMs in {result['sessions']} recordings,"
        f" {100 * result['censored_share']:.1f} % of ticks censored; losses in mean steps of each series"
    ]
    for horizon in ("50", "100"):
        lines.append(f"{horizon} ms{'':<8}{'MASE':>8}{'q50':>8}{'q90':>8}{'q99':>8}{'covers':>8}{'us':>8}")
        for name, rows in result["models"].items():
            row = rows[horizon]
            losses = "".join(f"{row[key]:>8.3f}" for key in ("mase", "pinball_q50", "pinball_q90", "pinball_q99"))
            lines.append(f"{name:<13}{losses}{row['coverage_q90']:>8.3f}{rows['call_us']:>8.0f}")
    found = {"": result.get("gain", {})} | {f"{r}, ": rows for r, rows in result.get("gain_by_resource", {}).items()}
    for of, gains in found.items():
        for horizon, levels in gains.items():
            for level, row in levels.items():
                lines.append(
                    f"mixture at {horizon} ms, {of}{level}: {100 * row['share']:+.1f} % below {row['best']}"
                    f" [{100 * row['low']:+.1f}, {100 * row['high']:+.1f}]"
                )
    return "".join(f"{line}\n" for line in lines)


def _import(args: argparse.Namespace) -> int:
    from foreshare.training.forecast.public_traces import import_trace

    out: Path = args.out
    found = import_trace(args.trace, out)
    if args.json:
        sys.stdout.write(json.dumps({**found, "out": str(out)}) + "\n")
    else:
        sys.stdout.write(f"{found['ticks']} ticks of {found['tick_ms']:g} ms, {found['kind']}, in {out}\n")
    return 0
