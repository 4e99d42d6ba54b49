"""Hosts under judgement, tick by tick, without clocks or deadlines: what evaluation, tuning and environments step.

A tick has two halves, so that an agent can have its say between them: :meth:`World.sense` lets time pass, takes a
reading and works out what the VMs ask; :meth:`World.act` decides and applies. Both run the same
:func:`~foreshare.policies.decide.decide_tick` as the control loop, in its two halves. Two worlds:

- :class:`HalWorld`: one host behind any HAL, through plans and writes, exactly as runtime/loop.py goes about it;
- :class:`SimulatedWorld`: a batch of simulated hosts side by side, no loop over hosts. What it leaves out (CPU numbers,
  the order of writes) changes nothing that is simulated; a test holds its allocations against the control loop's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

from foreshare.envs.hal import Hal, Host, Receipt
from foreshare.envs.hal.linux.guardian import Guardian
from foreshare.envs.hal.linux.hal import LinuxHal
from foreshare.envs.hal.plan import advance, build_plan
from foreshare.envs.hal.replan import replan
from foreshare.envs.hal.simulated import SimulatedHal
from foreshare.envs.simulator.host import Simulator
from foreshare.envs.simulator.scenario import Scenario
from foreshare.envs.simulator.streams import Seed
from foreshare.policies.axes import any_of
from foreshare.policies.decide import Decision, Mind, conclude_tick, forecast_tick
from foreshare.policies.host import CACHE, FloatArray, IntArray, Placement
from foreshare.policies.presence import Presence
from foreshare.policies.reading import Quality, Reading

MindMaker = Callable[[Host], Mind]
_RESET_PLANS = 8
"""Plans that lead back to the reservations: writes that no order makes safe wait for the next one."""


class World(Protocol):
    """One or more hosts and the mind that decides about them."""

    mind: Mind
    reading: Reading
    tick_ms: float

    def sense(self) -> None:
        """Let a tick pass, read the counters, work out what the VMs ask: ``mind.request`` is then of this tick."""
        ...

    def act(self) -> Decision:
        """Decide and apply; returns what was decided (valid until the next call)."""
        ...

    @property
    def moves(self) -> IntArray:
        """(H,) for each host the (VM, resource) pairs whose units the newest ``act`` changed."""
        ...

    def late(self) -> FloatArray:
        """Return (H, N) the requests found late in the newest tick, in mean arrivals of a tick of their VM.

        Where requests are not known: 1 for VMs that stood at a limit.
        """
        ...

    def close(self) -> None:
        """Put the hosts back as they were found."""
        ...


class HalWorld:
    """One host behind a HAL; the first axis of what is per host has length 1."""

    def __init__(self, hal: Hal, make_mind: MindMaker, tick_ns: int) -> None:
        self.hal = hal
        self.mind = make_mind(Host(hal.topology, hal.vms))
        n = len(self.mind.host)
        self.reading = Reading.empty(n)
        self.held = Placement.empty(n, hal.topology.cpus)
        """What the controls are believed to hold."""
        self.writes = 0
        """Writes of the newest ``act``."""
        self.moves: IntArray = np.zeros(1, np.int64)
        self._receipt, self._presence, self._tick_ns = Receipt(), Presence(n), tick_ns
        self.tick_ms = tick_ns * 1e-6
        self._make_mind = make_mind
        self._topology = hal.topology
        self._guardian = _guardian(hal)
        try:
            hal.claim(self._guardian.remember if self._guardian is not None else lambda originals: None)
        except BaseException:
            self._dismiss()
            raise
        self._begin()

    def _begin(self) -> None:
        self.hal.read_back(self.held)
        self.mind.adopt(self.held)
        self.hal.sample(self.reading)  # rates start from here
        self._next_ns = self.hal.clock.now_ns()

    def restart(self) -> None:
        """Forget what was learnt, give every VM its reservation back, and go on from there."""
        self.mind = self._make_mind(Host(self.hal.topology, self.hal.vms, self.mind.host.active))
        hal, mind, held = self.hal, self.mind, self.held
        hal.read_back(held)
        mind.adopt(held)
        mind.placer.place(mind.host.reservation.copy(), mind.decision.placement)
        for _ in range(_RESET_PLANS):
            plan = build_plan(mind.host, held, mind.decision.placement)
            if not len(plan):
                break
            hal.apply(plan, 0, self._receipt)
            advance(held, plan, self._receipt, mind.decision.placement, mind.host)
        self._begin()

    def sense(self) -> None:
        """See :class:`World`."""
        self._next_ns += self._tick_ns
        self.hal.clock.sleep_until(self._next_ns)
        self.hal.sample(self.reading)
        if self.hal.topology is not self._topology:
            self._topology = self.hal.topology
            self.hal.read_back(self.held)
            replan(self.mind, Host(self._topology, self.hal.vms, self.mind.host.active), self.held)
        forecast_tick(self.mind, self.reading)

    def act(self) -> Decision:
        """See :class:`World`."""
        hal, mind, held = self.hal, self.mind, self.held
        decision = conclude_tick(mind)
        plan = build_plan(mind.host, held, decision.placement)
        before = held.units.copy()
        self.writes = len(plan)
        self._receipt.clear()
        if len(plan):
            hal.apply(plan, 0, self._receipt)
            advance(held, plan, self._receipt, decision.placement, mind.host)
        self.moves[0] = np.count_nonzero(held.units != before)
        active = self._presence.update(self.reading.present)
        changed = active != mind.host.active
        if changed.any():
            mind.rebind(Host(hal.topology, hal.vms, active))
            held.units[changed], held.cpus[changed], held.ways[changed] = 0, False, 0
            if (changed & active).any():
                hal.read_back(held, np.flatnonzero(changed & active))
        return decision

    def late(self) -> FloatArray:
        """See :class:`World`."""
        if isinstance(self.hal, SimulatedHal):
            return _late_share(self.hal.simulator)
        censored = (self.reading.quality & Quality.CENSORED) != 0
        return any_of(censored).astype(np.float64)[None]

    def close(self) -> None:
        """See :class:`World`."""
        try:
            self.hal.close()
        finally:
            self._dismiss()

    def _dismiss(self) -> None:
        if self._guardian is not None:
            self._guardian.dismiss()
            self._guardian = None


def _guardian(hal: Hal) -> Guardian | None:
    """Return what puts a real host back where this process is killed; a simulated one ends with it."""
    return Guardian(hal.roots) if isinstance(hal, LinuxHal) else None


class SimulatedWorld:
    """``hosts`` copies of a simulated host, each with random streams of its own; arrays are (H, N, ...)."""

    def __init__(
        self, scenario: Scenario, make_mind: MindMaker, *, hosts: int = 1, seed: Seed = 0, first_host: int = 0,
        tick_ms: float = 10.0,
    ) -> None:  # fmt: skip
        """See :class:`~foreshare.envs.simulator.host.Simulator` for the arguments."""
        self.simulator = Simulator(scenario, hosts=hosts, seed=seed, tick_ms=tick_ms, first_host=first_host)
        m = self.simulator.model
        self.tick_ms = tick_ms
        self.mind = make_mind(Host(m.topology, m.vms, batch=(hosts,)))
        n = len(m.vms)
        self.reading = Reading.empty(n, (hosts,))
        self.reading.dt_ns = self.simulator.tick_ns
        self.moves: IntArray = np.zeros(hosts, np.int64)
        self._ways: IntArray = np.zeros((hosts, n), np.int64)
        self._presence = Presence(n)

    def sense(self) -> None:
        """See :class:`World`."""
        simulator, reading = self.simulator, self.reading
        simulator.step()
        counters = simulator.counters
        counters.collect()
        for name in ("usage", "demand_low", "limit", "wait_ns", "quality"):
            np.copyto(getattr(reading, name), getattr(counters, name))
        np.copyto(reading.present, simulator.alive[0])  # VMs come and go on all hosts of a scenario alike
        if not reading.present.all():
            gone = ~reading.present
            for values in (reading.usage, reading.demand_low, reading.limit):
                values[:, gone] = np.nan
            reading.wait_ns[:, gone] = np.nan
            reading.quality[:, gone] |= np.uint8(Quality.MISSING)
        reading.t_ns = simulator.t * simulator.tick_ns
        forecast_tick(self.mind, reading)

    def act(self) -> Decision:
        """See :class:`World`."""
        mind, simulator = self.mind, self.simulator
        decision = conclude_tick(mind)
        before = simulator.commanded.copy()
        self._apply(decision.placement)
        self.moves = np.count_nonzero(simulator.commanded != before, axis=(1, 2))
        active = self._presence.update(self.reading.present)
        if (active != mind.host.active).any():
            host = mind.host
            mind.rebind(Host(host.topology, host.vms, active, host.batch))
            self._ways[:, ~active] = 0
        return decision

    def _apply(self, placement: Placement) -> None:
        """Command what was decided, as a HAL would come to hold it: nothing is written for who is not there."""
        simulator, mind = self.simulator, self.mind
        units, masks = placement.units.astype(np.float64), placement.ways
        active = mind.host.active
        if not active.all():
            units = np.where(active[:, None], units, simulator.commanded)
            masks = np.where(active, masks, self._ways)
        gained: FloatArray | None = None
        if (masks != self._ways).any():
            gained = np.maximum(units - simulator.commanded, 0.0)
            gained[..., CACHE] = np.bitwise_count(masks & ~self._ways)
            self._ways = masks.copy()
        simulator.command(units, gained, masks)

    def late(self) -> FloatArray:
        """See :class:`World`."""
        return _late_share(self.simulator)

    def close(self) -> None:
        """See :class:`World`. There is nothing to put back."""


def _late_share(simulator: Simulator) -> FloatArray:
    usual = simulator.usual_arrivals
    return np.divide(simulator.lateness.late, usual, out=np.zeros(simulator.lateness.late.shape), where=usual > 0.0)
