"""What an allocator is given and what it answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from foreshare.policies.forecast import Forecast
from foreshare.policies.host import BoolArray, FloatArray, Host, IntArray, R


@dataclass(slots=True, eq=False)
class Request:
    """What the VMs' analyzers put to the manager, in units; the priorities that go with it are the host's.

    ``ask`` (N, R): what the VM should get to be on time (the forecast's upper end with headroom, in its bounds).
    ``need`` (N, R): what it is expected to use; below this it is contended.
    """

    ask: FloatArray
    need: FloatArray

    @classmethod
    def empty(cls, n: int) -> Request:
        """Return a request for nothing."""
        return cls(np.zeros((n, R)), np.zeros((n, R)))


def make_request(forecast: Forecast, host: Host, present: BoolArray, headroom: float, into: Request) -> None:
    """Turn a forecast into a request within each VM's bounds. VMs that are not there ask for their floor."""
    np.multiply(forecast.upper, headroom, out=into.ask)
    np.clip(into.ask, host.floor, host.cap, out=into.ask)
    np.clip(forecast.mean, host.floor, host.cap, out=into.need)
    if not present.all():
        gone = ~present
        into.ask[gone] = host.floor[gone]
        into.need[gone] = host.floor[gone]


class Allocator(Protocol):
    """Decides how many units each VM gets. The guard makes whatever comes out safe."""

    name: str

    def allocate(self, request: Request, host: Host, tick: int) -> IntArray:
        """Return units (N, R) for this tick."""
        ...
