"""Tunes a policy's knobs by random search within a budget of simulator steps, over common random numbers.

Every candidate meets the same scenarios with the same seeds, so that differences are the knobs'. Candidate 0 is the
defaults. The first half of the budget draws over the whole ranges, the second moves about the best so far in ever
smaller steps (random search: Bergstra, Bengio, JMLR 13, 2012; the second half: Solis, Wets, Mathematics of Operations
Research 6(1), 1981). Candidates **race**: scenarios are met in one shuffled order, some at a time, and who is clearly
behind the best so far on those met by both is given up (Maron, Moore, NIPS 6, 1993), so that the budget goes to the
good ones. A step is one tick of one VM. The seeds used are SeedSequence children of ``seed`` and are kept in the
result: report on others.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from foreshare.envs.simulator.scenario import Scenario
from foreshare.policies.errors import InputError
from foreshare.policies.host import FloatArray, IntArray
from foreshare.policies.knobs import draw, perturb
from foreshare.policies.registry import KNOBS

from .drive import violations

STEP_SHARE, LAST_STEP_SHARE = 0.2, 0.04
"""Standard deviation of the second half's steps in shares of a knob's range: at its start, at its end."""
SCORE_POINTS = 5.0
"""Points of V added before V is set in relation: tenths of a point at mild load must not outweigh whole ones over."""
HEAT = 6
"""Scenarios that a candidate meets before it is compared with the best."""
BEHIND = 0.03
"""Score by which a candidate must be behind the best to be given up."""
_LINE = 90  # characters of a command on one line of the file


@dataclass(frozen=True, kw_only=True, slots=True)
class TuneOptions:
    """How a search is done."""

    steps: int = 2_000_000
    """Simulator steps (VM-ticks) to spend, warm-up included. At least the defaults are always judged."""
    seed: int = 0
    ticks: int = 300
    """Ticks judged in each rollout."""
    warm_ticks: int = 100
    """Ticks before them."""
    rollouts: int = 2
    """Rollouts per scenario and candidate."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """One candidate."""

    knobs: Any
    slo_violation_pct: tuple[float, ...]
    """V for each scenario, the mean over its rollouts; NaN for those that it did not come to."""
    score: float
    """What is minimised: the mean of the above, each plus SCORE_POINTS over that of the defaults plus the same; inf
    for one that was given up."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tuned:
    """What a search found."""

    policy: str
    best: Any
    trials: tuple[Trial, ...]
    """Every candidate in the order of the search; the first is the defaults."""
    steps: int
    """Simulator steps spent."""
    seeds: tuple[int, ...] = field(default=())
    """The seeds of the rollouts."""


