"""The registry of bundles, in MLflow: versions, and the names that hosts ask for (``champion``, ``previous``).

``MLFLOW_TRACKING_URI`` says where; without it ``sqlite:///mlruns/mlflow.db`` with artifacts in ``mlruns/artifacts``,
under the current folder. Every schema of features has a registered model of its own, ``foreshare-policy-SCHEMA``: a
host never meets a network made for other features. Rehearsals have ``foreshare-rehearsal-SCHEMA``, which no host looks
at unless it is told to: what says nothing about who is better cannot become anybody's champion.

What comes out of the registry is not believed: a bundle that was fetched is verified as any other
(:mod:`foreshare.policies.learned.bundle`).
"""

from __future__ import annotations

import json
import logging
import os
import socket
import sqlite3
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from foreshare.policies.errors import InputError
from foreshare.policies.features import schema_hash
from foreshare.policies.learned.bundle import FILES, Bundle, BundleError, Verify, check_bundle, read_files

if TYPE_CHECKING:
    from mlflow import MlflowClient

VARIABLE, DEFAULT_URI = "MLFLOW_TRACKING_URI", "sqlite:///mlruns/mlflow.db"
EXPERIMENT = "foreshare-models"
CHAMPION, PREVIOUS = "champion", "previous"
BUNDLE = "bundle"
"""The folder of a version's run that holds it."""
_TAG = "foreshare."
_SQLITE = "sqlite:///"
_MANNERS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}  # fmt: skip
"""MLflow's own patience is hours, and it draws a bar for every file."""
_REACH_S = 5.0
_PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}


class RegistryError(InputError):
    """The registry does not answer, or does not have what it was asked for."""


@dataclass(frozen=True, slots=True)
class Version:
    """A bundle in the registry."""

    number: str
    source: str
    created: str
    tags: Mapping[str, str]

    def tag(self, name: str) -> str:
        """Return one of our tags; empty where it has none."""
        return self.tags.get(f"{_TAG}{name}", "")


