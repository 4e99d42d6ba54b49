"""What collects episodes for PPO: RLlib's runner with rounds, and one that keeps whole arrays.

A **round** is what one iteration learns from: whole episodes, which begin with a reset under a seed of their own. So
nothing of an environment needs to be remembered between two iterations, and a training that was killed goes on exactly
as it would have; runners differ in their index, which is part of the seed, so that no two draw the same hosts.

:class:`FastRunner` steps as RLlib's ``SingleAgentEnvRunner`` does, with the same random numbers in the same order, but
keeps (time, host, ...) arrays and cuts them into episodes at the end, where RLlib's passes every host's every step
through its connectors. It overrides ``_sample``, which is RLlib's own affair: Ray is pinned to 2.60, and a test holds
that both runners yield the same. What it leaves out: callbacks on episodes, connectors, recurrent modules.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch  # noqa: TID253 - learning; nothing of the host imports it
from ray.rllib.core.columns import Columns  # noqa: TID253 - see above
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner  # noqa: TID253 - see above
from ray.rllib.env.single_agent_episode import SingleAgentEpisode  # noqa: TID253 - see above
from ray.rllib.env.utils.infinite_lookback_buffer import InfiniteLookbackBuffer  # noqa: TID253 - see above

from foreshare.policies.errors import InputError

from .scenes import ROUND, sequence_seed


class RoundRunner(SingleAgentEnvRunner):
    """RLlib's runner, whose every round begins afresh."""

    def begin_round(self, seed: int, iteration: int) -> None:
        """Let the next ``sample`` begin with new episodes, whose hosts and noise follow from the arguments alone."""
        self._seed = sequence_seed(seed, ROUND, iteration, int(self.worker_index or 0))
        self._needs_initial_reset = True
        torch.manual_seed(self._seed)

    @property
    def simulator_steps(self) -> int:
        """Ticks of one VM simulated so far."""
        env: Any = self.env
        return int(env.unwrapped.simulator_steps)


class FastRunner(RoundRunner):
    """See the module."""

    _new: npt.NDArray[np.bool_]
    _over: npt.NDArray[np.bool_]

    def _front(self) -> Any:
        return self.env

    def _sample(
        self, *, num_timesteps: int | None = None, num_episodes: int | None = None, explore: bool,
        random_actions: bool = False, force_reset: bool = False,
    ) -> list[SingleAgentEpisode]:  # fmt: skip
        if num_timesteps is None or random_actions:
            raise InputError('the fast runner samples steps, by its policy; set runner = "default" for anything else')
        env, b = self._front().unwrapped, self.num_envs
        if force_reset or self._needs_initial_reset:
            self._seen, _ = env.reset(seed=self._seed)
            self._needs_initial_reset, self._new, self._over = False, np.ones(b, bool), np.zeros(b, bool)
        steps: list[Any] = []
        done = 0
        while done < num_timesteps:
            begins = not self._new.all() and bool(self._over.all())
            out, actions = self._act(explore)
            seen, reward, terminated, truncated, _ = env.step(actions)
            if begins:  # the step that only starts the next episode
                self._new[:] = True
            else:
                steps.append((self._seen, actions, reward, out, seen))
                done += b
                self._new[:] = False
            self._over = truncated | terminated
            self._seen = seen
            if not begins and self._over.any():
                steps.append(None)
                if not self._over.all():
                    raise InputError("the fast runner needs hosts whose episodes end together")
        return self._episodes(steps)

    def _act(self, explore: bool) -> tuple[dict[str, Any], Any]:
        """Return what the module says of the newest observation, as arrays, and the actions."""
        batch = {Columns.OBS: {k: torch.from_numpy(v) for k, v in self._seen.items()}}
        module: Any = self.module
        with torch.no_grad():
            if explore:
                logits = module.forward_exploration(batch)[Columns.ACTION_DIST_INPUTS]
                distribution = module.get_exploration_action_dist_cls().from_logits(logits)
            else:
                logits = module.forward_inference(batch)[Columns.ACTION_DIST_INPUTS]
                distribution = module.get_inference_action_dist_cls().from_logits(logits).to_deterministic()
            action: Any = distribution.sample()
            out: dict[str, Any] = {Columns.ACTION_DIST_INPUTS: logits.numpy()}
            if explore:
                out[Columns.ACTION_LOGP] = distribution.logp(action).numpy()
        return out, action.numpy()

    def _episodes(self, steps: list[Any]) -> list[SingleAgentEpisode]:
        """Cut what was stepped into episodes of each host: those that are over first, as RLlib's come."""
        chunks: list[tuple[list[Any], bool]] = [([], False)]
        for step in steps:
            if step is None:
                chunks[-1] = (chunks[-1][0], True)
                chunks.append(([], False))
            else:
                chunks[-1][0].append(step)
        out = []
        for rows, over in chunks:
            if rows:
                out += self._chunk(rows, over)
        finished = [e for e in out if e.is_done]
        self._done_episodes_for_metrics.extend(finished)
        for episode in out:
            if not episode.is_done:
                self._ongoing_episodes_for_metrics[episode.id_].append(episode)
        count = sum(len(e) for e in out)
        self._log_env_steps(metric=self._metrics_num_env_steps_sampled, num_steps=count)
        self._increase_sampled_metrics(count, len(finished))  # type: ignore[no-untyped-call] # RLlib's
        return out

    def _chunk(self, rows: list[Any], over: bool) -> list[SingleAgentEpisode]:
        length, front = len(rows), self._front()
        seen = {k: np.stack([r[0][k] for r in rows] + [rows[-1][4][k]], axis=1) for k in rows[0][0]}
        actions = np.stack([r[1] for r in rows], axis=1)
        reward = np.stack([r[2] for r in rows], axis=1)
        extra = {k: np.stack([r[3][k] for r in rows], axis=1) for k in rows[0][3]}
        return [
            SingleAgentEpisode(
                observations=InfiniteLookbackBuffer(_any({k: v[h] for k, v in seen.items()}), 0),
                infos=[{} for _ in range(length + 1)],
                actions=InfiniteLookbackBuffer(actions[h], 0),
                rewards=InfiniteLookbackBuffer(reward[h], 0),
                terminated=False,
                truncated=over,
                extra_model_outputs={k: InfiniteLookbackBuffer(v[h], 0) for k, v in extra.items()},
                len_lookback_buffer=0,
                t_started=0,
                observation_space=front.single_observation_space,
                action_space=front.single_action_space,
            )
            for h in range(self.num_envs)
        ]


def _any(value: Any) -> Any:
    """Return ``value``: RLlib's buffers take nested arrays, too, which their annotations do not say."""
    return value
