"""PPO's loss with a ratio for each VM, and advantages for each VM.

The weights are shared by the VMs of a host, so each of them is an agent whose pay is known (:mod:`.episodes`). One
ratio of all N x A action numbers of a host is a product of N ratios: it is clipped nearly always once N is large. One
for each VM is not, and its advantage can be mostly the VM's own::

    A_i = own_i + (1 - own) sum_{j != i} own_j        own_j: generalised advantage of VM j's pay (Schulman et al. 2016)

With ``own = 0`` every VM of a host has the host's advantage, as in the joint form; sums of the VMs' advantages are the
host's because generalised advantages are linear in rewards and values.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch  # noqa: TID253 - learning; nothing of the host imports it
from ray.rllib.algorithms.ppo.torch.ppo_torch_learner import PPOTorchLearner  # noqa: TID253 - see above
from ray.rllib.connectors.connector_v2 import ConnectorV2  # noqa: TID253 - see above
from ray.rllib.connectors.learner import GeneralAdvantageEstimation  # noqa: TID253 - see above
from ray.rllib.core import DEFAULT_MODULE_ID  # noqa: TID253 - see above
from ray.rllib.core.columns import Columns  # noqa: TID253 - see above
from ray.rllib.core.learner.learner import ENTROPY_KEY, POLICY_LOSS_KEY, VF_LOSS_KEY  # noqa: TID253 - see above
from ray.rllib.evaluation.postprocessing import Postprocessing  # noqa: TID253 - see above

from .config import Surrogate
from .module import VmGaussian

Float32Array = npt.NDArray[np.float32]
MEAN_KL = "mean_kl_loss"
VALUE_WEIGHT = 0.5


def advantages(paid: Float32Array, values: Float32Array, gamma: float, lam: float) -> tuple[Float32Array, Float32Array]:
    """Return (T, ..., N) generalised advantages of every VM, and what its values should have been.

    ``paid``: (T, ..., N) for the action of each step; ``values``: (T + 1, ..., N). Episodes are cut, never over.
    """
    out = np.zeros_like(paid)
    later = np.zeros_like(paid[0])
    for t in range(len(paid) - 1, -1, -1):
        later = paid[t] + gamma * values[t + 1] - values[t] + gamma * lam * later
        out[t] = later
    return out, out + values[:-1]


def mixed(own: Float32Array, mask: Float32Array, share: float) -> Float32Array:
    """Return the advantages (..., N) that VMs learn from, standardised over those that are there; 0 for others."""
    there = np.broadcast_to(mask > 0, own.shape)
    own = np.where(there, own, 0.0)
    out = share * own + (1.0 - share) * own.sum(axis=-1, keepdims=True)
    known = out[there]
    if not known.size:
        return np.zeros_like(out)
    return np.where(there, (out - known.mean()) / max(float(known.std()), 1e-6), 0.0).astype(np.float32)


def ppo_loss(
    new: VmGaussian, old: VmGaussian, actions: torch.Tensor, advantage: torch.Tensor, clip: float, joint: bool,
    valid: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Return the clipped surrogate's loss and the mean divergence of a VM, over the ``valid`` (B,) samples.

    ``advantage``: (B, N). ``joint``: one ratio for a host, on the mean advantage of its VMs.
    """
    there = (new.mask > 0) & valid[..., None]
    count = there.sum().clamp(min=1)
    log_ratio = new.vm_logp(actions) - old.vm_logp(actions)
    if joint:
        hosts = there.any(dim=-1)
        ratio = torch.exp(log_ratio.sum(dim=-1))
        gain = (advantage * there).sum(dim=-1) / there.sum(dim=-1).clamp(min=1)
        surrogate = torch.minimum(gain * ratio, gain * ratio.clamp(1.0 - clip, 1.0 + clip))
        policy_loss = -(surrogate * hosts).sum() / hosts.sum().clamp(min=1)
    else:
        ratio = torch.exp(log_ratio)
        surrogate = torch.minimum(advantage * ratio, advantage * ratio.clamp(1.0 - clip, 1.0 + clip))
        policy_loss = -(surrogate * there).sum() / count
    with torch.no_grad():
        divergence = (old.vm_kl(new) * there).sum() / count
    return policy_loss, divergence


