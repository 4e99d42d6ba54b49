"""The simulated backend: one host of the vectorised simulator behind the same interface as real hardware."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import numpy as np

from foreshare.envs.simulator.host import Simulator
from foreshare.envs.simulator.scenario import Scenario
from foreshare.policies.host import FloatArray, IntArray, Placement, Topology, VmTable
from foreshare.policies.reading import Quality, Reading

from .clock import MonotonicClock
from .protocol import Clock
from .types import Plan, Receipt
from .virtual import HeldPlacement, VirtualClock, blank

START_NS = 1_000_000_000
MAX_CATCH_UP_TICKS = 1000
"""A process that was stopped for longer resumes here; the host did not live on without it."""


class SteppingClock(VirtualClock):
    """A virtual clock that steps the simulator once for each tick that it passes."""

    def __init__(self, simulator: Simulator, start_ns: int) -> None:
        super().__init__(start_ns)
        self._simulator, self._start_ns = simulator, start_ns

    def sleep_until(self, t_ns: int) -> None:
        """Jump to ``t_ns``; every tick that ends on the way happens."""
        super().sleep_until(t_ns)
        due = (self.now_ns() - self._start_ns) // self._simulator.tick_ns
        while self._simulator.t < due:
            self._simulator.step()


class SimulatedHal:
    """Host 0 of a simulator. The clock is virtual, or with ``realtime`` the kernel's: then ``sample`` catches up."""

    name = "simulated"

    def __init__(self, scenario: Scenario, seed: int = 0, realtime: bool = False, *, tick_ms: float = 10.0) -> None:
        self._simulator = Simulator(scenario, hosts=1, seed=seed, tick_ms=tick_ms)
        model = self._simulator.model
        self._topology, self._vms = model.topology, model.vms
        self._held = HeldPlacement(self._topology, self._vms)
        self._as_found = self._held.units.copy()
        self._realtime = realtime
        self._start_ns = time.monotonic_ns() if realtime else START_NS
        self.clock: Clock = MonotonicClock() if realtime else SteppingClock(self._simulator, START_NS)
        self._sampled_ns = 0
        self._follow()

    @property
    def topology(self) -> Topology:
        """The simulated hardware."""
        return self._topology

    @property
    def vms(self) -> VmTable:
        """The contracts of the scenario's VMs."""
        return self._vms

    @property
    def simulator(self) -> Simulator:
        """The simulator itself, for reports and tests; policies must not look."""
        return self._simulator

    @property
    def truth(self) -> FloatArray:
        """(N, R) true demand of the newest tick, units; a copy."""
        return np.array(self._simulator.demand[0])

    def slo(self) -> float:
        """Return V so far: the priority-weighted share of late requests, percent (simulator/lateness.py)."""
        return float(self._simulator.violation_pct()[0])

    def utilisation(self) -> float:
        """Return used / capacity so far, percent, the mean over the movable resources."""
        return float(self._simulator.utilisation.pct()[0]) if self._simulator.t else 0.0

    def remove_vm(self, vm: int) -> None:
        """Let the VM in this row vanish, as if somebody had shut it down."""
        self._simulator.remove(0, vm)
        self._follow()

    def live_until(self, t_ns: int) -> None:
        """See :class:`~.protocol.IsComputed`."""
        if self._realtime and self._sampled_ns:
            self._catch_up(t_ns)

    def sample(self, reading: Reading) -> None:
        """Fill ``reading`` with mean rates since the previous call."""
        now = self.clock.now_ns()
        if self._realtime:
            if not self._sampled_ns:
                self._start_ns = now
            self._catch_up(now)
        reading.t_ns, first = now, not self._sampled_ns
        reading.dt_ns = 0 if first else now - self._sampled_ns
        self._sampled_ns = now
        self._follow()
        np.copyto(reading.present, self._held.present)
        if self._simulator.counters.collect() and not first:
            self._simulator.counters.copy_to(reading, 0)
            gone = ~self._held.present
            if gone.any():
                for values in (reading.usage, reading.demand_low, reading.limit, reading.wait_ns):
                    values[gone] = np.nan
                reading.quality[gone] |= np.uint8(Quality.MISSING)
        else:
            blank(reading)

    def claim(
        self, remember: Callable[[Mapping[str, object]], None], previous: Mapping[str, object] | None = None
    ) -> None:
        """Take hold; there is nothing to remember."""
        remember({})
        self._held.claimed = True

    def describe(self, plan: Plan) -> list[str]:
        """Return one line for each write."""
        return self._held.describe(plan)

    def apply(self, plan: Plan, deadline_ns: int, receipt: Receipt) -> None:
        """Command the plan; it is in force after the scenario's delay. It takes no time, so all of it fits or none."""
        receipt.clear()
        now = self.clock.now_ns()
        if deadline_ns and now > deadline_ns:
            return
        self._follow()
        self._held.apply(plan, receipt, now)
        if len(plan):
            self._command()
            if self._realtime:
                receipt.last_write_ns = self.clock.now_ns()

    def read_back(self, into: Placement, rows: IntArray | None = None) -> None:
        """Fill ``rows`` of ``into`` (all if None) with what was commanded last."""
        self._held.read_back(into, rows)

    def close(self) -> None:
        """Lift every limit."""
        self._held.reset()
        self._command()

    def _follow(self) -> None:
        """Note which VMs have come and gone. One that comes is as found: not limited, in the shared class."""
        held, there = self._held, self._simulator.alive[0]
        if (there == held.present).all():
            return
        new = there & ~held.present
        held.units[new] = self._as_found[new]
        held.cpus[new] = True
        held.ways[new] = 0
        held.gained[new] = 0
        np.copyto(held.present, there)

    def _command(self) -> None:
        held = self._held
        self._simulator.command(held.in_force()[None], held.gained[None], held.ways[None])
        held.gained[:] = 0

    def _catch_up(self, now_ns: int) -> None:
        """Step once for each tick that has passed, rounded: a wake-up a little early or late is still that tick."""
        simulator = self._simulator
        elapsed = now_ns - self._start_ns
        due = (elapsed + simulator.tick_ns // 2) // simulator.tick_ns
        behind = due - simulator.t
        if behind > MAX_CATCH_UP_TICKS:
            self._start_ns += (behind - 1) * simulator.tick_ns
            behind = 1
        for _ in range(behind):
            simulator.step()
