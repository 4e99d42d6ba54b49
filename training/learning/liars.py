"""Hosts on which some VMs ask otherwise than they need, beside the same hosts on which they do not.

Who learns from lateness alone may learn that VMs whose use swings, or is large, are to be served first. Whoever notices
can make its use swing. A **pair** shows that: the same host twice, every fourth VM a steady one the first time; the
second time it oscillates, falls silent, or shows more than it needs, with the same work over time. What such a VM gains
is the share of its requests that is late when it is honest, less that when it is not.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from foreshare.envs.simulator.scenario import HotAdd, PhaseChange, Scenario, WorkloadShape
from foreshare.envs.simulator.scenario_draw import rounded

from .config import ScenesConfig
from .scenes import scenes

LIARS_STREAM = 0x11A5
"""Sets these draws apart from every other use of the same seed."""
EVERY = 4
"""One VM in so many lies."""
LEAST_LOAD = 0.75
"""Below that there is little to gain."""
NOISE, TICK_MS = 0.1, 10.0
STEADY = WorkloadShape(kind="steady", noise=NOISE)


@dataclass(frozen=True, slots=True)
class Pair:
    """A host with honest VMs, the same with liars, and which rows these are."""

    honest: Scenario
    lying: Scenario
    liars: tuple[int, ...]


def pairs(config: ScenesConfig, count: int, seed: int) -> list[Pair]:
    """Return ``count`` pairs, of hosts as they are learnt on, at loads from LEAST_LOAD on."""
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(LIARS_STREAM,)))
    out = []
    for scenario in scenes(config, count, seed):
        load = rounded(rng.uniform(min(LEAST_LOAD, config.load_high), config.load_high))
        liars = tuple(range(int(rng.integers(min(EVERY, len(scenario.vm)))), len(scenario.vm), EVERY))
        at_load = replace(scenario, load=load)
        out.append(Pair(playing(at_load, STEADY, liars), playing(at_load, lie(rng), liars), liars))
    return out


def playing(scenario: Scenario, workload: WorkloadShape, rows: Iterable[int]) -> Scenario:
    """Return the scenario with ``workload`` in the VMs of these rows, at their usual mean, from beginning to end."""
    vms = list(scenario.vm)
    for i in rows:
        vms[i] = replace(
            vms[i], workload=workload, arrive_ms=0.0, leave_ms=0.0, hot_add=HotAdd(), phase_change=PhaseChange()
        )
    return replace(scenario, vm=tuple(vms))


def lie(rng: np.random.Generator) -> WorkloadShape:
    """Return a way to ask: every other one oscillates, in step with the ticks; the others inflate, or fall silent."""
    kind = rng.random()
    if kind < 1 / 3:
        return WorkloadShape(kind="inflator", inflate=rounded(_log(rng, 1.2, 4.0)), noise=NOISE)
    if kind < 1 / 2:
        on = rounded(_log(rng, 100.0, 600.0))
        return WorkloadShape(kind="silent", on_ms=on, off_ms=rounded(on * _log(rng, 1.0, 3.0)), noise=NOISE)
    on, off = (TICK_MS * round(_log(rng, *ticks)) for ticks in ((1.0, 10.0), (1.0, 15.0)))
    peak = max(rounded(rng.uniform(0.5, 0.95) * (on + off) / on), 1.0)
    return WorkloadShape(kind="oscillator", on_ms=on, off_ms=off, peak=peak, noise=NOISE)


def _log(rng: np.random.Generator, low: float, high: float) -> float:
    return float(low * (high / low) ** rng.random())
