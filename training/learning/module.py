"""The network as an RLlib module, and the distribution of what it does while it explores.

Squashing happens once: the network's mean went through ``tanh``, exploration adds Gaussian noise, the environment
clips the sum to [-1, 1]. What is trained is the mean, and the mean is what ships.

A host has N x A action numbers of N VMs, of which some are padding. Padded VMs do nothing (0) and are in no
log-probability, entropy or divergence: whatever stood in their place, a ratio of PPO's would be the same.
"""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym  # noqa: TID253 - learning; nothing of the host imports it
import torch  # noqa: TID253 - see above
from ray.rllib.core.columns import Columns  # noqa: TID253 - see above
from ray.rllib.core.distribution.torch.torch_distribution import (  # noqa: TID253 - see above
    TorchDeterministic,
    TorchDistribution,
)
from ray.rllib.core.rl_module.apis import InferenceOnlyAPI, ValueFunctionAPI  # noqa: TID253 - see above
from ray.rllib.core.rl_module.torch import TorchRLModule  # noqa: TID253 - see above
from torch import nn  # noqa: TID253 - see above

from foreshare.policies.allocators.corrected import ACTIONS
from foreshare.policies.learned import Network
from foreshare.training.network_torch import NetworkModule

LOG_STD_BOUNDS = (-5.0, 0.7)
_HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)


