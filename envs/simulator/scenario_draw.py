"""Scenarios drawn at random: any seed names one unseen host, its VMs and their work.

What a draw spans: 8 to 256 logical CPUs on one or two sockets, with and without SMT, 4 to 256 VMs of all workload
kinds, some of which come, go, grow or change during a run, priorities 0 to 3, a mix of isolation, reservations of about
40 to 70 % of capacity, 11 to 20 ways, delays and cold-start times, telemetry faults. Magnitudes (CPU time and cache
traffic of a request, targets, phases) are log-uniform about those of the scenario ``mixed``. Bandwidths are sized last,
so that memory and IO are about as scarce as CPU on every host: a drawn ratio of their mean utilisation to that of CPU,
0.5 to 1.05.

Only ``Generator.random`` over PCG64 is used and every number is rounded to three digits, so that a seed means the same
scenario on every machine and numpy.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from enum import Enum
from typing import Any

import numpy as np

from foreshare.policies.errors import CapacityError, InputError
from foreshare.policies.host import Host, Isolation

from .model import RATES, build_model
from .scenario import (
    FORMAT_VERSION,
    KINDS,
    HostShape,
    HotAdd,
    MissCurve,
    PerResource,
    PhaseChange,
    Scenario,
    TelemetryShape,
    VmShape,
    WorkloadShape,
)

DRAW_STREAM = 0xD4A3
"""Sets these draws apart from every other use of the same seed."""
RESCTRL_STREAM = 1
"""Sets what an option draws apart from what is drawn without it."""
CPU_COUNTS = (8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
MIN_VMS, MAX_VMS = 4, 256
TELEMETRY: Mapping[str, Mapping[str, float]] = {
    "clean": {"noise": 0.01},
    "noisy": {"noise": 0.10},
    "gaps": {"noise": 0.03, "gap_share": 0.03, "gap_ms": 40.0},
    "resets": {"noise": 0.03, "reset_share": 0.01},
    "stale": {"noise": 0.03, "stale_share": 0.10, "stale_ms": 50.0},
    "frozen": {"noise": 0.03, "frozen_share": 0.03, "frozen_ms": 60.0},
    "all-faults": {
        "noise": 0.05, "gap_share": 0.01, "reset_share": 0.003, "stale_share": 0.03, "frozen_share": 0.01,
    },
}  # fmt: skip
"""Telemetry faults by name."""
DRAWN_KINDS = KINDS
UNITS = ("fine", "channels")
"""Bandwidths in fine throttle steps, or in whole memory channels and PCIe lanes."""
TWO_SOCKETS_CPUS = 24
"""Hosts with fewer logical CPUs have one socket."""
MOST_RESERVED = 0.70
QUARANTINE_MS = (10.0, 300.0)
"""How long the ways of isolated VMs rest, where what resctrl does is drawn too."""
_ATTEMPTS = 8
POISSON_SHARE = 0.3
"""Share of the VMs whose requests come at random within a tick; those of the others come evenly."""
EVENTFUL_SHARE, EVENTS_MS = 0.12, (500.0, 10_000.0)
"""Share of the VMs to which something happens during a run, and when."""
_PRIORITY_SHARES = (0.30, 0.30, 0.25, 0.15)


@dataclass(frozen=True, slots=True)
class _Cost:
    """Ranges of what a request costs: CPU ms, MB of cache traffic and kB of IO per CPU ms, target in ms."""

    cpu_ms: tuple[float, float]
    access_mb: tuple[float, float]
    io_kb: tuple[float, float]
    target_ms: tuple[float, float]


_SERVICE = _Cost((0.1, 1.0), (4.0, 14.0), (5.0, 60.0), (20.0, 60.0))
_COSTS = {
    "batch": _Cost((2.0, 8.0), (6.0, 14.0), (50.0, 200.0), (80.0, 300.0)),
    "training": _Cost((4.0, 10.0), (8.0, 15.0), (20.0, 80.0), (80.0, 300.0)),
    "database": _Cost((0.4, 1.5), (8.0, 14.0), (80.0, 200.0), (30.0, 100.0)),
    "streaming": _Cost((0.5, 2.0), (10.0, 20.0), (100.0, 400.0), (50.0, 150.0)),
}


class _Dice:
    """Rounded random values from one stream of uniforms."""

    def __init__(self, seed: int, *attempt: int) -> None:
        sequence = np.random.SeedSequence(seed, spawn_key=(DRAW_STREAM, *attempt))
        self._random = np.random.Generator(np.random.PCG64(sequence)).random

    def chance(self, share: float) -> bool:
        return float(self._random()) < share

    def uniform(self, low: float, high: float) -> float:
        return rounded(low + (high - low) * float(self._random()))

    def log(self, low: float, high: float) -> float:
        return rounded(low * (high / low) ** float(self._random()))

    def whole(self, low: int, high: int) -> int:
        return low + min(int(float(self._random()) * (high - low + 1)), high - low)

    def pick(self, among: Sequence[Any]) -> Any:
        return among[self.whole(0, len(among) - 1)]

    def shuffled(self, items: Sequence[Any]) -> list[Any]:
        order = np.argsort([float(self._random()) for _ in items], kind="stable")
        return [items[i] for i in order]


def rounded(value: float, digits: int = 3) -> float:
    """Return ``value`` with so many significant digits."""
    return float(f"{value:.{digits - 1}e}")


def draw(
    seed: int,
    *,
    load: float | None = None,
    cpus: int | None = None,
    vms: int | None = None,
    zones: int | None = None,
    kinds: Sequence[str] | None = None,
    telemetry: str | None = None,
    units: str | None = None,
    name: str | None = None,
    resctrl: bool = False,
) -> Scenario:
    """Return the scenario of ``seed``; what is not given is drawn too. ``Host`` accepts every one.

    ``load``: mean demand over capacity; ``cpus``: logical; ``zones``: sockets; ``kinds``: workload kinds to draw from;
    ``telemetry``: one of TELEMETRY; ``units``: one of UNITS; ``resctrl``: the same host, and besides what resctrl and
    its hardware do: a quarantine for ways, limits on memory bandwidth in coarse steps and on few classes. Raises
    InputError for what cannot be, CapacityError where so many VMs cannot live on so few CPUs.
    """
    if seed < 0:
        raise InputError(f"seed {seed}: a seed is a whole number of at least 0")
    for what, value, known in (("telemetry", telemetry, tuple(TELEMETRY)), ("units", units, UNITS)):
        if value is not None and value not in known:
            raise InputError(f"{what} {value!r} is none of {', '.join(known)}")
    for kind in kinds or ():
        if kind not in DRAWN_KINDS:
            raise InputError(f"workload kind {kind!r} is none of {', '.join(DRAWN_KINDS)}")
    failure: CapacityError | None = None
    for attempt in range(_ATTEMPTS):
        dice = _Dice(seed, attempt)
        shape = _host(dice, cpus, vms, zones, units)
        # Whole cores for isolated VMs are what can make a host too small: later attempts have fewer of them.
        most_isolated = 0 if attempt == _ATTEMPTS - 1 else _most_isolated(*shape) >> attempt
        host, n = shape
        chosen = telemetry or dice.pick(tuple(TELEMETRY))
        scenario = Scenario(
            name=name or f"draw-{seed}",
            host=host,
            load=load if load is not None else dice.uniform(0.40, 0.95),
            reserved=dice.uniform(0.42, 0.66),
            telemetry=TelemetryShape(**TELEMETRY[chosen]),
            vm=_vms(dice, host, n, tuple(kinds or DRAWN_KINDS), most_isolated),
            about=f"drawn with seed {seed}: {n} VMs on {host.cores * host.threads_per_core} CPUs, {chosen} telemetry",
        )
        try:
            scenario = _reserving(_sized(scenario, dice))
            model = build_model(scenario, tick_ms=10.0)
            Host(model.topology, model.vms)
        except CapacityError as e:
            failure = e
            continue
        return _as_resctrl_does(scenario, _Dice(seed, attempt, RESCTRL_STREAM)) if resctrl else scenario
    raise CapacityError(f"no draw with seed {seed} fits: {failure}")


def _as_resctrl_does(scenario: Scenario, dice: _Dice) -> Scenario:
    h = scenario.host
    host = replace(
        h, quarantine_ms=dice.log(*QUARANTINE_MS), memory_step=dice.whole(1, 3),
        memory_classes=dice.pick((0, 7, h.classes - 1)),
    )  # fmt: skip
    return replace(scenario, host=host)


def _host(
    dice: _Dice, cpus: int | None, vms: int | None, zones: int | None, units: str | None
) -> tuple[HostShape, int]:
    """Return the hardware, its bandwidth units still without their size, and the number of VMs."""
    coarse = (units or ("channels" if dice.chance(0.1) else "fine")) == "channels"
    count = cpus or dice.pick(CPU_COUNTS)
    most = min(MAX_VMS, 3 * count, 8 if coarse else MAX_VMS)
    n = vms if vms is not None else min(max(round(dice.log(MIN_VMS, most)), MIN_VMS), most)
    threads = 2 if count % 2 == 0 and dice.chance(0.5) else 1
    sockets = zones or (2 if dice.chance(0.4) and count >= TWO_SOCKETS_CPUS and n >= 2 * MIN_VMS else 1)
    ways = dice.pick((11, 12, 15, 16, 20))
    memory = max(4 * n, 12) if coarse else max(dice.whole(4, 8) * n, 40)
    host = HostShape(
        cores=count // threads,
        threads_per_core=threads,
        smt_yield=dice.uniform(1.2, 1.4),
        ways=ways,
        shared_ways=dice.whole(1, 2),
        min_ways=dice.whole(1, 2),
        classes=dice.pick((8, 15, 16)),
        way_bytes=dice.pick((1e6, 1.5e6, 2e6, 4e6)),
        zones=sockets,
        memory_units=-(-memory // sockets) * sockets,
        memory_unit="channel" if coarse else "throttle step",
        io_units=max(4 * n, dice.pick((32, 64, 128))) if coarse else max(dice.whole(4, 8) * n, 40),
        io_unit="lane" if coarse else "throttle step",
        delay_ticks=PerResource(
            cpu=dice.whole(1, 2), cache=dice.whole(1, 3), memory=dice.whole(1, 2), io=dice.whole(1, 2)
        ),
        warm_ticks=PerResource(cpu=dice.whole(1, 4), cache=dice.whole(4, 12), memory=0, io=0),
        cold_cpu=dice.uniform(0.2, 0.5),
    )
    return host, n


def _most_isolated(host: HostShape, n: int) -> int:
    ways = host.ways - host.shared_ways
    return min(n // 3, host.cores // 4, host.classes - 1, (ways - 2) // (host.min_ways + 1))


def _vms(dice: _Dice, host: HostShape, n: int, kinds: tuple[str, ...], most_isolated: int) -> tuple[VmShape, ...]:
    cpus = host.cores * host.threads_per_core
    sizes = [dice.log(0.4, 2.5) for _ in range(n)]
    total = sum(sizes)
    apart = set(dice.shuffled(range(n))[: dice.whole(0, most_isolated)])
    # Every kind comes as often as every other: a shuffled deck, not independent dice.
    deck = dice.shuffled([kinds[i % len(kinds)] for i in range(max(n, len(kinds)))])
    out = []
    for i in range(n):
        kind = deck[i]
        cost = _COSTS.get(kind, _SERVICE)
        workload = _workload(dice, kind)
        random = dice.chance(POISSON_SHARE)
        isolation = Isolation.SHARED
        if i in apart:
            isolation = Isolation.SECURITY if dice.chance(0.2) else Isolation.ISOLATED
        priority = int(np.searchsorted(np.cumsum(_PRIORITY_SHARES)[:-1], dice.uniform(0.0, 1.0)))
        cpu_ms = dice.log(*cost.cpu_ms)
        mean_cpus = 0.9 * cpus * sizes[i] / total
        # Never a bottleneck of its own making: its threads can do more than its highest phase asks for.
        vcpus = min(math.ceil(1.3 * mean_cpus * max(workload.peak, 2.0)) + 1, cpus)
        out.append(
            VmShape(
                name=f"{kind.replace('_', '-')}-{i + 1}",
                priority=priority,
                isolation=isolation,
                target_ms=max(round(dice.log(*cost.target_ms) / 10.0) * 10.0, 10.0),
                cpus=sizes[i],
                vcpus=vcpus,
                cpu_ms=cpu_ms,
                access_kb=rounded(1000.0 * cpu_ms * dice.log(*cost.access_mb)),
                stall=dice.uniform(0.6, 1.4),
                io_kb=rounded(cpu_ms * dice.log(*cost.io_kb)),
                reserve=rounded(dice.log(0.6, 1.7) * (1.0 + 0.3 * priority)),
                own_ways=host.min_ways + dice.whole(0, 1) if i in apart else 0,
                miss=MissCurve(
                    none=dice.uniform(0.3, 0.6),
                    all=dice.uniform(0.05, 0.25),
                    half_ways=rounded(host.ways * host.zones / n * dice.log(0.3, 2.0)),
                    steepness=dice.uniform(1.0, 2.0),
                ),
                workload=workload,
                arrivals="poisson" if random else "fluid",
                request_cv=dice.uniform(0.0, 1.5),
                **_life(dice, vcpus, cpus),
            )
        )
    return tuple(out)


def _life(dice: _Dice, vcpus: int, cpus: int) -> dict[str, Any]:
    """Return what becomes of a VM during a run: nothing for most; the others come, go, grow or turn to other work."""
    eventful, what, at_ms = dice.chance(EVENTFUL_SHARE), dice.pick(range(4)), rounded(dice.uniform(*EVENTS_MS), 2)
    load = dice.log(0.5, 1.6)
    if not eventful:
        return {}
    match what:
        case 0:
            return {"arrive_ms": at_ms}
        case 1:
            return {"leave_ms": at_ms}
        case 2:
            return {"hot_add": HotAdd(at_ms=at_ms, vcpus=min(2 * vcpus, cpus))}
    return {"phase_change": PhaseChange(at_ms=at_ms, load=load)}


def _workload(dice: _Dice, kind: str) -> WorkloadShape:
    on, off = dice.log(60.0, 600.0), dice.log(120.0, 2000.0)
    share = on / (on + off)
    return WorkloadShape(
        kind=kind,
        on_ms=on,
        off_ms=off,
        # With 0.9 / share the low phase still has a tenth of the work left.
        peak=max(rounded(min(dice.log(1.5, 4.0), 0.9 / share)), 1.0),
        ramp_ms=dice.log(10.0, 80.0),
        period_ms=dice.log(2000.0, 20_000.0),
        amplitude=dice.uniform(0.3, 0.8),
        io_burst=dice.uniform(2.0, 6.0),
        noise=dice.uniform(0.05, 0.2),
        decay_ms=dice.log(100.0, 1000.0),
        hurst=dice.uniform(0.65, 0.9),
        inflate=dice.uniform(1.5, 4.0),
    )


def _sized(scenario: Scenario, dice: _Dice) -> Scenario:
    """Give the bandwidth units their size, so that mean use of each is a drawn share of the mean use of CPU.

    The scenario's load fixes the request rate at which its scarcest resource stands at ``load``. With bandwidths beyond
    measure that is CPU (rate ``r``); with units of one byte a second it is memory, or IO (rate ``r_m``). Utilisation is
    linear in the rate, so units of ``r / (r_m ratio)`` bytes a second put memory at ``ratio`` times CPU.
    """
    plenty, scarce = 1e15, 1.0

    def rate(memory: float, io: float) -> float:
        host = replace(scenario.host, memory_unit_bytes=memory, io_unit_bytes=io)
        return float(build_model(replace(scenario, host=host, load=1.0), tick_ms=10.0).rate.sum())

    free = rate(plenty, plenty)
    memory = rounded(free / rate(scarce, plenty) / dice.uniform(0.5, 1.05))
    io = rounded(free / rate(plenty, scarce) / dice.uniform(0.5, 1.05))
    host = replace(scenario.host, memory_unit_bytes=memory, io_unit_bytes=io)
    if host.memory_unit != "channel":
        host = replace(host, memory_unit=_bandwidth(memory), io_unit=_bandwidth(io))
    return replace(scenario, host=host)


def _bandwidth(bytes_per_s: float) -> str:
    return f"{bytes_per_s / 1e9:.3g} GB/s" if bytes_per_s >= 1e9 else f"{bytes_per_s / 1e6:.3g} MB/s"


def _reserving(scenario: Scenario) -> Scenario:
    """Promise less where whole cores and single units have rounded the reservations up beyond MOST_RESERVED."""
    model = build_model(scenario, tick_ms=10.0)
    units = np.array([sum(p.units for p in model.topology.pools if p.resource == r) for r in RATES])
    share = float((model.vms.reservation.sum(axis=0)[list(RATES)] / units).max())
    if share <= MOST_RESERVED:
        return scenario
    return replace(scenario, reserved=rounded(max(scenario.reserved * (2.0 * MOST_RESERVED / share - 1.0), 0.2)))


def to_toml(scenario: Scenario) -> str:
    """Return a scenario file that ``load_scenario`` reads back equal. What has its default value is left out."""
    lines = [f"version = {FORMAT_VERSION}"]
    tables: list[str] = []
    for key, value in _said(scenario):
        if is_dataclass(value):
            tables += ["", f"[{key}]", *(f"{k} = {_toml(v)}" for k, v in _said(value))]
        elif isinstance(value, tuple) and value and is_dataclass(value[0]):
            for item in value:
                tables += ["", f"[[{key}]]", *(f"{k} = {_toml(v)}" for k, v in _said(item))]
        elif value != ():
            lines.append(f"{key} = {_toml(value)}")
    return "\n".join([*lines, *tables]) + "\n"


def _said(shape: Any) -> list[tuple[str, Any]]:
    """Return the fields of a dataclass that differ from their defaults."""
    out = []
    for f in fields(shape):
        value = getattr(shape, f.name)
        if f.default is MISSING or value != f.default:
            out.append((f.name, value))
    return out


def _toml(value: Any) -> str:
    if is_dataclass(value):
        return "{ " + ", ".join(f"{k} = {_toml(v)}" for k, v in _said(value)) + " }"
    if isinstance(value, Enum):
        return json.dumps(value.name.lower())
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple | list):
        return "[" + ", ".join(_toml(v) for v in value) + "]"
    return repr(value)