def tune(
    policy: str,
    scenarios: Sequence[Scenario],
    options: TuneOptions | None = None,
    progress: Callable[[int, Trial], None] | None = None,
    pool: Executor | None = None,
) -> Tuned:
    """Return the best knobs of ``policy`` found over ``scenarios``, with every trial.

    Load classes differ in scale (0.3 % mild, 30 % over), so each scenario's V counts relative to that of the defaults,
    with SCORE_POINTS on both. ``progress`` is called with the steps spent and each trial; ``pool``: where rollouts are
    run, here if None, which changes nothing but the time. Raises InputError for a policy without knobs or an empty list
    of scenarios.
    """
    o = options or TuneOptions()
    if policy not in KNOBS:
        raise InputError(f"policy {policy!r} has no knobs; {', '.join(KNOBS)} have")
    if not scenarios or o.rollouts < 1:
        raise InputError("nothing to tune on: at least one scenario and one rollout")
    kind = KNOBS[policy][0]
    search, streams, shuffle = np.random.SeedSequence(o.seed).spawn(3)
    rng = np.random.default_rng(search)
    seeds = tuple(int(s.generate_state(1)[0]) for s in streams.spawn(o.rollouts))
    order = np.random.default_rng(shuffle).permutation(len(scenarios))
    cost = np.array([len(s.vm) for s in scenarios]) * (o.ticks + o.warm_ticks) * o.rollouts

    def race(knobs: Any) -> Iterator[tuple[IntArray, FloatArray]]:
        """Yield (positions, V) heat by heat."""
        for k in range(0, len(order), HEAT):
            heat = order[k : k + HEAT]
            tasks = [(scenarios[i], policy, seeds, o.ticks, o.warm_ticks, knobs) for i in heat]
            found = list(map(_mean_violation, tasks) if pool is None else pool.map(_mean_violation, tasks))
            yield heat, np.array(found)

    base = np.full(len(scenarios), np.nan)
    trials: list[Trial] = []
    best: Trial | None = None
    best_relative = np.ones(len(scenarios))
    spent = 0
    while best is None or spent < o.steps:
        done = spent / max(o.steps, 1)
        if best is None:
            knobs = kind()
        elif done < 0.5:
            knobs = draw(kind, rng)
        else:
            knobs = perturb(best.knobs, rng, STEP_SHARE + (LAST_STEP_SHARE - STEP_SHARE) * (2.0 * done - 1.0))
        v = np.full(len(scenarios), np.nan)
        relative = v.copy()
        for heat, found in race(knobs):
            spent += int(cost[heat].sum())
            v[heat] = found
            if best is None:
                base[heat] = found
            relative[heat] = (found + SCORE_POINTS) / (base[heat] + SCORE_POINTS)
            met = ~np.isnan(relative)
            behind = best is not None and relative[met].mean() > best_relative[met].mean() + BEHIND
            if behind or (best is not None and spent >= o.steps):
                break
        whole = not np.isnan(v).any()
        trial = Trial(
            knobs=knobs,
            slo_violation_pct=tuple(v.tolist()),
            score=float(relative.mean()) if whole else float("inf"),
        )
        trials.append(trial)
        if best is None or trial.score < best.score:
            best, best_relative = trial, relative
        if progress is not None:
            progress(spent, trial)
    return Tuned(policy=policy, best=best.knobs, trials=tuple(trials), steps=spent, seeds=seeds)


def _mean_violation(task: tuple[Scenario, str, tuple[int, ...], int, int, Any]) -> float:
    scenario, policy, seeds, ticks, warm_ticks, knobs = task
    return float(violations(scenario, policy, seeds, ticks, warm_ticks=warm_ticks, knobs=knobs).mean())


def write_tuned(path: Path, policy: str, knobs: Any, command: str) -> None:
    """Put ``knobs`` into policies/tuned.py (or another file of its form) with the ``command`` that made them.

    Raises InputError for a file that is no such module; the other policies' values and commands stay.
    """
    tuned: dict[str, dict[str, float | int]] = {}
    commands: dict[str, str] = {}
    if path.exists():
        try:
            tree = ast.parse(path.read_text())
            for node in tree.body:
                if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
                    if node.target.id == "TUNED":
                        tuned = ast.literal_eval(node.value)
                    elif node.target.id == "COMMANDS":
                        commands = ast.literal_eval(node.value)
        except (SyntaxError, ValueError) as error:
            raise InputError(f"{path} is not a file of tuned values: {error}") from error
    tuned[policy], commands[policy] = asdict(knobs), command
    lines = [
        '"""Tuned knobs by policy, written by training/tune_baseline.py; a policy that is missing has its defaults."""',
        "",
        "from __future__ import annotations",
        "",
        "TUNED: dict[str, dict[str, float | int]] = {",
    ]
    for name in sorted(tuned):
        lines.append(f'    "{name}": {{')
        lines += [f'        "{key}": {value!r},' for key, value in tuned[name].items()]
        lines.append("    },")
    lines += ["}", "COMMANDS: dict[str, str] = {"]
    for name in sorted(commands):
        parts = [commands[name][i : i + _LINE] for i in range(0, len(commands[name]), _LINE)] or [""]
        lines += [f"    {_quoted(name)}: (", *(f"        {_quoted(part)}" for part in parts), "    ),"]
    lines += ["}", '"""The command that made each."""', ""]
    path.write_text("\n".join(lines))


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
