"""Triage that knows: fed by true demand and backlog instead of estimates, what better forecasts can be worth to it."""

from __future__ import annotations

import numpy as np

from foreshare.envs.hal.simulated import SimulatedHal
from foreshare.policies.allocators import Triage
from foreshare.policies.backlog_forecast import BacklogKnobs
from foreshare.policies.decide import UNHURRIED, DecideOptions, Mind
from foreshare.policies.forecast import Forecast
from foreshare.policies.host import CACHE, Host, IntArray
from foreshare.policies.reading import Reading
from foreshare.policies.registry import tuned_knobs

from .allocator import OracleAllocator

INFORMED = "oracle-triage"


def informed_mind(hal: SimulatedHal, host: Host, seed: int, options: DecideOptions | None = None) -> Mind:
    """Return triage with its tuned knobs about the VMs of ``hal``, made with ``seed`` and at its start."""
    knobs = tuned_knobs("triage")
    eyes = OracleAllocator("oracle-paying", hal, seed)
    return Mind(host, TrueState(eyes, host, knobs), Triage(knobs), options or UNHURRIED)


class TrueState:
    """A :class:`~foreshare.policies.forecast.Forecaster`: what arrives in the tick in which the decision lands.

    Beside it what is queued then; both as units at the needs of that tick.
    """

    def __init__(self, oracle: OracleAllocator, host: Host, knobs: BacklogKnobs) -> None:
        self._oracle, self._knobs = oracle, knobs
        self.rebind(host, np.arange(len(host)))

    def update(self, reading: Reading, into: Forecast) -> None:
        """See :class:`~foreshare.policies.forecast.Forecaster`. Looks at the simulator instead of the reading."""
        k = self._knobs
        self._oracle.follow()
        arriving, queued, need = self._oracle.truth()
        into.mean[:] = arriving[:, None] * need
        into.mean[:, CACHE] = self._reserved
        into.upper[:] = into.mean
        into.backlog[:] = queued[:, None] * need
        into.backlog[:, CACHE] = 0.0
        np.multiply(into.backlog, 1.0 / k.clear_ticks, out=into.clearing)
        np.minimum(into.clearing, k.clear_most * into.mean, out=into.clearing)
        np.divide(queued, arriving, out=into.delay_ticks, where=arriving > 0.0)
        np.copyto(into.usage, np.nan_to_num(reading.usage))
        into.exact = True

    def rebind(self, host: Host, rows: IntArray) -> None:
        """See :class:`~foreshare.policies.forecast.Forecaster`."""
        self._oracle.bind(host)
        self._reserved = host.reservation[:, CACHE].astype(np.float64)
