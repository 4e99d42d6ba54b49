"""The analyzer of every VM: from readings to demand and backlog, to quantiles of demand, to what the VM asks for.

Demand and backlog are estimated (:mod:`~.estimate`), the mixture (:mod:`~.forecast.mixture`) forecasts demand from
them, its quality is watched, and the forecast for the tick in which the decision lands is what policies are fed:
``mean`` is the median, ``upper`` lies ``reach`` times the distance of the 0.9 quantile above it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.resources import files

import numpy as np

from .backlog_forecast import BacklogKnobs
from .errors import InputError
from .estimate import EstimateOptions, Estimator
from .forecast.base import Forecast, at_reservation, carry
from .forecast.fitted import Fitted
from .forecast.history import GAP_TICKS, Float32Array, History, K, Q
from .forecast.mixture import Mixture
from .forecast.models import SeriesModel
from .forecast.network import QuantileNetwork
from .forecast.quality import ForecastQuality
from .host import CACHE, FloatArray, Host, IntArray, R
from .reading import Quality, Reading

NETWORK = "network.npz"


def shipped_network() -> QuantileNetwork:
    """Return the network whose weights ship with the package. Raises InputError where they are broken."""
    try:
        with files("foreshare.policies.forecast").joinpath("weights", NETWORK).open("rb") as file:
            arrays = np.load(file, allow_pickle=False)
            return QuantileNetwork({name: arrays[name] for name in arrays.files})
    except (OSError, ValueError, EOFError) as e:
        raise InputError(f"{NETWORK}: the weights that ship with foreshare cannot be read: {e}") from e


@dataclass(frozen=True, kw_only=True, slots=True)
class AnalyzerOptions:
    """How the forecast becomes a request."""

    reach: float = 1.0
    """``upper`` lies so many distances between the median and the 0.9 quantile above the median."""
    backlog: BacklogKnobs = field(default_factory=BacklogKnobs)
    """Estimation, the claim on ways and the clearing of backlogs; its EWMA is not used."""


class Analyzer:
    """A :class:`~.forecast.base.Forecaster`. The quantiles of the latest tick are in ``quantiles``."""

    def __init__(self, host: Host, options: AnalyzerOptions | None = None, fitted: Fitted | None = None) -> None:
        """``fitted``: models to forecast with instead of the mixture with the network that ships."""
        self.options = options or AnalyzerOptions()
        k = self.options.backlog
        fitted = fitted or Fitted(network=shipped_network())
        self.estimator = Estimator(
            host, EstimateOptions(probe=k.probe, revert=k.revert, usual_gain=k.usual_gain, most_ticks=k.most_ticks)
        )
        size = int(np.prod(host.shape, dtype=np.int64))
        order = np.argsort(host.vms.rank)
        hosts = size // (len(host) * R) if size else 1
        self.history = History(size)
        self.model: SeriesModel = fitted.of_host(tuple(host.vms.uuid[i] for i in order) * hosts)
        self.quality = ForecastQuality(size)
        self._ways: FloatArray = at_reservation(host)[..., CACHE].copy()
        self._tick_ns = 0.0
        self._bind(host)

    def _bind(self, host: Host) -> None:
        self._shape, self._reserved = host.shape, host.reservation[:, CACHE].astype(np.float64)
        self._start = at_reservation(host)
        self._quantiles: Float32Array = np.zeros((K, Q, self.history.size), np.float32)
        # Series stand in the order of their VMs' ranks: products round, and turns are taken, by where a series stands,
        # and an answer must not depend on the order of the rows.
        place = np.arange(self.history.size).reshape(host.shape)
        self._by_rank = np.argsort(host.vms.rank)
        self._series: IntArray = place.take(self._by_rank, axis=-2).ravel()
        self._back: IntArray = np.argsort(self._series)

    @property
    def quantiles(self) -> Float32Array:
        """(K, Q, S) units, of :data:`~.forecast.history.HORIZONS` at :data:`~.forecast.history.LEVELS`; a copy.

        Series stand as the entries of an (..., N, R) array do.
        """
        return self._quantiles[..., self._back]

    @property
    def bad(self) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
        """(..., N, R) whose forecast has gone bad: the last value plus a margin stands in for it."""
        return self.quality.bad[self._back].reshape(self._shape)

    @property
    def scores(self) -> dict[str, FloatArray]:
        """How good the forecasts 50 ms ahead were lately, (..., N, R) each (:mod:`~.forecast.quality`).

        ``mase``, ``pinball`` of the 0.9 quantile in units, ``coverage`` of it as a share; NaN where none was judged.
        """
        q = self.quality
        found = {"mase": q.mase, "pinball": q.pinball[1], "coverage": q.coverage[1]}
        return {
            name: np.where(q.judged > 0, x, np.nan)[self._back].reshape(self._shape).astype(np.float64)
            for name, x in found.items()
        }

    def update(self, reading: Reading, into: Forecast) -> None:
        """See :class:`~.forecast.base.Forecaster`."""
        k, e, h = self.options.backlog, self.estimator, self.history
        e.update(reading)
        if not h.size:
            return
        limited = (reading.quality & np.uint8(Quality.CENSORED)) != 0
        censored = limited & (e.backlog <= 0.0)
        at = self._series
        h.push(e.demand.ravel()[at], e.backlog.ravel()[at], censored.ravel()[at], gap=self._late(reading.dt_ns))
        self.model.step(h, self._quantiles)
        self.quality.update(h, h.five, self._quantiles)
        landing = self._quantiles[0]
        into.mean[:] = landing[0][self._back].reshape(self._shape)
        into.upper[:] = landing[1][self._back].reshape(self._shape)
        into.upper -= into.mean
        into.upper *= self.options.reach
        into.upper += into.mean
        unknown = (h.seen == 0)[self._back].reshape(self._shape)
        if unknown.any():
            np.copyto(into.mean, self._start, where=unknown)
            np.copyto(into.upper, self._start, where=unknown)
        cache = np.fmax(e.demand[..., CACHE], 0.0)  # passes over the NaN of VMs never heard of
        self._ways += k.cache_gain * (cache - self._ways)
        claim = self._reserved + k.cache_share * np.maximum(self._ways - self._reserved, 0.0)
        into.mean[..., CACHE] = into.upper[..., CACHE] = claim
        np.multiply(e.backlog, 1.0 / k.clear_ticks, out=into.clearing)
        np.minimum(into.clearing, k.clear_most * into.mean, out=into.clearing)
        np.copyto(into.backlog, e.backlog)
        np.copyto(into.delay_ticks, e.delay_ticks)
        np.copyto(into.usage, e.usage)

    def touch(self) -> None:
        """See :class:`~.kernel.Touches`."""
        if isinstance(self.model, Mixture):
            self.model.touch(self.history)

    def _late(self, dt_ns: int) -> bool:
        """Return whether a sample comes behind a gap, or the clock jumped. The usual time between two is learnt."""
        if dt_ns <= 0:
            return True
        if not self._tick_ns:
            self._tick_ns = float(dt_ns)
        late = dt_ns > GAP_TICKS * self._tick_ns
        if not late:
            self._tick_ns += 0.05 * (dt_ns - self._tick_ns)
        return late

    def rebind(self, host: Host, rows: IntArray) -> None:
        """See :class:`~.forecast.base.Forecaster`."""
        self.estimator.rebind(host, rows)
        was = np.argsort(self._by_rank)  # where each former row's series stood
        former = rows[np.argsort(host.vms.rank)]
        stood = np.full(len(former), -1, np.int64)
        stood[former >= 0] = was[former[former >= 0]]
        self.history = self.history.rebind(stood, host.batch)
        size = self.history.size
        self.model = self.model.rebind(stood, host.batch, size)
        self.quality = self.quality.rebind(stood, host.batch, size)
        self._ways = carry(self._ways, rows, at_reservation(host)[..., CACHE].copy(), axis=-1)
        self._bind(host)
