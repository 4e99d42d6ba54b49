"""One tick's judgement: forecast, policy or fallback, guard, placement.

The one function that loop, environment and benchmarks call: what trains is what ships.

Who decides, in this order: the policy, if its answer to this tick's request came in time; where it was late, hung or
crashed, its newest answer to an earlier tick that has not expired; where it is benched for doing worse than the
default, the default; else the priority sort.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from .allocators import Allocator, PrioritySort, Request
from .allocators.base import make_request
from .ask import ABSENCES, Answer, Asker, Inline, Units, newer
from .assess import Assessor
from .deadlines import Deadlines
from .errors import InputError
from .forecast import Forecast, Forecaster, carry
from .guard import Guard, GuardOptions
from .host import CACHE, BoolArray, Host, IntArray, Isolation, Placement
from .placement import BatchPlacer, Placer
from .reading import Reading
from .standing import Standing, StandingOptions
from .trust import Trust

STAGES = ("forecast", "decide", "guard", "place")
START_TICKS = 50
"""A policy whose process has ended is started again so many ticks before its bench is over."""
_IN_TIME_ONLY = frozenset({"raised", "wrong", "benched", "worse"})
"""After these an earlier answer is no better than none: it is the policy that cannot be trusted, not its timing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DecideOptions:
    """What surrounds the policy."""

    headroom: float = 1.05
    """VMs ask for this multiple of the upper end of their forecast."""
    policy_budget_ns: int = 600_000
    """A policy that took longer than this loses the tick."""
    tick_ms: float = 10.0
    """Time between decisions: features count latency targets in ticks."""
    expires_ticks: int = 2
    """A policy's answer to an earlier tick may stand in for a late one for so many ticks; 0: never."""
    guard: GuardOptions = field(default_factory=GuardOptions)
    standing: StandingOptions = field(default_factory=StandingOptions)


UNHURRIED = DecideOptions(policy_budget_ns=1 << 62)
"""Where time is virtual no policy is late: how busy the machine is must not change what happens."""


@dataclass(slots=True, eq=False)
class Decision:
    """What was decided, and why. Buffers belong to the Mind and change with the next tick: copy what you keep."""

    placement: Placement
    """What every VM is to hold."""
    by_policy: bool
    """The policy decided, if by an answer to an earlier tick; False: the fallback or the default did."""
    fault: str
    """Why there was no answer of the policy to this tick, in words; empty if there was one and it was used."""
    contended: BoolArray
    """(N, R) the VM is expected to need more than it was granted. Never set for cache, which is best effort."""
    throttled: BoolArray
    """(N,) the priority sort refused the VM and holds it at its reservation."""
    request: Request
    forecast: Forecast
    fault_kind: str = ""
    """One of :data:`~.ask.FAULTS` or :data:`~.ask.ABSENCES`; empty if there was none."""
    age: int = 0
    """By how many ticks the features that it was decided on are older than this tick's."""
    default: IntArray | None = None
    """(N, R) what the default (triage) would have decided, where the Mind has one: the anchor of the trust region."""
    raised: int = 0
    """Entries of the policy's answer that lay beyond the trust region."""


@runtime_checkable
class Sees(Protocol):
    """A policy that looks at more than a request."""

    def attach(self, mind: Mind) -> None:
        """See from now on what ``mind`` knows."""
        ...


