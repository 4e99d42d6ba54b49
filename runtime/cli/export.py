"""``foreshare export``: make a signed bundle of a trained network."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from importlib.util import find_spec
from pathlib import Path

from foreshare.policies.errors import HostError, InputError
from foreshare.runtime.keys import Keys

from .keys import add_keys_option
from .main import ANSWER_IS_NO


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("run", type=Path, metavar="RUN", help="a training's folder, or a network's .npz")
    parser.add_argument("--out", type=Path, metavar="DIR", required=True, help="folder for the bundle")
    parser.add_argument("--evaluation", type=Path, metavar="F.json", help="what foreshare evaluate --json said of it")
    parser.add_argument(
        "--training", type=Path, metavar="F.json", help="what to say about its training in the manifest"
    )
    parser.add_argument(
        "--register", action="store_true", help="keep the bundle in the registry as a candidate as well"
    )
    parser.add_argument("--ship", action="store_true", help="put it into this source tree as the champion that ships")
    add_keys_option(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object, nothing else")


def need_training(*modules: str) -> None:
    """Raise HostError, with what to install, where one of ``modules`` is missing."""
    missing = [m for m in modules if find_spec(m) is None]
    if missing:
        raise HostError(f"this needs {', '.join(missing)}: pip install 'foreshare[train]'")


def execute(args: argparse.Namespace) -> int:
    """Run the verb."""
    need_training("torch", "onnx", "onnxruntime", *(("mlflow",) if args.register else ()))
    from foreshare.policies.learned.bundle import read_bundle
    from foreshare.policies.learned.lay import check_place
    from foreshare.training.delivery.export import Facts, evaluation_of, export, read_json, read_run
    from foreshare.training.delivery.parity import ParityError
    from foreshare.training.delivery.promote import closure_paying
    from foreshare.training.delivery.registry import Registry

    keys = Keys(args.keys)
    if keys.public() is None:
        raise InputError(f"there is no key to sign with in {keys.folder}: foreshare keys new")
    check_place(args.out)
    network, training = read_run(args.run)
    if args.training is not None:
        training = read_json(args.training)
    training.setdefault("exported_by", shlex.join(["foreshare", *sys.argv[1:]]))
    evaluation = evaluation_of(network, read_json(args.evaluation)) if args.evaluation is not None else {}
    try:
        result = export(network, args.out, Facts(training=training, evaluation=evaluation), keys.sign)
    except ParityError as e:
        sys.stderr.write(f"foreshare: nothing was written: {e}\n")
        return ANSWER_IS_NO
    bundle = read_bundle(args.out, keys.verify)
    if args.register:
        registry, closure = Registry(), closure_paying(bundle.manifest)
        tags = {"closure_paying": "" if closure is None else f"{closure:.4f}"}
        result["version"] = registry.register(bundle, {}, tags).number
    if args.ship:
        from foreshare.training.delivery.ship import ship

        result["shipped"] = ship(bundle)
    if args.json:
        sys.stdout.write(json.dumps(result) + "\n")
        return 0
    sys.stdout.write(
        f"bundle {result['sha256'][:16]} in {args.out}, {result['bytes']} bytes, signed by {bundle.signer}\n"
    )
    if "version" in result:
        sys.stdout.write(f"version {result['version']} of {registry.model} in {registry.uri}\n")
    sys.stdout.write("".join(f"written: {path}\n" for path in result.get("shipped", [])))
    return 0
