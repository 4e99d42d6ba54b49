"""From a trained network to a bundle: torch, ONNX, the parity gate, the manifest, the signature."""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import foreshare.envs
import foreshare.policies
from foreshare.envs.agent import Float32Array
from foreshare.envs.simulator.suites import SIMULATOR_VERSION, content_hash, load_suite, suite_hash, suite_names
from foreshare.policies.errors import InputError
from foreshare.policies.features import HOST_FEATURES, VERSION, VM_FEATURES
from foreshare.policies.learned.bundle import FILES, MANIFEST, NPZ, ONNX, SIGNATURE, manifest_text
from foreshare.policies.learned.lay import check_place, lay
from foreshare.policies.learned.network import Network
from foreshare.policies.registry import LEARNED_BASE, tuned_knobs
from foreshare.training.evaluate_cache import code_version

from .onnx_graph import INPUTS, OUTPUT, onnx_of
from .parity import SIZES, TOLERANCE, Case, Forward, cases, check_parity

RESULT = "result.json"
"""What a training says about itself, in its folder."""
Sign = Callable[[bytes], bytes]
"""Takes a manifest, returns manifest.sig."""
_VERSIONED = ("foreshare", "numpy", "torch", "onnx", "onnxruntime", "ray", "mlflow")
_CODE = {
    "guard": ("policies/guard.py", "policies/compiled/guard.c", "policies/rounding.py"),
    "correction": ("policies/allocators/corrected.py",),
    "delay_model": ("envs/simulator/host.py", "envs/simulator/model.py"),
    "base": ("policies/allocators/triage.py", "policies/backlog_forecast.py", "policies/compiled/share.c"),
    "features": ("policies/features.py",),
}  # fmt: skip
"""Parts of the code that a network is at home in; ``env`` is all of it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """Where a network comes from, for its manifest: JSON values."""

    training: Mapping[str, Any] = field(default_factory=dict)
    """What was trained how: command, seed, steps, suites."""
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    """How it did: ``foreshare evaluate --json``."""


def forms(network: Network, model: bytes) -> dict[str, Forward]:
    """Return the network in torch, and in onnxruntime as ``model`` has it."""
    import onnxruntime
    import torch

    from foreshare.training.network_torch import NetworkModule

    module = NetworkModule(network).eval()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def in_torch(vms: Float32Array, mask: Float32Array, host: Float32Array) -> Float32Array:
        with torch.inference_mode():
            out: Float32Array = module(*(torch.from_numpy(x) for x in (vms, mask, host))).numpy()
        return out

    def in_onnx(vms: Float32Array, mask: Float32Array, host: Float32Array) -> Float32Array:
        out: Float32Array = session.run([OUTPUT], dict(zip(INPUTS, (vms, mask, host), strict=True)))[0]
        return out

    return {"torch": in_torch, "onnxruntime": in_onnx}


def contents_of(
    network: Network, facts: Facts, sign: Sign, *, model: bytes | None = None, on: list[Case] | None = None
) -> dict[str, bytes]:
    """Return the files of a signed bundle. Raises ParityError where the network's forms do not agree.

    ``model``: the ONNX form if there is one already; ``on``: what to compare the forms on.
    """
    model = onnx_of(network) if model is None else model
    worst = check_parity(network, forms(network, model), cases(network) if on is None else on)
    parity = {"sizes": list(SIZES), "tolerance": TOLERANCE, "worst": worst}
    manifest = manifest_text(network, model, _origin() | {
        "training": dict(facts.training), "evaluation": dict(facts.evaluation), "parity": parity,
    })  # fmt: skip
    contents = {NPZ: network.packed(), ONNX: model, MANIFEST: manifest, SIGNATURE: sign(manifest)}
    for name, most in FILES.items():
        if len(contents[name]) > most:
            raise InputError(f"{name} of {len(contents[name])} bytes is too long for a bundle: at most {most}")
    return contents


def export(network: Network, out: Path, facts: Facts, sign: Sign) -> dict[str, Any]:
    """Write a bundle into ``out``, which must not exist or be empty, or hold a bundle to be replaced.

    The folder is there whole or not at all. Returns what was found. Raises ParityError, InputError.
    """
    check_place(out)
    contents = contents_of(network, facts, sign)
    lay(contents, out)
    return {"out": str(out), "sha256": content_sha256(contents), "bytes": sum(map(len, contents.values()))}


def read_run(run: Path) -> tuple[Network, dict[str, Any]]:
    """Return the network of a training's folder, or of an .npz file, and what is known about its training.

    Of a folder: ``policy.npz``, and ``result.json`` if it is there. Raises InputError.
    """
    if not run.is_dir():
        return Network.load(run), {}
    told = run / RESULT
    return Network.load(run / NPZ), read_json(told) if told.exists() else {}


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file. Raises InputError."""
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise InputError(f"{path}: {e.strerror}") from e
    except (ValueError, RecursionError) as e:
        raise InputError(f"{path} is not JSON") from e
    if not isinstance(found, dict):
        raise InputError(f"{path} holds no JSON object")
    return found


