"""One policy on one scenario with one seed, measured: the host loop without a host, and every figure of metrics.py.

Three kinds of run: ``plain`` gives all figures but two; ``step`` multiplies the load of one VM by STEP_FACTOR half-way
and gives the ticks to converge; ``emu`` bisects the load factor. Arrivals depend on scenario and seed alone, so that
policies meet the same ones (common random numbers).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from foreshare.envs.hal.plan import advance, build_plan
from foreshare.envs.hal.simulated import SimulatedHal
from foreshare.envs.hal.types import Receipt
from foreshare.envs.simulator.cache import miss_ratio
from foreshare.envs.simulator.host import Simulator
from foreshare.envs.simulator.scenario import HotAdd, PhaseChange, Scenario
from foreshare.envs.simulator.siblings import time_per_work
from foreshare.policies.decide import DecideOptions, Decision, Mind, decide_tick
from foreshare.policies.host import CPU, IO, MEMORY, FloatArray, Host, Placement, R, Resource
from foreshare.policies.reading import Reading
from foreshare.policies.registry import make_mind

from . import metrics

PLAIN, STEP, EMU = "plain", "step", "emu"
STEP_FACTOR = 1.5
TICK_MS = 10.0
NO_BUDGET_NS = 1 << 62
ORACLE_PREFIX = "oracle-"
"""What the names of policies begin with that look into the simulator (oracles)."""
GONE_TICKS = 3
"""A VM that is not there for so many ticks gives up what it held: runtime/loop.py's own figure."""

Watch = Callable[[SimulatedHal, Mind, Decision], None]
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


def measure(run: Run) -> Measured:
    """Carry ``run`` out. Raises InputError for what no policy or scenario is."""
    if run.kind == STEP:
        return _measure_step(run)
    if run.kind == EMU:
        return _measure_emu(run)
    return _measure_plain(run)


def drive(scenario: Scenario, policy: str, seed: int, ticks: int, watch: Watch) -> None:
    """Run ``ticks`` ticks as the control loop does (runtime/loop.py): the same decisions, writes and VMs given up.

    Time is virtual and no policy is late, so that a busy machine changes nothing. ``watch`` is called after every
    decision, before its plan is applied. Raises InputError for a policy that does not exist.
    """
    hal, mind = _open(scenario, policy, seed)
    n = len(mind.host)
    held, reading, receipt = Placement.empty(n, hal.topology.cpus), Reading.empty(n), Receipt()
    absent = np.zeros(n, np.int64)
    hal.claim(lambda originals: None)
    hal.read_back(held)
    mind.adopt(held)
    hal.sample(reading)
    mind.warm_up()
    for _ in range(ticks):
        hal.clock.sleep_until(hal.clock.now_ns() + hal.simulator.tick_ns)
        hal.sample(reading)
        decision = decide_tick(mind, reading)
        watch(hal, mind, decision)
        plan = build_plan(mind.host, held, decision.placement)
        receipt.clear()
        if len(plan):
            hal.apply(plan, 0, receipt)
            advance(held, plan, receipt, decision.placement, mind.host)
        absent += 1
        absent[reading.present] = 0
        active = absent < GONE_TICKS
        changed = active != mind.host.active
        if changed.any():
            mind.rebind(Host(hal.topology, hal.vms, active))
            held.units[changed], held.cpus[changed], held.ways[changed] = 0, False, 0
            hal.read_back(held, np.flatnonzero(changed & active))


def _open(scenario: Scenario, policy: str, seed: int) -> tuple[SimulatedHal, Mind]:
    options = DecideOptions(policy_budget_ns=NO_BUDGET_NS)
    if policy.startswith(ORACLE_PREFIX):
        from .oracles import oracle_mind, world_of

        hal = SimulatedHal(world_of(policy, scenario), seed, tick_ms=TICK_MS)
        return hal, oracle_mind(policy, hal, Host(hal.topology, hal.vms), seed, options=options)
    hal = SimulatedHal(scenario, seed, tick_ms=TICK_MS)
    return hal, make_mind(policy, Host(hal.topology, hal.vms), options)


class Recording:
    """A simulated host tick by tick, copied after every decision: a ``watch`` for :func:`drive`."""

    def __init__(self, ticks: int, vms: int) -> None:
        self.arrivals: FloatArray = np.zeros((ticks, vms))
        self.backlog: FloatArray = np.zeros((ticks, vms))
        self.mix: FloatArray = np.zeros((ticks, vms, R))
        self.threads: FloatArray = np.zeros((ticks, vms))
        self.granted: FloatArray = np.zeros((ticks, vms, R))
        """Units commanded before the tick; that the hardware takes its time is not the policy's doing."""
        self.demand: FloatArray = np.zeros((ticks, vms, R))
        self.decision_us: FloatArray = np.zeros(ticks)
        self.fallbacks = self.t = 0
        self.simulator: Simulator | None = None

    def __call__(self, hal: SimulatedHal, mind: Mind, decision: Decision) -> None:
        """Copy the tick just done."""
        s, t = hal.simulator, self.t
        self.arrivals[t], self.backlog[t], self.mix[t] = s.arrivals[0], s.backlog[0], s.workloads.mix[0]
        self.granted[t], self.demand[t], self.threads[t] = s.commanded[0], s.demand[0], s.threads
        self.decision_us[t] = mind.stage_ns.sum() * 1e-3
        self.fallbacks += not decision.by_policy
        self.t, self.simulator = t + 1, s

    @property
    def served(self) -> FloatArray:
        """(T, N) requests that left the queue in each tick; those that left with their VM are among them."""
        return self.arrivals - np.diff(self.backlog, axis=0, prepend=0.0)


