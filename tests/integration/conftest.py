"""One Ray for all tests that need it: starting it takes longer than most of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def ray_here() -> Iterator[None]:
    """Ray on this machine, two CPUs, as small as it gets; torch with one thread, as trainings share the CPUs."""
    import torch

    from foreshare.training.cluster import ray_session

    torch.set_num_threads(1)
    with ray_session("local", num_cpus=2, object_store_memory=80 * 2**20):
        yield


@pytest.fixture(scope="session")
def empty_registry(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A fresh MLflow store in SQLite; making its tables takes seconds, so there is one."""
    import mlflow

    folder = tmp_path_factory.mktemp("mlflow")
    uri = f"sqlite:///{folder}/mlflow.db"
    client = mlflow.MlflowClient(tracking_uri=uri)
    for name in ("foreshare", "foreshare-tune"):
        client.create_experiment(name, artifact_location=(folder / "artifacts" / name).as_uri())
    return uri