class Registry:
    """The bundles of one schema. Nothing is opened, or made, before it is needed."""

    def __init__(self, uri: str | None = None, *, rehearsal: bool = False) -> None:
        """``uri``: where; None: as the environment says. ``rehearsal``: those that no host looks at."""
        self.uri = uri or os.environ.get(VARIABLE) or DEFAULT_URI
        self.model = f"foreshare-{'rehearsal' if rehearsal else 'policy'}-{schema_hash()}"
        self._client: MlflowClient | None = None

    # -- reading

    def versions(self) -> list[Version]:
        """Return all versions, oldest first."""
        with self._asking(make=False) as client:
            if client is None:
                return []
            found = client.search_model_versions(f"name = '{self.model}'")
            return sorted((_version(v) for v in found), key=lambda v: int(v.number))

    def aliases(self) -> dict[str, str]:
        """Return which version each name stands for."""
        with self._asking(make=False) as client:
            if client is None or not client.search_registered_models(f"name = '{self.model}'"):
                return {}
            return {k: str(v) for k, v in client.get_registered_model(self.model).aliases.items()}

    def version(self, wanted: str) -> Version:
        """Return the version of that number, or that a name stands for. Raises RegistryError where there is none."""
        number = self.aliases().get(wanted, wanted)
        for version in self.versions():
            if version.number == number:
                return version
        raise RegistryError(f"{self.uri} has no {wanted!a} of {self.model}")

    def fetch(self, version: Version, verify: Verify) -> Bundle:
        """Return a version's bundle, verified. Raises BundleError, SchemaError, RegistryError."""
        with self._asking(make=False) as client, tempfile.TemporaryDirectory(prefix="foreshare-") as folder:
            if client is None:
                raise RegistryError(f"there is no registry at {self.uri}")
            from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

            repository: Any = get_artifact_repository(version.source, tracking_uri=self.uri)
            files = {f.path: f for f in repository.list_artifacts()}
            if set(files) != set(FILES) or any(f.is_dir for f in files.values()):
                raise BundleError(f"version {version.number} of {self.model} is no bundle")
            for name, most in FILES.items():
                if (files[name].file_size or 0) > most:
                    raise BundleError(f"version {version.number} of {self.model}: {name} has more than {most} bytes")
                repository.download_artifacts(name, folder)
            contents = read_files(folder)
        return check_bundle(contents, verify, f"version {version.number} of {self.model}")

    # -- writing

    def register(self, bundle: Bundle, notes: Mapping[str, Any], tags: Mapping[str, str]) -> Version:
        """Keep a bundle, and ``notes`` beside it as JSON files, as a new version; no name stands for it yet."""
        own = {
            "sha256": bundle.sha256, "schema": schema_hash(), "signer": bundle.signer,
            "git_commit": str(bundle.manifest.get("git_commit", "")), **tags,
        }  # fmt: skip
        own = {f"{_TAG}{k}": v for k, v in own.items()}
        with self._asking(make=True) as client, tempfile.TemporaryDirectory(prefix="foreshare-") as folder:
            if client is None:
                raise RegistryError(f"there is no registry at {self.uri}")
            run = client.create_run(self._experiment(client), run_name=self.model, tags=own)
            for name, data in bundle.contents.items():
                path = Path(folder) / name
                path.write_bytes(data)
                client.log_artifact(run.info.run_id, str(path), BUNDLE)
            for name, note in notes.items():
                path = Path(folder) / f"{name}.json"
                path.write_text(json.dumps(note, indent=1), encoding="utf-8")
                client.log_artifact(run.info.run_id, str(path))
            if not client.search_registered_models(f"name = '{self.model}'"):
                client.create_registered_model(self.model)
            source = f"{run.info.artifact_uri}/{BUNDLE}"
            made = client.create_model_version(self.model, source, run.info.run_id, tags=own)
            client.set_terminated(run.info.run_id)
            return _version(made)

    def point(self, alias: str, version: str) -> None:
        """Let a name stand for a version from now on."""
        with self._asking(make=False) as client:
            if client is None:
                raise RegistryError(f"there is no registry at {self.uri}")
            client.set_registered_model_alias(self.model, alias, version)

    def _experiment(self, client: MlflowClient) -> str:
        found = client.get_experiment_by_name(EXPERIMENT)
        if found is not None:
            return str(found.experiment_id)
        location = None
        if path := _sqlite_path(self.uri):  # MLflow's own default would be the folder that we happen to be in
            artifacts = path.resolve().parent / "artifacts"
            artifacts.mkdir(parents=True, exist_ok=True)
            location = artifacts.as_uri()
        return str(client.create_experiment(EXPERIMENT, location))

    @contextmanager
    def _asking(self, *, make: bool) -> Iterator[MlflowClient | None]:
        """Yield the client, None where there is no registry and none is to be made; its errors become ours."""
        for key, value in _MANNERS.items():
            os.environ.setdefault(key, value)
        if not self._reach(make=make):
            yield None
            return
        with warnings.catch_warnings(), _quiet_logs() as hush:
            warnings.simplefilter("ignore")  # what MLflow has to say about the libraries that it uses
            from mlflow import MlflowClient
            from mlflow.exceptions import MlflowException
            from sqlalchemy.exc import SQLAlchemyError

            hush()  # it has set its own level while it was imported
            try:
                if self._client is None:
                    self._client = MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
                yield self._client
            except (MlflowException, SQLAlchemyError, OSError) as e:
                raise RegistryError(f"the registry at {self.uri}: {' '.join(str(e).split())[:200]}") from e

    def _reach(self, *, make: bool) -> bool:
        """Return whether there is a registry to open. MLflow itself would try for minutes, or make one."""
        path = _sqlite_path(self.uri)
        if path is None:
            _connect(self.uri)
            return True
        if not path.exists():
            if make and self.uri == DEFAULT_URI:
                path.parent.mkdir(exist_ok=True)
            if make and not path.parent.is_dir():
                raise RegistryError(f"the registry at {self.uri}: the folder {path.parent} does not exist")
            return make
        try:
            with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as file:
                file.execute("PRAGMA schema_version").fetchone()
        except sqlite3.Error as e:
            raise RegistryError(f"the registry at {self.uri}: {e}") from e
        return True


def _sqlite_path(uri: str) -> Path | None:
    return Path(uri.removeprefix(_SQLITE)) if uri.startswith(_SQLITE) else None


def _connect(uri: str) -> None:
    """Raise RegistryError unless somebody listens where ``uri`` points, if it points to a machine."""
    parts = urlsplit(uri)
    kind = parts.scheme.partition("+")[0]
    if not parts.hostname or kind not in _PORTS:
        if parts.scheme in ("", "file"):
            raise RegistryError(
                f"the registry at {uri}: MLflow 3.17 keeps no registry in plain files; use {_SQLITE}PATH"
            )
        return
    try:
        socket.create_connection((parts.hostname, parts.port or _PORTS[kind]), timeout=_REACH_S).close()
    except (OSError, ValueError) as e:
        raise RegistryError(f"the registry at {parts.scheme}://{parts.hostname} does not answer: {e}") from e


@contextmanager
def _quiet_logs() -> Iterator[Callable[[], None]]:
    loggers = [logging.getLogger(name) for name in ("mlflow", "alembic")]
    before = [logger.level for logger in loggers]

    def hush() -> None:
        for logger in loggers:
            logger.setLevel(logging.ERROR)

    hush()
    try:
        yield hush
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def _version(found: Any) -> Version:
    created = datetime.fromtimestamp(found.creation_timestamp / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return Version(str(found.version), str(found.source), created, dict(found.tags or {}))
