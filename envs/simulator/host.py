"""The simulated hosts: what happens in one tick when VMs are asked for work and hold what they were given.

Arrays are (H hosts, N VMs, R resources), float64, amounts in units, times in ticks; no step loops over hosts or VMs.
One tick, for each VM, with ``a`` arrivals, backlog ``q`` and ``need_r`` unit-ticks for a request (model.py):

- what it holds: ``e_r``, the commanded units after the delay, less what is still cold. A gain of ``g`` units is cold at
  first by ``cold_share * g`` and warms linearly over ``warm_ticks``; a loss counts at once.
- cache: ``w`` own ways or a part of the shared class's, hence the miss ratio ``m(w)`` (cache.py); misses cost memory
  traffic and stalled CPU time: ``need_cpu = base_cpu (1 + stall m)``, ``need_memory = access m``.
- service: ``s = min(q + a, min_r e_r / need_r)`` over CPU, memory and IO (the bottleneck), CPU also bound by the VM's
  vCPUs. Where all VMs together want more of a resource than there is, those that want it get proportionally less;
  VMs with cores of their own leave only the others to the rest.
- queue, first in first out: ``q' = q + a - s``; work is conserved. Lateness follows from the queue (lateness.py).

No VM is ever without CPU, memory or IO bandwidth: TRICKLE_UNITS is the least, as no throttle of a real host is zero.
"""

from __future__ import annotations

import numpy as np

from foreshare.policies.errors import InputError
from foreshare.policies.host import BoolArray, FloatArray, IntArray, R, Resource

from .cache import effective_ways, miss_ratio
from .counters import Counters
from .lateness import LatenessMeter, UsageMeter, violation_pct, weights_of
from .model import RATES, HostModel, build_model
from .scenario import Scenario
from .workloads import Workloads

TRICKLE_UNITS = 0.05
_OCCUPANCY_SHARE = 0.25  # how fast shared ways follow the access rates, per tick


