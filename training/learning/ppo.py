"""PPO through RLlib's new API stack, as a learner of ours: iterations, a state in plain arrays, a network."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import numpy.typing as npt

from foreshare.policies.learned import Network

from .config import Runner, TrainConfig
from .scenes import ROUND, sequence_seed

Arrays = dict[str, npt.NDArray[Any]]
VALUE_WIDTH = 32
_SEPARATOR = "/"


def make_algorithm(config: TrainConfig, network: Network, seed: int) -> Any:
    """Return RLlib's algorithm. An iteration learns from one whole episode of every host (runner.py)."""
    from ray.rllib.algorithms.ppo import PPOConfig
    from ray.rllib.core.rl_module import RLModuleSpec
    from ray.tune.registry import register_env

    from .episodes import ENV_NAME, EpisodesEnv
    from .learner import VmPpoLearner
    from .module import PartitionModule
    from .runner import FastRunner, RoundRunner

    register_env(ENV_NAME, lambda context: EpisodesEnv(**dict(context)))
    p, ticks = config.ppo, config.scenes.ticks
    batch = p.hosts * ticks * max(p.runners, 1)
    blank: Any = PPOConfig()  # type: ignore[no-untyped-call] # RLlib's
    algorithm = (
        blank
        .environment(
            ENV_NAME,
            env_config={"config": config.scenes, "base": config.base, "blocks": min(p.scenarios, p.hosts)},
            normalize_actions=False, clip_actions=False,  # the environment clips
        )
        .env_runners(
            env_runner_cls=FastRunner if p.runner is Runner.FAST else RoundRunner, num_env_runners=p.runners,
            num_envs_per_env_runner=p.hosts, rollout_fragment_length=ticks, gym_env_vectorize_mode="vector_entry_point",
            batch_mode="truncate_episodes",
        )
        .learners(
            num_learners=0, learner_class=VmPpoLearner,
            learner_config_dict={"own": p.own, "surrogate": int(p.surrogate)},
        )
        .training(
            train_batch_size_per_learner=batch, minibatch_size=min(p.minibatch, batch), num_epochs=p.epochs, lr=p.rate,
            gamma=p.gamma, lambda_=p.lam, clip_param=p.clip, entropy_coeff=p.entropy, grad_clip=p.grad_clip or None,
            use_kl_loss=False,
        )
        .rl_module(rl_module_spec=RLModuleSpec(
            module_class=PartitionModule,
            model_config={"network": network.packed(), "noise": p.noise, "value": VALUE_WIDTH},
        ))
        .reporting(metrics_num_episodes_for_smoothing=p.hosts * max(p.runners, 1))  # those of one iteration
        .fault_tolerance(restart_failed_env_runners=True)
        .debugging(seed=seed % (1 << 31), log_level="ERROR")
    )  # fmt: skip
    return algorithm.build_algo()


class Ppo:
    """A learner; see :class:`~.train.Learning`."""

    def __init__(self, config: TrainConfig, network: Network, seed: int) -> None:
        self._config, self._seed = config, seed
        self._algorithm = make_algorithm(config, network, seed)
        self.iteration = 0
        self._steps = self._simulated()

    @property
    def network(self) -> Network:
        """The network as it is now."""
        found: Network = self._learner(lambda module, _: module.net.network())
        return found

    def iterate(self) -> dict[str, float]:
        """Do one iteration; return its figures: ``env_steps`` and ``simulator_steps`` are what it took."""
        seed, k = self._seed, self.iteration
        here = sequence_seed(seed, ROUND, k)
        _seed_everything(here)  # the order of minibatches
        self._algorithm.env_runner_group.foreach_env_runner(
            lambda runner: runner.begin_round(seed, k) if runner.env is not None else None, local_env_runner=True
        )
        result = self._algorithm.train()
        self.iteration += 1
        runners, learners = result["env_runners"], result["learners"]["default_policy"]
        before, self._steps = self._steps, self._simulated()
        ticks = self._config.scenes.ticks
        return {
            "env_steps": float(runners["num_env_steps_sampled"]),
            "simulator_steps": float(max(self._steps - before, 0)),  # a runner that was lost counts from 0 again
            # What an episode pays in a tick is by how much its score is below 1.
            "train_score": 1.0 - float(runners["episode_return_mean"]) / ticks,
            "divergence": float(learners["mean_kl_loss"]),
            "policy_loss": float(learners["policy_loss"]),
            "value_loss": float(learners["vf_loss"]),
            "noise": float(np.exp(self._learner(lambda module, _: module.log_std.detach().numpy().mean()))),
        }

    def state(self) -> Arrays:
        """Return everything that the next iteration depends on."""

        def read(module: Any, learner: Any) -> Arrays:
            out = {f"module{_SEPARATOR}{k}": v.detach().cpu().numpy().copy() for k, v in module.state_dict().items()}
            for name, optimizer in _optimizers(learner):
                for i, held in optimizer.state_dict()["state"].items():
                    for key, value in held.items():
                        out[_SEPARATOR.join(("adam", name, str(i), key))] = value.detach().cpu().numpy().copy()
            return out

        found: Arrays = self._learner(read)
        return {**found, "iteration": np.array(self.iteration)}

    def restore(self, state: Arrays) -> None:
        """Go on from what :meth:`state` returned."""
        import torch

        def write(module: Any, learner: Any) -> None:
            prefix = f"module{_SEPARATOR}"
            module.load_state_dict(
                {k.removeprefix(prefix): torch.from_numpy(v.copy()) for k, v in state.items() if k.startswith(prefix)}
            )
            for name, optimizer in _optimizers(learner):
                held: dict[int, dict[str, Any]] = {}
                for key, value in state.items():
                    kind, *rest = key.split(_SEPARATOR)
                    if kind == "adam" and rest[0] == name:
                        held.setdefault(int(rest[1]), {})[rest[2]] = torch.from_numpy(np.array(value))
                optimizer.load_state_dict({**optimizer.state_dict(), "state": held})

        self._learner(write)
        weights = self._learner(lambda module, _: module.get_state(inference_only=True))
        self._algorithm.env_runner_group.foreach_env_runner(
            lambda runner: runner.set_state({"rl_module": weights, "weights_seq_no": 0}), local_env_runner=True
        )
        self.iteration = int(state["iteration"])

    def close(self) -> None:
        """Let go of runners and learners."""
        self._algorithm.stop()

    def _learner(self, ask: Any) -> Any:
        """Return what ``ask`` (of the module and the learner) returns."""

        def asked(learner: Any) -> Any:
            return ask(learner.module["default_policy"].unwrapped(), learner)

        (result,) = self._algorithm.learner_group.foreach_learner(asked)
        return result.get() if hasattr(result, "get") else result

    def _simulated(self) -> int:
        found = self._algorithm.env_runner_group.foreach_env_runner(
            lambda runner: runner.simulator_steps if runner.env is not None else 0, local_env_runner=True
        )
        return int(sum(found))


def _optimizers(learner: Any) -> list[tuple[str, Any]]:
    return [(name.replace(_SEPARATOR, "_"), learner.get_optimizer(optimizer_name=name))
            for name in learner._module_optimizers["default_policy"]]  # fmt: skip


def _seed_everything(seed: int) -> None:
    import torch

    random.seed(seed)
    np.random.seed(seed % (1 << 32))  # noqa: NPY002 - RLlib shuffles by the global one
    torch.manual_seed(seed)
