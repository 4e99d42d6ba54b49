"""SmartHarvest-like: learn online, for each VM, the peak of the next window, and give that; take fright early.

Source: Wang, Bianchini et al., "SmartHarvest: Harvesting Idle CPUs Safely and Efficiently in the Cloud", EuroSys 2021,
sections 3 and 4; the learner is cost-sensitive one-against-all (Beygelzimer et al., ICML 2005): one linear regressor
per class predicts what choosing the class would cost, the class with the least is chosen.

Kept: windows (25 ms in the paper); features of a window are minimum, maximum, mean, deviation and last value of the
usage; classes are levels that the peak of the next window may have; the **asymmetric cost** of class ``k`` when the
right one was ``k*`` is ``k - k*`` above it (units wasted) and ``under_cost + (k* - k)`` below it (a VM short of
units); online least-mean-squares updates. **Safeguards**: a VM that uses all that it holds is given back its
reservation and half as much again as it used, without waiting for the window to end; one whose queueing delay stays
above its target in more than ``bad_share`` of the ticks has its harvesting switched off for ``off_ticks``.

Adapted: the paper harvests CPUs of primary VMs for one elastic VM; here every VM is primary for CPU, memory and IO
bandwidth, classes are levels between the floor and the cap in equal ratios, and what all want together is water-filled
where it exceeds the pool. The paper's vCPU wait time is our queueing delay (estimate.py). Ways follow their forecast.
Usage at the limit hides the peak: it counts as the next higher class.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from foreshare.policies.host import CPU, IO, MEMORY, FloatArray, Host, IntArray
from foreshare.policies.knobs import knob
from foreshare.policies.rounding import fill_extras

from .base import Request, former_rows, whole_units

LEVELS = 16
FEATURES = 6
_LEARNT = (CPU, MEMORY, IO)
_ALL = 0.97  # usage from this share of what is held on counts as all of it


@dataclass(frozen=True, kw_only=True, slots=True)
class SmartHarvestKnobs:
    """What can be tuned."""

    period_ticks: int = knob(3, 1, 10)
    """Length of a window; 3 at 10 ms is nearest to the paper's 25 ms, 1 is our tick."""
    under_cost: float = knob(8.0, 1.0, 32.0, log=True)
    """Cost of a prediction that is too low, in levels, on top of the distance."""
    rate: float = knob(0.1, 0.01, 0.5, log=True)
    """Step of the online learner (normalised least mean squares)."""
    target_ticks: float = knob(2.0, 0.5, 10.0, log=True)
    """Queueing delay from which a tick counts as bad."""
    bad_share: float = knob(0.05, 0.01, 0.5, log=True)
    """Share of bad ticks at which harvesting from a VM stops."""
    off_ticks: int = knob(100, 10, 1000, log=True)
    """For so long."""