class Mind:
    """Everything that decide_tick needs from tick to tick: models, guard, placer and preallocated buffers.

    ``asker``: how the policy is asked, by calling it where nothing else is said. ``default``: what decides while the
    policy is benched for doing worse; the policy is assessed against it all the time. Without one it is not assessed.
    """

    def __init__(
        self, host: Host, forecaster: Forecaster, policy: Allocator, options: DecideOptions | None = None, *,
        asker: Asker | None = None, default: Allocator | None = None,
    ) -> None:  # fmt: skip
        if host.batch and not policy.batched:
            raise InputError(f"policy {policy.name!r} decides about one host at a time")
        self.options = options or DecideOptions()
        self.forecaster, self.policy, self.default = forecaster, policy, default
        self.asker: Asker = asker or Inline(policy)
        self.fallback = PrioritySort()
        self.standing = Standing(self.options.standing)
        self.trust = Trust(host)
        self.assessor = Assessor(host) if default is not None else None
        self.guard = Guard(host, self.options.guard)
        self.placer: Placer | BatchPlacer = BatchPlacer(host) if host.batch else Placer(host)
        self.tick = 0
        self.stage_ns: npt.NDArray[np.int64] = np.zeros(len(STAGES), np.int64)
        """Nanoseconds that each of STAGES took in the latest tick."""
        self.clock_ns: Callable[[], int] = time.perf_counter_ns
        self.rests = False
        """Somebody calls :meth:`rest` after every tick: what need not be done within one is left for then."""
        self._double: Mind | None = None
        self._deadlines: Deadlines | None = None
        self._due = False
        self._bind(host)
        if default is not None:
            self.follow_deadlines(self.options.tick_ms)
        if isinstance(policy, Sees):
            policy.attach(self)

    def _bind(self, host: Host) -> None:
        n, batch = len(host), host.batch
        self.host = host
        self.forecast, self.request = Forecast.empty(n, batch), Request.empty(n, batch)
        self.decision = Decision(
            Placement.empty(n, host.topology.cpus, batch), True, "", np.zeros(host.shape, bool),
            np.zeros(host.shape[:-1], bool), self.request, self.forecast,
        )  # fmt: skip
        self._shown = self.request.read_only()  # a policy that writes into it must not reach guard and fallback
        self.held: IntArray = np.broadcast_to(host.reservation, host.shape).copy()
        """(..., N, R) what was decided last."""
        self.pinned: BoolArray = np.zeros(n, bool)
        """(N,) VMs that get exactly their reservation, whoever decides: their controls do not obey."""
        self._kept: Answer | None = None
        self._checked: Reading | None = None
        self._proposed: Units | None = None
        self._cold = True
        self._fixed = host.vms.isolation == Isolation.SECURITY
        self._any_fixed = bool(self._fixed.any())
        self._any_pinned = False

    def assess_against(self, default: Allocator) -> None:
        """Assess the policy against ``default`` from now on, which decides while it is benched for doing worse."""
        self.default, self.assessor = default, Assessor(self.host)
        self.follow_deadlines(self.options.tick_ms)

    @property
    def _anchored(self) -> bool:
        """Whether policies are held to a trust region here."""
        return self.default is not None and self.options.guard.radius < 1.0

    def follow_deadlines(self, tick_ms: float) -> None:
        """See to it that :attr:`deadlines` is there, tick by tick from now on.

        Raises InputError where somebody else here counts in ticks of another length.
        """
        if self._deadlines is None:
            self._deadlines = Deadlines(tick_ms)
        if self._deadlines.tick_ms != tick_ms:
            raise InputError(f"deadlines are counted in ticks of {self._deadlines.tick_ms} ms here, not {tick_ms}")

    @property
    def deadlines(self) -> Deadlines:
        """What is due when after the latest request. Raises InputError where nobody follows it."""
        if self._deadlines is None:
            raise InputError("nobody follows deadlines here")
        if not self._due:
            self._due = True
            self._deadlines.update(self.request, self.host)
        return self._deadlines

    def rebind(self, host: Host) -> None:
        """Carry on with another set of VMs on the same hardware; VMs known by UUID keep their history and place."""
        old = {u: i for i, u in enumerate(self.host.vms.uuid)}
        rows = np.array([old.get(u, -1) for u in host.vms.uuid], np.int64)
        held, pinned = self.held, self.pinned
        self.forecaster.rebind(host, rows)
        self.trust.rebind(host, rows)
        if self.assessor is not None:
            self.assessor.rebind(host)
        self.guard.rebind(host)
        self.placer.rebind(host, rows)
        self._bind(host)
        self.asker.rebind(host)
        self.held = carry(held, rows, self.held)
        self.pinned = carry(pinned, rows, self.pinned, axis=-1)

    def warm_up(self) -> None:
        """Run policy, fallback, guard and placement once for nothing, so that the first tick finds its code warm."""
        self.asker.warm_up(self._shown, self.host)
        self.fallback.allocate(self.request, self.host, 0)
        if self.default is not None:
            type(self.default)().allocate(self.request, self.host, 0)
        units = self.guard.admit(self.held, self.request.ask, self.held)
        fresh = BatchPlacer(self.host) if self.host.batch else Placer(self.host)
        fresh.place(units, Placement.empty(len(self.host), self.host.topology.cpus, self.host.batch))

    def rehearse(self, reading: Reading) -> Decision:
        """Judge ``reading`` with a double of this mind, of which nothing is kept: code and caches are warm after it.

        A policy in a process of its own rehearses there; the default, or the fallback, stands in for it here.
        """
        if not self.standing.benched_for:
            self.asker.rehearse()
        double = self._double
        if double is None or double.host is not self.host:
            policy = (self.default or self.fallback) if self.asker.beside else self.policy
            unhurried = replace(self.options, policy_budget_ns=UNHURRIED.policy_budget_ns)
            default = copy.deepcopy(self.default) if self._anchored else None
            double = Mind(
                self.host, copy.deepcopy(self.forecaster), copy.deepcopy(policy), unhurried, default=default
            )  # fmt: skip
            self._double = double
        return decide_tick(double, reading)

    def adopt(self, placement: Placement) -> None:
        """Start from what the VMs hold now (after a restart), so that the first tick moves as little as it can."""
        self.placer.adopt(placement)

    def rest(self, slack_ns: int) -> None:
        """Do what is done between ticks; ``slack_ns`` are left until the next one."""
        self.assess()
        if self._cold:  # the policy left no time for a shadow: the fallback stays warm here
            self.fallback.allocate(self.request, self.host, self.tick)
        standing = self.standing
        wanted = not standing.benched_for or standing.until - self.tick <= START_TICKS
        found = self.asker.rest(slack_ns, wanted)
        if found is not None:
            standing.fault(found.fault, self.tick)

    def assess(self) -> None:
        """Score what was proposed a tick ago by the latest reading, and keep what was proposed now."""
        reading, proposed, self._checked, self._proposed = self._checked, self._proposed, None, None
        if self.assessor is None or self.default is None or reading is None:
            return
        self.assessor.score(reading)
        out = self.decision
        if out.default is None:
            out.default = self.default.allocate(self.request, self.host, self.tick - 1)
        if proposed is not None:
            self.assessor.propose(proposed, out.default, self.deadlines)

    def close(self) -> None:
        """Let go of the policy."""
        self.asker.close()


