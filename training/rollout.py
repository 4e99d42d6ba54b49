"""One policy on one simulated host, headless: as the control loop runs it, without clocks, journal or observers.

The tick is the loop's: ``sample -> decide_tick -> build_plan -> apply -> advance``. Time is virtual and no deadline is
enforced, so that a busy machine changes nothing: the same scenario, policy and seed give the same figures.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from foreshare.envs.hal.plan import advance, build_plan
from foreshare.envs.hal.simulated import SimulatedHal
from foreshare.envs.hal.types import Receipt
from foreshare.envs.simulator.lateness import violation_pct, weights_of
from foreshare.envs.simulator.scenario import Scenario
from foreshare.policies.decide import DecideOptions, Decision, Mind, decide_tick
from foreshare.policies.errors import InputError
from foreshare.policies.host import FloatArray, Host, Placement
from foreshare.policies.reading import Reading
from foreshare.policies.registry import make_mind

NO_BUDGET_NS = 1 << 62
"""No policy is late here: a result must not depend on how busy the machine is."""

Watch = Callable[[SimulatedHal, Mind, Reading, Decision], None]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Figures:
    """What one rollout amounts to, over the ticks after the warm-up (metrics as in simulator/lateness.py)."""

    slo_violation_pct: float
    """V: the priority-weighted share of late requests, percent."""
    late_share: FloatArray
    """(N,) share of each VM's requests that were late, 0..1."""
    over_1_pct: float
    """Share of VMs with more than 1 % late, percent."""
    over_50_pct: float
    """Share of VMs with more than 50 % late, percent."""
    reservations_broken: int
    """VM-ticks in which a VM held less than min(its request, its reservation). Must be 0."""
    writes_per_tick: float
    """Knobs turned per tick."""
    moves_per_tick: float
    """Units that changed hands per tick, all resources."""
    utilisation_pct: float
    fallbacks: int
    """Ticks that the priority sort had to decide."""
    ticks: int


def rollout(
    scenario: Scenario,
    policy: str,
    seed: int,
    ticks: int,
    *,
    knobs: Any = None,
    warm_ticks: int = 50,
    tick_ms: float = 10.0,
    watch: Watch | None = None,
) -> Figures:
    """Run ``policy`` for ``warm_ticks`` + ``ticks`` ticks and return its figures over the last ``ticks``.

    ``watch`` is called after every decision, before its plan is applied; the reading is of the tick just done.
    Raises InputError for a policy that does not exist, or without a tick to judge.
    """
    if ticks < 1 or warm_ticks < 0:
        raise InputError(f"a rollout of {ticks} ticks after {warm_ticks} has nothing to judge")
    hal = SimulatedHal(scenario, seed, tick_ms=tick_ms)
    host = Host(hal.topology, hal.vms)
    mind = make_mind(policy, host, DecideOptions(policy_budget_ns=NO_BUDGET_NS), knobs=knobs)
    held, reading, receipt = Placement.empty(len(host), host.topology.cpus), Reading.empty(len(host)), Receipt()
    hal.claim(lambda originals: None)
    hal.read_back(held)
    mind.adopt(held)
    hal.sample(reading)
    lateness = hal.simulator.lateness
    late = arrived = np.zeros(len(host))
    tick_ns = hal.simulator.tick_ns
    broken = writes = fallbacks = 0
    moved = 0.0
    for tick in range(warm_ticks + ticks):
        if tick == warm_ticks:
            late, arrived = lateness.late_total[0].copy(), lateness.arrived_total[0].copy()
            broken = writes = fallbacks = 0
            moved = 0.0
        hal.clock.sleep_until(hal.clock.now_ns() + tick_ns)
        hal.sample(reading)
        decision = decide_tick(mind, reading)
        if watch is not None:
            watch(hal, mind, reading, decision)
        plan = build_plan(host, held, decision.placement)
        before = held.units.copy()
        receipt.clear()
        if len(plan):
            hal.apply(plan, 0, receipt)
            advance(held, plan, receipt, decision.placement, host)
        entitled = np.minimum(decision.request.ask, host.reservation)
        broken += int((decision.placement.units < entitled - 1e-9).any(axis=1).sum())
        writes += len(plan)
        moved += float(np.maximum(held.units - before, 0).sum())
        fallbacks += not decision.by_policy
    late = lateness.late_total[0] - late
    arrived = lateness.arrived_total[0] - arrived
    share = np.divide(late, arrived, out=np.zeros_like(arrived), where=arrived > 0)
    n = max(len(host), 1)
    return Figures(
        slo_violation_pct=float(violation_pct(late, arrived, weights_of(host.vms.priority))),
        late_share=share,
        over_1_pct=100.0 * float((share > 0.01).sum()) / n,
        over_50_pct=100.0 * float((share > 0.5).sum()) / n,
        reservations_broken=broken,
        writes_per_tick=writes / ticks,
        moves_per_tick=moved / ticks,
        utilisation_pct=hal.utilisation(),
        fallbacks=fallbacks,
        ticks=ticks,
    )
