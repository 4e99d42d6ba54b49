"""The tables and keys that the configuration file may have: one frozen class for each table, one field for each key.

A field's reader and an example of it stand in its metadata, the sentence under it is its help. :func:`fill` makes an
instance from what tomllib read; it is the only place that knows which keys exist.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeVar

from foreshare.envs.hal.linux.cpu_partitions import PartitionMode
from foreshare.envs.hal.linux.discovery.spec import MOST_SPARE, DiscoverySpec
from foreshare.envs.hal.linux.memory_nodes import MemoryNodes
from foreshare.envs.hal.linux.resctrl.names import GroupNames
from foreshare.envs.hal.linux.resctrl.spec import ResctrlSpec, UseMode
from foreshare.envs.hal.linux.spec import CoreScheduling, IoDevice, PlacementMode
from foreshare.envs.hal.spec import MAX_VMS, MOST_TARGET_MS, Amounts, VmSpec
from foreshare.policies.errors import InputError
from foreshare.policies.host import Isolation
from foreshare.policies.registry import DEFAULT

from .values import (
    MAX_CPUS,
    MAX_NAME,
    Reader,
    Refused,
    absolute_path,
    block_device,
    boolean,
    cgroup_path,
    choice,
    cpu_list,
    did_you_mean,
    kind,
    number,
    rate,
    refuse_controls,
    shown,
    text,
    uuid_text,
    whole,
)

_PLACEHOLDER: Final = re.compile(r"\{([A-Za-z_]+)\}")

T = TypeVar("T")
RunIn = Literal["auto", "inline", "process"]


def _key(reader: Reader[Any], shows: str) -> dict[str, Any]:
    """Return a field's metadata: its reader, and an example (or the default) as TOML."""
    return {"reader": reader, "shows": shows}


def _table(section: type[T]) -> Reader[T]:
    """Read a table into ``section``, whose fields are the keys that it may have."""

    def read(value: Any) -> T:
        if not isinstance(value, dict):
            raise Refused(f"must be a table of keys, not {kind(value)}")
        return fill(section, value)

    return Reader("a table", read)


def _array(reader: Reader[T], limit: int, hint: str = "") -> Reader[tuple[T, ...]]:
    """Read an array, each element with ``reader``."""

    def read(value: Any) -> tuple[T, ...]:
        if not isinstance(value, list):
            raise Refused(f"must be an array, not {kind(value)}{hint}")
        if len(value) > limit:
            raise Refused(f"has {len(value)} elements, at most {limit} are allowed")
        return tuple(_below(i, reader, element) for i, element in enumerate(value))

    return Reader("an array of tables", read)


def _below(key: str | int, reader: Reader[T], value: object) -> T:
    """Read the value of ``key``; a refusal inside learns where it stands."""
    try:
        return reader.read(value)
    except Refused as e:
        raise Refused(e.why, (key, *e.path), sentence=e.sentence) from None


def fill(section: type[T], values: Mapping[str, object]) -> T:
    """Make a ``section`` from the keys of one table."""
    fields = {f.name: f for f in dataclasses.fields(section)}  # type: ignore[arg-type] # only dataclasses come here
    for key in values:
        if key not in fields:
            raise Refused(f"unknown key {shown(key)}; {did_you_mean(key, fields)}", (key,), sentence=True)
    for name, f in fields.items():
        if f.default is dataclasses.MISSING and name not in values:
            raise Refused(f"{name!r} is missing, such as {name} = {f.metadata['shows']}", sentence=True)
    return section(**{name: _below(name, fields[name].metadata["reader"], value) for name, value in values.items()})


def _argv() -> Reader[tuple[str, ...]]:
    """Read a program and its arguments, in which only two placeholders may stand."""

    def read(value: Any) -> tuple[str, ...]:
        if not isinstance(value, list) or not value or not all(isinstance(x, str) for x in value):
            raise Refused('must be a program and its arguments, such as ["/usr/local/bin/migrate", "{uuid}"]')
        for i, argument in enumerate(value):
            if len(argument) > 4096:
                raise Refused("has an argument of more than 4096 characters", (i,))
            _below(i, Reader("", refuse_controls), argument)
            for word in _PLACEHOLDER.findall(argument):
                if word not in ("uuid", "reason"):
                    raise Refused(f"has the placeholder {{{word}}}; only {{uuid}} and {{reason}} are filled in", (i,))
        _below(0, absolute_path(), value[0])
        if _PLACEHOLDER.search(value[0]):
            raise Refused("must not have a placeholder in the program's own path", (0,))
        return tuple(value)

    return Reader("the program and its arguments", read)