def decide_tick(mind: Mind, reading: Reading) -> Decision:
    """Judge one tick: return what every VM is to hold.

    Never raises for what a policy does: whatever it raises, or answers in a shape or with values that are no
    allocation, costs it the tick, which the priority sort then decides.
    """
    forecast_tick(mind, reading)
    return conclude_tick(mind)


def forecast_tick(mind: Mind, reading: Reading) -> Request:
    """Do the first half of a tick: take in a reading, return what the VMs ask. Policies see no more than this."""
    host, start = mind.host, mind.clock_ns()
    reading = mind._checked = mind.trust.check(reading, mind.held)
    mind.forecaster.update(reading, mind.forecast)
    make_request(mind.forecast, host, reading, mind.options.headroom, mind.request)
    if not mind.forecast.exact:
        mind.trust.entitle(mind.request, reading)
    if mind._any_fixed:  # its partition never moves, so none of it is to lend while it is idle
        mind.request.ask[..., mind._fixed, :] = host.reservation[mind._fixed]
    mind._any_pinned = bool(mind.pinned.any())
    if mind._any_pinned:
        mind.request.ask[..., mind.pinned, :] = host.reservation[mind.pinned]
    mind._due = mind._deadlines is not None
    if mind._deadlines is not None:
        mind._deadlines.update(mind.request, host)
    mind.stage_ns[0] = mind.clock_ns() - start
    return mind.request


def conclude_tick(mind: Mind) -> Decision:
    """Do the second half of a tick: policy or fallback, guard, placement."""
    host, now, out = mind.host, mind.clock_ns, mind.decision
    start = now()
    proposal = _propose(mind, out)
    decide_done = now()

    frozen, apart = out.throttled, mind._fixed if mind._any_fixed else None
    if mind._any_pinned:
        apart = mind.pinned if apart is None else apart | mind.pinned
        frozen = frozen | mind.pinned
    if apart is not None:  # security class: no policy touches it
        proposal = np.where(apart[:, None], host.reservation, proposal)
    anchor = out.default if mind._anchored and out.by_policy else None
    units = mind.guard.admit(proposal, mind.request.ask, mind.held, frozen=frozen, anchor=anchor)
    out.raised = mind.guard.raised
    if mind._any_fixed:
        units[..., mind._fixed, :] = host.reservation[mind._fixed]
    np.greater(mind.request.need, units, out=out.contended)
    out.contended[..., CACHE] = False  # best effort: who has no ways of his own has the shared ones
    mind.held = units
    guard_done = now()

    mind.placer.place(units, out.placement)
    done = now()
    mind.stage_ns[1:] = decide_done - start, guard_done - decide_done, done - guard_done
    mind.tick += 1
    if not mind.rests:
        mind.assess()
    return out


def _propose(mind: Mind, out: Decision) -> Units:
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
