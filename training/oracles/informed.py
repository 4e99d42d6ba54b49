"""Policies that know, fed by true demand and backlog instead of estimates: what better ones can be worth."""

from __future__ import annotations

import numpy as np

from foreshare.envs.hal.simulated import SimulatedHal
from foreshare.policies.backlog_forecast import BacklogKnobs
from foreshare.policies.decide import UNHURRIED, DecideOptions, Mind
from foreshare.policies.errors import InputError
from foreshare.policies.forecast import Forecast
from foreshare.policies.host import CACHE, Host, IntArray
from foreshare.policies.reading import Reading
from foreshare.policies.registry import KNOBS, LEARNED_BASE, make_mind, tuned_knobs

from .allocator import OracleAllocator

INFORMED = {"oracle-triage": "triage", "oracle-champion": "champion"}
"""The policies that there are of this kind, and what each is otherwise."""


def informed_mind(name: str, hal: SimulatedHal, host: Host, seed: int, options: DecideOptions | None = None) -> Mind:
    """Return a mind for the VMs of ``hal``, made with ``seed`` and at its start, that decides as ``INFORMED[name]``.

    Knobs and weights are those that it has anyhow. Raises InputError for a name that does not exist.
    """
    if name not in INFORMED:
        raise InputError(f"no policy named {name!r}; there are {', '.join(INFORMED)}")
    usual = make_mind(INFORMED[name], host, options or UNHURRIED)
    knobs = tuned_knobs(INFORMED[name] if INFORMED[name] in KNOBS else LEARNED_BASE)
    eyes = OracleAllocator("oracle-paying", hal, seed)
    return Mind(host, TrueState(eyes, host, knobs), usual.policy, options or UNHURRIED)


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
