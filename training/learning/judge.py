"""How good a network is on a suite, beside the policy that it corrects, on the same arrivals."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from foreshare.envs.simulator.suites import load_suite, suite_hash
from foreshare.policies.errors import InputError
from foreshare.policies.host import FloatArray
from foreshare.policies.learned import Network
from foreshare.training.cluster import answers

from .config import TrainConfig
from .members import Match, Members, late_of_members, relative
from .scenes import JUDGED, sequence_seed

Play = Callable[[Sequence[Match], Members], Iterable[FloatArray]]
"""Plays every match with the same members: what :func:`late_of_members` returns for each, in order."""


def play_here(matches: Sequence[Match], members: Members) -> Iterable[FloatArray]:
    """Play in this process, one match after the other."""
    return (late_of_members(match, members) for match in matches)


def play_on_ray(matches: Sequence[Match], members: Members) -> Iterable[FloatArray]:
    """Play on Ray, a task a match, wherever the cluster has a CPU; the dear ones begin first."""
    import ray

    task = ray.remote(num_cpus=1)(late_of_members)  # Ray gives it one thread: tasks share the CPUs
    shared = ray.put(members)
    order = sorted(range(len(matches)), key=lambda i: -matches[i].steps)
    references = {i: task.remote(matches[i], shared) for i in order}
    return answers([references[i] for i in range(len(matches))])


class Judge:
    """The matches of a suite, and what came of them. The base policy's figures are part of every match."""

    def __init__(self, config: TrainConfig, seed: int) -> None:
        """Read the suite. Raises InputError for one that does not exist."""
        v = config.validate
        suite = load_suite(v.suite)
        self.suite, self.suite_hash = suite.name, suite_hash(suite)
        ticks = v.ticks or suite.ticks
        self._rows = [
            (scenario.name, load, Match(scenario=suite.at(scenario, load), seed=sequence_seed(seed, JUDGED, k),
                                        ticks=ticks, warm_ticks=min(suite.warm_ticks, ticks), base=config.base))
            for scenario in suite.scenarios for load, _ in suite.loads for k in range(v.seeds)
        ]  # fmt: skip

    def judge(self, network: Network, play: Play = play_here) -> dict[str, Any]:
        """Return ``score`` (1 is the base policy's, less is better) and the table that it comes from.

        ``loads``: V in percent of ``base`` and ``policy`` by load class; ``rows``: the same for each run.
        """
        members = Members(network, {})
        late = list(play([match for _, _, match in self._rows], members))
        if len(late) != len(self._rows):
            raise InputError("not every match was played")
        loads: dict[str, dict[str, float]] = {}
        for name in dict.fromkeys(load for _, load, _ in self._rows):
            mean = np.mean([v for v, (_, load, _) in zip(late, self._rows, strict=True) if load == name], axis=0)
            loads[name] = {"base": round(float(mean[0]), 4), "policy": round(float(mean[1]), 4)}
        rows = [
            {"scenario": scenario, "load": load, "base": round(float(v[0]), 4), "policy": round(float(v[1]), 4)}
            for (scenario, load, _), v in zip(self._rows, late, strict=True)
        ]
        return {
            "score": float(relative(late)[0]), "suite": self.suite, "suite_hash": self.suite_hash,
            "loads": loads, "rows": rows,
        }  # fmt: skip
