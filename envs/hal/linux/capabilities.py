"""What this host can measure and move, in which units, through which interface, and why not where not.

Finding out changes nothing: a file counts as writable when access(2) says so. Works without root, without cgroups and
without RDT, and then says what is missing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

from foreshare.envs.hal.types import Capability
from foreshare.policies.errors import HostError, InputError

from .cgroups import Cgroup, Hierarchies, find_hierarchies, split_path
from .resctrl.offer import Offer, find_offer, why_unwritable
from .resctrl.spec import ResctrlSpec
from .roots import Roots, read_text
from .spec import IoDevice
from .topology import IO_UNITS, discover, unit_name


def probe(
    roots: Roots | None = None,
    *,
    cpus: frozenset[int] | None = None,
    units_per_cpu: int = 10,
    io: Sequence[IoDevice] = (),
    cgroups: Sequence[str] = (),
    resctrl: ResctrlSpec | None = None,
) -> dict[str, Capability]:
    """Return a Capability for cpu, cache, memory and io.

    ``cgroups``: paths of VMs; whether CPU and IO can move is then asked of these (a delegated subtree may be writable
    where the hierarchy is not), else of the hierarchy as a whole. Raises HostError only where sysfs names no CPU.
    """
    roots = roots or Roots()
    hierarchies = find_hierarchies(roots)
    layout = discover(roots, cpus=cpus, units_per_cpu=units_per_cpu)
    flags = _cpu_flags(roots)
    offer = find_offer(roots, layout, resctrl or ResctrlSpec())
    return {
        "cpu": _cpu(hierarchies, roots, len(layout.cpu_id) * units_per_cpu, unit_name(units_per_cpu), cgroups),
        "cache": _cache(roots, flags, offer),
        "memory": _memory(roots, flags, offer),
        "io": _io(hierarchies, roots, io, cgroups),
    }


def clock_facts(roots: Roots | None = None) -> dict[str, object]:
    """Return what the tick's clock is like: source, resolution, boot id. JSON values only."""
    roots = roots or Roots()
    base = f"{roots.sys}/devices/system/clocksource/clocksource0"
    return {
        "clock": "CLOCK_MONOTONIC",
        "source": read_text(f"{base}/current_clocksource") or "unknown",
        "available": (read_text(f"{base}/available_clocksource") or "").split(),
        "resolution_ns": round(time.clock_getres(time.CLOCK_MONOTONIC) * 1e9),
        "boot_id": read_text(f"{roots.proc}/sys/kernel/random/boot_id") or "",
    }


def _cpu(h: Hierarchies, roots: Roots, units: int, unit: str, cgroups: Sequence[str]) -> Capability:
    cpu, cpuset = h.controllers.get("cpu"), h.controllers.get("cpuset")
    if cpu is None:
        why = _no_controller(h, roots, "cpu")
        return Capability(measure=False, move=False, interface="", unit=unit, units=units, why_not=why)
    accounting = h.controllers.get("cpuacct") if cpu.version == 1 else cpu
    how = f"cgroup v{cpu.version} cpu" + (f" + v{cpuset.version} cpuset" if cpuset else " + sched_setaffinity")
    why = _denied(h, "cpu", cgroups) or (_denied(h, "cpuset", cgroups) if cpuset else "")
    if accounting is None:
        why = why or _no_controller(h, roots, "cpuacct")
    return Capability(
        measure=accounting is not None, move=not why, interface=how, unit=unit, units=units, why_not=why
    )  # fmt: skip


def _cache(roots: Roots, flags: frozenset[str], offer: Offer | str) -> Capability:
    if isinstance(offer, Offer) and offer.info.cache is not None:
        why = offer.why_no_ways or why_unwritable(roots, offer.info.path)
        measure = "llc_occupancy" in offer.info.features
        return Capability(
            measure=measure, move=not why, interface="resctrl L3", unit="way", units=offer.ways, why_not=why
        )  # fmt: skip
    return _without(flags, "cat_l3", "L3 cache allocation", offer, "inside a VM that is up to its host")


def _memory(roots: Roots, flags: frozenset[str], offer: Offer | str) -> Capability:
    if isinstance(offer, Offer) and offer.info.bandwidth is not None:
        why = offer.why_no_memory or why_unwritable(roots, offer.info.path)
        measure = "mbm_total_bytes" in offer.info.features
        return Capability(
            measure=measure, move=not why, interface="resctrl MB", unit=offer.memory_unit if offer.memory_units else "",
            units=offer.memory_units, why_not=why,
        )  # fmt: skip
    return _without(flags, "mba", "memory bandwidth allocation", offer, "and no other interface moves it")