class Simulator:
    """``hosts`` copies of a scenario, each with random streams of its own, stepped together."""

    def __init__(
        self, scenario: Scenario, *, hosts: int = 1, seed: int = 0, tick_ms: float = 10.0, first_host: int = 0
    ) -> None:
        """``first_host`` is the index of the first host in the seed tree; results depend on it, not on ``hosts``."""
        if hosts < 1 or first_host < 0 or not 1.0 <= tick_ms <= 1000.0:
            raise InputError(f"{hosts} hosts from {first_host} with a tick of {tick_ms:g} ms cannot be simulated")
        self.scenario = scenario
        self.model: HostModel = build_model(scenario, tick_ms=tick_ms)
        self.hosts, self.vms, self.tick_ms = hosts, len(self.model.vms), tick_ms
        self.tick_ns = round(tick_ms * 1e6)
        self.t = 0
        """Ticks done."""
        m, h = self.model, scenario.host
        size = (hosts, self.vms)
        self.workloads = Workloads(
            [v.workload for v in scenario.vm], hosts=hosts, seed=seed, tick_ms=tick_ms, first_host=first_host
        )
        self.counters = Counters(
            scenario.telemetry, hosts=hosts, vms=self.vms, seed=seed, tick_ns=self.tick_ns, first_host=first_host
        )
        self.lateness = LatenessMeter(np.broadcast_to(m.target_ticks, size))
        self.utilisation = UsageMeter(m.capacity)
        self.weight = weights_of(m.vms.priority)

        d, w = h.delay_ticks, h.warm_ticks
        self._delay: IntArray = np.maximum(np.array([d.cpu, d.cache, d.memory, d.io]), 1)
        self._cold_share: FloatArray = np.array([h.cold_cpu, 1.0, 1.0, 1.0])
        warm = np.array([w.cpu, w.cache, w.memory, w.io], np.float64)
        self._cold_share[warm == 0] = 0.0
        self._warm: FloatArray = np.maximum(warm, 1.0)
        whole = m.capacity.copy()
        whole[Resource.CACHE] = 0.0
        self.commanded: FloatArray = np.broadcast_to(whole, (*size, R)).copy()
        """(H, N, R) units last asked for. As found, nobody is limited and all share the cache."""
        self.gained: FloatArray = np.zeros((*size, R))
        """(H, N, R) units of the last command that its VM did not hold before."""
        self._in_flight = np.broadcast_to(self.commanded, (int(self._delay.max()), *size, R)).copy()
        self._gain_in_flight = np.zeros_like(self._in_flight)
        self.holding: FloatArray = self.commanded.copy()
        """(H, N, R) units in force."""
        self.cold: FloatArray = np.zeros((*size, R))
        """(H, N, R) of these, units not yet worth anything."""
        self._cooling: FloatArray = np.zeros((*size, R))  # units that warm up per tick
        self.alive: BoolArray = np.ones(size, bool)
        self.backlog: FloatArray = np.zeros(size)
        self.arrivals: FloatArray = np.zeros(size)
        self.served: FloatArray = np.zeros(size)
        self.served_total: FloatArray = np.zeros(size)
        self.ways: FloatArray = np.zeros(size)
        """(H, N) ways that each VM profited from in the newest tick."""
        self.need: FloatArray = np.zeros((*size, R))
        """(H, N, R) unit-ticks of a request in the newest tick."""
        self.used: FloatArray = np.zeros((*size, R))
        """(H, N, R) units in use in the newest tick."""
        self.demand: FloatArray = np.zeros((*size, R))
        """(H, N, R) units that the arrivals of the newest tick would use if nothing limited the VM: CPU and memory as
        with the ways in the cache column, with which more ways would hardly help; nothing for the backlog."""
        self._access: FloatArray = np.ones(size)
        self._need_best = m.need_at(miss_ratio(m.need_ways, *m.miss))

    def command(self, units: FloatArray | IntArray, gained: FloatArray | None = None) -> None:
        """Ask for an allocation (H, N, R), in force after the delay; cache 0 means the shared class.

        ``gained``: units that are new to their VM, where that is more than the difference (a core against another).
        """
        difference = np.maximum(units - self.commanded, 0.0)
        self.gained += difference if gained is None else np.maximum(gained, difference)
        np.copyto(self.commanded, units)

    def remove(self, host: int, vm: int) -> None:
        """Let a VM vanish: nothing arrives for it any more, what it had queued is lost."""
        self.alive[host, vm] = False

    def step(self) -> None:
        """Advance every host by one tick."""
        m = self.model
        self._take_effect()
        self.workloads.step()
        a = np.multiply(m.rate, self.workloads.intensity, out=self.arrivals)
        a *= self.alive
        self.backlog *= self.alive
        effective = self.holding - self.cold
        own = self.holding[..., Resource.CACHE]
        self.ways, together = effective_ways(
            own, self.cold[..., Resource.CACHE], self._access,
            total=float(m.capacity[Resource.CACHE]), shared=float(self.scenario.host.shared_ways),
        )  # fmt: skip
        need = self.need = m.need_at(miss_ratio(self.ways, *m.miss), self.workloads.mix)
        usable = np.maximum(effective, TRICKLE_UNITS)
        cpu = np.minimum(usable[..., Resource.CPU], m.threads)
        usable[..., Resource.CPU] = cpu
        rates = np.divide(usable, need, out=np.full_like(need, np.inf), where=need > 1e-12)
        waiting_work = self.backlog + a
        bottleneck = rates[..., RATES].argmin(axis=-1)
        served = np.minimum(waiting_work, rates[..., RATES].min(axis=-1))
        served *= self._fair_share(served[..., None] * need)
        np.copyto(self.served, served)
        np.subtract(waiting_work, served, out=self.backlog)
        np.maximum(self.backlog, 0.0, out=self.backlog)  # rounding
        self.served_total += served
        access = served * (m.base[:, Resource.MEMORY] * self.workloads.mix[..., Resource.MEMORY])
        self._access += _OCCUPANCY_SHARE * (access - self._access)
        self._account(together, bottleneck)
        self.t += 1

    def violation_pct(self) -> FloatArray:
        """Return V so far, (H,) percent."""
        return violation_pct(self.lateness.late_total, self.lateness.arrived_total, self.weight)

    def _take_effect(self) -> None:
        """Bring the commands that are due into force, and warm up what is cold."""
        length = len(self._in_flight)
        slot = self.t % length
        self._in_flight[slot] = self.commanded
        self._gain_in_flight[slot] = self.gained
        self.gained[:] = 0.0
        np.maximum(self.cold - self._cooling, 0.0, out=self.cold)
        for r in Resource:
            due = (self.t - int(self._delay[r]) + 1) % length
            self.holding[..., r] = self._in_flight[due, ..., r]
            gain = self._gain_in_flight[due, ..., r]
            if self._cold_share[r] and gain.any():
                new = gain * self._cold_share[r]
                self.cold[..., r] += new
                self._cooling[..., r] = np.where(gain > 0, self.cold[..., r] / self._warm[r], self._cooling[..., r])
        np.minimum(self.cold, self.holding, out=self.cold)

    def _fair_share(self, wanted: FloatArray) -> FloatArray:
        """Return the (H, N) share of ``wanted`` (H, N, R) units that the hardware can give to each VM."""
        m = self.model
        total = wanted.sum(axis=1)
        over = total > m.capacity
        over[:, Resource.CACHE] = False
        factor = np.ones((self.hosts, self.vms))
        owned = (self.holding[..., Resource.CPU] * m.isolated).sum(axis=1)
        left = np.where(owned < m.capacity[Resource.CPU], m.capacity[Resource.CPU] - owned, m.capacity[Resource.CPU])
        crowd = (wanted[..., Resource.CPU] * (1.0 - m.isolated)).sum(axis=1)
        squeezed = crowd > left
        if squeezed.any():
            part = np.where(squeezed, left / np.maximum(crowd, 1e-300), 1.0)[:, None]
            factor = np.where(m.isolated > 0, factor, part)
        if over.any():
            part = np.where(over, m.capacity / np.maximum(total, 1e-300), 1.0)[:, None, :]
            factor = np.minimum(factor, np.where(wanted > 0.0, part, 1.0).min(axis=-1))
        return factor

    def _account(self, together: BoolArray, bottleneck: IntArray) -> None:
        """Bring usage, true demand, lateness and counters up to date after the service of this tick."""
        m = self.model
        np.multiply(self.served[..., None], self.need, out=self.used)
        busy = self.served > 0.0
        self.used[..., Resource.CACHE] = np.minimum(self.ways, m.need_ways) * busy
        best = self._need_best * self.workloads.mix
        asked = np.minimum(self.arrivals, m.threads / best[..., Resource.CPU])
        np.multiply(asked[..., None], best, out=self.demand)
        self.demand[..., Resource.CACHE] = m.need_ways * (asked > 0.0)
        self.lateness.update(self.arrivals, self.backlog)
        self.utilisation.update(self.used)

        limit = self.holding.copy()
        limit[..., Resource.CPU] = np.minimum(limit[..., Resource.CPU], m.threads)
        pool = np.maximum(
            m.capacity[Resource.CACHE] - limit[..., Resource.CACHE].sum(axis=1), self.scenario.host.shared_ways
        )
        limit[..., Resource.CACHE] = np.where(together, pool[:, None], limit[..., Resource.CACHE])
        stuck = self.backlog[..., None] * self.need
        cpu, io = stuck[..., Resource.CPU], stuck[..., Resource.IO]
        idle_threads = np.maximum(m.threads - self.used[..., Resource.CPU], 0.0)
        cpu_per_unit = 1.0 / self.scenario.host.units_per_cpu
        threads_waiting = np.minimum(cpu, idle_threads) * (bottleneck == RATES.index(Resource.CPU)) * cpu_per_unit
        held_back = np.minimum(io, limit[..., Resource.IO]) * (bottleneck == RATES.index(Resource.IO))
        self.counters.update(self.used, limit, threads_waiting, held_back, cpu_per_unit)