class VmGaussian(TorchDistribution):
    """A diagonal Gaussian for each VM. ``logits``: (B, N (2 A + 1)): mean, log standard deviation and mask, flat.

    Samples are (B, N, A); :meth:`vm_logp` and the like are (B, N), 0 for padded VMs, and those that RLlib knows their
    sums over VMs, (B,).
    """

    def __init__(self, logits: torch.Tensor) -> None:
        n = logits.shape[-1] // (2 * ACTIONS + 1)
        parts = logits.reshape(*logits.shape[:-1], n, 2 * ACTIONS + 1)
        self.mean, self.log_std = parts[..., :ACTIONS], parts[..., ACTIONS : 2 * ACTIONS]
        self.mask = parts[..., -1]
        super().__init__()  # type: ignore[no-untyped-call] # RLlib's

    @staticmethod
    def logits(mean: torch.Tensor, log_std: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return the logits of ``mean`` (B, N, A), ``log_std`` (A,) and ``mask`` (B, N)."""
        parts = torch.cat([mean, log_std.expand_as(mean), mask[..., None]], dim=-1)
        return parts.flatten(start_dim=-2)

    @staticmethod
    def required_input_dim(space: gym.Space[Any], **kwargs: Any) -> int:
        """Return how many numbers a distribution over ``space`` needs."""
        shape = space.shape or (1, ACTIONS)
        return shape[0] * (2 * ACTIONS + 1)

    def _get_torch_distribution(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: torch has none with a mask."""

    def vm_logp(self, value: torch.Tensor) -> torch.Tensor:
        """Return (B, N) the log-probability of each VM's actions (B, N, A)."""
        z = (value.reshape(self.mean.shape) - self.mean) * torch.exp(-self.log_std)
        each = (-0.5 * z * z - self.log_std - _HALF_LOG_2PI).sum(dim=-1)
        return torch.where(self.mask > 0, each, 0.0)

    def vm_entropy(self) -> torch.Tensor:
        """Return (B, N)."""
        return torch.where(self.mask > 0, (self.log_std + 0.5 + _HALF_LOG_2PI).sum(dim=-1), 0.0)

    def vm_kl(self, other: VmGaussian) -> torch.Tensor:
        """Return (B, N) the divergence of ``other`` from this one."""
        ratio = torch.exp(2.0 * (self.log_std - other.log_std))
        apart = (self.mean - other.mean).square() * torch.exp(-2.0 * other.log_std)
        each = (other.log_std - self.log_std + 0.5 * (ratio + apart - 1.0)).sum(dim=-1)
        return torch.where(self.mask > 0, each, 0.0)

    def logp(self, value: Any, **kwargs: Any) -> torch.Tensor:
        """Return (B,)."""
        return self.vm_logp(value).sum(dim=-1)

    def entropy(self, **kwargs: Any) -> torch.Tensor:
        """Return (B,)."""
        return self.vm_entropy().sum(dim=-1)

    def kl(self, other: Any, **kwargs: Any) -> torch.Tensor:
        """Return (B,)."""
        return self.vm_kl(other).sum(dim=-1)

    def sample(self, *, sample_shape: Any = None, **kwargs: Any) -> torch.Tensor:
        """Return (B, N, A); padded VMs get 0."""
        return self.rsample(sample_shape=sample_shape).detach()

    def rsample(self, *, sample_shape: Any = None, **kwargs: Any) -> torch.Tensor:
        """As :meth:`sample`, with gradients."""
        noise = torch.randn((*(sample_shape or ()), *self.mean.shape), device=self.mean.device)
        value = self.mean + noise * torch.exp(self.log_std)
        return torch.where((self.mask > 0)[..., None], value, 0.0)

    def to_deterministic(self) -> Any:
        """Return what always does the mean."""
        return TorchDeterministic(loc=torch.where((self.mask > 0)[..., None], self.mean, 0.0))


class ValueHead(nn.Module):
    """What each VM is going to be paid: a small net of its own on its features and those of its host, pooled."""

    def __init__(self, vm_features: int, host_features: int, width: int) -> None:
        super().__init__()
        self.code = nn.Linear(vm_features, width)
        self.whole = nn.Linear(width + host_features, width)
        self.out = nn.Linear(2 * width, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: torch.Tensor, g: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return (B, N), 0 for padded VMs; ``x`` (B, N, F) and ``g`` (B, G) normalised, ``mask`` (B, N)."""
        there = (mask > 0)[..., None]
        code = torch.tanh(self.code(x))
        mean = torch.where(there, code, 0.0).sum(dim=-2) / there.sum(dim=-2).clamp(min=1)
        whole = torch.tanh(self.whole(torch.cat([mean, g], dim=-1)))
        seen = torch.cat([code, whole[..., None, :].expand_as(code)], dim=-1)
        return torch.where(there[..., 0], self.out(seen)[..., 0], 0.0)


class PartitionModule(TorchRLModule, InferenceOnlyAPI, ValueFunctionAPI):
    """Policy and value over observations of :mod:`.episodes`, any number of VMs.

    ``model_config``: ``network``, the bytes of the file to begin with; ``noise``; ``value`` (width of the value head).
    """

    def setup(self) -> None:
        """Build the parts."""
        told: Any = self.model_config
        network = Network.load(told["network"])
        self.action_dist_cls = VmGaussian
        self.net = NetworkModule(network)
        self.log_std = nn.Parameter(torch.full((ACTIONS,), math.log(told["noise"])))
        f, g = network.arrays["vm_mean"].shape[0], network.arrays["host_mean"].shape[0]
        self.value = ValueHead(f, g, told["value"])

    def get_non_inference_attributes(self) -> list[str]:
        """Return what runners can do without."""
        return ["value"]

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        seen = batch[Columns.OBS]
        mean = self.net(seen["vms"], seen["mask"], seen["host"])
        log_std = self.log_std.clamp(*LOG_STD_BOUNDS)
        return {Columns.ACTION_DIST_INPUTS: VmGaussian.logits(mean, log_std, seen["mask"])}

    def vm_values(self, batch: dict[str, Any]) -> torch.Tensor:
        """Return (B, N) what each VM is going to be paid, discounted."""
        seen, net = batch[Columns.OBS], self.net
        x, g = (seen["vms"] - net.vm_mean) * net.vm_scale, (seen["host"] - net.host_mean) * net.host_scale
        values: torch.Tensor = self.value(x, g, seen["mask"])
        return values

    def compute_values(self, batch: dict[str, Any], embeddings: Any = None) -> torch.Tensor:
        """Return (B,) what the host is going to be paid: the VMs' sum."""
        return self.vm_values(batch).sum(dim=-1)