@dataclass(frozen=True, kw_only=True, slots=True)
class IoDeviceConfig:
    """One block device whose bandwidth is handed out."""

    device: str = field(metadata=_key(block_device(), '"/dev/vda"'))
    """The whole device, not a partition of it: its node below /dev, or MAJOR:MINOR."""
    bandwidth: float = field(metadata=_key(rate(positive=True), '"200MB/s"'))
    """What the device can do in each direction. No host tells: measure it, or look it up."""

    def spec(self) -> IoDevice:
        """Return the device as the hardware layer takes it."""
        return IoDevice(device=self.device, bandwidth_bytes=self.bandwidth)


def _group_prefix() -> Reader[str]:
    """Read what the names of resctrl groups start with."""

    def read(value: Any) -> str:
        name = text(32).read(value)
        try:
            GroupNames(name)
        except InputError as e:
            raise Refused(str(e), sentence=True) from None
        return name

    return Reader("1 to 32 letters, digits, - and _, a letter first", read)


@dataclass(frozen=True, kw_only=True, slots=True)
class ResctrlConfig:
    """Cache ways and memory bandwidth, moved through resctrl. The table and every key in it may be left out."""

    use: UseMode = field(default="auto", metadata=_key(choice(("auto", "off", "require")), '"auto"'))
    """auto: where resctrl is mounted and has classes left; require: refuse to start where not; off: leave it alone."""
    prefix: str = field(default="foreshare-", metadata=_key(_group_prefix(), '"foreshare-"'))
    """What our groups' names start with; no others are touched. With "COS", which pqos can read, they have numbers."""
    memory_bandwidth: float | None = field(default=None, metadata=_key(rate(positive=True), '"100GB/s"'))
    """What the memory of one NUMA node can do; without it memory bandwidth is not moved. No host tells: measure it."""
    shared_ways: int = field(default=1, metadata=_key(whole(1, 31), "1"))
    """Ways that no VM ever owns."""
    quarantine_ms: float = field(default=0.0, metadata=_key(number(0, 60000, "ms"), "0"))
    """How long a way that leaves an isolated VM rests with nobody before another VM may fill it."""
    moves_per_s: int = field(default=200, metadata=_key(whole(1, 1000000), "200"))
    """Where there are more VMs than classes: most threads that change their class in a second."""
    confine_host: bool = field(default=False, metadata=_key(boolean(), "false"))
    """Keep whatever is no VM of ours out of the VMs' ways too: narrows the default group, whose file is not ours."""

    def spec(self) -> ResctrlSpec:
        """Return the table as the hardware layer takes it."""
        return ResctrlSpec(**{f.name: getattr(self, f.name) for f in dataclasses.fields(self)})


@dataclass(frozen=True, kw_only=True, slots=True)
class AmountsConfig:
    """Amounts of the four resources; what is left out is not said."""

    cpu: float | None = field(default=None, metadata=_key(number(0, MAX_CPUS, "CPUs"), "0.5"))
    """CPU time, in logical CPUs: 1.5 is one and a half."""
    cache: int | None = field(default=None, metadata=_key(whole(0, 64), "2"))
    """Ways of the last-level cache."""
    memory: float | None = field(default=None, metadata=_key(rate(), '"2GB/s"'))
    """Memory bandwidth."""
    io: float | None = field(default=None, metadata=_key(rate(), '"20MB/s"'))
    """IO bandwidth over all the devices that [host] names."""

    def amounts(self) -> Amounts:
        """Return the same amounts as the hardware layer takes them."""
        return Amounts(cpu=self.cpu, cache=self.cache, memory=self.memory, io=self.io)