def _record(run: Run, scenario: Scenario, ticks: int) -> Recording:
    recording = Recording(ticks, len(scenario.vm))
    drive(scenario, run.policy, run.seed, ticks, recording)
    return recording


def _measure_plain(run: Run) -> Measured:
    return summarise(_record(run, run.scenario, run.warm_ticks + run.ticks), run.warm_ticks)


def summarise(recording: Recording, warm_ticks: int) -> Measured:
    """Return the figures of a recording over its ticks from ``warm_ticks`` on."""
    simulator = recording.simulator
    if simulator is None:
        return {}
    vms, counted = simulator.model.vms, slice(warm_ticks, None)
    arrivals, served = recording.arrivals, recording.served
    late, arrived = _late_and_arrived(recording, simulator, warm_ticks)
    share = metrics.late_share(late, arrived)
    alone = metrics.latency_quantile(arrivals, served_alone(simulator, recording), first=warm_ticks)
    latency = metrics.latency_quantile(arrivals, served, first=warm_ticks)
    median, worst = metrics.p99_against_alone(latency, alone)
    # Over the whole run: a reservation counts from the first tick on.
    reservation = Host(simulator.model.topology, vms).reservation
    broken = metrics.broken_reservations(recording.granted, reservation, recording.demand)
    return {
        "slo_violation_pct": float(metrics.violation_pct(late, arrived, metrics.weights_of(vms.priority))),
        "late_vms_pct": metrics.late_vm_pct(share),
        "starved_vms_pct": metrics.late_vm_pct(share, metrics.STARVED_SHARE),
        "violation_by_priority": {str(p): v for p, v in metrics.violation_by_priority(share, vms.priority).items()},
        "reservations_broken": broken,
        "p99_alone_median": median,
        "p99_alone_worst_decile": worst,
        "moves_per_tick": metrics.moves_per_tick(recording.granted[counted]),
        "fairness": metrics.jain_fairness(recording.granted[counted], reservation),
        "utilisation_pct": float(simulator.utilisation.pct()[0]),
        "fallbacks": int(recording.fallbacks),
        "decision_us": float(np.median(recording.decision_us[counted])),
    }


def _late_and_arrived(recording: Recording, simulator: Simulator, warm_ticks: int) -> tuple[FloatArray, FloatArray]:
    """Return (N,) the requests found late and those that came from ``warm_ticks`` on."""
    late = metrics.late_requests(recording.arrivals, recording.served, simulator.model.target_ticks)
    return late[warm_ticks:].sum(axis=0), recording.arrivals[warm_ticks:].sum(axis=0)


def served_alone(simulator: Simulator, recording: Recording) -> FloatArray:
    """Return (T, N) what would be served of the recorded arrivals if each VM had its socket to itself.

    The simulator's own equations (simulator/host.py) with every unit of every pool and all ways, warm and at once; what
    a tick brings counts as coming evenly, at random or not.
    """
    m, shape = simulator.model, simulator.scenario.host
    topology = m.topology
    units = np.array([[topology.pool(r, int(z)).units for r in Resource] for z in m.vms.zone], np.float64)
    units = units.reshape(len(m.vms), R)
    misses = miss_ratio(np.full(len(m.vms), float(topology.way_bits)), *m.miss)
    need = m.need_at(np.broadcast_to(misses, recording.arrivals.shape), recording.mix)
    bandwidth = np.full((*need.shape[:2], 2), np.inf)
    np.divide(units[:, (MEMORY, IO)], need[..., (MEMORY, IO)], out=bandwidth, where=need[..., (MEMORY, IO)] > 1e-12)
    limit, cpu = bandwidth.min(axis=-1), np.maximum(need[..., CPU], 1e-12)
    threads = np.minimum(units[:, CPU], recording.threads)
    served = np.empty_like(recording.arrivals)
    queue, busy = np.zeros(len(m.vms)), np.zeros(len(m.vms))
    for t, arrived in enumerate(recording.arrivals):
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
    recording = _record(run, replace(run.scenario, vm=tuple(vms)), ticks)
    if recording.simulator is None:
        return {}
    target = recording.simulator.model.target_ticks
    late = metrics.late_requests(recording.arrivals, recording.served, target)[:, row]
    lag = min(int(target[row]), ticks)
    # The requests of tick t - S are judged in tick t.
    came = np.concatenate([np.zeros(lag), recording.arrivals[: ticks - lag, row]])
    return {"converge_ticks": metrics.converge_ticks(metrics.late_share(late, came), at)}


def _measure_emu(run: Run) -> Measured:
    def holds(load: float) -> bool:
        recording = _record(run, replace(run.scenario, load=load), run.warm_ticks + run.ticks)
        simulator = recording.simulator
        if simulator is None:
            return True
        late, arrived = _late_and_arrived(recording, simulator, run.warm_ticks)
        violation = float(metrics.violation_pct(late, arrived, simulator.weight))
        return metrics.emu_holds(violation, metrics.late_share(late, arrived))

    return {"emu_pct": metrics.emu_load_pct(holds, rounds=run.rounds)}
