"""Scenario files: one simulated host, the VMs on it and what they do, as versioned TOML data.

A scenario is written for a nominal number of VMs. :func:`load_scenario` re-sizes it: the VM templates repeat in order
and cores and bandwidths grow in proportion, with the cache in step (a bigger host has bigger ways, not more of them).
Keys are the fields of the classes below; an unknown one is refused.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path

from foreshare.envs.hal.spec import MAX_VMS
from foreshare.policies.errors import ConfigError, InputError
from foreshare.policies.host import Isolation

from .toml_table import from_table, number

FORMAT_VERSION = 1
MAX_FILE_BYTES = 1 << 20
KINDS = (
    "steady", "bursty", "diurnal", "batch", "training", "database", "churn",
    "flash_crowd", "streaming", "self_similar", "oscillator", "inflator", "silent",
)  # fmt: skip
"""Workloads that are generated."""
REPLAY = "replay"
"""A workload that comes from a file (traces.py)."""
ARRIVALS = ("fluid", "poisson")
_FOLDER = Path(__file__).parent / "scenarios"


@dataclass(frozen=True, kw_only=True, slots=True)
class PerResource:
    """A number for each resource, in ticks."""

    cpu: int = number(0, 1000, default=1)
    cache: int = number(0, 1000, default=1)
    memory: int = number(0, 1000, default=1)
    io: int = number(0, 1000, default=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class HostShape:
    """The hardware. Cores and memory units are those of all zones together and divide among them evenly."""

    cores: int = number(1, 8192)
    """Physical cores."""
    zones: int = number(1, 8, default=1)
    """Sockets; each has an L3 of ``ways`` ways and memory of its own."""
    threads_per_core: int = number(1, 2, default=1)
    smt_yield: float = number(1.0, 2.0, default=1.3)
    """Work of a core with both threads busy, relative to one thread alone."""
    units_per_cpu: int = number(1, 100, default=10)
    ways: int = number(2, 62)
    """Bits in a way mask."""
    shared_ways: int = number(1, 61, default=1)
    """Of these, ways that always stay with the shared class."""
    min_ways: int = number(1, 8, default=1)
    classes: int = number(2, 1024, default=16)
    """Cache classes, the shared one included."""
    way_bytes: float = number(1.0, default=2e6)
    memory_units: int = number(1, 1_000_000)
    memory_unit: str = "GB/s"
    memory_unit_bytes: float = number(1.0, default=1e9)
    io_units: int = number(1, 1_000_000)
    io_unit: str = "50 MB/s"
    io_unit_bytes: float = number(1.0, default=50e6)
    delay_ticks: PerResource = PerResource()
    """From a write to its effect; 1: from the next tick on, which is also the least that can be."""
    warm_ticks: PerResource = PerResource(cpu=3, cache=8, memory=0, io=0)
    """How long what was gained takes until it is worth its full amount, linearly."""
    cold_cpu: float = number(0.0, 1.0, default=0.4)
    """Share of a gained CPU's work that is lost at first to cold private caches. A gained way is empty at first."""
    memory_step: int = number(1, 1_000_000, default=1)
    """Limits on memory bandwidth are rounded up to multiples of so many units."""
    memory_classes: int = number(0, 1024, default=0)
    """Limits on memory bandwidth that can be set; 0: one for each VM. Where there are more VMs, isolated ones have one
    each, the others share the rest, alike with alike, and may use what those of their class were given together."""
    quarantine_ms: float = number(0.0, 60_000.0, default=0.0)
    """How long a way that leaves an isolated VM rests with nobody before another VM may fill it, in whole ticks."""

    def __post_init__(self) -> None:
        for name, amount in (("cores", self.cores), ("memory_units", self.memory_units)):
            if amount % self.zones:
                raise InputError(f"{amount} {name} do not divide among {self.zones} zones")


