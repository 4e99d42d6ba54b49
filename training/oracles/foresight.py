"""What will arrive: arrivals never depend on allocations, so a twin that runs ahead knows them exactly."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from foreshare.envs.simulator.host import Simulator
from foreshare.envs.simulator.scenario import Scenario
from foreshare.envs.simulator.traces import Trace
from foreshare.policies.errors import InputError
from foreshare.policies.host import FloatArray, R


class Foresight:
    """A second simulator with the same scenario and seed, always ``horizon_ticks`` ahead of the host it looks at.

    Common random numbers make this exact: the streams of :class:`~foreshare.envs.simulator.host.Simulator` are drawn
    once a tick whatever the allocation is. VMs that somebody removes by hand are the only thing it cannot foresee.
    """

    def __init__(
        self,
        scenario: Scenario,
        seed: int,
        horizon_ticks: int = 10,
        *,
        tick_ms: float = 10.0,
        traces: Mapping[str, Trace] | None = None,
    ) -> None:
        if horizon_ticks < 1:
            raise InputError(f"a horizon of {horizon_ticks} ticks shows nothing")
        self._twin = Simulator(scenario, seed=seed, tick_ms=tick_ms, traces=traces)
        n = self._twin.vms
        behind = int(self._twin.model.target_ticks.max(initial=1))
        self.t = 0
        """Ticks that the host has done; ``arrivals[0]`` is its next."""
        self.past: FloatArray = np.zeros((behind, n))
        """(P, N) requests that arrived in the ``P`` ticks just done (P the longest target), the newest last."""
        self.past_mix: FloatArray = np.ones((n, R))
        """(N, R) needs in the tick just done relative to the usual."""
        self.arrivals: FloatArray = np.zeros((horizon_ticks, n))
        """(H, N) requests that arrive in the next ``H`` ticks."""
        self.mix: FloatArray = np.ones((horizon_ticks, n, R))
        """(H, N, R) need of a request in these ticks relative to its usual need; the cache column is unused."""
        for k in range(horizon_ticks):
            self._look(k)

    def _look(self, k: int) -> None:
        self._twin.step()
        self.arrivals[k] = self._twin.arrivals[0]
        self.mix[k] = self._twin.workloads.mix[0]

    def advance(self) -> None:
        """Follow the host by one tick."""
        self.past[:-1] = self.past[1:]
        self.past[-1] = self.arrivals[0]
        self.past_mix[:] = self.mix[0]
        self.arrivals[:-1] = self.arrivals[1:]
        self.mix[:-1] = self.mix[1:]
        self._look(-1)
        self.t += 1
