"""Results of runs on disk, each under the hash of all that it depends on, so that no run is made twice.

An evaluation that was interrupted goes on where it stopped: whatever had finished is there. Any edit of the code that
a result depends on changes :func:`code_version`, and with it every key.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

import foreshare.envs
import foreshare.policies
from foreshare.envs.simulator.suites import SIMULATOR_VERSION, content_hash, scenario_text
from foreshare.policies import kernel
from foreshare.policies.errors import InputError
from foreshare.policies.learned.source import is_learned, network_identity
from foreshare.policies.registry import KNOBS, LEARNED_BASE, POLICIES, tuned_knobs

from .drive import ORACLE_PREFIX
from .evaluate_run import Measured, Run

_OWN = ("metrics.py", "drive.py", "evaluate_run.py")
_CODE = (".py", ".c", ".h")


def default_cache() -> Path:
    """Return where results are kept: ``$XDG_CACHE_HOME/foreshare/evaluate``, by default below ``~/.cache``."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base.startswith("/") else Path.home() / ".cache") / "foreshare" / "evaluate"


@functools.cache
def code_version() -> str:
    """Return the hash of every line of code that a result depends on, 16 hexadecimal digits."""
    digest = hashlib.sha256(f"numpy {np.__version__}, inner loops {kernel.kind()}".encode())
    here = Path(__file__).parent
    files = [here / name for name in _OWN]
    files += sorted((here / "oracles").rglob("*.py"))
    for package in (foreshare.envs, foreshare.policies):
        root = Path(next(iter(package.__path__)))
        files += sorted(p for p in root.rglob("*") if p.suffix in _CODE and "linux" not in p.relative_to(root).parts)
    for path in files:
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def policy_names(wanted: str) -> tuple[str, ...]:
    """Return the policies that can be evaluated; the oracles only if ``wanted`` begins as theirs do."""
    if not wanted.startswith(ORACLE_PREFIX):
        return tuple(POLICIES)
    from .oracles import INFORMED, ORACLES

    return (*POLICIES, *ORACLES, *INFORMED)


def policy_identity(name: str) -> str:
    """Return the hash of a policy: its name, its knobs (a network's weights instead) and the code.

    Raises InputError for a name that is none, and for a network that is damaged.
    """
    if name not in POLICIES and is_learned(name):
        return content_hash(["learned", network_identity(name), repr(tuned_knobs(LEARNED_BASE)), code_version()])
    return _named_identity(name)


@functools.cache
def _named_identity(name: str) -> str:
    if name not in policy_names(name):
        raise InputError(f"no policy named {name!r}; there are {', '.join(policy_names(ORACLE_PREFIX))}")
    if name.startswith(ORACLE_PREFIX):
        from .oracles import INFORMED

        if name in INFORMED:
            return content_hash([name, policy_identity(INFORMED[name])])
    knobs = repr(sorted(asdict(tuned_knobs(name)).items())) if name in KNOBS else ""
    return content_hash([name, knobs, code_version()])


def run_key(run: Run) -> str:
    """Return the hash of everything that the result of ``run`` depends on."""
    return content_hash(
        {
            "kind": run.kind,
            "scenario": scenario_text(run.scenario),
            "policy": policy_identity(run.policy),
            "seed": run.seed,
            "lengths": [run.ticks, run.warm_ticks, run.rounds],
            "simulator": SIMULATOR_VERSION,
            "code": code_version(),
        }
    )


class ResultStore:
    """A folder of JSON files, one for each run. Without a folder it holds nothing."""

    def __init__(self, folder: Path | None) -> None:
        """Make the folder if need be. Raises InputError where it cannot be made or written."""
        self._folder = folder
        if folder is None:
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise InputError(f"--cache {folder}: {e.strerror}") from e
        if not os.access(folder, os.W_OK):
            raise InputError(f"--cache {folder}: no permission to write there")

    def get(self, key: str) -> Measured | None:
        """Return the result under ``key``, or None; a file that is no result counts as none."""
        if self._folder is None:
            return None
        try:
            result: Any = json.loads(self._path(self._folder, key).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return result if isinstance(result, dict) and result else None

    def put(self, key: str, result: Measured) -> None:
        """Keep ``result``; a reader sees all of it or nothing."""
        if self._folder is None:
            return
        path = self._path(self._folder, key)
        path.parent.mkdir(exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
            json.dump(result, file)
        Path(file.name).replace(path)

    @staticmethod
    def _path(folder: Path, key: str) -> Path:
        return folder / key[:2] / f"{key}.json"
