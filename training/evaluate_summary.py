"""From the figures of single runs to those of a suite: means, intervals, closure; load classes apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from foreshare.envs.simulator.suites import Suite
from foreshare.policies.host import FloatArray
from foreshare.policies.registry import POLICIES

from . import metrics
from .drive import ORACLE_PREFIX
from .evaluate_run import EMU, STEP, Measured, Run

ALL = "all"
ORACLES = {"closure_paying": "oracle-paying", "closure_free": "oracle-free"}
"""Which policy each closure is measured against; null where it was not evaluated."""
_MEANS = (
    "slo_violation_pct", "late_vms_pct", "starved_vms_pct", "p99_alone_median", "p99_alone_worst_decile",
    "moves_per_tick", "fairness", "utilisation_pct",
)  # fmt: skip
_SUMS = ("reservations_broken", "fallbacks")
_DIGITS = 4


class Results:
    """Single runs' figures by policy, scenario, load and seed."""

    def __init__(self, suite: Suite, policies: tuple[str, ...], seeds: int) -> None:
        self.policies, self.seeds = policies, seeds
        self.scenarios = tuple(s.name for s in suite.scenarios)
        self.loads = tuple(load for load, _ in suite.loads)
        self.plain: dict[tuple[str, str, str, int], Measured] = {}
        self.step: dict[tuple[str, str, str], Measured] = {}
        self.emu: dict[tuple[str, str], float] = {}

    def add(self, at: tuple[str, str, int], run: Run, result: Measured) -> None:
        """Take the result of ``run`` for (scenario, load, seed)."""
        scenario, load, seed = at
        if run.kind == STEP:
            self.step[run.policy, scenario, load] = result
        elif run.kind == EMU:
            self.emu[run.policy, scenario] = float(result["emu_pct"])
        else:
            self.plain[run.policy, scenario, load, seed] = result

    def violation(self, policy: str, scenarios: Sequence[str], loads: Sequence[str]) -> FloatArray:
        """Return V, (scenarios x loads, seeds)."""
        return np.array(
            [
                [self.plain[policy, s, load, k]["slo_violation_pct"] for k in range(self.seeds)]
                for load in loads
                for s in scenarios
            ]
        )


def summarise(results: Results) -> dict[str, Any]:
    """Return ``policies``, ``emu``, ``scenarios`` and ``base``: by load, the best neither learned nor an oracle."""
    loads, everywhere = results.loads, results.scenarios
    base = {load: _best(results, everywhere, (load,)) for load in loads} | {ALL: _best(results, everywhere, loads)}
    policies = {p: _by_load(results, p, everywhere, base) for p in results.policies}
    scenarios = {s: {p: _by_load(results, p, (s,), base) for p in results.policies} for s in everywhere}
    emu: dict[str, float | None] = {}
    for p in results.policies:
        values = [results.emu[p, s] for s in everywhere if (p, s) in results.emu]
        emu[p] = _round(float(np.mean(values))) if values else None
    return {"base": base, "policies": policies, "emu": emu, "scenarios": scenarios}


def _best(results: Results, scenarios: Sequence[str], loads: Sequence[str]) -> str:
    """Return the best policy that is neither learned nor an oracle; of those there are, where there is none such."""
    no_oracles = [p for p in results.policies if not p.startswith(ORACLE_PREFIX)]
    candidates = [p for p in no_oracles if p in POLICIES] or no_oracles or list(results.policies)
    return min(candidates, key=lambda p: (float(results.violation(p, scenarios, loads).mean()), p))


def _by_load(results: Results, policy: str, scenarios: Sequence[str], base: dict[str, str]) -> dict[str, Any]:
    out = {load: _figures(results, policy, scenarios, (load,), base[load]) for load in results.loads}
    return out | {ALL: _figures(results, policy, scenarios, results.loads, base[ALL])}


def _figures(
    results: Results, policy: str, scenarios: Sequence[str], loads: Sequence[str], base: str
) -> dict[str, Any]:
    runs = [results.plain[policy, s, load, k] for s in scenarios for load in loads for k in range(results.seeds)]
    out: dict[str, Any] = {name: _round(float(np.mean([r[name] for r in runs]))) for name in _MEANS}
    out |= {name: int(sum(r[name] for r in runs)) for name in _SUMS}
    v = results.violation(policy, scenarios, loads)
    interval = metrics.mean_interval(v)
    # The spread of what one seed says about the whole of it; of one seed there is none.
    out["slo_violation_std"] = _round(float(v.mean(axis=0).std(ddof=1))) if results.seeds > 1 else None
    out["slo_violation_low"], out["slo_violation_high"] = _round(interval.low), _round(interval.high)
    against = metrics.difference_interval(v, results.violation(base, scenarios, loads))
    out["above_base"] = _round(against.value)
    out["above_base_low"], out["above_base_high"] = _round(against.low), _round(against.high)
    levels = sorted({p for r in runs for p in r["violation_by_priority"]}, key=int)
    out["violation_by_priority"] = {
        p: _round(float(np.mean([r["violation_by_priority"][p] for r in runs if p in r["violation_by_priority"]])))
        for p in levels
    }
    steps = [r for s in scenarios for x in loads if (r := results.step.get((policy, s, x))) is not None]
    out["converge_ticks"] = _round(float(np.mean([r["converge_ticks"] for r in steps]))) if steps else None
    # Seeds that run side by side do not tell how long one decision takes; the runs with a step do.
    times = [r["decision_us"] for r in [*steps, *runs] if r["decision_us"] is not None]
    out["decision_us"] = _round(float(np.mean(times))) if times else None
    for name, oracle in ORACLES.items():
        closure = None
        if len(loads) == 1 and oracle in results.policies:  # load classes are never mixed
            closure = metrics.closure_pct(
                results.violation(base, scenarios, loads), v, results.violation(oracle, scenarios, loads)
            )
        out[name] = _round(closure.value) if closure else None
        out[f"{name}_low"], out[f"{name}_high"] = (
            (_round(closure.low), _round(closure.high)) if closure else (None, None)
        )
    return out


def _round(value: float) -> float:
    return round(value, _DIGITS)
