"""Learners of other people on our environments, without a wrapper of ours: RLlib's runner, Stable-Baselines3."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

from foreshare.envs.partition import PartitionEnv
from foreshare.envs.vector import PartitionVectorEnv

pytestmark = pytest.mark.filterwarnings("ignore")  # theirs
CONFIG: dict[str, Any] = {"scenarios": ("draw:3", "draw:5"), "vms": 5, "load": 0.8, "ticks": 12, "flat": True}


class Noting(PartitionVectorEnv):
    """Notes the seed of its first reset."""

    seeds: list[int | None] = []  # noqa: RUF012 - one list for all, on purpose

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.seeds.append(seed)
        return super().reset(seed=seed, options=options)


def test_rllibs_runner_yields_the_episodes_that_stepping_by_hand_yields() -> None:
    """SingleAgentEnvRunner in vector-entry-point mode, over three fragments with episodes that end inside them."""
    from ray.rllib.algorithms.ppo import PPOConfig
    from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
    from ray.tune.registry import register_env

    register_env("foreshare-noting", lambda context: Noting(**dict(context)))
    hosts = 4
    config = (
        PPOConfig()
        .environment("foreshare-noting", env_config=CONFIG, normalize_actions=False, clip_actions=True)
        .env_runners(
            num_env_runners=0, num_envs_per_env_runner=hosts, rollout_fragment_length=20,
            gym_env_vectorize_mode="vector_entry_point",
        )
        .debugging(seed=7, log_level="ERROR")
    )  # fmt: skip
    runner = SingleAgentEnvRunner(config=config)
    chunks = [e for _ in range(3) for e in runner.sample()]
    by_id: dict[str, list[Any]] = {}
    for chunk in chunks:
        by_id.setdefault(chunk.id_, []).append(chunk)
    episodes = []
    for parts in by_id.values():
        actions = np.concatenate([p.get_actions() for p in parts])
        rewards = np.concatenate([p.get_rewards() for p in parts])
        seen = np.concatenate([p.get_observations()[: len(p)] for p in parts] + [parts[-1].get_observations()[-1:]])
        episodes.append((seen, actions, rewards, parts[-1].is_truncated))
    assert sum(len(e[1]) for e in episodes) >= 3 * 20 * hosts

    # By hand: the runner's episodes in the order of their hosts, which their first observations tell.
    env = PartitionVectorEnv(num_envs=hosts, **CONFIG)
    observation, _ = env.reset(seed=Noting.seeds[-1])
    left = list(episodes)
    whole = 0
    while left:
        running = []
        for h in range(hosts):
            mine = next((e for e in left if (e[0][0] == observation[h]).all()), None)
            assert mine is not None, "an episode that no host has begun"
            left = [e for e in left if e is not mine]
            running.append(mine)
        length = {len(e[1]) for e in running}
        assert len(length) == 1
        for t in range(length.pop()):
            actions = np.stack([e[1][t] for e in running])
            observation, reward, _, truncated, _ = env.step(actions)
            for h, (seen, _, rewards, _) in enumerate(running):
                assert (seen[t + 1] == observation[h]).all()
                assert rewards[t] == pytest.approx(reward[h], rel=1e-6, abs=1e-9)  # they keep float32
        assert all(e[3] == truncated.all() for e in running)
        whole += truncated.all()
        observation = env.step(np.zeros(env.action_space.shape))[0]  # begins the next episode
    assert whole >= 3


@pytest.mark.parametrize("flat", [True, False])
def test_stable_baselines_accepts_it(flat: bool) -> None:
    from stable_baselines3.common.env_checker import check_env

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # advice of theirs counts, too
        if not flat:
            warnings.filterwarnings("ignore", message="Your observation .* has an unconventional shape")
            warnings.filterwarnings("ignore", message=".*2D")
        check_env(PartitionEnv(ticks=20, flat=flat))


@pytest.mark.timeout(300)
def test_stable_baselines_ppo_trains_on_it() -> None:
    import torch
    from stable_baselines3 import PPO

    torch.set_num_threads(1)  # two threads on busy CPUs spin more than they compute
    env = PartitionEnv(scenario="draw:3", vms=4, load=0.9, ticks=200, flat=True)
    model = PPO("MlpPolicy", env, n_steps=1000, batch_size=250, n_epochs=2, seed=1, device="cpu")
    before = [p.detach().clone() for p in model.policy.parameters()]
    model.learn(20_000)
    assert model.num_timesteps == 20_000
    assert len(model.ep_info_buffer) > 50
    assert all(np.isfinite(e["r"]) and e["r"] <= 0 and e["l"] == 200 for e in model.ep_info_buffer)
    assert any(bool((a != b).any()) for a, b in zip(before, model.policy.parameters(), strict=True))