class VmAdvantages(ConnectorV2):
    """Puts (B, N) advantages and value targets into the batch, from the pay that stands in the next observation."""

    def __init__(self, *, gamma: float, lam: float, own: float) -> None:
        super().__init__()
        self._gamma, self._lam, self._own = gamma, lam, own

    def __call__(self, *, rl_module: Any, batch: dict[str, Any], episodes: list[Any], **kwargs: Any) -> Any:
        """See the class. Episodes have RLlib's artificial last step, whose observation is what the last one led to."""
        mine = batch[DEFAULT_MODULE_ID]
        with torch.no_grad():
            values = rl_module[DEFAULT_MODULE_ID].unwrapped().vm_values(mine).numpy()
        paid, mask = (mine[Columns.OBS][k].numpy() for k in ("paid", "mask"))
        own, target = np.zeros_like(values), values.copy()
        start = 0
        for steps in self._runs([len(e) for e in episodes]):
            n, length = steps
            end = start + n * length
            shape = (n, length, -1)
            v, p = values[start:end].reshape(shape), paid[start:end].reshape(shape)
            a, wanted = advantages(
                np.moveaxis(p[:, 1:], 1, 0), np.moveaxis(v, 1, 0), self._gamma, self._lam
            )  # fmt: skip
            own[start:end].reshape(shape)[:, :-1] = np.moveaxis(a, 0, 1)
            target[start:end].reshape(shape)[:, :-1] = np.moveaxis(wanted, 0, 1)
            start = end
        valid = mine[Columns.LOSS_MASK].numpy()
        mine[Postprocessing.ADVANTAGES] = torch.from_numpy(mixed(own, mask * valid[:, None], self._own))
        mine[Postprocessing.VALUE_TARGETS] = torch.from_numpy(target)
        return batch

    @staticmethod
    def _runs(lengths: list[int]) -> list[tuple[int, int]]:
        """Return (how many, of what length) for neighbours of one length."""
        out: list[tuple[int, int]] = []
        for length in lengths:
            out.append((out.pop()[0] + 1, length) if out and out[-1][1] == length else (1, length))
        return out


class VmPpoLearner(PPOTorchLearner):
    """RLlib's PPO with the loss of this module. ``learner_config_dict``: ``own``, ``surrogate`` (its number)."""

    def build(self) -> None:
        """Build RLlib's, then put our advantages in the place of its own."""
        super().build()
        told = self.config.learner_config_dict
        self._joint = told["surrogate"] == int(Surrogate.JOINT)
        connector: Any = self._learner_connector
        settings: Any = self.config
        connector.remove(GeneralAdvantageEstimation)
        own = 0.0 if self._joint else told["own"]
        connector.append(VmAdvantages(gamma=settings.gamma, lam=settings.lambda_, own=own))

    def compute_loss_for_module(
        self, *, module_id: str, config: Any, batch: dict[str, Any], fwd_out: dict[str, Any]
    ) -> torch.Tensor:
        """Return the loss of a minibatch."""
        module: Any = self.module[module_id].unwrapped()
        new = VmGaussian(fwd_out[Columns.ACTION_DIST_INPUTS])
        old = VmGaussian(batch[Columns.ACTION_DIST_INPUTS])
        valid = batch[Columns.LOSS_MASK]
        policy_loss, divergence = ppo_loss(
            new, old, batch[Columns.ACTIONS], batch[Postprocessing.ADVANTAGES], config.clip_param, self._joint, valid
        )
        there = (new.mask > 0) & valid[..., None]
        count = there.sum().clamp(min=1)
        value_loss = value_loss_of(module.vm_values(batch), batch[Postprocessing.VALUE_TARGETS], there)
        entropy = (new.vm_entropy() * valid[..., None]).sum() / count
        coefficient = self.entropy_coeff_schedulers_per_module[module_id].get_current_value()
        self.metrics.log_dict(
            {POLICY_LOSS_KEY: policy_loss, VF_LOSS_KEY: value_loss, ENTROPY_KEY: entropy, MEAN_KL: divergence},
            key=module_id,
            window=1,
        )
        loss: torch.Tensor = policy_loss + VALUE_WEIGHT * value_loss - coefficient * entropy
        return loss


def value_loss_of(values: torch.Tensor, targets: torch.Tensor, there: torch.Tensor) -> torch.Tensor:
    """Return the mean squared error in the spread of the targets, over the VMs that are ``there`` (B, N)."""
    scale = targets[there].var().clamp(min=1e-8) if bool(there.any()) else torch.tensor(1.0)
    return ((values - targets).square() * there).sum() / there.sum().clamp(min=1) / scale
