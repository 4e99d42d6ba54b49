"""Whether a candidate takes the champion's place: a function of what both did on the same arrivals.

The rival is the champion, or tuned triage where there is no champion yet. V in points, means over scenarios and seeds,
differences paired (metrics.py). Every one of these must hold:

- V is below the rival's at ``tight`` or at ``over``, with a 95 % interval of the difference that excludes 0;
- in no load class is it more than CLASS_POINTS above the rival's, nor above tuned triage's;
- in no scenario, over all its loads, is it more than SCENARIO_POINTS above the rival's;
- no larger share of VMs is starved, and no more reservations are broken, than with the rival and with tuned triage;
- the policy decided in every tick itself;
- with 64 VMs the median tick costs it no more CPU time than the budget that a host gives it (timing.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from foreshare.training import metrics
from foreshare.training.evaluate_summary import Results

SUITE, SEEDS = "standard", 5
"""What promotions are judged on, and with how many seeds at least."""
DECISIVE = ("tight", "over")
CLASS_POINTS, SCENARIO_POINTS = 0.1, 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Contest:
    """Who is compared with whom, by the names under which they were evaluated."""

    candidate: str
    champion: str | None
    """None: there is none yet."""
    base: str
    """Tuned triage."""

    @property
    def rival(self) -> str:
        """Whose place is wanted."""
        return self.champion or self.base


def evidence(results: Results, contest: Contest) -> dict[str, Any]:
    """Return V of all three by load class, and the candidate's paired difference from the rival with its interval."""
    names = {"candidate": contest.candidate, "rival": contest.rival, "base": contest.base}
    out: dict[str, Any] = {"rival_is": "champion" if contest.champion else "tuned triage"}
    for load in results.loads:
        v = {role: results.violation(name, results.scenarios, (load,)) for role, name in names.items()}
        found = metrics.difference_interval(v["candidate"], v["rival"])
        out[load] = {role: round(float(x.mean()), 4) for role, x in v.items()} | {
            "difference": round(found.value, 4), "low": round(found.low, 4), "high": round(found.high, 4),
        }  # fmt: skip
    return out


def refusals(results: Results, contest: Contest) -> list[str]:
    """Return why the candidate is not to be promoted, a line each; none if it is. What is no number counts as worse."""
    me, rival = contest.candidate, contest.rival
    called = "the champion" if contest.champion else "tuned triage"
    out = [*_no_better(results, me, rival, called)]
    for other, name in dict.fromkeys([(rival, called), (contest.base, "tuned triage")]):
        out += _worse_in_a_class(results, me, other, name)
        out += _worse_guardrails(results, me, other, name)
    for scenario in results.scenarios:
        more = _difference(results, me, rival, (scenario,), results.loads)
        if not more <= SCENARIO_POINTS:
            out.append(f"scenario {scenario}: V is {more:+.2f} points from {called}'s, at most +{SCENARIO_POINTS:g}")
    fallbacks = _sum(results, me, "fallbacks")
    if fallbacks:
        out.append(f"it left {fallbacks:g} ticks to the priority sort")
    return out


def _no_better(results: Results, me: str, rival: str, called: str) -> list[str]:
    said = []
    for load in (x for x in DECISIVE if x in results.loads):
        mine, theirs = (results.violation(p, results.scenarios, (load,)) for p in (me, rival))
        found = metrics.difference_interval(mine, theirs)
        if found.high < 0.0:
            return []
        said.append(f"{load} {found.value:+.2f} [{found.low:+.2f}, {found.high:+.2f}]")
    return [f"V is not shown to be below {called}'s: {', '.join(said) or 'neither tight nor over was run'}"]


def _worse_in_a_class(results: Results, me: str, other: str, name: str) -> list[str]:
    out = []
    for load in results.loads:
        more = _difference(results, me, other, results.scenarios, (load,))
        if not more <= CLASS_POINTS:
            out.append(f"{load}: V is {more:+.2f} points from {name}'s, at most +{CLASS_POINTS:g}")
    return out


def _worse_guardrails(results: Results, me: str, other: str, name: str) -> list[str]:
    out = []
    starved = [_mean(results, p, "starved_vms_pct") for p in (me, other)]
    if not starved[0] <= starved[1] + 1e-9:
        out.append(f"{starved[0]:.3f} % of VMs are starved, {starved[1]:.3f} % with {name}")
    broken = [_sum(results, p, "reservations_broken") for p in (me, other)]
    if not broken[0] <= broken[1]:
        out.append(f"{broken[0]:g} reservations are broken, {broken[1]:g} with {name}")
    return out


def _difference(results: Results, me: str, other: str, scenarios: tuple[str, ...], loads: tuple[str, ...]) -> float:
    mine, theirs = (results.violation(p, scenarios, loads) for p in (me, other))
    return float((mine - theirs).mean())


def _figures(results: Results, policy: str, name: str) -> list[float]:
    return [float(run[name]) for (p, *_), run in results.plain.items() if p == policy]


def _mean(results: Results, policy: str, name: str) -> float:
    return float(np.mean(_figures(results, policy, name)))


def _sum(results: Results, policy: str, name: str) -> float:
    return float(np.sum(_figures(results, policy, name)))


def unfit(suite_hash: str, standard_hash: str, suite: str, seeds: int) -> list[str]:
    """Return why results on this suite with so many seeds cannot promote anything; none if they can."""
    out = []
    if suite_hash != standard_hash:
        out.append(f"results on the suite {suite} do not promote: only those on {SUITE}, or --rehearsal")
    if seeds < SEEDS:
        out.append(f"{seeds} seeds do not promote: at least {SEEDS}, or --rehearsal")
    return out