class SmartHarvest:
    """See the module. A VM that nothing was learnt of yet is forecast at the highest level of its last window."""

    name = "smartharvest"
    batched = False

    def __init__(self, knobs: SmartHarvestKnobs | None = None) -> None:
        self.knobs = knobs or SmartHarvestKnobs()
        self._host: Host | None = None
        self._ticks = 0
        self._state(0)

    def _state(self, n: int) -> None:
        size = (n, len(_LEARNT))
        # Untrained, a class costs what it is away from the last peak: with features in levels that is linear enough.
        self._weights: FloatArray = np.zeros((*size, LEVELS, FEATURES))
        self._features: FloatArray = np.zeros((*size, FEATURES))
        self._trained = np.zeros(n, np.int64)
        self._sum, self._square = np.zeros(size), np.zeros(size)
        self._high, self._low_use, self._last = np.zeros(size), np.full(size, np.inf), np.zeros(size)
        self._class: IntArray = np.full(size, LEVELS - 1, np.int64)
        self._bad, self._off = np.zeros(n), np.zeros(n, np.int64)
        self._held: IntArray = np.zeros(size, np.int64)

    def allocate(self, request: Request, host: Host, tick: int) -> IntArray:
        """See :class:`~.base.Allocator`."""
        if host is not self._host:
            self._bind(host)
        k = self.knobs
        usage: FloatArray = request.usage[:, _LEARNT]
        short = usage >= _ALL * self._held
        level = self._level_of(np.where(short, np.maximum(usage * 1.3, self._held), usage))
        self._sum += level
        self._square += level * level
        np.maximum(self._high, level, out=self._high)
        np.minimum(self._low_use, level, out=self._low_use)
        self._last = level
        self._bad += 0.01 * ((request.delay_ticks > k.target_ticks) - self._bad)
        self._off = np.maximum(self._off - 1, 0)
        fright = (self._bad > k.bad_share) & (self._off == 0)
        self._off[fright] = k.off_ticks
        self._bad[fright] = 0.0
        self._ticks += 1
        if self._ticks >= k.period_ticks:
            self._turn_window()
        reservation = host.reservation[:, _LEARNT]
        want = self._units_of((self._class + 1).astype(np.float64))
        safe = np.maximum(reservation, 1.5 * usage)
        np.copyto(want, np.maximum(want, safe), where=short | (self._off > 0)[:, None])
        ask = request.ask.copy()
        ask[:, _LEARNT] = np.clip(want, host.floor[:, _LEARNT], host.cap[:, _LEARNT])
        low = np.minimum(ask, host.reservation)
        x = low.copy()
        for g in host.groups:
            base = low[g.rows, g.cols]
            room = np.maximum(g.capacity - base.sum(axis=0), 0.0)
            x[g.rows, g.cols] += fill_extras(ask[g.rows, g.cols] - base, room)
        units = whole_units(x, host)
        self._held = units[:, _LEARNT]
        return units

    def _bind(self, host: Host) -> None:
        rows = former_rows(self._host, host)
        known = rows >= 0
        names = [
            "_weights", "_features", "_trained", "_sum", "_square", "_high", "_low_use", "_last", "_class", "_bad",
            "_off", "_held",
        ]  # fmt: skip
        old = {name: getattr(self, name) for name in names}
        self._state(len(host))
        self._held = host.reservation[:, _LEARNT].copy()
        for name, value in old.items():
            getattr(self, name)[known] = value[rows[known]]
        self._host = host
        self._scale = np.log(np.maximum(host.cap[:, _LEARNT].astype(float), 2.0)) / LEVELS

    def _level_of(self, units: FloatArray) -> FloatArray:
        """Return (N, 3) levels 0..LEVELS: a unit is level 0, the cap LEVELS, equal ratios in between."""
        out: FloatArray = np.clip(np.log(np.maximum(units, 1.0)) / self._scale, 0.0, LEVELS)
        return out

    def _units_of(self, level: FloatArray) -> FloatArray:
        out: FloatArray = np.exp(level * self._scale)
        return out

    def _turn_window(self) -> None:
        """Learn what the window just over teaches, predict the peak of the next."""
        k, ticks = self.knobs, self._ticks
        right = np.minimum(np.ceil(self._high) - 1.0, LEVELS - 1.0).clip(0.0)
        classes = np.arange(LEVELS)
        away = classes - right[..., None]
        cost = np.where(away >= 0.0, away, k.under_cost - away) / LEVELS
        f = self._features
        error = cost - np.einsum("nrkf,nrf->nrk", self._weights, f)
        norm = np.maximum((f * f).sum(axis=-1), 1e-9)
        self._weights += (k.rate * error / norm[..., None])[..., None] * f[:, :, None, :]
        self._trained += 1
        mean = self._sum / ticks
        spread = np.sqrt(np.maximum(self._square / ticks - mean * mean, 0.0))
        f = self._features
        for i, value in enumerate((self._low_use, self._high, mean, spread, self._last)):
            f[..., i] = value / LEVELS
        f[..., FEATURES - 1] = 1.0
        guess = np.einsum("nrkf,nrf->nrk", self._weights, f).argmin(axis=-1)
        naive = np.minimum(np.ceil(self._high), LEVELS - 1).astype(np.int64)
        self._class = np.where((self._trained > LEVELS)[:, None], guess, naive)
        self._ticks = 0
        self._sum[:], self._square[:], self._high[:] = 0.0, 0.0, 0.0
        self._low_use[:] = np.inf
