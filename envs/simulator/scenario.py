"""Scenario files: one simulated host, the VMs on it and what they do, as versioned TOML data.

A scenario is written for a nominal number of VMs. :func:`load_scenario` re-sizes it: the VM templates repeat in order
and cores and bandwidths grow in proportion, with the cache in step (a bigger host has bigger ways, not more of them).
Keys are the fields of the classes below; an unknown one is refused.
"""

from __future__ import annotations

import math
import re
import tomllib
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from foreshare.envs.hal.spec import MAX_VMS
from foreshare.policies.errors import ConfigError, InputError
from foreshare.policies.host import Isolation

FORMAT_VERSION = 1
MAX_FILE_BYTES = 1 << 20
KINDS = ("steady", "bursty", "diurnal", "batch", "training", "database", "churn")
_FOLDER = Path(__file__).parent / "scenarios"
_T = TypeVar("_T")


def _number(low: float, high: float = math.inf, **keywords: Any) -> Any:
    return field(metadata={"low": low, "high": high}, **keywords)


@dataclass(frozen=True, kw_only=True, slots=True)
class PerResource:
    """A number for each resource, in ticks."""

    cpu: int = _number(0, 1000, default=1)
    cache: int = _number(0, 1000, default=1)
    memory: int = _number(0, 1000, default=1)
    io: int = _number(0, 1000, default=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class HostShape:
    """The hardware: one zone."""

    cores: int = _number(1, 8192)
    """Physical cores."""
    threads_per_core: int = _number(1, 2, default=1)
    smt_yield: float = _number(1.0, 2.0, default=1.3)
    """Work of a core with both threads busy, relative to one thread alone."""
    units_per_cpu: int = _number(1, 100, default=10)
    ways: int = _number(2, 62)
    """Bits in a way mask."""
    shared_ways: int = _number(1, 61, default=1)
    """Of these, ways that always stay with the shared class."""
    min_ways: int = _number(1, 8, default=1)
    classes: int = _number(2, 1024, default=16)
    """Cache classes, the shared one included."""
    way_bytes: float = _number(1.0, default=2e6)
    memory_units: int = _number(1, 1_000_000)
    memory_unit: str = "GB/s"
    memory_unit_bytes: float = _number(1.0, default=1e9)
    io_units: int = _number(1, 1_000_000)
    io_unit: str = "50 MB/s"
    io_unit_bytes: float = _number(1.0, default=50e6)
    delay_ticks: PerResource = PerResource()
    """From a write to its effect; 1: from the next tick on, which is also the least that can be."""
    warm_ticks: PerResource = PerResource(cpu=3, cache=8, memory=0, io=0)
    """How long what was gained takes until it is worth its full amount, linearly."""
    cold_cpu: float = _number(0.0, 1.0, default=0.4)
    """Share of a gained CPU's work that is lost at first to cold private caches. A gained way is empty at first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TelemetryShape:
    """How good the counters are."""

    noise: float = _number(0.0, 0.5, default=0.02)
    """Relative standard deviation of a rate."""
    gap_share: float = _number(0.0, 1.0, default=0.0)
    """Share of values that are missing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MissCurve:
    """Miss ratio against ways held: ``all + (none - all) / (1 + (w / half_ways) ** steepness)``."""

    none: float = _number(0.0, 1.0, default=0.5)
    """Miss ratio with no way at all."""
    all: float = _number(0.0, 1.0, default=0.1)
    """Miss ratio with any number of ways."""
    half_ways: float = _number(1e-6, 1e6, default=1.0)
    """Ways at which half of the avoidable misses are gone."""
    steepness: float = _number(0.2, 10.0, default=1.5)


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkloadShape:
    """How demand moves about its mean. What a kind does not use it ignores; times are mean times."""

    kind: str
    peak: float = _number(1.0, 100.0, default=3.0)
    """Level of the high phase relative to the mean."""
    on_ms: float = _number(1.0, 1e9, default=150.0)
    off_ms: float = _number(1.0, 1e9, default=450.0)
    ramp_ms: float = _number(0.0, 1e9, default=20.0)
    """Time constant with which a new level is approached."""
    period_ms: float = _number(10.0, 1e12, default=20_000.0)
    """Length of a diurnal cycle."""
    amplitude: float = _number(0.0, 1.0, default=0.6)
    """Swing of a diurnal cycle relative to the mean."""
    io_burst: float = _number(0.0, 1000.0, default=6.0)
    """IO per request in a checkpoint or loading phase, relative to the rest."""
    noise: float = _number(0.0, 1.0, default=0.1)
    """Relative standard deviation of the arrivals about their level."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"workload kind {self.kind!r} is none of {', '.join(KINDS)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class VmShape:
    """One VM: its contract, what a request costs, and how requests arrive."""

    name: str
    priority: int = _number(-1000, 1000, default=0)
    isolation: Isolation = Isolation.SHARED
    target_ms: float = _number(1.0, 1e6, default=50.0)
    """Latency that a request must not exceed."""
    cpus: float = _number(1e-6, 1e6, default=1.0)
    """Mean CPU use relative to the other VMs; the scenario's ``load`` sets the sum."""
    vcpus: int = _number(1, 8192, default=4)
    """Threads that can run at once."""
    cpu_ms: float = _number(1e-6, 1e6, default=0.5)
    """CPU time of a request that always hits the cache."""
    access_kb: float = _number(0.0, 1e12, default=0.0)
    """Kilobytes (1000 B) that a request asks of the L3 cache; those that miss go to memory."""
    stall: float = _number(0.0, 100.0, default=1.0)
    """CPU time lost to stalls if every access missed, relative to ``cpu_ms``."""
    io_kb: float = _number(0.0, 1e12, default=0.0)
    """Kilobytes (1000 B) of IO of a request."""
    reserve: float = _number(0.01, 100.0, default=1.0)
    """Reservation in proportion to the VM's mean demand, relative to the other VMs."""
    own_ways: int = _number(0, 62, default=0)
    """Ways reserved; isolated VMs have at least the hardware's minimum."""
    miss: MissCurve = MissCurve()
    workload: WorkloadShape = WorkloadShape(kind="steady")


@dataclass(frozen=True, kw_only=True, slots=True)
class Scenario:
    """A host and its VMs. ``load`` and ``reserved`` are shares of the host's capacity."""

    name: str
    host: HostShape
    vm: tuple[VmShape, ...]
    load: float = _number(0.0, 10.0, default=0.65)
    """Mean demand of the scarcest of CPU, memory and IO, relative to capacity, with the ways shared equally."""
    reserved: float = _number(0.0, 0.95, default=0.55)
    """Sum of the reservations of CPU, memory and IO, relative to capacity; it does not follow ``load``."""
    telemetry: TelemetryShape = TelemetryShape()
    about: str = ""


def scenario_names() -> tuple[str, ...]:
    """Return the names of the scenarios that ship with foreshare."""
    return tuple(sorted(p.stem for p in _FOLDER.glob("*.toml")))


def load_scenario(name_or_path: str | Path, vms: int | None = None, seed: int = 0) -> Scenario:
    """Return a shipped scenario by name, or one from a file (anything with a slash or ending in .toml).

    ``vms`` re-sizes it. Where that leaves templates out, ``seed`` says which ones: 0 takes the first of the file,
    another one starts further down. Raises ConfigError (file and key) or InputError.
    """
    text = str(name_or_path)
    if "/" in text or text.endswith(".toml"):
        path = Path(text)
    elif re.fullmatch(r"[a-z0-9-]{1,64}", text) and (_FOLDER / f"{text}.toml").is_file():
        path = _FOLDER / f"{text}.toml"
    else:
        raise InputError(f"no scenario {text!r}: there are {', '.join(scenario_names())}, or give a .toml file")
    scenario = _read(path)
    if vms is not None and vms < len(scenario.vm):
        k = seed % len(scenario.vm)
        scenario = replace(scenario, vm=scenario.vm[k:] + scenario.vm[:k])
    return scenario if vms is None else resized(scenario, vms)


def resized(scenario: Scenario, vms: int) -> Scenario:
    """Return the scenario for another number of VMs, on a host that is larger or smaller in proportion.

    An L3 has only so many classes and ways: isolated VMs beyond them become shared ones.
    """
    if not 0 <= vms <= MAX_VMS:
        raise InputError(f"{vms} VMs: a simulated host takes 0 to {MAX_VMS}")
    if vms == len(scenario.vm):
        return scenario
    if vms == 0:
        return replace(scenario, vm=())
    if not scenario.vm:
        raise InputError(f"scenario {scenario.name!r} has no VM template to make {vms} VMs of")
    scale = vms / len(scenario.vm)
    h = scenario.host
    host = replace(
        h,
        cores=max(round(h.cores * scale), 2),
        way_bytes=h.way_bytes * scale,
        memory_units=max(round(h.memory_units * scale), vms),
        io_units=max(round(h.io_units * scale), vms),
    )
    classes, ways = h.classes - 1, h.ways - h.shared_ways
    out: list[VmShape] = []
    for i in range(vms):
        v = scenario.vm[i % len(scenario.vm)]
        own = max(v.own_ways, h.min_ways if v.isolation != Isolation.SHARED else 0)
        isolation = v.isolation
        if own and (classes == 0 or ways < own):
            own, isolation = 0, Isolation.SHARED
        classes, ways = classes - (own > 0), ways - own
        copy = i // len(scenario.vm)
        out.append(
            replace(
                v,
                name=f"{v.name}-{copy + 1}" if copy else v.name,
                isolation=isolation,
                own_ways=own,
                miss=replace(v.miss, half_ways=v.miss.half_ways / scale),
            )
        )
    return replace(scenario, host=host, vm=tuple(out))


def _read(path: Path) -> Scenario:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
    except OSError as e:
        raise ConfigError(f"cannot be read: {e.strerror}", path=str(path)) from e
    if len(raw) > MAX_FILE_BYTES:
        raise ConfigError("is larger than 1 MiB", path=str(path))
    try:
        table = tomllib.loads(raw.decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as e:
        raise ConfigError(f"is not TOML: {e}".splitlines()[0], path=str(path)) from e
    version = table.pop("version", None)
    if type(version) is not int or version != FORMAT_VERSION:
        raise ConfigError(f"version is {version!r}, this foreshare reads version = {FORMAT_VERSION}", path=str(path))
    table.setdefault("name", path.stem)
    table.setdefault("vm", [])
    scenario = _build(Scenario, table, "", str(path))
    if len(scenario.vm) > MAX_VMS:
        raise ConfigError(f"vm: {len(scenario.vm)} VMs, the most is {MAX_VMS}", path=str(path))
    names = [v.name for v in scenario.vm]
    if len(set(names)) != len(names):
        twice = next(n for n in names if names.count(n) > 1)
        raise ConfigError(f"vm: two VMs have the name {twice!r}", path=str(path))
    if scenario.host.shared_ways >= scenario.host.ways:
        raise ConfigError("host.shared_ways: must be below host.ways", path=str(path))
    return scenario


def _build(kind: type[_T], table: object, where: str, path: str) -> _T:
    """Return the frozen dataclass ``kind`` made of a TOML table, or raise ConfigError with the key."""
    if not is_dataclass(kind) or not isinstance(table, dict):
        raise ConfigError(f"{where}: must be a table", path=path)
    known = {f.name: f for f in fields(kind)}
    for key in table:
        if key not in known:
            raise ConfigError(f"{where}{key}: unknown key; known are {', '.join(sorted(known))}", path=path)
    hints = get_type_hints(kind)
    values: dict[str, Any] = {}
    for key, f in known.items():
        if key in table:
            values[key] = _value(hints[key], table[key], f"{where}{key}", path, f.metadata)
        elif f.default is MISSING:
            raise ConfigError(f"{where}{key}: is missing", path=path)
    try:
        return kind(**values)
    except ConfigError:
        raise
    except InputError as e:
        raise ConfigError(f"{where.rstrip('.')}: {e}", path=path) from e


def _value(hint: Any, value: object, where: str, path: str, limits: Any) -> Any:
    if hint == tuple[VmShape, ...]:
        if not isinstance(value, list):
            raise ConfigError(f"{where}: must be an array of tables", path=path)
        return tuple(_build(VmShape, v, f"{where}[{i}].", path) for i, v in enumerate(value))
    if is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, dict):
            raise ConfigError(f"{where}: must be a table", path=path)
        return _build(hint, value, f"{where}.", path)
    if hint is Isolation:
        choices = {i.name.lower(): i for i in Isolation}
        if not isinstance(value, str) or value not in choices:
            raise ConfigError(f"{where}: must be one of {', '.join(choices)}", path=path)
        return choices[value]
    if hint is str:
        if not isinstance(value, str) or not value.isprintable() or len(value) > 1000:
            raise ConfigError(f"{where}: must be a short printable string", path=path)
        return value
    if isinstance(value, bool) or not isinstance(value, int if hint is int else int | float):
        raise ConfigError(f"{where}: must be {'a whole number' if hint is int else 'a number'}", path=path)
    if not limits["low"] <= value <= limits["high"] or not math.isfinite(value):
        raise ConfigError(f"{where}: {value} is not between {limits['low']:g} and {limits['high']:g}", path=path)
    return hint(value)
