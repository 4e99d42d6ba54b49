"""Who has his say in a tick: the policy in time, its answer to an earlier tick, the default, or the priority sort."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .ask import ABSENCES, Answer, Units, newer

if TYPE_CHECKING:
    from .decide import Decision, Mind

_IN_TIME_ONLY = frozenset({"raised", "wrong", "benched", "worse"})
"""After these an earlier answer is no better than none: it is the policy that cannot be trusted, not its timing."""


def propose(mind: Mind, out: Decision) -> Units:
    """Ask the policy, and whoever runs in its shadow; fill who decided and why, and return what is proposed."""
    host, tick, standing, assessor = mind.host, mind.tick, mind.standing, mind.assessor
    if standing.benched_for == "worse" and tick >= standing.until and assessor and not assessor.recovered:
        standing.extend(tick)
    worse = assessor is not None and not standing.benched_for and assessor.worse
    if worse:
        standing.fault("worse", tick)
    may = standing.may_decide(tick)
    asking = may or standing.benched_for == "worse"  # then it shows in the shadow whether it has become better
    if asking:
        mind.asker.begin(mind._shown, host, tick)
    # What runs in the shadow of a policy that thinks beside us costs nothing, and keeps the fallback warm.
    out.default = None
    if mind.default is not None and (mind.asker.beside or mind._anchored or standing.benched_for == "worse"):
        out.default = mind.default.allocate(mind.request, host, tick)
    shadow = None if asking and mind.asker.arrived() else mind.fallback.allocate(mind.request, host, tick)
    mind._cold = shadow is None
    answer = mind.asker.end(mind.options.policy_budget_ns, mind.clock_ns) if asking else None
    if answer is None or (not answer.fault and not may):
        out.fault_kind = "benched"
        out.fault = f"benched ({standing.benched_for}) for {standing.until - tick} ticks more"
    else:
        out.fault_kind, out.fault = answer.fault, answer.why
    if worse and assessor is not None:
        out.fault_kind = "worse"
        out.fault = f"it serves {100 * assessor.mean:.1f} % of demand less than the default would"
    kept = mind._kept
    if answer is not None and answer.earlier is not None:
        mind._kept = newer(kept, answer.earlier)
        if answer.earlier.tick < tick:  # else it has come after this tick's time, and is the next one's
            kept = mind._kept
    lasts = kept is not None and kept.units is not None and 0 < tick - kept.tick <= mind.options.expires_ticks
    _judge(mind, answer, kept if lasts else None)
    out.by_policy, out.age = True, 0
    out.throttled[:] = False
    if not out.fault_kind and answer is not None and answer.units is not None:
        mind._kept = answer
        if answer.refused is not None:
            out.throttled[:] = answer.refused
        return answer.units
    if lasts and kept is not None and kept.units is not None and out.fault_kind not in _IN_TIME_ONLY:
        out.age = tick - kept.tick
        if kept.refused is not None:
            out.throttled[:] = kept.refused
        return kept.units
    out.by_policy, out.age = False, 0
    if standing.benched_for == "worse" and out.default is not None:
        return out.default
    if shadow is None:
        shadow = mind.fallback.allocate(mind.request, host, tick)
    out.throttled[:] = mind.fallback.refused
    return shadow


def _judge(mind: Mind, answer: Answer | None, kept: Answer | None) -> None:
    """Keep the policy's record, strikes and forgiveness, and what it proposed.

    ``kept``: its answer to an earlier tick, where that has not expired.
    """
    standing, tick = mind.standing, mind.tick
    if answer is None:
        return
    units = answer.units
    if answer.fault == "late" and (not mind.asker.beside or kept is not None):
        # Who was called has taken his time, and has answered; who answers in his own process a little late, but before
        # the next tick, decides each tick by his answer to the one before. Not to ask either of them any more would
        # only leave tick after tick to the last resort.
        standing.count(answer.fault)
        units = kept.units if kept is not None else None
    elif answer.fault:
        if answer.fault not in ABSENCES:
            standing.fault(answer.fault, tick)
        return
    else:
        standing.good()
    mind._proposed = units
