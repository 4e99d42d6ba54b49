"""What the tests of safeguards share: a small host, readings of VMs that are idle or busy, and a log of events."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from hosts import table, topology

from foreshare.policies.host import Host
from foreshare.policies.reading import Reading
from foreshare.runtime.loop import Tick

DT = 10_000_000
RESERVED = np.array([8, 0, 6, 6])


def small_host(n: int = 4) -> Host:
    return Host(topology(), table(n, reservation=np.tile(RESERVED, (n, 1))))


class Log:
    def __init__(self) -> None:
        self.events: list[tuple[int, str, int]] = []
        self.number = 0
        self.each: Callable[[Tick], None] = lambda tick: None

    def on_event(self, kind: str, vm: int, text: str) -> None:
        self.events.append((self.number, kind, vm))

    def on_tick(self, tick: Tick) -> None:
        self.number = tick.number + 1
        self.each(tick)

    def first(self, kind: str) -> int:
        return next(number for number, k, _ in self.events if k == kind)

    def rows(self, kind: str) -> list[int]:
        return sorted(vm for _, k, vm in self.events if k == kind)


def idle_reading(host: Host, tick: int) -> Reading:
    """Return a reading in which everybody uses next to nothing, at a clock that is never quite the same."""
    r = Reading.empty(len(host))
    r.dt_ns = DT + 1000 * (tick % 7)
    rng = np.random.default_rng(tick)
    r.usage[:] = rng.uniform(0.4, 0.6, (len(host), 4))
    r.demand_low[:] = r.usage
    r.quality[:] = 0
    return r


def busy_reading(host: Host, tick: int) -> Reading:
    r = idle_reading(host, tick)
    rng = np.random.default_rng(tick)
    r.usage[:] = rng.uniform(10, 18, (len(host), 1)) * [1.0, 0.05, 0.8, 0.9]
    r.demand_low[:] = r.usage
    return r