def _without(flags: frozenset[str], flag: str, what: str, offer: Offer | str, otherwise: str) -> Capability:
    if isinstance(offer, Offer):
        why = f"resctrl is mounted, but has no {what}"
    elif flag not in flags and "mounted" not in offer and "taken" not in offer:
        why = f"the CPU shows no {what} (no {flag} in /proc/cpuinfo); {otherwise}"
    elif "no resctrl" in offer:
        why = f"the CPU has {what}, but resctrl is not mounted, and the kernel shows no place for it"
    else:
        why = offer
    return Capability(measure=False, move=False, interface="", unit="", units=0, why_not=why)


def resctrl_facts(roots: Roots) -> dict[str, Any]:
    """Return what resctrl offers as JSON values, for people and for whoever plans a configuration.

    ``why_none`` is empty where there is anything; the other keys are then there: classes, ways, bandwidth, monitoring.
    """
    try:
        offer = find_offer(roots, discover(roots), ResctrlSpec())
    except (HostError, InputError) as error:
        offer = str(error)
    if isinstance(offer, str):
        return {"why_none": offer}
    info = offer.info
    c, b = info.cache, info.bandwidth
    return {
        "why_none": "", "path": info.path, "classes": info.closids, "classes_free": offer.groups,
        "domains": list(info.domains),
        "cache": None if c is None else {
            "ways": c.bits, "ways_to_own": offer.ways, "least_ways": c.min_bits, "contiguous": not c.sparse,
            "shareable_bits": f"{c.shareable:x}", "way_bytes": round(offer.way_bytes),
            "code_and_data_apart": len(c.names) > 1, "why_not": offer.why_no_ways,
        },
        "bandwidth": None if b is None else {
            "unit": f"{b.step} %" if b.percent else "1/8 GB/s", "least": b.minimum, "most": b.most,
            "why_not": offer.why_no_memory,
        },
        "monitoring": {"ids": info.rmids, "events": list(info.features)},
    }  # fmt: skip


def _io(h: Hierarchies, roots: Roots, io: Sequence[IoDevice], cgroups: Sequence[str]) -> Capability:
    name = "blkio" if "blkio" in h.controllers else "io"
    mount = h.controllers.get(name)
    if mount is None:
        why = _no_controller(h, roots, "io")
        return Capability(measure=False, move=False, interface="", unit="", units=0, why_not=why)
    how = f"cgroup v{mount.version} " + ("blkio.throttle" if mount.version == 1 else "io.max")
    why = "" if io else "no IO device is configured: name one with its bandwidth ([host] io in the configuration)"
    for device in io:
        try:
            device.number(roots)
        except InputError as error:
            why = why or str(error)
    why = why or _denied(h, name, cgroups)
    units, unit = (IO_UNITS, f"1/{IO_UNITS} of the configured bandwidth") if io else (0, "")
    return Capability(measure=True, move=not why, interface=how, unit=unit, units=units, why_not=why)


def _no_controller(h: Hierarchies, roots: Roots, controller: str) -> str:
    """Say why a controller is not there, from what the kernel knows of it (/proc/cgroups)."""
    known = read_text(f"{roots.proc}/cgroups") or ""
    name = "blkio" if controller == "io" else controller
    row = next((line.split() for line in known.splitlines() if line.startswith(name + "\t")), None)
    if row is None and h.unified is None and not h.controllers:
        return f"no cgroup file system is mounted under {h.root}: mount one"
    if row is None and known:
        return f"this kernel was built without the {controller} controller"
    if row is not None and row[-1] == "0":
        return f"the {controller} controller is switched off on the kernel command line (cgroup_disable)"
    return f"the {controller} controller is not mounted under {h.root}"


def _denied(h: Hierarchies, controller: str, cgroups: Sequence[str]) -> str:
    """Return why a controller's files cannot be written, or an empty string."""
    mount = h.controllers[controller]
    files = {"cpu": ("cpu.cfs_quota_us", "cpu.max"), "cpuset": ("cpuset.cpus", "cpuset.cpus"),
             "blkio": ("blkio.throttle.read_bps_device", "io.max"), "io": ("", "io.max")}  # fmt: skip
    for path in cgroups:
        try:
            split_path(path)
            group = Cgroup.open(mount, path)
        except InputError as error:
            return str(error)
        try:
            name = files[controller][mount.version - 1]
            if not group.has(name):
                return f"cgroup {path} has no {name}: enable the {controller} controller for it"
            if not os.access(name, os.W_OK, dir_fd=group.fd):
                return f"no permission to write {group.where}/{name}: run as root or have the cgroup delegated"
        finally:
            group.close()
    if not cgroups and not os.access(f"{mount.path}/cgroup.procs", os.W_OK):
        return f"no permission to write below {mount.path}: run as root or have a cgroup delegated"
    return ""


def _cpu_flags(roots: Roots) -> frozenset[str]:
    for line in (read_text(f"{roots.proc}/cpuinfo") or "").splitlines():
        if line.startswith(("flags", "Features")):
            return frozenset(line.partition(":")[2].split())
    return frozenset()
