"""What an agent sees, does and is paid for, for a batch of hosts; the environments are thin fronts of this.

**Observation**: ``vms`` (H, M, F), ``mask`` (H, M), ``host`` (H, G) of :mod:`foreshare.policies.features`, float32, VMs
padded to M with zeros. **Action** (H, M, 1 + R) in [-1, 1], times 2.5: log-multipliers on each VM's standing in triage
and on what is requested for it of each resource (:mod:`foreshare.policies.allocators.corrected`); what is no number
corrects nothing. All zeros is triage.

**Reward** of a tick, with ``v_i`` the requests found late in it, ``a_i`` the VM's mean arrivals, ``p_i`` its weight::

    late  = sum_i p_i v_i / a_i / sum_i p_i             so that its mean over time is V / 100 (training/metrics.py)
    moves = (VM, resource) pairs whose units changed / (4 N)
    reward = -(late + move_cost * moves) / scale

``scale`` is 1, or with ``normalise`` the mean ``late`` of the zero action on the very same arrivals, plus
NORMALISE_FLOOR: hosts on which everybody is late anyway then count no more than those on which hardly anybody is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from foreshare.policies.allocators import Triage, WaterFilling
from foreshare.policies.allocators.corrected import ACTIONS, LIMIT, Corrected
from foreshare.policies.decide import UNHURRIED, Decision, Mind
from foreshare.policies.errors import InputError
from foreshare.policies.features import Encoder, F, G, bounds
from foreshare.policies.host import FloatArray, Host, R
from foreshare.policies.registry import make_mind

from .simulator.lateness import weights_of
from .world import SimulatedWorld, World

NORMALISE_FLOOR = 0.01
"""Added to the zero action's share of late requests."""
Float32Array = npt.NDArray[np.float32]
Parts = dict[str, Float32Array]
"""The observation by name."""


class Terms(NamedTuple):
    """What a tick's reward is made of, (H,) each."""

    late: FloatArray
    moves: FloatArray


def corrected_mind(host: Host, base: str) -> Mind:
    """Return a mind that decides by ``base``, which is triage or water-filling, and what an agent makes of it."""
    inner = make_mind(base, host, UNHURRIED)
    if not isinstance(inner.policy, Triage | WaterFilling):
        raise InputError(f"policy {base!r} takes no corrections: it is neither triage nor water-filling")
    return Mind(host, inner.forecaster, Corrected(inner.policy), UNHURRIED)


class Agent:
    """An agent's seat in a world whose mind was made by :func:`corrected_mind`."""

    def __init__(self, world: World, max_vms: int, *, move_cost: float = 0.0, scale: FloatArray | float = 1.0) -> None:
        policy = world.mind.policy
        if not isinstance(policy, Corrected):
            raise InputError(f"policy {policy.name!r} takes no corrections")
        if len(world.mind.host) > max_vms:
            raise InputError(f"{len(world.mind.host)} VMs do not fit into an observation of {max_vms}")
        self.world, self._policy = world, policy
        self._encoder = Encoder(world.mind, world.tick_ms)
        self._max_vms, self._move_cost, self._scale = max_vms, move_cost, scale
        weight = weights_of(world.mind.host.vms.priority)
        self._weight = weight / max(float(weight.sum()), 1.0)
        self.decision: Decision | None = None
        """What the newest step decided; changes with the next one."""

    def begin(self) -> Parts:
        """Let the first tick pass; return what is to be seen, fresh arrays."""
        self.world.sense()
        return self._observe()

    def step(self, action: npt.NDArray[np.floating]) -> tuple[Parts, FloatArray, Terms]:
        """Correct, decide, apply, let a tick pass. ``action``: (H, M, 1 + R). Return observation, reward, terms.

        Raises InputError where the correction could not be decided by, so that nobody learns from the fallback's work.
        """
        world = self.world
        correction = LIMIT * np.clip(action[:, : len(world.mind.host)], -1.0, 1.0)
        self._policy.action = correction if world.mind.host.batch else correction[0]
        self.decision = world.act()
        if self.decision.fault_kind:
            raise InputError(f"a correction that cannot be decided by: {self.decision.fault}")
        world.sense()
        moves = world.moves / max(R * len(world.mind.host), 1)
        terms = Terms(late=np.vecdot(world.late(), self._weight), moves=moves)
        reward = -(terms.late + self._move_cost * terms.moves) / self._scale
        return self._observe(), reward, terms

    def _observe(self) -> Parts:
        vms, host = self._encoder.encode()
        if not self.world.mind.host.batch:
            vms, host = vms[None], host[None]
        n = vms.shape[1]
        if n < self._max_vms:
            padded = np.zeros((len(vms), self._max_vms, F), np.float32)
            padded[:, :n] = vms
            vms = padded
        mask = np.zeros((len(vms), self._max_vms), np.float32)
        mask[:, :n] = self.world.mind.host.active
        return {"vms": vms, "mask": mask, "host": host}


def late_of_zero(make_world: Callable[[], SimulatedWorld], ticks: int) -> FloatArray:
    """Return (H,) the mean ``late`` of a tick if the agent never corrects anything, over ``ticks`` ticks."""
    world = make_world()
    agent = Agent(world, len(world.mind.host))
    agent.begin()
    nothing = np.zeros((1, len(world.mind.host), ACTIONS))
    total = np.zeros(world.simulator.hosts)
    for _ in range(ticks):
        total += agent.step(nothing)[2].late
    return total / max(ticks, 1)


def observation_bounds(max_vms: int) -> tuple[Parts, Parts]:
    """Return the lowest and the highest observation of one host."""
    (vm_low, vm_high), (host_low, host_high) = bounds()
    low = {"vms": np.minimum(np.tile(vm_low, (max_vms, 1)), 0.0), "mask": np.zeros(max_vms, np.float32),
           "host": host_low}  # fmt: skip
    high = {"vms": np.tile(vm_high, (max_vms, 1)), "mask": np.ones(max_vms, np.float32), "host": host_high}
    return low, high


def flatten(parts: Parts, batch: int | None = None) -> Float32Array:
    """Return the parts end to end: (S,), or (H, S) for a batch of H hosts."""
    shape = (-1,) if batch is None else (batch, -1)
    return np.concatenate([parts[k].reshape(shape) for k in ("vms", "mask", "host")], axis=-1)


def flat_size(max_vms: int) -> int:
    """Return S, the length of a flat observation."""
    return max_vms * F + max_vms + G
