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

from . import kernel
from .allocators import Allocator, PrioritySort, Request
from .allocators.base import make_request
from .ask import Answer, Asker, Inline, Units
from .assess import Assessor
from .backlog_forecast import BacklogForecaster
from .conclusion import Conclusion
from .deadlines import Deadlines
from .errors import InputError
from .forecast import Forecast, Forecaster, carry
from .foresight import Foresight
from .guard import Guard, GuardOptions
from .host import BoolArray, Host, IntArray, Isolation, Placement
from .placement import BatchPlacer, Placer
from .propose import propose
from .reading import Reading
from .standing import Standing, StandingOptions
from .trust import Trust

STAGES = ("forecast", "decide", "guard", "place")
START_TICKS = 50
"""A policy whose process has ended is started again so many ticks before its bench is over."""


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
        """(..., N, R) what was decided last, in place."""
        self.pinned: BoolArray = np.zeros(n, bool)
        """(N,) VMs that get exactly their reservation, whoever decides: their controls do not obey."""
        self._kept: Answer | None = None
        self._checked: Reading | None = None
        self._proposed: Units | None = None
        self._cold = True
        self._fixed: BoolArray = host.vms.still | (host.vms.isolation == Isolation.SECURITY)
        self._foresight: Foresight | None = None
        self._conclusion: Conclusion | None = None

    def assess_against(self, default: Allocator) -> None:
        """Assess the policy against ``default`` from now on, which decides while it is benched for doing worse."""
        self.default, self.assessor = default, Assessor(self.host)
        self.follow_deadlines(self.options.tick_ms)

    @property
    def _anchored(self) -> bool:
        """Whether policies are held to a trust region here."""
        return self.default is not None and self.options.guard.radius < 1.0

    def asks(self, request: Request) -> bool:
        """Whether ``request`` is the one that this mind fills, tick by tick."""
        return request is self._shown or request is self.request

    def follow_deadlines(self, tick_ms: float) -> None:
        """See to it that :attr:`deadlines` is there, tick by tick from now on.

        Raises InputError where somebody else here counts in ticks of another length.
        """
        if self._deadlines is None:
            self._deadlines, self._foresight = Deadlines(tick_ms), None
        if self._deadlines.tick_ms != tick_ms:
            raise InputError(f"deadlines are counted in ticks of {self._deadlines.tick_ms} ms here, not {tick_ms}")

    @property
    def deadlines(self) -> Deadlines:
        """What is due when after the latest request. Raises InputError where nobody follows it."""
        return self.see_deadlines()

    def see_deadlines(self) -> Deadlines:
        """Bring :attr:`deadlines` up to date, where that has not been done since the latest request."""
        if self._deadlines is None:
            raise InputError("nobody follows deadlines here")
        if not self._due:
            self._due = True
            self._deadlines.update(self.request, self.host)
        return self._deadlines

    def _looking(self, forecaster: BacklogForecaster) -> Foresight:
        """Return what the first half of a tick is done with; one array replaced, it is another."""
        found = self._foresight
        same = found is not None and found.held is self.held and found.pinned is self.pinned
        if found is None or not same or found.forecaster is not forecaster:
            found = self._foresight = Foresight(
                self.host, self.trust, forecaster, self.forecast, self.request, self.held, self._fixed, self.pinned,
                self._deadlines,
            )  # fmt: skip
        return found

    def _holding(self) -> Conclusion:
        """Return what comes between the halves."""
        found, out = self._conclusion, self.decision
        if found is None or found.held is not self.held or found.pinned is not self.pinned:
            found = self._conclusion = Conclusion(
                self.host, self.guard, self.request, self.held, self._fixed, self.pinned, out.throttled, out.contended
            )
        return found

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
        decision = decide_tick(double, reading)
        # The double has arrays of its own.
        kernel.touch(self._foresight, self.forecaster, self.policy, self._conclusion, self.placer)
        return decision

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
    host, forecaster, start = mind.host, mind.forecaster, mind.clock_ns()
    if kernel.compiled is not None and not host.batch and type(forecaster) is BacklogForecaster:
        mind._due = mind._deadlines is not None
        mind._checked = mind._looking(forecaster).update(kernel.compiled, reading, mind.options.headroom)
        mind.stage_ns[0] = mind.clock_ns() - start
        return mind.request
    reading = mind._checked = mind.trust.check(reading, mind.held)
    mind.forecaster.update(reading, mind.forecast)
    make_request(mind.forecast, host, reading, mind.options.headroom, mind.request)
    if not mind.forecast.exact:
        mind.trust.entitle(mind.request, reading)
    apart = mind._fixed | mind.pinned  # such a partition never moves, so none of it is to lend while it is idle
    if apart.any():
        mind.request.ask[..., apart, :] = host.reservation[apart]
    mind._due = mind._deadlines is not None
    if mind._deadlines is not None:
        mind._deadlines.update(mind.request, host)
    mind.stage_ns[0] = mind.clock_ns() - start
    return mind.request


def conclude_tick(mind: Mind) -> Decision:
    """Do the second half of a tick: policy or fallback, guard, placement."""
    now, out, stage = mind.clock_ns, mind.decision, mind.stage_ns
    start = now()
    proposal = propose(mind, out)
    decide_done = now()

    mind._holding().hold(proposal, out.default if mind._anchored and out.by_policy else None)
    out.raised = mind.guard.raised
    guard_done = now()

    mind.placer.place(mind.held, out.placement)
    done = now()
    stage[1], stage[2], stage[3] = decide_done - start, guard_done - decide_done, done - guard_done
    mind.tick += 1
    if not mind.rests:
        mind.assess()
    return out
