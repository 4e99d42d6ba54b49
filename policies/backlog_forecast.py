"""The forecast that backlog-aware policies are fed: an EWMA of estimated demand, and what clears backlogs in time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from . import kernel
from .estimate import EstimateOptions, Estimator
from .forecast import MISSING_WIDEN, Ewma, Forecast, at_reservation, carry
from .host import CACHE, Host, IntArray
from .knobs import knob
from .reading import Reading


@dataclass(frozen=True, kw_only=True, slots=True)
class BacklogKnobs:
    """What can be tuned about estimate, forecast and clearing."""

    rise: float = knob(0.9, 0.3, 1)
    """Gain of the EWMA when demand is above its level."""
    fall: float = knob(0.6, 0.1, 0.9)
    """Gain when it is below."""
    error_gain: float = knob(0.05, 0.03, 0.3, log=True)
    """Gain of the mean absolute error."""
    margin: float = knob(1.0, 0, 3)
    """Mean absolute errors asked for on top of the level."""
    trend: float = knob(0.7, 0, 1.5)
    """Share of the latest rise of demand that is expected to happen again."""
    clear_ticks: float = knob(2.0, 1, 8, log=True)
    """A backlog is to be gone after so many ticks."""
    clear_most: float = knob(1.0, 0.1, 8.0, log=True)
    """A backlog is cleared with at most this multiple of the demand: who is hopelessly late must not ask for all."""
    cache_gain: float = knob(0.06, 0.01, 0.5, log=True)
    """How fast the claim on ways follows what is used: a way that moves is empty for a while."""
    cache_share: float = knob(0.0, 0.0, 1.0)
    """Share of the ways used beyond the reserved ones that a VM claims for itself; the rest are better shared: who
    owns two ways of sixteen has no part in the other fourteen."""
    probe: float = knob(1.1, 1.0, 1.5)
    """See :class:`~.estimate.EstimateOptions`, here and below."""
    revert: float = knob(0.03, 0.002, 0.3, log=True)
    usual_gain: float = knob(0.02, 0.003, 0.1, log=True)
    most_ticks: float = knob(100.0, 10.0, 400.0, log=True)


class BacklogForecaster:
    """Estimates demand and backlog, forecasts demand by :class:`~.forecast.Ewma`, adds ``backlog / clear_ticks``."""

    def __init__(self, host: Host, knobs: BacklogKnobs | None = None) -> None:
        self.knobs = k = knobs or BacklogKnobs()
        self.estimator = Estimator(
            host, EstimateOptions(probe=k.probe, revert=k.revert, usual_gain=k.usual_gain, most_ticks=k.most_ticks)
        )
        self._ewma = Ewma(host, rise=k.rise, fall=k.fall, error_gain=k.error_gain, margin=k.margin)
        self._ways = at_reservation(host)[..., CACHE].copy()
        self._before = np.full(host.shape, np.nan)
        self._constants = np.array(
            [
                k.rise, k.fall, k.error_gain, k.margin, k.trend, k.clear_ticks, k.clear_most, k.cache_gain,
                k.cache_share, MISSING_WIDEN,
            ],
            np.float64,
        )  # fmt: skip
        """follow_knobs_t of compiled/kernel.h."""
        self._bind(host)

    def _bind(self, host: Host) -> None:
        self._seen = np.zeros(host.shape)
        self._reserved = host.reservation[:, CACHE].astype(np.float64)
        self._tables, self._hosts = kernel.tables(host), kernel.hosts_in(host)

    @property
    def arrays(self) -> tuple[object, ...]:
        """Knobs and state of what follows the estimate, as the compiled form takes them."""
        f = self._ewma
        return self._constants, f.level, f.error, self._before, self._ways, f.fresh

    def update(self, reading: Reading, into: Forecast) -> None:
        """See :class:`~.forecast.Forecaster`."""
        k, e = self.knobs, self.estimator
        e.update(reading)
        if kernel.compiled is not None:
            f = self._ewma
            kernel.compiled.follow(
                self._tables, self._hosts, self._constants, e.demand, e.backlog,
                f.level, f.error, self._before, self._ways, f.fresh, into.mean, into.upper, into.clearing,
                e.usage, e.delay_ticks, e.sure, into.usage, into.backlog, into.delay_ticks, into.unsure,
            )  # fmt: skip
            return
        np.copyto(into.backlog, e.backlog)
        np.copyto(into.delay_ticks, e.delay_ticks)
        np.copyto(into.usage, e.usage)
        np.logical_not(e.sure, out=into.unsure)
        seen = self._seen
        np.copyto(seen, e.demand)
        self._ewma.learn(seen, into)
        step = np.fmax(e.demand - self._before, 0.0)
        step *= k.trend
        into.upper += step
        np.copyto(self._before, e.demand)
        self._ways += k.cache_gain * (seen[..., CACHE] - self._ways)
        claim = self._reserved + k.cache_share * np.maximum(self._ways - self._reserved, 0.0)
        into.mean[..., CACHE] = into.upper[..., CACHE] = claim
        np.multiply(e.backlog, 1.0 / k.clear_ticks, out=into.clearing)
        np.minimum(into.clearing, k.clear_most * into.mean, out=into.clearing)

    def rebind(self, host: Host, rows: IntArray) -> None:
        """See :class:`~.forecast.Forecaster`."""
        self.estimator.rebind(host, rows)
        self._ewma.rebind(host, rows)
        self._ways = carry(self._ways, rows, at_reservation(host)[..., CACHE].copy(), axis=-1)
        self._before = carry(self._before, rows, np.full(host.shape, np.nan))
        self._bind(host)