@dataclass(frozen=True, kw_only=True, slots=True)
class TelemetryShape:
    """How good the counters are."""

    noise: float = number(0.0, 0.5, default=0.02)
    """Relative standard deviation of a rate."""
    gap_share: float = number(0.0, 1.0, default=0.0)
    """Share of values that are missing."""
    gap_ms: float = number(0.0, 1e6, default=0.0)
    """How long values stay missing, on average, with one reading a tick; 0: each is missing or not by itself."""
    reset_share: float = number(0.0, 0.5, default=0.0)
    """Share of values thrown away because their counter went back."""
    stale_share: float = number(0.0, 0.9, default=0.0)
    """Share of values that are those of the reading before."""
    stale_ms: float = number(0.0, 1e6, default=50.0)
    """How long a value stays stale, on average."""
    frozen_share: float = number(0.0, 0.9, default=0.0)
    """Share of time in which a counter stands still; what it missed shows all at once when it goes on."""
    frozen_ms: float = number(0.0, 1e6, default=50.0)
    """How long a counter stands still, on average."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MissCurve:
    """Miss ratio against ways held: ``all + (none - all) / (1 + (w / half_ways) ** steepness)``."""

    none: float = number(0.0, 1.0, default=0.5)
    """Miss ratio with no way at all."""
    all: float = number(0.0, 1.0, default=0.1)
    """Miss ratio with any number of ways."""
    half_ways: float = number(1e-6, 1e6, default=1.0)
    """Ways at which half of the avoidable misses are gone."""
    steepness: float = number(0.2, 10.0, default=1.5)


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkloadShape:
    """How demand moves about its mean. What a kind does not use it ignores; times are mean times."""

    kind: str
    peak: float = number(1.0, 100.0, default=3.0)
    """Level of the high phase relative to the mean (of a flash crowd relative to the level without one)."""
    on_ms: float = number(1.0, 1e9, default=150.0)
    off_ms: float = number(1.0, 1e9, default=450.0)
    ramp_ms: float = number(0.0, 1e9, default=20.0)
    """Time constant with which a new level is approached."""
    period_ms: float = number(10.0, 1e12, default=20_000.0)
    """Length of a diurnal cycle."""
    amplitude: float = number(0.0, 1.0, default=0.6)
    """Swing of a diurnal cycle relative to the mean."""
    io_burst: float = number(0.0, 1000.0, default=6.0)
    """IO per request in a checkpoint or loading phase, relative to the rest."""
    noise: float = number(0.0, 1.0, default=0.1)
    """Relative standard deviation of the arrivals about their level."""
    decay_ms: float = number(0.0, 1e9, default=500.0)
    """Time constant with which a flash crowd loses interest."""
    hurst: float = number(0.55, 0.95, default=0.8)
    """Hurst exponent of self-similar traffic."""
    inflate: float = number(1.0, 100.0, default=3.0)
    """What an inflator's counters show, relative to what it needs."""
    trace: str = ""
    """Replay: a recording (folder), request stamps or percentile windows (.csv) or arrivals per 10 ms (.npy).
    A relative path starts at the scenario file's folder."""
    trace_row: int = number(0, 1_000_000, default=0)
    """Replay: which VM of a recording, or the first of the percentile windows."""

    def __post_init__(self) -> None:
        if self.kind not in (*KINDS, REPLAY):
            raise InputError(f"workload kind {self.kind!r} is none of {', '.join((*KINDS, REPLAY))}")


