"""Waiting for a Ray cluster."""

from __future__ import annotations

import time

import pytest

from foreshare.training import cluster

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's


def test_who_waits_for_a_busy_cluster_says_so(
    ray_here: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import ray

    def slow(k: int) -> int:
        time.sleep(k)
        return k

    monkeypatch.setattr(cluster, "PATIENCE_S", 2.0)
    told: list[str] = []
    task = ray.remote(num_cpus=cluster.cpus())(slow)  # all of them: one task after the other
    assert cluster.answers([task.remote(4), task.remote(0)], told.append) == [4, 0]
    assert told and told[0].startswith("nothing from")
    assert cluster.answers([], told.append) == [] and not caplog.messages
    assert cluster.answers([task.remote(3)]) == [3] and caplog.messages[0].startswith("nothing from")
