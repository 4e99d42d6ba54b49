"""The model safeguard (SOL, ASPLOS'22): whether the policy is worth more than what would decide without it.

What would have happened under the default nobody can see; how well each *proposal* fitted what then came, everybody
can. Every tick the policy's proposal and the default's for the same request are kept, and scored by the next reading:

``loss = sum_i w_i (1 - min_r min(1, x_ir / d_ir)) / sum_i w_i``

with ``d`` the demand then seen (at least that; what a host can see), times the share of it that could not wait for a
later tick without being late (deadlines.py: a policy that lets who has time wait does nothing wrong), ``x`` the
proposal, shrunk to what fits, ``w`` one more than the priority. A VM is as slow as its scarcest resource, hence the
minimum. The difference of the two losses is averaged (gain ``GAIN``); the policy **does worse** once that mean, over at
least ``LEAST_TICKS``, exceeds both ``MARGIN`` and ``SIGMAS`` standard errors (those of an exponentially weighted mean:
``sd * sqrt(GAIN / (2 - GAIN))``).
While it is benched for that it goes on proposing, unheeded, and may come back once the mean has.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from . import kernel
from .axes import total
from .deadlines import Deadlines
from .forecast import PROBE, observed_demand
from .host import CACHE, FloatArray, Host
from .reading import Reading

GAIN = 0.005
LEAST_TICKS = 200
MARGIN = 0.01
SIGMAS = 4.0
LEAST_PRESSING = 0.1
"""At least this share of what is demanded counts as due: what is known of queues is an estimate."""

Units = npt.NDArray[np.generic]


class Assessor:
    """Compares the policy with the default, tick by tick."""

    def __init__(self, host: Host) -> None:
        self.rebind(host)
        self.ticks = 0
        self.mean = 0.0
        """By how much the policy's loss exceeds the default's, between -1 and 1."""
        self._square = 0.0

    def rebind(self, host: Host) -> None:
        """Work for other VMs; what was proposed for the former ones is dropped."""
        self._host = host
        self._capacity = [(g.rows, g.cols, g.capacity.astype(np.float64)) for g in host.groups]
        weight = 1.0 + np.maximum(host.vms.priority, 0)
        self._weight = weight / max(float(weight.sum()), 1.0)
        self._policy = np.zeros(host.shape)
        self._default = np.zeros(host.shape)
        self._seen = np.zeros(host.shape)
        self._rate: FloatArray = np.ones(host.shape[:-1])
        self._pending = False
        self._judged = host.movable.copy()
        self._judged[CACHE] = False  # best effort: who has no ways of his own has the shared ones
        self._tables, self._hosts = kernel.tables(host), kernel.hosts_in(host)

    def propose(self, policy: Units, default: Units, deadlines: Deadlines) -> None:
        """Keep what each would give, (..., N, R), until the next reading tells what it was worth.

        ``deadlines``: what was due when they were asked.
        """
        np.copyto(self._rate, deadlines.rate)
        for kept, given in ((self._policy, policy), (self._default, default)):
            np.copyto(kept, given, casting="unsafe")
            if kernel.compiled is not None:
                kernel.compiled.shrink(self._tables, self._hosts, kept)
                continue
            for rows, cols, capacity in self._capacity:
                block = kept[..., rows, cols]
                over = total(block) / np.maximum(capacity, 1.0)
                if (over > 1.0).any():
                    kept[..., rows, cols] = block / np.maximum(over, 1.0)[..., None, :]
        self._pending = True

    def score(self, reading: Reading) -> None:
        """Score what was proposed in the tick before by what has been seen since."""
        if not self._pending:
            return
        self._pending = False
        difference = self._difference(reading)
        self.ticks += 1
        gain = max(GAIN, 1.0 / self.ticks)
        step = difference - self.mean
        self.mean += gain * step
        self._square += gain * (step * step - self._square)

    def _difference(self, reading: Reading) -> float:
        """Return by how much more of what was due the policy would have left undone than the default."""
        if kernel.compiled is not None:
            return float(kernel.compiled.difference(
                self._tables, self._hosts, LEAST_PRESSING, PROBE, self._judged, self._weight, reading.usage,
                reading.demand_low, reading.quality, self._rate, self._policy, self._default,
            ))  # fmt: skip
        demand = observed_demand(reading, self._seen)
        np.copyto(demand, 0.0, where=~np.isfinite(demand))
        demand = demand * np.clip(self._rate, LEAST_PRESSING, 1.0)[..., None]
        return self._loss(self._policy, demand) - self._loss(self._default, demand)

    def _loss(self, given: FloatArray, demand: FloatArray) -> float:
        with np.errstate(divide="ignore", invalid="ignore"):
            part = given / demand
        part = np.where(demand > 0.0, np.clip(part, 0.0, 1.0), 1.0)[..., self._judged]
        if not part.size:
            return 0.0
        return float(np.mean((1.0 - part.min(axis=-1)) @ self._weight))

    @property
    def recovered(self) -> bool:
        """Whether a policy that did worse no longer does: it must have come back by half."""
        return self.mean <= MARGIN / 2

    @property
    def worse(self) -> bool:
        """Whether the policy does worse than the default, beyond doubt."""
        if self.ticks < LEAST_TICKS:
            return False
        error = (self._square * GAIN / (2.0 - GAIN)) ** 0.5
        return bool(self.mean > max(MARGIN, SIGMAS * error))
