"""foreshare/Partition-v0: the interface that agents rely on, and that its zero action is what the loop ships."""

from __future__ import annotations

from collections.abc import Iterator

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from foreshare.envs.hal import Host
from foreshare.envs.hal.simulated import SimulatedHal
from foreshare.envs.partition import ENV_ID, PartitionEnv, register
from foreshare.envs.simulator.scenario import load_scenario
from foreshare.envs.vector import episode_seed
from foreshare.policies.decide import UNHURRIED
from foreshare.policies.errors import InputError
from foreshare.policies.registry import make_mind
from foreshare.runtime.loop import ControlLoop, Tick

register()


@pytest.fixture
def env() -> Iterator[PartitionEnv]:
    made = gym.make(ENV_ID, ticks=30, move_cost=0.5).unwrapped
    assert isinstance(made, PartitionEnv)
    yield made
    made.close()


@pytest.mark.parametrize("flat", [False, True])
def test_gymnasium_accepts_it(flat: bool) -> None:
    env = gym.make(ENV_ID, ticks=20, flat=flat).unwrapped
    check_env(env)
    env.close()


def episode(env: PartitionEnv, seed: int, actions: np.random.Generator | None = None) -> list[np.ndarray]:
    observation, _ = env.reset(seed=seed)
    seen = [np.concatenate([observation[k].ravel() for k in ("vms", "mask", "host")])]
    rng = actions or np.random.default_rng(5)
    for step in range(30):
        action = rng.uniform(-1, 1, env.action_space.shape).astype(np.float32)
        observation, reward, terminated, truncated, info = env.step(action)
        seen.append(np.append(np.concatenate([observation[k].ravel() for k in ("vms", "mask", "host")]), reward))
        assert not terminated
        assert truncated == (step == 29)
        assert reward == -(info["late"] + 0.5 * info["moves"])
    return seen


def test_one_seed_is_one_episode(env: PartitionEnv) -> None:
    first, second = episode(env, 7), episode(env, 7)
    assert all((a == b).all() for a, b in zip(first, second, strict=True))
    third = episode(env, 8)
    assert any((a != b).any() for a, b in zip(first, third, strict=True))


def test_what_it_hands_out_is_the_callers(env: PartitionEnv) -> None:
    plain = episode(env, 3)
    observation, _ = env.reset(seed=3)
    rng = np.random.default_rng(5)
    for step in range(30):
        for part in observation.values():
            part[:] = 77.0
        observation, _, _, _, _ = env.step(rng.uniform(-1, 1, env.action_space.shape).astype(np.float32))
        now = np.concatenate([observation[k].ravel() for k in ("vms", "mask", "host")])
        assert (now == plain[step + 1][:-1]).all()


def test_the_flat_view_is_the_same_environment() -> None:
    one, two = PartitionEnv(ticks=10), PartitionEnv(ticks=10, flat=True)
    a, _ = one.reset(seed=1)
    b, _ = two.reset(seed=1)
    for _ in range(10):
        assert (np.concatenate([a[k].ravel() for k in ("vms", "mask", "host")]) == b).all()
        a, r, _, _, _ = one.step(np.full(one.action_space.shape, 0.3, np.float32))
        b, s, _, _, _ = two.step(np.full(two.action_space.shape, 0.3, np.float32))
        assert r == s
    one.close()
    two.close()


class Allocations:
    """Notes what was decided in every tick."""

    def __init__(self) -> None:
        self.seen: list[np.ndarray] = []

    def on_tick(self, tick: Tick) -> None:
        self.seen.append(tick.decision.placement.units.copy())

    def on_event(self, kind: str, vm: int, text: str) -> None:
        """Nothing to note."""


def test_the_zero_action_is_triage_as_the_loop_runs_it() -> None:
    """The same host under the control loop and under the environment: identical allocations, tick for tick."""
    ticks = 1000
    env = PartitionEnv(ticks=ticks)
    env.reset(seed=11)
    seed = episode_seed(11, 0)
    hal = SimulatedHal(load_scenario("mixed"), seed=seed)
    hal.claim(lambda originals: None)
    host = Host(hal.topology, hal.vms)
    notes = Allocations()
    mind = make_mind("triage", host, UNHURRIED)
    loop = ControlLoop(hal, mind, observers=[notes])
    loop.run(ticks)
    zero = np.zeros(env.action_space.shape, np.float32)
    mine = []
    for _ in range(ticks):
        env.step(zero)
        mine.append(env.decision.placement.units[0].copy())
    same = [(a == b).all() for a, b in zip(mine, notes.seen, strict=True)]
    assert all(same), f"first difference at tick {same.index(False)}"
    env.close()


def test_corrections_do_something() -> None:
    """Where not all can be served, a VM that loses its standing loses units, but not what it is entitled to."""
    env = PartitionEnv(ticks=200, load=0.95)
    for seed in (1, 2):
        held = []
        for push in (0.0, -1.0):
            env.reset(seed=seed)
            action = np.zeros(env.action_space.shape, np.float32)
            action[0, 0] = push
            total = np.zeros(4)
            for _ in range(100):
                env.step(action)
                total += env.decision.placement.units[0, 0]
            held.append(total)
        assert held[1][0] < held[0][0]
        assert held[1][0] > 0
    env.close()


def test_padding_changes_nothing() -> None:
    small, large = PartitionEnv(ticks=20), PartitionEnv(ticks=20, max_vms=40)
    a, _ = small.reset(seed=4)
    b, _ = large.reset(seed=4)
    n = small.max_vms
    for _ in range(20):
        assert (a["vms"] == b["vms"][:n]).all()
        assert not b["vms"][n:].any()
        assert b["mask"].sum() == n
        a, r, _, _, _ = small.step(np.zeros((n, 5), np.float32))
        b, s, _, _, _ = large.step(np.zeros((40, 5), np.float32))
        assert r == s
    small.close()
    large.close()


def test_wrong_use_is_said_in_one_line() -> None:
    with pytest.raises(InputError, match="ticks"):
        PartitionEnv(ticks=0)
    env = PartitionEnv(ticks=5)
    env.reset(seed=0)
    env.close()
    with pytest.raises(InputError, match="reset"):
        env.step(np.zeros(env.action_space.shape, np.float32))
