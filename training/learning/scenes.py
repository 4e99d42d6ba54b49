"""The hosts that are learnt on: those of a suite at all its loads, and ones that nobody has drawn before.

What comes out is a function of configuration and seed alone. Domain randomisation (Tobin et al. 2017, arXiv:1703.06907)
is the simulator's own draw (envs/simulator/scenario_draw.py: hardware, delays, warm-up, reservations, workloads,
telemetry faults) at any load; suite hosts keep their hardware, and have their load and promises shaken.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from foreshare.envs.agent import Agent, corrected_mind
from foreshare.envs.simulator.scenario import Scenario
from foreshare.envs.simulator.scenario_draw import MIN_VMS, draw, rounded
from foreshare.envs.simulator.suites import Suite, load_suite
from foreshare.envs.world import SimulatedWorld
from foreshare.policies.allocators.corrected import ACTIONS, LIMIT
from foreshare.policies.errors import InputError
from foreshare.policies.features import HOST_FEATURES, VM_FEATURES, remembered_of
from foreshare.policies.host import CPU, IO, MEMORY, FloatArray
from foreshare.policies.learned import Network

from .config import GROUPS, ScenesConfig

SCENES_STREAM = 0x5CE
"""Sets these draws apart from every other use of the same seed."""
SCENES, EPISODES, JUDGED, ROUND, STATISTICS, LIARS = range(6)
"""Parts of a training that have seeds of their own; see :func:`sequence_seed`."""
LOAD_SHAKE, LEAST_RESERVED = 0.10, 0.80
_STATISTICS_TICKS = 120
HURRY, READY = 0.25, 2.0
"""See :func:`hurrying`."""
LEAST_SPREAD = 1e-3
"""A feature that moves less than this is not scaled up."""


def scenes(config: ScenesConfig, count: int, seed: int) -> list[Scenario]:
    """Return ``count`` scenarios. Raises InputError where the suite has none of at most ``most_vms`` VMs."""
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(SCENES_STREAM,)))
    suite, fitting = _fitting(config.suite, config.most_vms)
    fresh = round(config.drawn_share * count)
    out: list[Scenario] = []
    # Every scenario of the suite comes as often as every other: a shuffled deck.
    loads = [value for _, value in suite.loads]
    deck = [(s, load) for s in fitting for load in loads]
    order = [i for _ in range(-(-count // len(deck))) for i in rng.permutation(len(deck))]
    for i in order[: count - fresh]:
        scenario, load = deck[i]
        load = min(max(load * rng.uniform(1 - LOAD_SHAKE, 1 + LOAD_SHAKE), config.load_low), config.load_high)
        reserved = scenario.reserved * rng.uniform(LEAST_RESERVED, 1.0)
        out.append(replace(scenario, load=rounded(load), reserved=rounded(reserved)))
    for _ in range(fresh):
        vms = round(MIN_VMS * (max(config.most_vms, MIN_VMS) / MIN_VMS) ** rng.random())
        load = rounded(rng.uniform(config.load_low, config.load_high))
        # A single CPU cannot be shared by many: hosts of at least half as many CPUs as VMs always can.
        cpus = [c for c in (8, 12, 16, 24, 32, 48, 64, 96) if 2 * c >= vms]
        number, size = int(rng.integers(1 << 40)), cpus[rng.integers(len(cpus))]
        real = number % 1000 < 1000 * config.resctrl_share  # draws nothing: all else stays as it is without
        out.append(draw(number, load=load, vms=vms, cpus=size, resctrl=real))
    return out


@lru_cache(maxsize=4)
def _fitting(name: str, most_vms: int) -> tuple[Suite, tuple[Scenario, ...]]:
    suite = load_suite(name)
    fitting = tuple(s for s in suite.scenarios if len(s.vm) <= most_vms)
    if not fitting:
        raise InputError(f"suite {name} has no scenario of at most {most_vms} VMs")
    return suite, fitting


def open_agents(
    scenario: Scenario, seeds: Sequence[int] | int, hosts: int, base: str, *, first_host: int = 0, max_vms: int = 0
) -> Agent:
    """Return the seat on ``hosts`` hosts of a scenario whose policy ``base`` is corrected.

    ``seeds``: one for each host, which then all have the same index, or one for all under which each has its own.
    ``max_vms``: VMs of an observation, padded; 0: as many as there are.
    """
    world = SimulatedWorld(scenario, lambda host: corrected_mind(host, base), hosts=hosts,
                           seed=seeds if isinstance(seeds, int) else list(seeds), first_host=first_host)  # fmt: skip
    return Agent(world, max(max_vms, len(world.mind.host)))


@dataclass(frozen=True, slots=True)
class Moments:
    """Of a set of features: mean (F,) and covariance (F, F)."""

    mean: FloatArray
    covariance: FloatArray

    @property
    def spread(self) -> FloatArray:
        """(F,) standard deviations."""
        return np.asarray(np.sqrt(np.maximum(np.diag(self.covariance), 0.0)))


def observed(config: ScenesConfig, base: str, seed: int, count: int = 12) -> tuple[Moments, Moments]:
    """Return the moments of the VM features and of the host features on ``count`` scenes while nothing is corrected."""
    sums = [(np.zeros(1), np.zeros((1, 1)), 0.0) for _ in range(2)]
    for i, scenario in enumerate(scenes(config, count, seed)):
        agent = open_agents(scenario, seed, 1, base, first_host=i)
        parts = agent.begin()
        nothing = np.zeros((1, len(scenario.vm), ACTIONS))
        for t in range(config.warm_ticks + _STATISTICS_TICKS):
            if t >= config.warm_ticks:
                there = parts["vms"][parts["mask"] > 0].astype(np.float64)
                for k, rows in enumerate((there, parts["host"].astype(np.float64))):
                    one, two, n = sums[k]
                    sums[k] = (one + rows.sum(axis=0), two + rows.T @ rows, n + len(rows))
            parts = agent.step(nothing)[0]
    vms, host = (Moments(one / max(n, 1.0), two / max(n, 1.0) - np.outer(one, one) / max(n, 1.0) ** 2)
                 for one, two, n in sums)  # fmt: skip
    return vms, host


def normalised(network: Network, config: ScenesConfig, base: str, seed: int, count: int = 12) -> Network:
    """Return ``network`` with the normalisation that its inputs have on ``count`` scenes while nothing is corrected."""
    arrays = {}
    for name, moments in zip(("vm", "host"), observed(config, base, seed, count), strict=True):
        spread = moments.spread
        arrays[f"{name}_mean"] = moments.mean.astype(np.float32)
        arrays[f"{name}_scale"] = np.where(spread > LEAST_SPREAD, 1.0 / np.maximum(spread, LEAST_SPREAD), 1.0).astype(
            np.float32
        )
    return network.with_normalisation(**arrays)


def blinded(network: Network, groups: Sequence[str]) -> Network:
    """Return ``network`` blind to the named groups of config.GROUPS: their scale is 0, whatever the weights."""
    hidden = {part for name in groups for part in GROUPS[name]}
    scales = {}
    for kind, features in (("vm", VM_FEATURES), ("host", HOST_FEATURES)):
        seen = [not (_is_of(f.name, hidden) or _is_of(remembered_of(f.name), hidden)) for f in features]
        scales[f"{kind}_scale"] = network.arrays[f"{kind}_scale"] * np.array(seen, np.float32)
    return network.with_normalisation(**scales)


def _is_of(name: str, parts: Collection[str]) -> bool:
    return any(name == part or (part.endswith("_") and name.startswith(part)) for part in parts)


def hurrying(network: Network) -> Network:
    """Return ``network`` with the need of CPU, memory and IO times ``rate ** HURRY * standby ** READY``.

    Where tanh is straight; ``rate`` and ``standby`` are the features of these names, their logarithms: how fast a VM
    would have to be served to meet its deadlines, and how much more it may need when it wakes. What a network is blind
    to leaves it as it is.
    """
    arrays = {name: array.copy() for name, array in network.arrays.items()}
    columns = [1 + int(r) for r in (CPU, MEMORY, IO)]
    for name, power in (("rate", HURRY), ("standby", READY)):
        row = [feature.name for feature in VM_FEATURES].index(name)
        if arrays["vm_scale"][row]:
            arrays["lin_w"][row, columns] = power / LIMIT / arrays["vm_scale"][row]
            arrays["out_b"][columns] += power / LIMIT * arrays["vm_mean"][row]
    return Network(arrays)


def sequence_seed(seed: int, *key: int) -> int:
    """Return the seed of a part of a training: ``key`` begins with one of those above."""
    return int(np.random.SeedSequence(seed, spawn_key=(SCENES_STREAM, *key)).generate_state(1, np.uint64)[0] >> 1)
