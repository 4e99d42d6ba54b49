"""What a forecaster answers: every VM's demand in the tick in which the decision lands; and the last value.

Usage at the limit is censored: demand was at least that. Where the HAL tells nothing better than usage, a censored
value is raised by ``PROBE`` so that a throttled VM is found out in a few ticks rather than never.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from foreshare.policies.host import BoolArray, FloatArray, Host, IntArray, R
from foreshare.policies.reading import Quality, Reading

PROBE = 1.25


@dataclass(slots=True, eq=False)
class Forecast:
    """Demand in units, (N, R), in a batch (H, N, R).

    ``mean`` is the expectation, ``upper`` what demand stays below nine times out of ten.
    """

    mean: FloatArray
    upper: FloatArray
    clearing: FloatArray = field(default_factory=lambda: np.zeros((0, R)))
    """(N, R) units on top of demand that clear the backlog in time; 0 from forecasters that do not look at it."""
    usage: FloatArray = field(default_factory=lambda: np.zeros((0, R)))
    """(N, R) units used in the tick just done, the last known where missing; 0 from forecasters that do not tell."""
    backlog: FloatArray = field(default_factory=lambda: np.zeros((0, R)))
    """(N, R) unit-ticks of work queued now; 0 from forecasters that do not look at it."""
    delay_ticks: FloatArray = field(default_factory=lambda: np.zeros(0))
    """(N,) queueing delay now, ticks; 0 from forecasters that do not look at it."""
    unsure: BoolArray = field(default_factory=lambda: np.zeros(0, bool))
    """(N,) more may be wanted than can be seen: an upper end is none then. False from forecasters that do not tell."""

    exact: bool = False
    """The forecaster knows (oracles): what a reading leaves in doubt casts none on what it says."""

    def __post_init__(self) -> None:
        size = self.mean.shape
        for name in ("clearing", "usage", "backlog"):
            if getattr(self, name).shape != size:
                setattr(self, name, np.zeros(size))
        if self.delay_ticks.shape != size[:-1]:
            self.delay_ticks = np.zeros(size[:-1])
        if self.unsure.shape != size[:-1]:
            self.unsure = np.zeros(size[:-1], bool)

    @classmethod
    def empty(cls, n: int, batch: tuple[int, ...] = ()) -> Forecast:
        """Return a forecast of nothing."""
        return cls(np.zeros((*batch, n, R)), np.zeros((*batch, n, R)))


class Forecaster(Protocol):
    """Sees every tick's reading, answers for all VMs at once."""

    def update(self, reading: Reading, into: Forecast) -> None:
        """Take in one reading and fill ``into``. A VM never seen is forecast at its reservation."""
        ...

    def rebind(self, host: Host, rows: IntArray) -> None:
        """Carry on with another set of VMs; ``rows`` (N,) is each one's former row, or -1 for a new one."""
        ...


def observed_demand(reading: Reading, out: FloatArray) -> FloatArray:
    """Fill ``out`` (N, R) with the demand that a reading speaks of, NaN where it says nothing."""
    np.fmax(reading.demand_low, reading.usage, out=out)
    censored = (reading.quality & Quality.CENSORED) != 0
    blind = censored & ~(reading.demand_low > reading.usage * 1.02)
    np.multiply(out, PROBE, out=out, where=blind)
    return out


class LastValue:
    """Tomorrow is as today: mean and upper are the last observed demand."""

    def __init__(self, host: Host) -> None:
        self._last = at_reservation(host)
        self._seen = np.empty_like(self._last)

    def update(self, reading: Reading, into: Forecast) -> None:
        """See :class:`Forecaster`."""
        seen = observed_demand(reading, self._seen)
        np.copyto(self._last, seen, where=np.isfinite(seen))
        into.mean[:] = self._last
        into.upper[:] = self._last

    def rebind(self, host: Host, rows: IntArray) -> None:
        """See :class:`Forecaster`."""
        self._last = carry(self._last, rows, at_reservation(host))
        self._seen = np.empty_like(self._last)


def at_reservation(host: Host) -> FloatArray:
    """Return every VM's reservation, (N, R) or (H, N, R): what is forecast of a VM of which nothing is known."""
    return np.array(np.broadcast_to(host.reservation, host.shape), np.float64, order="C")


Kind = TypeVar("Kind", bound=np.generic)


def carry(old: npt.NDArray[Kind], rows: IntArray, fresh: npt.NDArray[Kind], axis: int = -2) -> npt.NDArray[Kind]:
    """Return ``fresh`` with the rows of ``old`` that ``rows`` (former row or -1) names taken over.

    ``axis``: where the VMs are, -2 for (..., N, R) and -1 for (..., N).
    """
    out = fresh.copy()
    known = rows >= 0
    np.moveaxis(out, axis, 0)[known] = np.moveaxis(old, axis, 0)[rows[known]]
    return out
