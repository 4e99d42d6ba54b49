"""The parity gate: torch, ONNX and numpy must answer alike, or nothing is written.

What is compared are actions in [-1, 1], on random observations from all over their bounds and on recorded ones (a
simulated host that the network itself corrects), for hosts of SIZES VMs, with VMs that are absent, with padding, and
with nobody there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from foreshare.envs.agent import Agent, Float32Array, Parts, corrected_mind
from foreshare.envs.simulator.scenario import load_scenario
from foreshare.envs.world import SimulatedWorld
from foreshare.policies.errors import ForeshareError
from foreshare.policies.features import bounds
from foreshare.policies.learned.network import Network
from foreshare.policies.registry import LEARNED_BASE

SIZES = (1, 7, 16, 64, 256)
TOLERANCE = 1e-5
RECORDED_TICKS, EVERY, PADDING = 24, 6, 3
Forward = Callable[[Float32Array, Float32Array, Float32Array], Float32Array]
"""One form of a network: vms (B, N, F), mask (B, N), host (B, G) to actions (B, N, A)."""


class ParityError(ForeshareError):
    """Two forms of a network do not answer alike: ``form`` is off by ``difference`` on ``where``."""

    def __init__(self, form: str, difference: float, where: str) -> None:
        self.form, self.difference, self.where = form, difference, where
        super().__init__(f"{form} and numpy differ by {difference:.2g} on {where}; at most {TOLERANCE:g} is allowed")


@dataclass(frozen=True, slots=True)
class Case:
    """A batch of observations of hosts with equally many VMs."""

    name: str
    parts: Parts


def cases(network: Network, sizes: tuple[int, ...] = SIZES, seed: int = 0) -> list[Case]:
    """Return what the forms are compared on."""
    out = []
    for n in sizes:
        out.append(Case(f"random observations of {n} VMs", _random(n, seed)))
        out.append(Case(f"recorded observations of {n} VMs", _recorded(network, n, seed)))
    return out


def _random(n: int, seed: int) -> Parts:
    """Four hosts: full, with VMs absent, with one VM alone, empty."""
    rng = np.random.default_rng([seed, n])
    (vm_low, vm_high), (host_low, host_high) = bounds()
    mask = np.ones((4, n), np.float32)
    mask[1] = rng.random(n) < 0.6
    mask[2] = np.arange(n) == n // 2
    mask[3] = 0.0
    return {
        "vms": rng.uniform(vm_low, vm_high, (4, n, len(vm_low))).astype(np.float32),
        "mask": mask,
        "host": rng.uniform(host_low, host_high, (4, len(host_low))).astype(np.float32),
    }


def _recorded(network: Network, n: int, seed: int) -> Parts:
    """Observations of one simulated host, padded, every few ticks."""
    scenario = load_scenario("mixed", vms=n)
    world = SimulatedWorld(scenario, lambda host: corrected_mind(host, LEARNED_BASE), hosts=1, seed=seed)
    agent = Agent(world, n + PADDING)
    parts = agent.begin()
    kept = []
    for tick in range(RECORDED_TICKS):
        if tick % EVERY == 0:
            kept.append(parts)
        parts, _, _ = agent.step(network.forward(parts["vms"], parts["mask"], parts["host"]))
    return {name: np.concatenate([p[name] for p in kept]) for name in parts}


def check_parity(network: Network, forms: Mapping[str, Forward], on: list[Case]) -> dict[str, float]:
    """Return the largest difference of each form from numpy over all cases. Raises ParityError above TOLERANCE."""
    worst = dict.fromkeys(forms, 0.0)
    for case in on:
        parts = case.parts["vms"], case.parts["mask"], case.parts["host"]
        ours = network.forward(*parts)
        for name, form in forms.items():
            theirs = form(*parts)
            # A number that is none is no difference that can be compared.
            same = theirs.shape == ours.shape and bool(np.isfinite(theirs).all())
            difference = float(np.abs(theirs - ours).max(initial=0.0)) if same else float("inf")
            worst[name] = max(worst[name], difference)
            if difference > TOLERANCE:
                raise ParityError(name, difference, case.name)
    return worst
