"""A training's folder: a checkpoint after each iteration, the best network so far, the learning curve.

A checkpoint is one npz file that is put in place by a rename: whoever is killed at any moment leaves the old one or the
new one, whole. It holds plain arrays and JSON, no pickle.
"""

from __future__ import annotations

import json
import os
import zipfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from foreshare.policies.errors import InputError

CHECKPOINT, POLICY, CURVE, RESULT = "checkpoint.npz", "policy.npz", "curve.json", "result.json"
FORMAT_VERSION = 1
_META = "training"
Arrays = dict[str, npt.NDArray[Any]]
Row = dict[str, float]


@dataclass(kw_only=True, slots=True)
class Progress:
    """How far a training is."""

    name: str
    """Of the configuration."""
    seed: int
    config: dict[str, Any]
    run_id: str = ""
    """The run in MLflow."""
    iteration: int = 0
    env_steps: int = 0
    """Ticks of a host."""
    simulator_steps: int = 0
    """Ticks of one VM."""
    seconds: float = 0.0
    best_score: float = float("inf")
    best_at: int = -1
    """Iteration after which the best network was found."""
    evaluation: dict[str, Any] = field(default_factory=dict)
    """The best network's, see judge.py."""
    looks_since: int = 0
    """Looks at the validation suite since then."""
    curve: list[Row] = field(default_factory=list)
    """A row for each iteration."""
    finished: str = ""
    """Why it is over; empty while it is not."""


def write_whole(path: Path, data: bytes) -> None:
    """Put ``data`` at ``path`` in one step: the old file or the new one is there at any moment, on disk as well."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    with beside.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def save(folder: Path, progress: Progress, state: Arrays, best: bytes) -> None:
    """Write the checkpoint. ``best``: the file of the best network, empty before there is one."""
    beside = folder / f".{CHECKPOINT}.{os.getpid()}.npz"
    meta = json.dumps({"version": FORMAT_VERSION, **asdict(progress)}).encode()
    arrays = {f"state.{name}": value for name, value in state.items()}
    with beside.open("wb") as file:
        np.savez(
            file, allow_pickle=False, **arrays,
            **{_META: np.frombuffer(meta, np.uint8), "best": np.frombuffer(best, np.uint8)},
        )  # fmt: skip
        file.flush()
        os.fsync(file.fileno())
    beside.replace(folder / CHECKPOINT)


def load(folder: Path) -> tuple[Progress, Arrays, bytes]:
    """Return what :func:`save` wrote. Raises InputError where there is none, or one that cannot be read."""
    path = folder / CHECKPOINT
    try:
        with np.load(path, allow_pickle=False) as file:
            meta = json.loads(file[_META].tobytes())
            arrays = {name.removeprefix("state."): file[name] for name in file.files if name.startswith("state.")}
            best = file["best"].tobytes()
        if meta.pop("version") != FORMAT_VERSION:
            raise InputError(f"{path}: this foreshare reads version {FORMAT_VERSION}")
        return Progress(**meta), arrays, best
    except OSError as e:
        raise InputError(f"{path}: {e.strerror or 'cannot be read'}") from e
    except (zipfile.BadZipFile, KeyError, ValueError, TypeError) as e:
        raise InputError(f"{path} is no checkpoint of a training, or damaged ({e})") from e