@dataclass(frozen=True, kw_only=True, slots=True)
class HotAdd:
    """A VM that gets more vCPUs while it runs."""

    at_ms: float = number(0.0, 1e12, default=0.0)
    """Never if 0."""
    vcpus: int = number(1, 8192, default=1)
    """How many it has from then on, never less than before."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PhaseChange:
    """A VM that turns to other work while it runs."""

    at_ms: float = number(0.0, 1e12, default=0.0)
    """Never if 0."""
    load: float = number(0.0, 100.0, default=1.0)
    """Mean arrivals from then on, relative to before."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VmShape:
    """One VM: its contract, what a request costs, and how requests arrive."""

    name: str
    priority: int = number(-1000, 1000, default=0)
    isolation: Isolation = Isolation.SHARED
    target_ms: float = number(1.0, 1e6, default=50.0)
    """Latency that a request must not exceed."""
    cpus: float = number(1e-6, 1e6, default=1.0)
    """Mean CPU use relative to the other VMs; the scenario's ``load`` sets the sum."""
    vcpus: int = number(1, 8192, default=4)
    """Threads that can run at once."""
    cpu_ms: float = number(1e-6, 1e6, default=0.5)
    """CPU time of a request that always hits the cache."""
    access_kb: float = number(0.0, 1e12, default=0.0)
    """Kilobytes (1000 B) that a request asks of the L3 cache; those that miss go to memory."""
    stall: float = number(0.0, 100.0, default=1.0)
    """CPU time lost to stalls if every access missed, relative to ``cpu_ms``."""
    io_kb: float = number(0.0, 1e12, default=0.0)
    """Kilobytes (1000 B) of IO of a request."""
    reserve: float = number(0.01, 100.0, default=1.0)
    """Reservation in proportion to the VM's mean demand, relative to the other VMs."""
    own_ways: int = number(0, 62, default=0)
    """Ways reserved; isolated VMs have at least the hardware's minimum."""
    zone: int = number(-1, 7, default=-1)
    """Home zone; -1: where there is most room."""
    miss: MissCurve = MissCurve()
    workload: WorkloadShape = WorkloadShape(kind="steady")
    arrivals: str = "fluid"
    """How requests come inside a tick: "fluid", evenly, or "poisson", at random (requests.py)."""
    request_cv: float = number(0.0, 10.0, default=1.0)
    """Coefficient of variation of a request's work, for poisson arrivals: 0 all alike, 1 exponential."""

    arrive_ms: float = number(0.0, 1e12, default=0.0)
    """When the VM comes; from the start if 0."""
    leave_ms: float = number(0.0, 1e12, default=0.0)
    """When it goes, with what it has queued; never if 0."""
    hot_add: HotAdd = HotAdd()
    phase_change: PhaseChange = PhaseChange()

    def ways_of_its_own(self, host: HostShape) -> int:
        """Return the ways that are reserved for the VM on this hardware."""
        return max(self.own_ways, host.min_ways) if self.isolation != Isolation.SHARED else self.own_ways

    def __post_init__(self) -> None:
        if self.leave_ms and self.leave_ms <= self.arrive_ms:
            raise InputError(f"VM {self.name!r} leaves at {self.leave_ms:g} ms, before it comes")
        if self.arrivals not in ARRIVALS:
            raise InputError(f"arrivals {self.arrivals!r} are none of {', '.join(ARRIVALS)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Scenario:
    """A host and its VMs. ``load`` and ``reserved`` are shares of the host's capacity."""

    name: str
    host: HostShape
    vm: tuple[VmShape, ...]
    load: float = number(0.0, 10.0, default=0.65)
    """Mean demand of the scarcest of CPU, memory and IO, relative to capacity, with the ways shared equally."""
    reserved: float = number(0.0, 0.95, default=0.55)
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
        cores=_split(h.cores * scale, 2, h.zones),
        way_bytes=h.way_bytes * scale,
        memory_units=_split(h.memory_units * scale, vms, h.zones),
        io_units=max(round(h.io_units * scale), vms),
    )
    classes = h.classes - 1
    ways, cpus = [h.ways - h.shared_ways] * h.zones, [0.0] * h.zones
    out: list[VmShape] = []
    for i in range(vms):
        v = scenario.vm[i % len(scenario.vm)]
        own = v.ways_of_its_own(h)
        isolation = v.isolation
        zone = v.zone if v.zone >= 0 else min(range(h.zones), key=lambda z: (ways[z] < own, cpus[z]))
        if own and (classes == 0 or ways[zone] < own):
            own, isolation = 0, Isolation.SHARED
        classes -= own > 0
        ways[zone] -= own
        cpus[zone] += v.cpus
        copy = i // len(scenario.vm)
        out.append(
            replace(
                v,
                name=f"{v.name}-{copy + 1}" if copy else v.name,
                isolation=isolation,
                own_ways=own,
                zone=zone if h.zones > 1 else v.zone,
                miss=replace(v.miss, half_ways=v.miss.half_ways / scale),
            )
        )
    return replace(scenario, host=host, vm=tuple(out))


def _split(amount: float, least: int, zones: int) -> int:
    """Return a whole ``amount``, at least ``least``, that divides among the zones."""
    return zones * max(round(amount / zones), -(-least // zones))


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
    scenario = from_table(Scenario, table, "", str(path))
    scenario = replace(scenario, vm=tuple(_from_here(v, path) for v in scenario.vm))
    if len(scenario.vm) > MAX_VMS:
        raise ConfigError(f"vm: {len(scenario.vm)} VMs, the most is {MAX_VMS}", path=str(path))
    names = [v.name for v in scenario.vm]
    if len(set(names)) != len(names):
        twice = next(n for n in names if names.count(n) > 1)
        raise ConfigError(f"vm: two VMs have the name {twice!r}", path=str(path))
    if scenario.host.shared_ways >= scenario.host.ways:
        raise ConfigError("host.shared_ways: must be below host.ways", path=str(path))
    return scenario


def _from_here(vm: VmShape, path: Path) -> VmShape:
    """Return the VM with its trace named from the working directory instead of the scenario's folder."""
    w = vm.workload
    return replace(vm, workload=replace(w, trace=str(path.parent / w.trace))) if w.trace else vm
