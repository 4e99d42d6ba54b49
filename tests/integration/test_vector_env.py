"""The vector environment: episodes, streams, fresh arrays, and that the scalar one is it with one host."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from foreshare.envs.agent import flat_size
from foreshare.envs.partition import ENV_ID, PartitionEnv, register
from foreshare.envs.vector import PartitionVectorEnv
from foreshare.policies.errors import InputError

register()
SMALL = {"scenarios": ("draw:3", "draw:5", "mixed"), "vms": 6, "load": 0.8}


def actions(env: PartitionVectorEnv, steps: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (steps, *env.action_space.shape)).astype(np.float32)


def test_gymnasium_makes_it_with_spaces_that_hold_what_it_returns() -> None:
    env = gym.make_vec(ENV_ID, num_envs=5, vectorization_mode="vector_entry_point", ticks=4)
    assert env.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    observation, _ = env.reset(seed=1)
    for _ in range(6):
        assert env.observation_space.contains(observation)
        observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
        assert reward.shape == terminated.shape == truncated.shape == (5,)
    assert set(info) == {"late", "_late", "moves", "_moves"}
    env.close()


def test_the_step_after_the_last_one_begins_the_next_episode() -> None:
    env = PartitionVectorEnv(num_envs=4, ticks=3, **SMALL)
    first, _ = env.reset(seed=9)
    ends = []
    for t, action in enumerate(actions(env, 9)):
        observation, reward, terminated, truncated, info = env.step(action)
        ends.append(truncated.all())
        assert truncated.all() == truncated.any() == (t % 4 == 2)
        assert not terminated.any()
        if t % 4 == 3:  # passes over the action
            assert not reward.any()
            assert info == {}
            assert (observation["vms"] != first["vms"]).any()
    again, _ = env.reset(seed=9)
    assert all((again[k] == first[k]).all() for k in first)


def test_arrays_are_the_callers() -> None:
    env = PartitionVectorEnv(num_envs=3, ticks=50, **SMALL)
    plain, spoilt = [], []
    for seen, spoil in ((plain, False), (spoilt, True)):
        observation, _ = env.reset(seed=2)
        for action in actions(env, 20):
            seen.append({k: v.copy() for k, v in observation.items()})
            if spoil:
                for v in observation.values():
                    v[:] = 55.0
            observation, reward, *_ = env.step(action)
            if spoil:
                reward[:] = np.nan
                action[:] = 3.0
    assert all((a[k] == b[k]).all() for a, b in zip(plain, spoilt, strict=True) for k in a)


@pytest.mark.parametrize("flat", [False, True])
def test_the_scalar_environment_is_the_vector_one_with_one_host(flat: bool) -> None:
    """Eight hosts side by side, and each of them alone."""
    ticks = 25
    many = PartitionVectorEnv(num_envs=8, scenarios=("draw:5",), ticks=ticks, flat=flat, move_cost=0.3, first_host=2)
    moves = actions(many, ticks, seed=4)
    seen, _ = many.reset(seed=6)
    rows = []
    for action in moves:
        following, reward, *_ = many.step(action)
        rows.append((seen, reward))
        seen = following
    for h in (0, 3, 7):
        one = PartitionEnv(scenario="draw:5", ticks=ticks, flat=flat, move_cost=0.3, first_host=2 + h)
        observation, _ = one.reset(seed=6)
        for t, action in enumerate(moves):
            theirs, reward = rows[t]
            if flat:
                assert (observation == theirs[h]).all()
            else:
                assert all((observation[k] == theirs[k][h]).all() for k in observation)
            observation, mine, _, _, _ = one.step(action[h])
            assert mine == reward[h]


def test_scenarios_are_dealt_out_evenly_and_keep_their_streams() -> None:
    """A host's trajectory depends on its scenario and index, not on the blocks around it."""
    wide = PartitionVectorEnv(num_envs=6, ticks=20, **SMALL)
    narrow = PartitionVectorEnv(num_envs=2, scenarios=("draw:5",), vms=6, load=0.8, ticks=20, first_host=2)
    a, _ = wide.reset(seed=3)
    b, _ = narrow.reset(seed=3)
    moves = actions(wide, 15)
    for action in moves:
        assert (a["vms"][2:4] == b["vms"]).all()
        a, r, *_ = wide.step(action)
        b, q, *_ = narrow.step(action[2:4])
        assert (r[2:4] == q).all()


def test_a_suite_is_all_its_scenarios_at_all_its_loads() -> None:
    env = PartitionVectorEnv(num_envs=6, suite="smoke", ticks=5, flat=True)
    observation, _ = env.reset(seed=0)
    assert observation.shape == (6, flat_size(12))
    assert [len(a.world.mind.host) for a in env.agents] == [4, 4, 4, 12, 12, 12]
    assert len({a.world.simulator.scenario.load for a in env.agents}) == 3  # type: ignore[attr-defined]


def test_normalised_rewards_are_over_the_zero_actions_lateness() -> None:
    """With the zero action the normalised return is about one a tick, wherever hosts are late at all."""
    env = PartitionVectorEnv(num_envs=3, scenarios=("draw:5",), load=1.1, ticks=60, normalise=True)
    env.reset(seed=3)
    nothing = np.zeros(env.action_space.shape, np.float32)
    total = np.zeros(3)
    late = np.zeros(3)
    for _ in range(60):
        _, reward, _, _, info = env.step(nothing)
        total += reward
        late += info["late"]
    mean = late / 60
    assert mean.max() > 0.1  # late enough to be about something
    assert total / 60 == pytest.approx(-mean / (mean + 0.01), rel=1e-6)


def test_wrong_use_is_said_in_one_line() -> None:
    with pytest.raises(InputError, match="do not fit"):
        PartitionVectorEnv(num_envs=1, max_vms=3)
    with pytest.raises(InputError, match="cannot be run"):
        PartitionVectorEnv(num_envs=0)
    with pytest.raises(InputError, match="at most one a host"):
        PartitionVectorEnv(num_envs=2, **SMALL)
    env = PartitionVectorEnv(num_envs=1)
    with pytest.raises(InputError, match="before reset"):
        env.step(np.zeros(env.action_space.shape))
    with pytest.raises(InputError, match="one seed"):
        env.reset(seed=[1])
