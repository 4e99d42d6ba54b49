"""Oracles and other policies on small simulated hosts, tick by tick, for the tests of the oracles."""

from __future__ import annotations

from dataclasses import replace

from foreshare.envs.hal.plan import advance, build_plan
from foreshare.envs.hal.simulated import SimulatedHal
from foreshare.envs.hal.types import Receipt
from foreshare.envs.simulator.scenario import (
    HostShape,
    Scenario,
    VmShape,
    WorkloadShape,
    load_scenario,
)
from foreshare.policies.decide import DecideOptions, Decision, Mind, decide_tick
from foreshare.policies.host import Host, Placement
from foreshare.policies.reading import Reading
from foreshare.policies.registry import make_mind
from foreshare.training.oracles import ORACLES, OracleKnobs, oracle_mind

NO_BUDGET_NS = 1 << 62


class Run:
    """A policy on a host, tick by tick, as the control loop would."""

    def __init__(self, scenario: Scenario, policy: str, seed: int = 0, **knobs: float) -> None:
        self.hal = SimulatedHal(scenario, seed)
        self.host = Host(self.hal.topology, self.hal.vms)
        options = DecideOptions(policy_budget_ns=NO_BUDGET_NS)
        self.mind: Mind
        if policy in ORACLES:
            self.mind = oracle_mind(policy, self.hal, self.host, seed, options=options, knobs=OracleKnobs(**knobs))  # type: ignore[arg-type] # keywords by name
        else:
            self.mind = make_mind(policy, self.host, options)
        n = len(self.host)
        self.held, self.reading, self.receipt = (
            Placement.empty(n, self.host.topology.cpus),
            Reading.empty(n),
            Receipt(),
        )
        self.hal.claim(lambda originals: None)
        self.hal.read_back(self.held)
        self.mind.adopt(self.held)
        self.hal.sample(self.reading)

    def tick(self) -> Decision:
        self.hal.clock.sleep_until(self.hal.clock.now_ns() + self.hal.simulator.tick_ns)
        self.hal.sample(self.reading)
        decision = decide_tick(self.mind, self.reading)
        assert decision.by_policy, decision.fault
        plan = build_plan(self.host, self.held, decision.placement)
        self.receipt.clear()
        if len(plan):
            self.hal.apply(plan, 0, self.receipt)
            advance(self.held, plan, self.receipt, decision.placement, self.host)
        return decision

    def violation_pct(self, ticks: int) -> float:
        for _ in range(ticks):
            self.tick()
        return self.hal.slo()


def mixed(load: float, vms: int | None = None) -> Scenario:
    return replace(load_scenario("mixed", vms=vms), load=load)


def small(*vms: VmShape, load: float = 0.6, reserved: float = 0.3, **host: object) -> Scenario:
    shape = HostShape(
        **{"cores": 8, "ways": 10, "shared_ways": 2, "memory_units": 100, "io_units": 100, **host}  # type: ignore[arg-type] # keywords by name
    )
    return Scenario(name="t", host=shape, vm=vms, load=load, reserved=reserved)


def vm(name: str, **more: object) -> VmShape:
    calm = WorkloadShape(kind="steady", noise=0.0)
    return VmShape(**{"name": name, "workload": calm, "access_kb": 1000.0, "io_kb": 10.0, "vcpus": 8, **more})  # type: ignore[arg-type] # keywords by name
