"""PPO as a plain torch loop on the same environment, network and loss: what RLlib's overhead is measured against."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch  # noqa: TID253 - learning; nothing of the host imports it
from torch import nn  # noqa: TID253 - see above

from foreshare.policies.allocators.corrected import ACTIONS
from foreshare.policies.learned import Network
from foreshare.training.network_torch import NetworkModule

from .config import Surrogate, TrainConfig
from .episodes import EpisodesEnv
from .learner import VALUE_WEIGHT, advantages, mixed, ppo_loss, value_loss_of
from .module import LOG_STD_BOUNDS, ValueHead, VmGaussian
from .ppo import VALUE_WIDTH
from .scenes import ROUND, sequence_seed

Tensors = dict[str, torch.Tensor]


class TorchLoop(nn.Module):
    """The parts that PPO trains, and an iteration of it."""

    def __init__(self, config: TrainConfig, network: Network, seed: int) -> None:
        super().__init__()
        p = config.ppo
        self._config, self._seed = config, seed
        self._env = EpisodesEnv(num_envs=p.hosts, config=config.scenes, base=config.base,
                                blocks=min(p.scenarios, p.hosts))  # fmt: skip
        self.net = NetworkModule(network)
        self.log_std = nn.Parameter(torch.full((ACTIONS,), math.log(p.noise)))
        f, g = network.arrays["vm_mean"].shape[0], network.arrays["host_mean"].shape[0]
        self.value = ValueHead(f, g, VALUE_WIDTH)
        self._adam = torch.optim.Adam(self.parameters(), lr=p.rate)
        self.iteration = 0

    def iterate(self) -> int:
        """Do one iteration; return its environment steps."""
        p = self._config.ppo
        torch.manual_seed(sequence_seed(self._seed, ROUND, self.iteration))
        batch = self._collect()
        size = len(batch["actions"])
        for _ in range(p.epochs):
            order = torch.randperm(size)
            for at in range(0, size, p.minibatch):
                rows = order[at : at + p.minibatch]
                loss = self._loss({k: v[rows] for k, v in batch.items()})
                self._adam.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call] # torch's
                if p.grad_clip:
                    nn.utils.clip_grad_norm_(self.parameters(), p.grad_clip)
                self._adam.step()
        self.iteration += 1
        return size

    def _distribution(self, batch: Tensors) -> VmGaussian:
        mean = self.net(batch["vms"], batch["mask"], batch["host"])
        return VmGaussian(VmGaussian.logits(mean, self.log_std.clamp(*LOG_STD_BOUNDS), batch["mask"]))

    def _values(self, batch: Tensors) -> torch.Tensor:
        net = self.net
        x, g = (batch["vms"] - net.vm_mean) * net.vm_scale, (batch["host"] - net.host_mean) * net.host_scale
        values: torch.Tensor = self.value(x, g, batch["mask"])
        return values

    @torch.no_grad()
    def _collect(self) -> Tensors:
        """Return one episode of every host, (T H, ...) each."""
        config, p = self._config, self._config.ppo
        seen, _ = self._env.reset(seed=sequence_seed(self._seed, ROUND, self.iteration, 0))
        rows: list[dict[str, Any]] = []
        values, paid = [], []
        for _ in range(config.scenes.ticks):
            batch = {k: torch.from_numpy(v) for k, v in seen.items()}
            distribution = self._distribution(batch)
            actions = distribution.sample()
            old = VmGaussian.logits(distribution.mean, distribution.log_std, distribution.mask)
            values.append(self._values(batch).numpy())
            rows.append({**batch, "actions": actions, "old": old})
            seen = self._env.step(actions.numpy())[0]
            paid.append(seen["paid"])
        values.append(self._values({k: torch.from_numpy(v) for k, v in seen.items()}).numpy())
        own, target = advantages(np.stack(paid), np.stack(values), p.gamma, p.lam)
        out = {k: torch.stack([row[k] for row in rows]) for k in rows[0]}
        share = 0.0 if p.surrogate is Surrogate.JOINT else p.own
        out["advantage"] = torch.from_numpy(mixed(own, out["mask"].numpy(), share))
        out["target"] = torch.from_numpy(target)
        return {k: v.flatten(end_dim=1) for k, v in out.items()}

    def _loss(self, batch: Tensors) -> torch.Tensor:
        p = self._config.ppo
        new, valid = self._distribution(batch), torch.ones(len(batch["actions"]), dtype=torch.bool)
        policy_loss, _ = ppo_loss(new, VmGaussian(batch["old"]), batch["actions"], batch["advantage"], p.clip,
                                  p.surrogate is Surrogate.JOINT, valid)  # fmt: skip
        there = new.mask > 0
        value_loss = value_loss_of(self._values(batch), batch["target"], there)
        entropy = new.vm_entropy().sum() / there.sum().clamp(min=1)
        return policy_loss + VALUE_WEIGHT * value_loss - p.entropy * entropy