@dataclass(frozen=True, kw_only=True, slots=True)
class DiscoveryConfig:
    """How VMs with a uuid and no cgroup are found, again each time they start. All of it may be left out."""

    libvirt: str = field(default="qemu:///system", metadata=_key(text(512), '"qemu:///system"'))
    """URI of the libvirt that runs them; "off": do not ask it."""
    processes: bool = field(default=True, metadata=_key(boolean(), "true"))
    """Look for QEMU processes started with -uuid too, where each has a cgroup to itself."""
    all_domains: bool = field(default=False, metadata=_key(boolean(), "false"))
    """Manage every domain that libvirt knows when foreshare starts, named here or not."""
    reservation: AmountsConfig = field(default=AmountsConfig(), metadata=_key(_table(AmountsConfig), "{ cpu = 0.5 }"))
    """What each of those that are not named is always given back at once."""
    spare: int = field(default=0, metadata=_key(whole(0, MOST_SPARE), "8"))
    """Places kept free for VMs that nobody names and that start later; each may be promised that reservation."""
    wait: bool = field(default=False, metadata=_key(boolean(), "false"))
    """Wait for a VM whose cgroup does not exist yet, instead of refusing to start."""
    timeout_ms: float = field(default=2000.0, metadata=_key(number(10, 60000, "ms"), "2000"))
    """A call of libvirt that takes longer is given up; the tick never waits for any."""

    def spec(self) -> DiscoverySpec:
        """Return the table as the hardware layer takes it."""
        return DiscoverySpec(
            libvirt="" if self.libvirt == "off" else self.libvirt, processes=self.processes,
            all_domains=self.all_domains, reservation=self.reservation.amounts(), timeout_ms=self.timeout_ms,
            spare=self.spare, wait=self.wait,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class HostConfig:
    """The machine and the loop. The table and every key in it may be left out."""

    tick_ms: float = field(default=10.0, metadata=_key(number(5, 1000, "ms"), "10"))
    """Time from one decision to the next."""
    cpus: frozenset[int] | None = field(default=None, metadata=_key(cpu_list(), '"0-3,6"'))
    """CPUs that may be handed out, all the others are left alone; default: all that are online."""
    placement: PlacementMode = field(default="auto", metadata=_key(choice(("auto", "cpuset", "affinity")), '"auto"'))
    """How VMs are kept on their CPUs: cpuset cgroups, the affinity of each thread, or (auto) cpuset where it works."""
    cpu_partitions: PartitionMode = field(
        default="off", metadata=_key(choice(("off", "root", "isolated")), '"isolated"')
    )
    """Keep everything else on the host off isolated VMs' cores too: cpuset partitions of cgroup v2."""
    core_scheduling: CoreScheduling = field(default="off", metadata=_key(choice(("off", "auto")), '"auto"'))
    """Give each isolated VM a core-scheduling cookie, where the kernel has them: nothing else beside it on a core."""
    memory_nodes: MemoryNodes = field(default="auto", metadata=_key(choice(("off", "auto", "bind")), '"auto"'))
    """Bind isolated VMs' memory to their NUMA node as they are taken in; bind: even if much has to be moved for it."""
    io: tuple[IoDeviceConfig, ...] = field(
        default=(),
        metadata=_key(_array(_table(IoDeviceConfig), 64), '[{ device = "/dev/vda", bandwidth = "200MB/s" }]'),
    )
    """Block devices whose bandwidth is handed out; without any, IO is not moved."""
    resctrl: ResctrlConfig = field(default=ResctrlConfig(), metadata=_key(_table(ResctrlConfig), '{ use = "auto" }'))
    """Cache ways and memory bandwidth: a table of its own, below."""
    discovery: DiscoveryConfig = field(
        default=DiscoveryConfig(), metadata=_key(_table(DiscoveryConfig), '{ libvirt = "off" }')
    )
    """How VMs are found by their uuid: a table of its own, below."""
    patience_s: float = field(default=0.0, metadata=_key(number(0, 60, "s"), "1.0"))
    """A system call that takes longer is taken to hang: the loop goes on without the host; 0: it would hang, too."""
    state_dir: str = field(default="/run/foreshare", metadata=_key(absolute_path(), '"/run/foreshare"'))
    """Folder of the journal that puts the host back after a crash; it must not outlive a reboot."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyConfig:
    """Who decides."""

    name: str = field(default=DEFAULT, metadata=_key(text(64), f'"{DEFAULT}"'))
    """The policy that turns demand into allocations: triage, forecast...; or your own, package.module:callable."""
    run_in: RunIn = field(default="auto", metadata=_key(choice(("auto", "inline", "process")), '"auto"'))
    """Where it runs: inline, or in a process, where it cannot hold up a tick; auto: a process for your own."""
    forecast: str = field(default="", metadata=_key(absolute_path(), '"/var/lib/foreshare/weights"'))
    """Folder of what foreshare forecast fit wrote, for triage-mixture to forecast with; without it, what ships."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MigrateConfig:
    """What to run when a VM has been short of a resource for long. Nothing is run unless this table is there."""

    command: tuple[str, ...] = field(metadata=_key(_argv(), '["/usr/local/bin/migrate", "{uuid}"]'))
    """Program and arguments, no shell; {uuid} and {reason} are filled in, nothing else is."""
    after_s: float = field(default=5.0, metadata=_key(number(0, 86400, "s"), "5.0"))
    """Contention must have lasted this long."""
    deadline_s: float = field(default=30.0, metadata=_key(number(0.1, 86400, "s"), "30.0"))
    """The command is ended when it has run this long."""

    def argv(self, *, uuid: str, reason: str) -> list[str]:
        """Return the command for one VM. What is filled in is not looked at again for placeholders."""
        values = {"uuid": uuid, "reason": reason}
        return [_PLACEHOLDER.sub(lambda m: values.get(m.group(1), m.group()), a) for a in self.command]


@dataclass(frozen=True, kw_only=True, slots=True)
class VmConfig:
    """One VM, container or service: anything that lives in a cgroup. One table for each."""

    name: str = field(metadata=_key(text(MAX_NAME), '"redis"'))
    """For people; never becomes part of a path."""
    cgroup: str = field(default="", metadata=_key(cgroup_path(), '"demo/redis"'))
    """Its cgroup, as a path below the cgroup root without leading slash; without one it is found by its uuid."""
    uuid: str = field(default="", metadata=_key(uuid_text(), '"6f1d0b5e-6c57-4b0b-9a55-5f0e5ba5e000"'))
    """Identity that outlives renames; derived from the cgroup (or the name) where you give none."""
    priority: int = field(default=0, metadata=_key(whole(-1000, 1000), "0"))
    """Higher is served first; below 0 it also yields idle time to everybody else."""
    isolation: str = field(default="shared", metadata=_key(choice(i.name.lower() for i in Isolation), '"shared"'))
    """shared: slices of CPUs; isolated: whole cores and ways of its own; security: isolated, and never moved."""
    zone: int | None = field(default=None, metadata=_key(whole(0, 1023), "0"))
    """NUMA node to live in; default: the one with most room."""
    reservation: AmountsConfig = field(default=AmountsConfig(), metadata=_key(_table(AmountsConfig), "{ cpu = 0.5 }"))
    """What it is always given back at once."""
    cap: AmountsConfig = field(default=AmountsConfig(), metadata=_key(_table(AmountsConfig), "{ cpu = 2 }"))
    """What it may never exceed."""

    latency_target_ms: float | None = field(default=None, metadata=_key(number(1, MOST_TARGET_MS, "ms"), "50"))
    """Within this its requests are to be done; learned policies let who has time wait; default: 100."""

    def spec(self) -> VmSpec:
        """Return the VM as the hardware layer takes it."""
        return VmSpec(
            name=self.name, cgroup=self.cgroup, uuid=self.uuid, priority=self.priority,
            isolation=Isolation[self.isolation.upper()], zone=self.zone,
            reservation=self.reservation.amounts(), cap=self.cap.amounts(),
            latency_target_ms=self.latency_target_ms,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """The whole file."""

    host: HostConfig = field(default=HostConfig(), metadata=_key(_table(HostConfig), ""))
    policy: PolicyConfig = field(default=PolicyConfig(), metadata=_key(_table(PolicyConfig), ""))
    migrate: MigrateConfig | None = field(default=None, metadata=_key(_table(MigrateConfig), ""))
    vm: tuple[VmConfig, ...] = field(
        default=(),
        metadata=_key(_array(_table(VmConfig), MAX_VMS, ": each VM starts with [[vm]], in two pairs of brackets"), ""),
    )
