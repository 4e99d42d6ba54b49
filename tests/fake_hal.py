"""A host of a few lines for the loop's tests: demand is a script, writes take virtual time and may fail."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping

import numpy as np

from foreshare.envs.hal import Clock, Plan, Receipt
from foreshare.envs.hal.types import WriteFailure
from foreshare.envs.hal.virtual import HeldPlacement, VirtualClock
from foreshare.policies.host import CACHE, Host, IntArray, Placement, Topology, VmTable
from foreshare.policies.reading import Quality, Reading


def never(control: int, row: int) -> int:
    """Refuse nothing."""
    return 0


class FakeHal:
    """Demand is what ``demand`` says, usage what of it fits into what is held."""

    name = "simulated"

    def __init__(self, host: Host, demand: Callable[[int], object] = lambda tick: 5.0) -> None:
        self.topology: Topology = host.topology
        self.vms: VmTable = host.vms
        self.clock: Clock = VirtualClock(10**9)
        self.demand = demand
        self.held = HeldPlacement(host.topology, host.vms)
        self.held.claimed = True
        self.present = np.ones(len(host), bool)
        self.samples = 0
        self.tick_takes_ns: Callable[[int], int] = lambda tick: 0
        self.write_ns = 0
        self.writes_per_tick: int | None = None
        self.refuse: Callable[[int, int], int] = never
        """Errno with which a write of ``control`` to ``row`` fails."""
        self.sampled_at: list[int] = []
        self.verified: list[IntArray] = []
        self.gc_enabled: list[bool] = []
        self.plans: list[Plan] = []

    def sample(self, reading: Reading) -> None:
        """See Hal."""
        self.gc_enabled.append(gc.isenabled())
        self.sampled_at.append(self.clock.now_ns())
        reading.t_ns, reading.dt_ns = self.clock.now_ns(), 10**7 if self.samples else 0
        reading.present[:] = self.held.present[:] = self.present
        demand = np.broadcast_to(np.asarray(self.demand(self.samples), float), reading.usage.shape)
        reading.demand_low[:] = np.where(self.present[:, None], demand, np.nan)
        could = self.held.units.astype(float)
        could[:, CACHE] = self.topology.way_bits / max(len(self.vms), 1)
        reading.usage[:] = np.where(self.present[:, None], np.minimum(demand, could), np.nan)
        reading.limit[:] = np.nan
        reading.wait_ns[:] = 0.0
        reading.quality[:] = np.where(self.present[:, None], Quality.OK, Quality.MISSING)
        self.clock.sleep_until(self.clock.now_ns() + self.tick_takes_ns(self.samples))
        self.samples += 1

    def claim(
        self, remember: Callable[[Mapping[str, object]], None], previous: Mapping[str, object] | None = None
    ) -> None:
        """See Hal."""
        remember({})
        self.held.claimed = True

    def describe(self, plan: Plan) -> list[str]:
        """See Hal."""
        return self.held.describe(plan)

    def apply(self, plan: Plan, deadline_ns: int, receipt: Receipt) -> None:
        """Write one after the other, each in ``write_ns``, at most ``writes_per_tick``."""
        receipt.clear()
        self.plans.append(plan)
        if self.writes_per_tick is None and not self.write_ns and self.refuse is never:
            self.held.apply(plan, receipt, self.clock.now_ns())
            return
        most = len(plan) if self.writes_per_tick is None else min(len(plan), self.writes_per_tick)
        done = 0
        failures: list[WriteFailure] = []
        while done < most and (not deadline_ns or self.clock.now_ns() <= deadline_ns):
            one = Plan(
                plan.control[done : done + 1], plan.vm[done : done + 1], plan.value[done : done + 1], plan.cpu_sets
            )
            code = self.refuse(int(plan.control[done]), int(plan.vm[done]))
            if code:
                failures.append(WriteFailure(done, code, "refused"))
            else:
                each = Receipt()
                self.held.apply(one, each, self.clock.now_ns())
                failures += [WriteFailure(done, f.errno, f.text, f.gone) for f in each.failures]
            self.clock.sleep_until(self.clock.now_ns() + self.write_ns)
            done += 1
        receipt.done = receipt.system_calls = done
        receipt.failures.extend(failures)
        receipt.last_write_ns = self.clock.now_ns() if done else 0

    def read_back(self, into: Placement, rows: IntArray | None = None) -> None:
        """See Hal; rows of VMs that are gone stay as they are."""
        every = np.arange(len(self.vms)) if rows is None else rows
        if rows is not None:
            self.verified.append(np.array(rows))
        self.held.read_back(into, every[self.held.present[every]])

    def held_placement(self) -> Placement:
        """Return what the controls hold."""
        return Placement(self.held.units, self.held.cpus, self.held.ways)

    def close(self) -> None:
        """See Hal."""
        self.held.reset()
