"""One policy on one scenario with one seed, measured: the host loop without a host, and every figure of metrics.py.

Three kinds of run: ``plain`` gives all figures but two; ``step`` multiplies the load of one VM by STEP_FACTOR half-way
and gives the ticks to converge; ``emu`` bisects the load factor. Arrivals depend on scenario and seed alone, so that
policies meet the same ones (common random numbers).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from foreshare.envs.simulator.cache import miss_ratio
from foreshare.envs.simulator.host import Simulator
from foreshare.envs.simulator.scenario import HotAdd, PhaseChange, Scenario
from foreshare.envs.simulator.siblings import time_per_work
from foreshare.policies.host import CPU, IO, MEMORY, FloatArray, Host, R, Resource

from . import metrics
from .drive import TICK_MS, Recording, record

PLAIN, STEP, EMU = "plain", "step", "emu"
STEP_FACTOR = 1.5
Measured = dict[str, Any]
"""Figures of one run by name: JSON values only."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """What is to be run; everything its result depends on but the code."""

    kind: str
    scenario: Scenario
    policy: str
    seed: int
    ticks: int
    """Ticks that count; in a step run those on either side of the step; in an EMU run those of each round."""
    warm_ticks: int
    rounds: int = 0
    """EMU: halvings of the bisection."""


def measure(runs: Sequence[Run]) -> list[Measured]:
    """Carry ``runs`` out, which differ in their seeds at most; several only where their policy's can run together.

    Raises InputError for what no policy or scenario is.
    """
    first = runs[0]
    if first.kind == PLAIN:
        recording = record(first.scenario, first.policy, [run.seed for run in runs], first.warm_ticks + first.ticks)
        return [summarise(recording, first.warm_ticks, host) for host in range(len(runs))]
    one = _measure_step if first.kind == STEP else _measure_emu
    return [one(run) for run in runs]


def summarise(recording: Recording, warm_ticks: int, host: int = 0) -> Measured:
    """Return the figures of a recorded host over its ticks from ``warm_ticks`` on."""
    simulator = recording.simulator
    if simulator is None:
        return {}
    vms, counted = simulator.model.vms, slice(warm_ticks, None)
    arrivals, served, granted = recording.arrivals[:, host], recording.served[:, host], recording.granted[:, host]
    late, arrived = _late_and_arrived(arrivals, served, simulator, warm_ticks)
    share = metrics.late_share(late, arrived)
    alone_served = served_alone(simulator, arrivals, recording.mix[:, host], recording.threads)
    alone = metrics.latency_quantile(arrivals, alone_served, first=warm_ticks)
    latency = metrics.latency_quantile(arrivals, served, first=warm_ticks)
    median, worst = metrics.p99_against_alone(latency, alone)
    # Over the whole run: a reservation counts from the first tick on.
    reservation = Host(simulator.model.topology, vms).reservation
    broken = metrics.broken_reservations(granted, reservation, recording.demand[:, host])
    return {
        "slo_violation_pct": float(metrics.violation_pct(late, arrived, metrics.weights_of(vms.priority))),
        "late_vms_pct": metrics.late_vm_pct(share),
        "starved_vms_pct": metrics.late_vm_pct(share, metrics.STARVED_SHARE),
        "violation_by_priority": {str(p): v for p, v in metrics.violation_by_priority(share, vms.priority).items()},
        "reservations_broken": broken,
        "p99_alone_median": median,
        "p99_alone_worst_decile": worst,
        "moves_per_tick": metrics.moves_per_tick(granted[counted]),
        "fairness": metrics.jain_fairness(granted[counted], reservation),
        "utilisation_pct": float(simulator.utilisation.pct()[host]),
        "fallbacks": int(recording.fallbacks),
        "decision_us": float(np.median(recording.decision_us[counted])) or None,
    }


def _late_and_arrived(
    arrivals: FloatArray, served: FloatArray, simulator: Simulator, warm_ticks: int
) -> tuple[FloatArray, FloatArray]:
    """Return (N,) the requests found late and those that came from ``warm_ticks`` on; (T, N) arrivals and served."""
    late = metrics.late_requests(arrivals, served, simulator.model.target_ticks)
    return late[warm_ticks:].sum(axis=0), arrivals[warm_ticks:].sum(axis=0)


def served_alone(simulator: Simulator, arrivals: FloatArray, mix: FloatArray, thread_units: FloatArray) -> FloatArray:
    """Return (T, N) what would be served of ``arrivals`` (T, N) if each VM had its socket to itself.

    ``mix`` (T, N, R) and ``thread_units`` (T, N) as recorded. The simulator's own equations (simulator/host.py) with
    every unit of every pool and all ways, warm and at once; what a tick brings counts as coming evenly, at random or
    not.
    """
    m, shape = simulator.model, simulator.scenario.host
    topology = m.topology
    units = np.array([[topology.pool(r, int(z)).units for r in Resource] for z in m.vms.zone], np.float64)
    units = units.reshape(len(m.vms), R)
    misses = miss_ratio(np.full(len(m.vms), float(topology.way_bits)), *m.miss)
    need = m.need_at(np.broadcast_to(misses, arrivals.shape), mix)
    bandwidth = np.full((*need.shape[:2], 2), np.inf)
    np.divide(units[:, (MEMORY, IO)], need[..., (MEMORY, IO)], out=bandwidth, where=need[..., (MEMORY, IO)] > 1e-12)
    limit, cpu = bandwidth.min(axis=-1), np.maximum(need[..., CPU], 1e-12)
    threads = np.minimum(units[:, CPU], thread_units)
    served = np.empty_like(arrivals)
    queue, busy = np.zeros(len(m.vms)), np.zeros(len(m.vms))
    for t, arrived in enumerate(arrivals):
        if shape.threads_per_core == 2:  # with idle siblings work takes less CPU time (siblings.py)
            cpu[t] *= time_per_work(busy, units[:, CPU], shape.smt_yield) * (0.5 * shape.smt_yield)
        queue += arrived
        np.minimum(queue, np.minimum(limit[t], threads[t] / cpu[t]), out=served[t])
        queue -= served[t]
        np.multiply(served[t], cpu[t], out=busy)
    return served


def _measure_step(run: Run) -> Measured:
    at, ticks = run.warm_ticks + run.ticks, run.warm_ticks + 2 * run.ticks
    vms = list(run.scenario.vm)
    row = max(range(len(vms)), key=lambda i: vms[i].priority)
    # Nothing else may happen to this VM, or there would be two steps.
    step = PhaseChange(at_ms=at * TICK_MS, load=STEP_FACTOR)
    vms[row] = replace(vms[row], arrive_ms=0.0, leave_ms=0.0, hot_add=HotAdd(), phase_change=step)
    recording = record(replace(run.scenario, vm=tuple(vms)), run.policy, [run.seed], ticks, behind_hal=True)
    if recording.simulator is None:
        return {}
    target = recording.simulator.model.target_ticks
    arrivals = recording.arrivals[:, 0]
    late = metrics.late_requests(arrivals, recording.served[:, 0], target)[:, row]
    lag = min(int(target[row]), ticks)
    # The requests of tick t - S are judged in tick t.
    came = np.concatenate([np.zeros(lag), arrivals[: ticks - lag, row]])
    return {
        "converge_ticks": metrics.converge_ticks(metrics.late_share(late, came), at),
        "decision_us": float(np.median(recording.decision_us)),
    }


def _measure_emu(run: Run) -> Measured:
    def holds(load: float) -> bool:
        recording = record(replace(run.scenario, load=load), run.policy, [run.seed], run.warm_ticks + run.ticks)
        simulator = recording.simulator
        if simulator is None:
            return True
        arrivals, served = recording.arrivals[:, 0], recording.served[:, 0]
        late, arrived = _late_and_arrived(arrivals, served, simulator, run.warm_ticks)
        violation = float(metrics.violation_pct(late, arrived, simulator.weight))
        return metrics.emu_holds(violation, metrics.late_share(late, arrived))

    return {"emu_pct": metrics.emu_load_pct(holds, rounds=run.rounds)}
