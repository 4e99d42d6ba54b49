"""The learned policy's network in torch: the very arrays of :mod:`foreshare.policies.learned.network`, to be trained.

Parameters have the names and the shapes of the file (:mod:`foreshare.policies.learned.weights`), so that what was
trained is what a host runs, without a translation; the normalisation is in buffers, which no optimiser touches.
"""

from __future__ import annotations

import numpy as np
import torch  # noqa: TID253 - this module is the network in torch; nothing that runs on a host imports it
from torch import nn  # noqa: TID253 - see above

from foreshare.policies.learned.network import Network
from foreshare.policies.learned.weights import NAMES, NORMALISATION


class NetworkModule(nn.Module):
    """See :class:`foreshare.policies.learned.network.Network`, whose function this is."""

    vm_mean: torch.Tensor
    vm_scale: torch.Tensor
    host_mean: torch.Tensor
    host_scale: torch.Tensor
    enc_w: torch.Tensor
    enc_b: torch.Tensor
    ctx_w: torch.Tensor
    ctx_b: torch.Tensor
    head_w: torch.Tensor
    head_b: torch.Tensor
    out_w: torch.Tensor
    out_b: torch.Tensor
    lin_w: torch.Tensor

    def __init__(self, network: Network) -> None:
        """Begin with the weights of ``network``; :meth:`~.Network.random` makes fresh ones."""
        super().__init__()
        self.widths = network.widths
        for name in NAMES:
            value = torch.from_numpy(network.arrays[name].copy())
            if name in NORMALISATION:
                self.register_buffer(name, value)
            else:
                self.register_parameter(name, nn.Parameter(value))

    def network(self) -> Network:
        """Return the network as it is now, in numpy."""
        state = self.state_dict()
        return Network({name: state[name].detach().cpu().numpy().astype(np.float32) for name in NAMES})

    def see(
        self, vms: torch.Tensor, mask: torch.Tensor, host: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return x (B, N, F), h (B, N, E), c (B, C) and the normalised g (B, G): what a value head may look at."""
        e, c, _ = self.widths
        x = (vms - self.vm_mean) * self.vm_scale
        g = (host - self.host_mean) * self.host_scale
        code = torch.tanh(x @ self.enc_w + self.enc_b) if e else x[..., :0]
        if not c:
            return x, code, g[..., :0], g
        seen = g
        if e:
            there = (mask > 0)[..., None]
            count = there.sum(dim=-2).to(x.dtype)
            mean = torch.where(there, code, 0.0).sum(dim=-2) / count.clamp(min=1.0)
            most = torch.where(there, code, -1.0).amax(dim=-2)  # no code is less
            seen = torch.cat([mean, torch.where(count > 0, most, 0.0), g], dim=-1)
        return x, code, torch.tanh(seen @ self.ctx_w + self.ctx_b), g

    def before_squashing(self, x: torch.Tensor, code: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Return (B, N, A) what tanh makes actions of, from what :meth:`see` returned; masked VMs have numbers too."""
        e, c, d = self.widths
        out = x @ self.lin_w + self.out_b
        if d:
            whole = self.head_b
            if c:  # its part of the product is the same for all VMs: once for each host
                whole = (context @ self.head_w[e:] + whole)[..., None, :]
            before = code @ self.head_w[:e] + whole if e else whole.expand(*x.shape[:-1], d)
            out = out + torch.tanh(before) @ self.out_w
        return out

    def forward(self, vms: torch.Tensor, mask: torch.Tensor, host: torch.Tensor) -> torch.Tensor:
        """Return actions (B, N, A) in [-1, 1], 0 under a mask of 0."""
        x, code, context, _ = self.see(vms, mask, host)
        action = torch.tanh(self.before_squashing(x, code, context))
        return torch.where((mask > 0)[..., None], action, 0.0)