def evaluation_of(network: Network, table: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of an evaluation (``foreshare evaluate --json``) that goes into the network's manifest.

    ``policy`` are its own figures by load, ``others`` V of whom it was compared with. Raises InputError where the table
    is not of this network, or not of this version's code.
    """
    own = content_hash(
        ["learned", hashlib.sha256(network.packed()).hexdigest(), repr(tuned_knobs(LEARNED_BASE)), code_version()]
    )
    rows, identities = table.get("policies"), table.get("policy_hash")
    if not isinstance(rows, dict) or not isinstance(identities, dict):
        raise InputError("the evaluation is not what foreshare evaluate --json prints")
    name = next((k for k, v in identities.items() if v == own), None)
    if name is None:
        raise InputError("the evaluation is not of this network, or of other code: run foreshare evaluate again")
    others = {
        k: {load: v["slo_violation_pct"] for load, v in by_load.items()} for k, by_load in rows.items() if k != name
    }
    about = {k: table.get(k) for k in ("suite", "suite_hash", "seeds", "code_version")}
    return about | {"policy": rows[name], "others": others}


def content_sha256(contents: Mapping[str, bytes]) -> str:
    """Return the identity of a bundle: the SHA-256 of its manifest."""
    return hashlib.sha256(contents[MANIFEST]).hexdigest()


def _origin() -> dict[str, Any]:
    """Return when, from what code and with what libraries a bundle was made."""
    units = {f.name: f.unit for f in (*VM_FEATURES, *HOST_FEATURES)}
    suites = {name: suite_hash(load_suite(name)) for name in suite_names()}
    return {
        "created": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "features_version": VERSION, "units": units, "horizons_ms": [50, 100],
        "hashes": {"env": code_version()} | {part: _code_hash(files) for part, files in _CODE.items()}
        | {"base_knobs": content_hash(repr(tuned_knobs(LEARNED_BASE)))},
        "suites": suites, "simulator_version": SIMULATOR_VERSION, "git_commit": git_commit(),
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in _VERSIONED},
    }  # fmt: skip


def _code_hash(files: tuple[str, ...]) -> str:
    roots = {"policies": foreshare.policies, "envs": foreshare.envs}
    texts = []
    for name in files:
        package, _, rest = name.partition("/")
        texts.append([name, (Path(next(iter(roots[package].__path__))) / rest).read_text(encoding="utf-8")])
    return content_hash(texts)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def git_commit() -> str:
    """Return the commit of the tree that foreshare runs from, with ``+`` where it was changed; empty outside of one."""
    try:
        head, status = _git("rev-parse", "HEAD"), _git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return ""
    return head.strip() + ("+" if status.strip() else "")


def _git(*words: str) -> str:
    where = str(Path(__file__).resolve().parent)
    argv = ["git", "-C", where, *words]
    return subprocess.run(argv, capture_output=True, text=True, check=True, timeout=30).stdout
