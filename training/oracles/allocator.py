"""The oracles as policies: an allocator that looks into the simulator, and a forecaster that tells what is true."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from foreshare.envs.hal.simulated import SimulatedHal
from foreshare.envs.simulator.cache import miss_ratio
from foreshare.envs.simulator.scenario import PerResource, Scenario
from foreshare.policies.allocators.base import Request
from foreshare.policies.decide import UNHURRIED, DecideOptions, Mind
from foreshare.policies.errors import InputError
from foreshare.policies.forecast import Forecast
from foreshare.policies.host import CACHE, CPU, IO, MEMORY, FloatArray, Host, IntArray, R
from foreshare.policies.reading import Reading

from .foresight import Foresight
from .options import Menu, OracleKnobs, make_menu
from .queues import Situation
from .solve import Choices, solve

_SWAPS, _GAP = 1, 0.01
"""Of solve.py: another tick is about to decide again, and closer answers were not worth anything there."""
_T = TypeVar("_T", np.int64, np.float64)


class _Kind(NamedTuple):
    sees_future: bool
    pays: bool


ORACLES: dict[str, _Kind] = {
    "oracle-paying": _Kind(sees_future=True, pays=True),
    "oracle-free": _Kind(sees_future=True, pays=False),
    "oracle-state": _Kind(sees_future=False, pays=True),
}
"""By name: whether it sees the arrivals of the horizon, and whether moves cost it anything."""


def world_of(name: str, scenario: Scenario) -> Scenario:
    """Return the scenario that an oracle is judged in: for the free one a host where nothing is cold after a move."""
    kind = _kind(name)
    if kind.pays:
        return scenario
    nothing = PerResource(cpu=0, cache=0, memory=0, io=0)
    return replace(scenario, host=replace(scenario.host, warm_ticks=nothing))


def oracle_mind(
    name: str, hal: SimulatedHal, host: Host, seed: int, *, knobs: OracleKnobs | None = None,
    options: DecideOptions | None = None,
) -> Mind:  # fmt: skip
    """Return a mind that decides by the named oracle about the VMs of ``hal``, which was made with ``seed``.

    The hal must be at its start. Raises InputError for a name that does not exist.
    """
    allocator = OracleAllocator(name, hal, seed, knobs)
    return Mind(host, TrueDemand(allocator), allocator, replace(options or UNHURRIED, headroom=1.0))


def _kind(name: str) -> _Kind:
    if name not in ORACLES:
        raise InputError(f"no oracle named {name!r}; there are {', '.join(ORACLES)}")
    return ORACLES[name]


class OracleAllocator:
    """Chooses options anew in every tick, then hands out what is left. Implements the Allocator protocol.

    Resources take effect after delays of their own. CPU, memory and IO are decided together for the tick in which the
    slowest of them can be in force; the faster ones wait for it (:class:`_Waiting`), so that what serves a request
    comes at once. Ways that are slower still come after them, and the options know that.
    """

    batched = False

    def __init__(self, name: str, hal: SimulatedHal, seed: int, knobs: OracleKnobs | None = None) -> None:
        self.name = name
        self.knobs = knobs or OracleKnobs()
        self._kind = _kind(name)
        self._simulator = hal.simulator
        d = hal.simulator.scenario.host.delay_ticks
        after = np.maximum(np.array([d.cpu, d.cache, d.memory, d.io]), 1) - 1
        self._lead = int(after[[CPU, MEMORY, IO]].max())
        """Ticks that pass before a decision about CPU, memory and IO is in force."""
        self._waits: IntArray = np.maximum(self._lead - after, 0)
        self._ways_after = max(int(after[CACHE]) - self._lead, 0)
        self._decided, self._wants = _Waiting(self._waits), _Waiting(self._waits)
        self.foresight = Foresight(
            hal.simulator.scenario, seed, self.knobs.horizon_ticks + self._lead, tick_ms=hal.simulator.tick_ms
        )
        self._prices: FloatArray | None = None
        self._host: Host | None = None
        self._now: Situation | None = None
        self._want: FloatArray = np.zeros((hal.simulator.vms, R))

    def follow(self) -> None:
        """Catch up with the host's clock."""
        if self._simulator.t < self.foresight.t:
            raise InputError("the host is behind its oracle: an oracle starts with its host")
        while self.foresight.t < self._simulator.t:
            self.foresight.advance()
        self._now = None

    def bind(self, host: Host) -> None:
        """Work for these VMs. Raises InputError unless they are the simulator's, in its order."""
        if host.vms.uuid != self._simulator.model.vms.uuid:
            raise InputError("an oracle decides about all VMs of its simulated host, in the simulator's order")
        self._host, self._prices = host, None
        self._decided.clear()
        self._wants.clear()

    def wanted(self) -> FloatArray:
        """Return (N, R) units that would serve backlog and arrivals at once in the tick in which each column lands.

        Ways as true demand.
        """
        s = self._situation()
        sim = self._simulator
        need = sim.model.need_at(miss_ratio(sim.ways[0], *sim.model.miss)) * s.mix
        work = s.backlog + s.arrivals[0]
        most = s.threads / np.maximum(need[:, CPU], 1e-12)
        want: FloatArray = np.minimum(work, most)[:, None] * need
        want[:, CACHE] = sim.model.need_ways * (work > 0.0)
        self._want = want
        return self._wants.through(want)

    def truth(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Return requests that arrive in the tick in which a decision lands (N,), queued then (N,), their needs (N, R).

        Needs are those with the ways held now.
        """
        s, sim = self._situation(), self._simulator
        return s.arrivals[0], s.backlog, sim.model.need_at(miss_ratio(sim.ways[0], *sim.model.miss)) * s.mix

    def allocate(self, request: Request, host: Host, tick: int) -> IntArray:
        """See :class:`~foreshare.policies.allocators.base.Allocator`."""
        if host is not self._host:
            self.bind(host)
        if not len(host):
            return np.zeros((0, R), np.int64)
        sim = self._simulator
        ask = np.clip(self._want, host.floor, host.cap)
        situation = self._situation()._replace(low=entitled(ask, host))
        menu = make_menu(situation, sim.model, sim.scenario.host, host, self.knobs, pays=self._kind.pays)
        found = solve(choices_of(menu, host), prices=self._prices, swaps=_SWAPS, gap=_GAP)
        self._prices = found.prices
        units = menu.units[:, np.arange(len(host)), found.option].T.astype(np.int64)
        hand_out_rest(units, host, situation.held if self._kind.pays else None)
        return self._decided.through(units)

    def _situation(self) -> Situation:
        """Return what is true when a decision of this tick takes effect; ``low`` is still 0."""
        if self._now is not None:
            return self._now
        sim, f, lead, h = self._simulator, self.foresight, self._lead, self.knobs.horizon_ticks
        m, alive = sim.model, sim.alive[0]
        if self._kind.sees_future:
            arrivals, mix = f.arrivals * alive, f.mix[lead]
        else:
            arrivals = np.broadcast_to(f.past[-1] * alive, (h + lead, len(alive)))
            mix = f.past_mix
        mix = mix.copy()
        past, backlog = f.past, sim.backlog[0].copy()
        need = m.need_at(miss_ratio(sim.ways[0], *m.miss))
        if sim.t:  # what siblings that idle leave to a VM, as far as the newest tick tells
            usual = need[:, CPU] * sim.workloads.mix[0, :, CPU]
            mix[:, CPU] *= np.divide(sim.need[0, :, CPU], usual, out=np.ones_like(usual), where=usual > 0.0)
        held = sim.commanded[0]
        for k in range(lead):
            held = self._decided.in_force(k - lead, held)
            rate = _bottleneck(held - sim.cold[0], need * mix, sim.threads)
            backlog = np.maximum(backlog + arrivals[k] - rate, 0.0)
        if lead:
            past = np.concatenate([past[lead:], arrivals[:lead]])[-len(past) :]
        self._now = Situation(
            backlog=backlog * alive, past=past, arrivals=arrivals[lead:], mix=mix, held=held, cold=sim.cold[0],
            shared_ways=self._shared_ways(), low=np.zeros((len(alive), R), np.int64), threads=sim.threads,
            ways_after=self._ways_after,
        )  # fmt: skip
        return self._now

    def _shared_ways(self) -> FloatArray:
        """Return (N,) the ways that each VM would have in the shared class, were it in it, at today's access rates."""
        sim = self._simulator
        m = sim.model
        own = sim.commanded[0, :, CACHE]
        access = m.rate * m.base[:, MEMORY] * sim.alive[0]
        together = own <= 0.0
        zone = m.vms.zone
        zones = int(zone.max(initial=0)) + 1
        ways = np.bincount(zone, weights=own, minlength=zones)
        pool = np.maximum(sim.scenario.host.ways - ways, sim.scenario.host.shared_ways)[zone]
        crowd = np.bincount(zone, weights=access * together, minlength=zones)[zone] + access * ~together
        here = access * pool / np.maximum(crowd, 1e-300)
        return np.asarray(np.where(together & (sim.t > 0), sim.ways[0], here))


class TrueDemand:
    """The oracle's forecaster: what each VM would use next, were it not limited. The guard entitles it to that."""

    def __init__(self, oracle: OracleAllocator) -> None:
        self._oracle = oracle

    def update(self, reading: Reading, into: Forecast) -> None:
        """See :class:`~foreshare.policies.forecast.Forecaster`. Looks at the simulator instead of the reading."""
        self._oracle.follow()
        want = self._oracle.wanted()
        into.mean[:] = into.upper[:] = want
        into.exact = True

    def rebind(self, host: Host, rows: IntArray) -> None:
        """See :class:`~foreshare.policies.forecast.Forecaster`."""
        self._oracle.bind(host)


def entitled(ask: FloatArray, host: Host) -> IntArray:
    """Return (N, R) units that each VM must be given: ``min(ask, reservation)`` in granules, as the guard counts it."""
    low = np.maximum(np.ceil(np.minimum(ask, host.reservation) - 1e-9).astype(np.int64), host.floor)
    low = -(-low // host.granule) * host.granule
    ways = low[:, CACHE]
    ways[(ways > 0) & (ways < host.topology.min_ways)] = host.topology.min_ways
    return np.asarray(low, np.int64)


def choices_of(menu: Menu, host: Host) -> Choices:
    """Return a menu as a knapsack: a pool for each resource of each zone, and one for the cache classes."""
    n = len(menu.value)
    pool = np.zeros((R, n), np.int64)
    capacity: list[float] = []
    for g in host.groups:
        pool[g.cols, g.rows] = (len(capacity) + np.arange(len(g.capacity)))[:, None]
        capacity += g.capacity.astype(float).tolist()
    cost = menu.units
    classes = host.topology.max_classes
    if classes and n > classes - 1:
        cost = np.concatenate([cost, (menu.units[CACHE, None] > 0.0).astype(np.float64)])
        pool = np.concatenate([pool, np.full((1, n), len(capacity), np.int64)])
        capacity.append(float(classes - 1))
    return Choices(menu.value, cost, pool, np.array(capacity))


def hand_out_rest(units: IntArray, host: Host, held: FloatArray | None = None) -> None:
    """Give what is left of CPU, memory and IO to those who hold some, in proportion, within their caps; in place.

    With ``held`` (N, R) units of before, VMs first keep of these what there is room for: what stays is warm.
    """
    for g in host.groups:
        block, granule, cap = units[g.rows, g.cols], host.granule[g.rows, g.cols], host.cap[g.rows, g.cols]
        gates = np.arange(R)[g.cols] != CACHE
        if held is not None:
            keep = np.clip(held[g.rows, g.cols], block, cap) - block
            room = g.capacity - block.sum(axis=0)
            keep *= np.clip(room / np.maximum(keep.sum(axis=0), 1.0), 0.0, 1.0) * gates
            block = block + np.floor(keep / granule + 1e-9).astype(np.int64) * granule
        left = np.maximum(g.capacity - block.sum(axis=0), 0)
        share = block * (left / np.maximum(block.sum(axis=0), 1)) * gates
        more = np.minimum(np.floor(share / granule + 1e-9).astype(np.int64) * granule, cap - block)
        units[g.rows, g.cols] = block + np.maximum(more, 0)


class _Waiting:
    """Lets each column of what passes through wait for ticks of its own, so that all take effect at once."""

    def __init__(self, ticks: IntArray) -> None:
        """``ticks``: (R,) how long each column waits."""
        self._ticks = ticks
        self._length = int(ticks.max(initial=0)) + 1
        self._seen: list[npt.NDArray[Any]] = []

    def clear(self) -> None:
        """Start anew: the next one passes at once."""
        self._seen.clear()

    def through(self, newest: npt.NDArray[_T]) -> npt.NDArray[_T]:
        """Take in (N, R) values, return those whose time has come, column by column."""
        self._seen = [*self._seen, newest][-self._length :]
        if self._length == 1:
            return newest
        out = newest.copy()
        for r, wait in enumerate(self._ticks.tolist()):
            out[:, r] = self._seen[max(len(self._seen) - 1 - wait, 0)][:, r]
        return out

    def in_force(self, back: int, otherwise: FloatArray) -> FloatArray:
        """Return (N, R) what was taken in ``-back`` calls ago, where that waits; ``otherwise`` for what does not."""
        if len(self._seen) < -back:
            return otherwise
        return np.where(self._ticks > 0, self._seen[back], otherwise)


def _bottleneck(units: FloatArray, need: FloatArray, threads: FloatArray) -> FloatArray:
    """Return (N,) requests per tick."""
    usable = units[:, (CPU, MEMORY, IO)].copy()
    np.minimum(usable[:, 0], threads, out=usable[:, 0])
    rates = usable / np.maximum(need[:, (CPU, MEMORY, IO)], 1e-12)
    return np.asarray(rates.min(axis=1))
