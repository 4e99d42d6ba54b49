"""A training's run in MLflow: what was learnt, from what, how it went, and what came of it.

``MLFLOW_TRACKING_URI`` says where; without it ``sqlite:///mlruns/mlflow.db`` with artifacts in ``mlruns/artifacts``,
under the current folder. A registry that does not answer is said in one line before anything begins; one that goes
away later costs no training: what it has not taken is kept, and sent again with the next figures.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foreshare.policies.errors import InputError

EXPERIMENT = "foreshare"
DEFAULT_URI = "sqlite:///mlruns/mlflow.db"
_QUICKLY = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
"""MLflow's own patience is hours."""
_MOST_METRICS = 900  # MLflow takes 1000 a call


class Tracker:
    """One run. ``run_id``: one to go on with."""

    def __init__(
        self, name: str, parameters: Mapping[str, Any], tags: Mapping[str, str], *, run_id: str = "",
        experiment: str = EXPERIMENT,
    ) -> None:  # fmt: skip
        """Begin the run, or go on with it. Raises InputError where the registry does not answer or know it."""
        for key, value in _QUICKLY.items():
            os.environ.setdefault(key, value)
        for logger in ("mlflow", "mlflow.store.db.utils", "alembic"):
            logging.getLogger(logger).setLevel(logging.ERROR)
        import mlflow
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        self.uri = os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI
        self._errors: tuple[type[Exception], ...] = (MlflowException, SQLAlchemyError, OSError)
        self._waiting: list[tuple[str, float, int, int]] = []
        self._told = False
        location = None
        try:
            if self.uri == DEFAULT_URI:
                artifacts = Path("mlruns/artifacts").resolve()
                artifacts.mkdir(parents=True, exist_ok=True)
                location = artifacts.as_uri()
            self._client = mlflow.MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
            if run_id:
                self.run_id = run_id
                self._client.set_terminated(run_id, "RUNNING")
                return
            found = self._client.get_experiment_by_name(experiment)
            where = found.experiment_id if found else self._client.create_experiment(experiment, location)
            self.run_id = self._client.create_run(where, run_name=name, tags=dict(tags)).info.run_id
            for key, value in parameters.items():
                self._client.log_param(self.run_id, key, value)
        except self._errors as e:
            raise InputError(f"MLflow at {self.uri} does not answer: {_line(e)}") from e

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Log figures at ``step`` (environment steps)."""
        now = int(time.time() * 1000)
        self._waiting += [(key, float(value), now, step) for key, value in values.items()]
        self._send()

    def _send(self) -> None:
        from mlflow.entities import Metric

        try:
            while self._waiting:
                part = self._waiting[:_MOST_METRICS]
                self._client.log_batch(self.run_id, metrics=[Metric(k, v, t, s) for k, v, t, s in part])
                del self._waiting[: len(part)]
        except self._errors as e:
            if not self._told:
                sys.stderr.write(f"MLflow does not answer, training goes on: {_line(e)}\n")
            self._told = True
        else:
            self._told = False

    def artifact(self, name: str, data: bytes) -> None:
        """Put a file into the run, under ``name`` (with folders, if it has slashes)."""
        folder, _, file = name.rpartition("/")
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / file
            path.write_bytes(data)
            try:
                self._client.log_artifact(self.run_id, str(path), folder or None)
            except self._errors as e:
                raise InputError(f"MLflow at {self.uri} did not take {name}: {_line(e)}") from e

    def finish(self, *, failed: bool = False, tags: Mapping[str, str] | None = None) -> None:
        """End the run. Raises InputError where figures are left that the registry has not taken."""
        self._send()
        try:
            for key, value in (tags or {}).items():
                self._client.set_tag(self.run_id, key, value)
            self._client.set_terminated(self.run_id, "FAILED" if failed else "FINISHED")
        except self._errors as e:
            raise InputError(f"MLflow at {self.uri} does not answer: {_line(e)}") from e
        if self._waiting:
            raise InputError(f"MLflow at {self.uri} has not taken {len(self._waiting)} figures")


def git_commit() -> str:
    """Return the commit that the current folder is at, with ``+`` where files were changed; ``unknown`` elsewhere."""
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=10)
        status = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"], capture_output=True, text=True, check=True,
            timeout=30,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return commit.stdout.strip() + ("+" if status.stdout.strip() else "")


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested tables as ``table.name``."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            out |= flat(value, f"{prefix}{key}.")
        else:
            out[f"{prefix}{key}"] = value
    return out


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
