"""One tick's judgement: forecast, policy or fallback, guard, placement.

The one function that loop, environment and benchmarks call: what trains is what ships.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from .allocators import Allocator, PrioritySort, Request
from .allocators.base import make_request
from .errors import InputError
from .forecast import Forecast, Forecaster, carry
from .guard import Guard, GuardOptions
from .host import CACHE, BoolArray, Host, IntArray, Isolation, Placement
from .placement import BatchPlacer, Placer
from .reading import Reading

STAGES = ("forecast", "decide", "guard", "place")


@dataclass(frozen=True, kw_only=True, slots=True)
class DecideOptions:
    """What surrounds the policy."""

    headroom: float = 1.05
    """VMs ask for this multiple of the upper end of their forecast."""
    policy_budget_ns: int = 600_000
    """A policy that took longer than this loses the tick to the priority sort."""
    guard: GuardOptions = field(default_factory=GuardOptions)


UNHURRIED = DecideOptions(policy_budget_ns=1 << 62)
"""Where time is virtual no policy is late: how busy the machine is must not change what happens."""


@dataclass(slots=True, eq=False)
class Decision:
    """What was decided, and why. Buffers belong to the Mind and change with the next tick: copy what you keep."""

    placement: Placement
    """What every VM is to hold."""
    by_policy: bool
    """False: the fallback decided."""
    fault: str
    """Why the policy's answer was not used; empty if it was."""
    contended: BoolArray
    """(N, R) the VM is expected to need more than it was granted. Never set for cache, which is best effort."""
    throttled: BoolArray
    """(N,) the priority sort refused the VM and holds it at its reservation."""
    request: Request
    forecast: Forecast


class Mind:
    """Everything that decide_tick needs from tick to tick: models, guard, placer and preallocated buffers."""

    def __init__(
        self, host: Host, forecaster: Forecaster, policy: Allocator, options: DecideOptions | None = None
    ) -> None:
        if host.batch and not policy.batched:
            raise InputError(f"policy {policy.name!r} decides about one host at a time")
        self.options = options or DecideOptions()
        self.forecaster, self.policy = forecaster, policy
        self.fallback = PrioritySort()
        self.guard = Guard(host, self.options.guard)
        self.placer: Placer | BatchPlacer = BatchPlacer(host) if host.batch else Placer(host)
        self.tick = 0
        self.stage_ns: npt.NDArray[np.int64] = np.zeros(len(STAGES), np.int64)
        """Nanoseconds that each of STAGES took in the latest tick."""
        self.clock_ns: Callable[[], int] = time.perf_counter_ns
        self._bind(host)

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
        self._fixed = host.vms.isolation == Isolation.SECURITY
        self._any_fixed = bool(self._fixed.any())

    def rebind(self, host: Host) -> None:
        """Carry on with another set of VMs on the same hardware; VMs known by UUID keep their history and place."""
        old = {u: i for i, u in enumerate(self.host.vms.uuid)}
        rows = np.array([old.get(u, -1) for u in host.vms.uuid], np.int64)
        held = self.held
        self.forecaster.rebind(host, rows)
        self.guard.rebind(host)
        self.placer.rebind(host, rows)
        self._bind(host)
        self.held = carry(held, rows, self.held)

    def warm_up(self) -> None:
        """Run policy, fallback, guard and placement once for nothing, so that the first tick finds its code warm.

        Nothing is learnt from it: a copy of the policy is asked.
        """
        _ask_policy(self, copy.deepcopy(self.policy))
        self.fallback.allocate(self.request, self.host, 0)
        units = self.guard.admit(self.held, self.request.ask, self.held)
        fresh = BatchPlacer(self.host) if self.host.batch else Placer(self.host)
        fresh.place(units, Placement.empty(len(self.host), self.host.topology.cpus, self.host.batch))

    def adopt(self, placement: Placement) -> None:
        """Start from what the VMs hold now (after a restart), so that the first tick moves as little as it can."""
        self.placer.adopt(placement)


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
    mind.forecaster.update(reading, mind.forecast)
    make_request(mind.forecast, host, reading, mind.options.headroom, mind.request)
    if mind._any_fixed:  # its partition never moves, so none of it is to lend while it is idle
        mind.request.ask[..., mind._fixed, :] = host.reservation[mind._fixed]
    mind.stage_ns[0] = mind.clock_ns() - start
    return mind.request


def conclude_tick(mind: Mind) -> Decision:
    """Do the second half of a tick: policy or fallback, guard, placement."""
    host, now, out = mind.host, mind.clock_ns, mind.decision
    start = now()
    proposal, out.fault = _ask_policy(mind, mind.policy)
    out.by_policy = proposal is not None
    out.throttled[:] = False
    if proposal is None:
        proposal = mind.fallback.allocate(mind.request, host, mind.tick)
        out.throttled[:] = mind.fallback.refused
    elif isinstance(mind.policy, PrioritySort):
        out.throttled[:] = mind.policy.refused
    decide_done = now()

    if mind._any_fixed:  # security class: no policy touches it
        proposal = np.where(mind._fixed[:, None], host.reservation, proposal)
    units = mind.guard.admit(proposal, mind.request.ask, mind.held, frozen=out.throttled)
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
    return out


def _ask_policy(mind: Mind, policy: Allocator) -> tuple[IntArray | None, str]:
    """Return the policy's proposal, or None and what was wrong with it."""
    begun = mind.clock_ns()
    try:
        proposal = policy.allocate(mind._shown, mind.host, mind.tick)
        fault = _unusable(proposal, mind.host)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a plug-in: what it raises costs it the tick, not the host
        return None, f"raised {type(error).__name__}: {error}"
    took = mind.clock_ns() - begun
    if took > mind.options.policy_budget_ns:
        return None, f"late: {took // 1000} us of {mind.options.policy_budget_ns // 1000}"
    return (None, fault) if fault else (proposal, "")


def _unusable(proposal: object, host: Host) -> str:
    if type(proposal) is not np.ndarray or proposal.shape != host.shape:
        return f"answered {getattr(proposal, 'shape', type(proposal).__name__)}, expected {host.shape}"
    if proposal.dtype.kind == "f" and not np.isfinite(proposal).all():
        return "answered values that are not finite"
    if proposal.dtype.kind not in "if" or proposal.dtype.itemsize > 8:
        return f"answered {proposal.dtype}"
    return ""
