"""What an allocator is given and what it answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from foreshare.policies import kernel
from foreshare.policies.axes import any_of
from foreshare.policies.forecast import Forecast
from foreshare.policies.host import CPU, IO, FloatArray, Host, IntArray, R
from foreshare.policies.reading import Quality, Reading
from foreshare.policies.rounding import apportion

IN_DOUBT = np.full(R, Quality.CENSORED | Quality.MISSING, np.uint8)
IN_DOUBT[[CPU, IO]] |= np.uint8(Quality.STALE)
"""(R,) what casts doubt on a value. Memory bandwidth and ways are read in rounds of many ticks: stale is usual there"""


@dataclass(slots=True, eq=False)
class Request:
    """What the VMs' analyzers put to the manager, in units; the priorities that go with it are the host's.

    Shapes are those of one host; in a batch (H, ...) stands in front.

    ``ask`` (N, R): what the VM should get to be on time (the forecast's upper end with headroom, in its bounds).
    ``need`` (N, R): what it is expected to use; below this it is contended.
    """

    ask: FloatArray
    need: FloatArray
    usage: FloatArray = field(default_factory=lambda: np.zeros((0, R)))
    """(N, R) units used in the tick just done; 0 where the forecaster does not tell."""
    backlog: FloatArray = field(default_factory=lambda: np.zeros((0, R)))
    """(N, R) unit-ticks of work queued now; 0 where the forecaster does not look at it."""
    delay_ticks: FloatArray = field(default_factory=lambda: np.zeros(0))
    """(N,) queueing delay now, ticks: the nearest that a host can see of latency."""

    def __post_init__(self) -> None:
        size = self.ask.shape
        for name in ("usage", "backlog"):
            if getattr(self, name).shape != size:
                setattr(self, name, np.zeros(size))
        if self.delay_ticks.shape != size[:-1]:
            self.delay_ticks = np.zeros(size[:-1])

    def read_only(self) -> Request:
        """Return views that cannot be written to, for who is asked but not trusted."""
        views = [a.view() for a in (self.ask, self.need, self.usage, self.backlog, self.delay_ticks)]
        for view in views:
            view.setflags(write=False)
        return Request(*views)

    @classmethod
    def empty(cls, n: int, batch: tuple[int, ...] = ()) -> Request:
        """Return a request for nothing."""
        return cls(np.zeros((*batch, n, R)), np.zeros((*batch, n, R)))


def make_request(forecast: Forecast, host: Host, reading: Reading, headroom: float, into: Request) -> None:
    """Turn a forecast into a request within each VM's bounds. VMs that are not there ask for their floor.

    Where a VM stands at its limit, or nothing was read of it, a forecast is no ground to hold it below its reservation:
    it asks for at least that.
    """
    np.copyto(into.usage, forecast.usage)
    np.copyto(into.backlog, forecast.backlog)
    np.copyto(into.delay_ticks, forecast.delay_ticks)
    present = reading.present
    if kernel.compiled is not None:
        kernel.compiled.request(
            kernel.tables(host), kernel.hosts_in(host), headroom, forecast.mean, forecast.upper, forecast.clearing,
            None if forecast.exact else reading.quality, IN_DOUBT, forecast.unsure, present, into.ask, into.need,
        )  # fmt: skip
        return
    np.multiply(forecast.upper, headroom, out=into.ask)
    into.ask += forecast.clearing
    np.clip(into.ask, host.floor, host.cap, out=into.ask)
    if not forecast.exact:
        unsure = any_of((reading.quality & IN_DOUBT) != 0) | forecast.unsure
        np.maximum(into.ask, host.reservation, out=into.ask, where=unsure[..., None])
    np.clip(forecast.mean, host.floor, host.cap, out=into.need)
    if not present.all():
        gone = ~present
        into.ask[..., gone, :] = host.floor[gone]
        into.need[..., gone, :] = host.floor[gone]


class Allocator(Protocol):
    """Decides how many units each VM gets. The guard makes whatever comes out safe."""

    name: str
    batched: bool
    """Whether it can decide about a batch of hosts at once."""

    def allocate(self, request: Request, host: Host, tick: int) -> IntArray:
        """Return units (N, R) for this tick; (H, N, R) for a batch, where it can."""
        ...


def former_rows(old: Host | None, new: Host) -> IntArray:
    """Return (N,) the row that each VM of ``new`` had in ``old``, by UUID; -1 for those that were not there."""
    rows = {} if old is None else {u: i for i, u in enumerate(old.vms.uuid)}
    return np.array([rows.get(u, -1) for u in new.vms.uuid], np.int64)


def whole_units(x: FloatArray, host: Host) -> IntArray:
    """Round amounts (N, R), whose pool sums are within capacity, to units in granules."""
    out = np.zeros(x.shape, np.int64)
    for g in host.groups:
        block = x[..., g.rows, g.cols]
        out[..., g.rows, g.cols] = apportion(block, host.granule[g.rows, g.cols], g.capacity, host.vms.rank[g.rows])
    return out


def within_capacity(x: FloatArray, host: Host) -> FloatArray:
    """Shrink the columns of ``x`` (N, R) that exceed their pool in proportion; return the same array."""
    for g in host.groups:
        block = x[g.rows, g.cols]
        x[g.rows, g.cols] = block * np.minimum(1.0, g.capacity / np.maximum(block.sum(axis=0), 1e-9))
    return x
