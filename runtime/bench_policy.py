"""``bench policy``: what it costs to ask a policy inline, under an interval timer, and in a process of its own.

The policy is a network of 64 x 64 per VM on top of triage, in numpy, as a learned one would be. The ways take turns,
tick by tick, with the real gap between ticks, so that whatever the machine does meanwhile happens to all of them.
"""

from __future__ import annotations

import itertools
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

import numpy as np

from foreshare.envs.hal.simulated import SimulatedHal
from foreshare.envs.simulator.scenario import load_scenario
from foreshare.policies.allocators import Request, Triage
from foreshare.policies.ask import Answer, Asker, Inline, call
from foreshare.policies.host import Host, IntArray, R
from foreshare.policies.registry import make_mind

from .jitter import overshoot_us
from .latency import percentiles
from .policy_process import PolicyProcess

HIDDEN = 64
_BUDGET_NS = 600_000


class Network:
    """Triage, corrected by a fixed network of two hidden layers on each VM's request."""

    name = "network"
    batched = False

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        sizes = (4 * R + 1, HIDDEN, HIDDEN, R)
        self._layers = [
            (rng.normal(0, 1 / np.sqrt(a), (a, b)).astype(np.float32), np.zeros(b, np.float32))
            for a, b in itertools.pairwise(sizes)
        ]
        self._base = Triage()

    def allocate(self, request: Request, host: Host, tick: int) -> IntArray:
        """See Allocator."""
        units = self._base.allocate(request, host, tick)
        x = np.log1p(
            np.concatenate(
                [request.ask, request.need, request.usage, request.backlog, request.delay_ticks[:, None]], axis=1
            )
        ).astype(np.float32)
        for weights, bias in self._layers[:-1]:
            x = np.maximum(x @ weights + bias, 0.0)
        weights, bias = self._layers[-1]
        correction = np.exp(0.05 + 0.05 * np.tanh(x @ weights + bias))
        corrected: IntArray = np.rint(units * correction).astype(np.int64)
        return corrected


def network() -> Network:
    """Return the policy: ``--policy foreshare.runtime.bench_policy:network``."""
    return Network()


class _Late(Exception):  # noqa: N818 - no error: time is up
    """The timer went off."""


def _expire(number: int, frame: FrameType | None) -> None:
    raise _Late


class Timed(Inline):
    """Asks by calling, under an interval timer whose handler raises."""

    def end(self, budget_ns: int, now_ns: Callable[[], int]) -> Answer:
        """See Asker."""
        if self._asked is None:
            return Answer(None, -1, "benched", "it was not asked")
        request, host, tick = self._asked
        try:
            signal.setitimer(signal.ITIMER_REAL, budget_ns * 1e-9)
            answer = call(self.policy, request, host, tick)
            signal.setitimer(signal.ITIMER_REAL, 0.0)
        except _Late:  # it may as well land outside this block: nobody can tell where the signal finds us
            return Answer(None, tick, "late", "late")
        return answer


@contextmanager
def _handled() -> Iterator[None]:
    before = signal.signal(signal.SIGALRM, _expire)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyBench:
    """What to measure."""

    vms: int = 64
    ticks: int = 500
    """For each way of asking."""
    tick_ms: float = 10.0


def bench_policy(bench: PolicyBench) -> dict[str, Any]:
    """Measure; return the keys of ``foreshare bench policy --json``."""
    from .bench import machine_facts

    hal = SimulatedHal(load_scenario("churn", vms=bench.vms))
    host = Host(hal.topology, hal.vms)
    mind = make_mind("triage", host)
    rng = np.random.default_rng(0)
    request = Request.empty(len(host))
    share = np.maximum(host.cap / max(len(host), 1), 1.0)
    taken: dict[str, list[float]] = {"inline": [], "timer": [], "process": [], "process_alone": []}
    late = dict.fromkeys(taken, 0)
    with ExitStack() as stack:
        stack.enter_context(_handled())
        process = PolicyProcess({"factory": "foreshare.runtime.bench_policy:network"}, host)
        stack.callback(process.close)
        process.start()
        askers: dict[str, Asker] = {"inline": Inline(network()), "timer": Timed(network())}
        next_ns = time.monotonic_ns()
        for tick in range(bench.ticks * len(taken)):
            way = tuple(taken)[tick % len(taken)]
            asker = askers.get(way, process)
            request.ask[:] = share * rng.uniform(0.1, 1.5, request.ask.shape)
            request.need[:] = request.usage[:] = 0.9 * request.ask
            next_ns += round(bench.tick_ms * 1e6)
            time.sleep(max(0.0, (next_ns - time.monotonic_ns()) * 1e-9))
            start = time.perf_counter_ns()
            asker.begin(request, host, tick)
            if way == "process" and not asker.arrived():
                mind.fallback.allocate(request, host, tick)
            answer = asker.end(_BUDGET_NS, time.perf_counter_ns)
            taken[way].append((time.perf_counter_ns() - start) * 1e-3)
            late[way] += bool(answer.fault)
            process.rest(10_000_000, True)
    jitter = percentiles(overshoot_us(bench.ticks, bench.tick_ms))
    return {
        "vms": bench.vms, "ticks": bench.ticks,
        "ways": {way: percentiles(np.array(us)) | {"late": late[way]} for way, us in taken.items()},
        "jitter_us": jitter, "machine": machine_facts(),
    }  # fmt: skip
