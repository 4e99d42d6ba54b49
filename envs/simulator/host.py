"""The simulated hosts: what happens in one tick when VMs are asked for work and hold what they were given.

Arrays are (H hosts, N VMs, R resources), float64, amounts in units, times in ticks; no step loops over hosts or VMs.
Where a host has a quarantine, ways that leave an isolated VM are nobody's for a while (resting.py).
One tick, for each VM, with ``a`` arrivals, backlog ``q`` and ``need_r`` unit-ticks for a request (model.py):

- what it holds: ``e_r``, the commanded units after the delay, less what is still cold. A gain of ``g`` units is cold at
  first by ``cold_share * g`` and warms linearly over ``warm_ticks``; a loss counts at once.
- cache: ``w`` own ways or a part of the shared class's, hence the miss ratio ``m(w)`` (cache.py); misses cost memory
  traffic and stalled CPU time: ``need_cpu = base_cpu (1 + stall m)``, ``need_memory = access m``.
- service: ``s = min(q + a, min_r e_r / need_r)`` over CPU, memory and IO (the bottleneck), CPU also bound by the VM's
  vCPUs. Where all VMs together want more of a resource than there is, those that want it get proportionally less;
  VMs with cores of their own leave only the others to the rest.
- queue, first in first out: ``q' = q + a - s``; work is conserved. Lateness follows from the queue (lateness.py), mean
  latency inside a tick too (requests.py), where also VMs are described whose requests come at random.

No VM is ever without CPU, memory or IO bandwidth: TRICKLE_UNITS is the least, as no throttle of a real host is zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import ModuleType

import numpy as np

from foreshare.policies import kernel
from foreshare.policies.errors import InputError
from foreshare.policies.host import BoolArray, FloatArray, IntArray, R, Resource

from .bandwidth_classes import bandwidth_classes
from .cache import effective_ways, miss_ratio
from .counters import Counters, inflated
from .lateness import LatenessMeter, UsageMeter, violation_pct, weights_of
from .life import Change, Event, life_of
from .model import RATES, HostModel, build_model
from .requests import LatencyMeter, mean_latency_ticks, random_work, served_at_random
from .resting import resting_ways
from .scenario import Scenario
from .siblings import time_per_work
from .streams import REQUESTS, HostStreams, Seed
from .traces import Trace
from .workloads import Workloads
from .zones import ZoneSums

compiled_step = kernel.load("foreshare.envs.simulator._serve")
"""The step in C (compiled/serve.c), or None: then its numpy form runs, which is the reference."""
TRICKLE_UNITS = 0.05
NO_NEED = 1e-12
"""Unit-ticks for a request below which no resource limits a VM."""
TRICKLE_RATE = 1e-9
"""Requests per tick below which a rate counts as this: keeps the latency of a VM that is gone finite."""
_OCCUPANCY_SHARE = 0.25  # how fast shared ways follow the access rates, per tick


class Simulator:
    """``hosts`` copies of a scenario, each with random streams of its own, stepped together."""

    def __init__(
        self,
        scenario: Scenario,
        *,
        hosts: int = 1,
        seed: Seed = 0,
        tick_ms: float = 10.0,
        first_host: int = 0,
        traces: Mapping[str, Trace] | None = None,
    ) -> None:
        """``first_host`` is the index of the first host in the seed tree; results depend on it, not on ``hosts``.

        ``seed``: one for all hosts, or one for each: host h then does what a single one with ``seed[h]`` does.

        ``traces``: by VM name, what VMs of the kind replay replay, in place of the files that the scenario names.
        """
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
            [v.workload for v in scenario.vm], hosts=hosts, seed=seed, tick_ms=tick_ms, first_host=first_host,
            traces={i: traces[v.name] for i, v in enumerate(scenario.vm) if traces and v.name in traces},
        )  # fmt: skip
        self.counters = Counters(
            scenario.telemetry, hosts=hosts, vms=self.vms, seed=seed, tick_ns=self.tick_ns, first_host=first_host
        )
        self.lateness = LatenessMeter(np.broadcast_to(m.target_ticks, size))
        self.latency = LatencyMeter(size)
        self.utilisation = UsageMeter(m.capacity, hosts)
        self._owed: FloatArray = np.zeros(size)  # work of random arrivals that is still to be taken back
        self._request_streams: HostStreams | None = None
        if m.request_spread.any():
            self._request_streams = HostStreams(
                seed, hosts=hosts, first_host=first_host, stream=REQUESTS, vms=self.vms, uniforms=1, normals=1
            )
        self.weight = weights_of(m.vms.priority)

        d, w = h.delay_ticks, h.warm_ticks
        self._delays = [max(int(ticks), 1) for ticks in (d.cpu, d.cache, d.memory, d.io)]
        self._cold_share: FloatArray = np.array([h.cold_cpu, 1.0, 1.0, 1.0])
        warm = np.array([w.cpu, w.cache, w.memory, w.io], np.float64)
        self._cold_share[warm == 0] = 0.0
        self._warm: FloatArray = np.maximum(warm, 1.0)
        self._as_found: FloatArray = m.home * [1.0, 0.0, 1.0, 1.0]
        self.commanded: FloatArray = np.broadcast_to(self._as_found, (*size, R)).copy()
        """(H, N, R) units last asked for. As found, nobody is limited and all share the cache."""
        self.gained: FloatArray = np.zeros((*size, R))
        """(H, N, R) units of the last command that its VM did not hold before."""
        self._resting = resting_ways(scenario, m, hosts, tick_ms)
        self._classes = bandwidth_classes(h, m)
        self._there: FloatArray | None = None  # (H, N) ways of each VM's zone that anybody may fill; None: all
        self._in_flight = np.broadcast_to(self.commanded, (max(self._delays), *size, R)).copy()
        self._gain_in_flight = np.zeros_like(self._in_flight)
        self._some_gained = [False] * max(self._delays)
        self.holding: FloatArray = self.commanded.copy()
        """(H, N, R) units in force."""
        self.cold: FloatArray = np.zeros((*size, R))
        """(H, N, R) of these, units not yet worth anything."""
        self._cooling: FloatArray = np.zeros((*size, R))  # units that warm up per tick
        self._zones = ZoneSums(m.vms.zone, h.zones)
        self._capacity = m.home if h.zones > 1 else m.capacity  # (N, R) or (R,)
        self._smt = h.threads_per_core == 2
        self._relief: FloatArray = np.ones(size)
        self._life = life_of(scenario.vm, tick_ms)
        self.threads: FloatArray = m.threads.copy()
        """(N,) units of CPU that the vCPUs of each VM can use at once now."""
        self._rate: FloatArray = m.rate.copy()
        self.alive: BoolArray = np.ones(size, bool)
        """(H, N) whether the VM is there."""
        self.backlog, self.arrivals, self.served, self.served_total = (np.zeros(size) for _ in range(4))
        self.ways: FloatArray = np.zeros(size)
        """(H, N) ways that each VM profited from in the newest tick."""
        self.need: FloatArray = np.zeros((*size, R))
        """(H, N, R) unit-ticks of a request in the newest tick."""
        self.used: FloatArray = np.zeros((*size, R))
        """(H, N, R) units in use in the newest tick."""
        self.demand: FloatArray = np.zeros((*size, R))
        """(H, N, R) units that the arrivals of the newest tick would use if nothing limited the VM: CPU and memory as
        with the ways in the cache column, with which more ways would hardly help; nothing for the backlog."""
        self._liars = bool((m.inflate > 1.0).any())
        self._thread_ticks = 1.0 / scenario.host.units_per_cpu
        self._access: FloatArray = np.ones(size)
        self._need_best = m.need_at(miss_ratio(m.need_ways, *m.miss))
        # What compiled/serve.c reads, in its order.
        self._constants = (
            m.home, m.base, self._need_best, m.stall, m.miss, m.need_ways, m.fill_ways, m.inflate, m.isolated,
            m.request_spread, self.threads, m.vms.zone,
        )  # fmt: skip
        self._settings = np.array(
            [h.ways, h.shared_ways, h.smt_yield, h.units_per_cpu, self.tick_ns, self._smt, self._liars], np.float64
        )
        for i, v in enumerate(scenario.vm):
            if v.arrive_ms:
                self._vanish(slice(None), i)

    def command(
        self, units: FloatArray | IntArray, gained: FloatArray | IntArray | None = None, ways: IntArray | None = None
    ) -> None:
        """Ask for an allocation (H, N, R), in force after the delay; cache 0 means the shared class.

        ``gained``: units that are new to their VM, where that is more than the difference (a core against another).
        ``ways``: (H, N) masks, which ones the cache column counts: a host with a quarantine has to know.
        """
        if self._resting is not None:
            self._resting.promise(self.alive, ways, self.t)
        if kernel.compiled is not None and compiled_step is not None and units.shape == self.commanded.shape:
            fresh = None if gained is None else np.ascontiguousarray(gained, np.float64)
            asked = np.ascontiguousarray(units, np.float64)
            compiled_step.command(self.alive, asked, fresh, self.commanded, self.gained)
            return
        wanted = units * self.alive[..., None]
        difference = np.maximum(wanted - self.commanded, 0.0)
        self.gained += difference if gained is None else np.maximum(gained, difference) * self.alive[..., None]
        np.copyto(self.commanded, wanted)

    def remove(self, host: int, vm: int) -> None:
        """Let a VM vanish: nothing arrives for it any more, what it had queued is lost, what it held is free."""
        self._vanish(slice(host, host + 1), vm)

    def _vanish(self, hosts: slice, vm: int) -> None:
        self.alive[hosts, vm] = False
        self._access[hosts, vm] = 0.0
        if self._resting is not None:
            self._resting.forget(hosts, vm, self.t)
        for held in (self.commanded, self.gained, self.holding, self.cold, self._cooling):
            held[hosts, vm] = 0.0
        self._in_flight[:, hosts, vm] = 0.0
        self._gain_in_flight[:, hosts, vm] = 0.0

    def _live(self, events: Sequence[Event]) -> None:
        """Let happen what happens before this tick, on every host."""
        m = self.model
        for vm, change, value in events:
            match change:
                case Change.ARRIVE:  # as found: not limited, in the shared class, with empty caches
                    self.alive[:, vm] = True
                    self.commanded[:, vm] = self._as_found[vm]
                    self._in_flight[:, :, vm] = self._as_found[vm]
                    self.holding[:, vm] = self._as_found[vm]
                case Change.LEAVE:
                    self._vanish(slice(None), vm)
                case Change.HOT_ADD:
                    self.threads[vm] = min(value * self.scenario.host.units_per_cpu, m.home[vm, Resource.CPU])
                case Change.PHASE:
                    self._rate[vm] = m.rate[vm] * value

    def step(self) -> None:
        """Advance every host by one tick."""
        self.workloads.step()
        self.serve()

    def serve(self) -> None:
        """Let what the workloads ask for in this tick arrive and be served: a step without its workload."""
        m = self.model
        if self._life and self.t in self._life:
            self._live(self._life[self.t])
        self._take_effect()
        expected = self._rate * self.workloads.intensity
        expected *= self.alive
        np.copyto(self.arrivals, expected)
        dice: FloatArray | None = None
        if self._request_streams is not None:
            u, z = self._request_streams.draw()
            dice = u[:, 0]
            np.copyto(self.arrivals, random_work(expected, m.request_spread, z[:, 0], self._owed))
        self.backlog *= self.alive
        if kernel.compiled is not None and compiled_step is not None:
            self._serve_compiled(compiled_step, expected, dice)
        else:
            self._serve(expected, dice)
        self.t += 1

    def _serve_compiled(self, compiled: ModuleType, expected: FloatArray, dice: FloatArray | None) -> None:
        """As :meth:`_serve`, in one call."""
        late, latency, usage, counters = self.lateness, self.latency, self.utilisation, self.counters
        compiled.serve(
            self._constants, self._settings, self.scenario.host.zones, self.hosts,
            (
                expected, self.arrivals, None if dice is None else np.ascontiguousarray(dice),
                self._there, self.workloads.mix, self.holding, self.cold, self.backlog, self.served, self.served_total,
                self.ways, self.need, self.used, self.demand, self._access, self._relief,
                latency.latest, latency.sum, latency.weight,
                late.late, late.late_total, late.arrived_total, late.before, late.due(),
                usage.used_total, *counters.sums(),
            ),
        )  # fmt: skip
        late.turn()
        usage.ticks += 1
        counters.ticks += 1

    def _serve(self, expected: FloatArray, dice: FloatArray | None) -> None:
        """Serve what waits and what has arrived; bring every figure of this tick up to date."""
        m, a = self.model, self.arrivals
        self.ways, together = effective_ways(
            self.holding[..., Resource.CACHE], self.cold[..., Resource.CACHE], self._access, zones=self._zones,
            total=self._ways(), shared=float(self.scenario.host.shared_ways),
        )  # fmt: skip
        need = self.need = m.need_at(miss_ratio(self.ways, *m.miss), self.workloads.mix)
        if self._smt:
            self._relief = self._sibling_relief()
            need[..., Resource.CPU] *= self._relief
        usable = np.maximum(self.holding - self.cold, TRICKLE_UNITS)
        usable[..., Resource.CPU] = np.minimum(usable[..., Resource.CPU], self.threads)
        usable /= np.maximum(need, NO_NEED)  # requests per tick; of what is hardly needed there is always enough
        by_cpu, by_memory, by_io = (usable[..., r] for r in RATES)
        rate = np.minimum(by_cpu, by_memory)
        waits_for_io = by_io < rate
        waits_for_cpu = by_cpu <= np.minimum(by_memory, by_io)
        np.minimum(rate, by_io, out=rate)
        waiting_work = self.backlog + a
        if dice is None:
            served = np.minimum(waiting_work, rate)
        else:
            served = served_at_random(self.backlog, a, rate, expected * m.request_spread, dice)
        factor = self._fair_share(served[..., None] * need)
        served *= factor
        np.copyto(rate, served, where=factor < 1.0)  # where the host is short, that is all there was
        np.copyto(self.served, served)
        after = np.subtract(waiting_work, served)
        np.maximum(after, 0.0, out=after)  # rounding
        thread_ticks = need[..., Resource.CPU] * self._thread_ticks
        np.maximum(rate, TRICKLE_RATE, out=rate)
        self.latency.update(mean_latency_ticks(self.backlog, after, a, rate, thread_ticks), expected)
        self.backlog = after
        self.served_total += served
        access = served * (m.base[:, Resource.MEMORY] * self.workloads.mix[..., Resource.MEMORY])
        self._access += _OCCUPANCY_SHARE * (access - self._access)
        self._account(together, waits_for_cpu, waits_for_io)

    @property
    def usual_arrivals(self) -> FloatArray:
        """(N,) mean requests per tick of each VM as it is now (phases and their noise averaged out)."""
        return self._rate

    def violation_pct(self) -> FloatArray:
        """Return V so far, (H,) percent."""
        return violation_pct(self.lateness.late_total, self.lateness.arrived_total, self.weight)

    def _take_effect(self) -> None:
        """Bring the commands that are due into force, and warm up what is cold."""
        length = len(self._in_flight)
        slot = self.t % length
        self._in_flight[slot] = self.commanded
        if self._resting is not None:
            self._there = self._resting.take_effect(self.t, self._in_flight[slot], self.gained)
        self._gain_in_flight[slot] = self.gained
        self._some_gained[slot] = bool(self.gained.any())
        self.gained[:] = 0.0
        if self._classes is not None:
            self._classes.lift(self.cold)
        np.maximum(self.cold - self._cooling, 0.0, out=self.cold)
        for r, delay in enumerate(self._delays):
            due = (self.t - delay + 1) % length
            self.holding[..., r] = self._in_flight[due, ..., r]
            if not self._cold_share[r] or not self._some_gained[due]:
                continue
            gain = self._gain_in_flight[due, ..., r]
            self.cold[..., r] += gain * self._cold_share[r]
            self._cooling[..., r] = np.where(gain > 0, self.cold[..., r] / self._warm[r], self._cooling[..., r])
        np.minimum(self.cold, self.holding, out=self.cold)
        if self._classes is not None:
            self._classes.apply(self.holding, self.cold, self.backlog + self.arrivals, self.need)

    def _ways(self) -> FloatArray | float:
        return float(self.scenario.host.ways) if self._there is None else self._there

    def _cpus_left(self) -> FloatArray:
        """Return the CPU units, (H, 1) or (H, N), that VMs with cores of their own leave to others of their zone."""
        owned = self._zones.total(self.holding[..., Resource.CPU] * self.model.isolated)
        there = self._capacity[..., Resource.CPU]
        return np.where(owned < there, there - owned, there)

    def _sibling_relief(self) -> FloatArray:
        """Return (H, N) CPU time of a request relative to that with all siblings busy, as the last tick was."""
        busy = self.used[..., Resource.CPU]
        apart = self.model.isolated > 0
        others = self._zones.total(busy * ~apart)
        smt_yield = self.scenario.host.smt_yield
        threads = np.where(apart, self.holding[..., Resource.CPU], self._cpus_left())
        return time_per_work(np.where(apart, busy, others), threads, smt_yield) * (0.5 * smt_yield)

    def _fair_share(self, wanted: FloatArray) -> FloatArray:
        """Return the (H, N) share of ``wanted`` (H, N, R) units that the hardware can give to each VM."""
        m = self.model
        total = self._zones.totals(wanted)
        capacity = self._capacity
        over = total > capacity
        over[..., Resource.CACHE] = False
        factor = np.ones((self.hosts, self.vms))
        left = self._cpus_left()
        crowd = self._zones.total(wanted[..., Resource.CPU] * (1.0 - m.isolated))
        squeezed = crowd > left
        if squeezed.any():
            part = np.where(squeezed, left / np.maximum(crowd, 1e-300), 1.0)
            factor = np.where(m.isolated > 0, factor, part)
        if over.any():
            part = np.where(over, capacity / np.maximum(total, 1e-300), 1.0)
            np.copyto(wanted, np.where(wanted > 0.0, part, 1.0))
            for r in RATES:
                np.minimum(factor, wanted[..., r], out=factor)
        return factor

    def _account(self, together: BoolArray, waits_for_cpu: BoolArray, waits_for_io: BoolArray) -> None:
        """Bring usage, true demand, lateness and counters up to date after the service of this tick."""
        m = self.model
        np.multiply(self.served[..., None], self.need, out=self.used)
        busy = self.served > 0.0
        self.used[..., Resource.CACHE] = np.minimum(self.ways, m.fill_ways) * busy
        best = self._need_best * self.workloads.mix
        if self._smt:
            best[..., Resource.CPU] *= self._relief
        asked = np.minimum(self.arrivals, self.threads / best[..., Resource.CPU])
        np.multiply(asked[..., None], best, out=self.demand)
        self.demand[..., Resource.CACHE] = m.need_ways * (asked > 0.0)
        self.lateness.update(self.arrivals, self.backlog)
        self.utilisation.update(self.used)

        limit = self.holding.copy()
        limit[..., Resource.CPU] = np.minimum(limit[..., Resource.CPU], self.threads)
        h = self.scenario.host
        pool = np.maximum(self._ways() - self._zones.total(limit[..., Resource.CACHE]), h.shared_ways)
        limit[..., Resource.CACHE] = np.where(together, pool, limit[..., Resource.CACHE])
        stuck = self.backlog[..., None] * self.need
        cpu, io = stuck[..., Resource.CPU], stuck[..., Resource.IO]
        idle_threads = np.maximum(self.threads - self.used[..., Resource.CPU], 0.0)
        cpu_per_unit = 1.0 / self.scenario.host.units_per_cpu
        threads_waiting = np.minimum(cpu, idle_threads) * waits_for_cpu * cpu_per_unit
        held_back = np.minimum(io, limit[..., Resource.IO]) * waits_for_io
        used = self.used
        if self._liars:
            used, threads_waiting, held_back = inflated(
                used, limit, threads_waiting, held_back, m.inflate, cpu_per_unit
            )
        self.counters.update(used, limit, threads_waiting, held_back, cpu_per_unit)
