"""``foreshare doctor``: what this host can measure and move, and what would let it do more. Changes nothing.

Made for the worst case: no root, no cgroups, no RDT, a container. Whatever is missing becomes a sentence.
"""

from __future__ import annotations

import dataclasses
import json as json_module
import os
import time
from typing import Any, Final, TextIO

import numpy as np

from foreshare.envs.hal.linux import capabilities, cookies
from foreshare.envs.hal.linux.candidates import vm_candidates
from foreshare.envs.hal.linux.cgroups import find_hierarchies
from foreshare.envs.hal.linux.discovery.spec import DiscoverySpec
from foreshare.envs.hal.linux.discovery.watch import Watch
from foreshare.envs.hal.linux.inventory import cpu_fields, inventory
from foreshare.envs.hal.linux.roots import Roots, read_text
from foreshare.envs.hal.linux.topology import discover
from foreshare.envs.hal.types import Capability
from foreshare.policies.errors import HostError, InputError
from foreshare.policies.host import RESOURCES

from .doctor_view import render

__all__ = ["examine", "render", "run_doctor"]

SLEEPS: Final = 50
SLEEP_NS: Final = 1_000_000
LATE_US: Final = 500
"""A timer that is later than this at p99 eats a tenth of the shortest tick."""
_CONTROLLERS: Final = ("cpu", "cpuset", "cpuacct", "memory", "blkio", "io")

_LIBVIRT_SOCKET = "/run/libvirt/libvirt-sock-ro"


def examine(roots: Roots | None = None) -> dict[str, Any]:
    """Return everything that can be found out, as JSON values.

    Keys: ``resources`` (by resource: measure, move, interface, unit, units, why_not), ``vms``, ``libvirt``, ``clock``,
    ``host``, ``inventory``, ``resctrl``, ``root``, ``cgroup``, ``advice``. Raises HostError where neither /proc nor
    /sys can be read at all.
    """
    roots = roots or Roots()
    if not any(_listable(folder) for folder in (roots.proc, roots.sys)):
        raise HostError(f"neither {roots.proc} nor {roots.sys} can be read: this is no Linux host that can be examined")
    report: dict[str, Any] = {
        "resources": _resources(roots),
        "vms": vm_candidates(roots),
        "libvirt": _libvirt(roots),
        "clock": _clock(roots),
        "host": _host(roots),
        "inventory": inventory(roots),
        "resctrl": capabilities.resctrl_facts(roots),
        "root": os.geteuid() == 0,
        "cgroup": _cgroup(roots),
    }
    report["advice"] = advice(report, psi=_listable(f"{roots.proc}/pressure"))
    return report


def run_doctor(json: bool, stream: TextIO) -> int:
    """Examine this host and write the report to ``stream``; return the exit code, 0. Raises HostError as examine."""
    report = examine()
    if json:
        stream.write(json_module.dumps(report, indent=2, allow_nan=False) + "\n")
    else:
        stream.write(render(report, stream))
    return 0


def _libvirt(roots: Roots) -> dict[str, Any]:
    """Return the domains of the machine's libvirt, and which cgroup each lives in now."""
    if roots != Roots() or not os.path.exists(_LIBVIRT_SOCKET):
        return {"domains": [], "why_none": f"no libvirt listens at {_LIBVIRT_SOCKET}"}
    watch = Watch(DiscoverySpec(), roots)
    try:
        found = watch.first()
    finally:
        watch.close()
    domains = [
        {"uuid": d.uuid, "name": d.name, "running": d.number >= 0, "vcpus": d.vcpus, "disks": list(d.disks),
         "nics": list(d.nics), "cgroup": found.homes.get(d.uuid)} for d in found.domains
    ]  # fmt: skip
    return {"domains": domains, "why_none": found.trouble or ("" if domains else "it has no domains")}


def _listable(folder: str) -> bool:
    try:
        os.listdir(folder)
    except OSError:
        return False
    return True


def _resources(roots: Roots) -> dict[str, dict[str, Any]]:
    try:
        found = capabilities.probe(roots)
    except (InputError, ValueError) as e:  # no CPU in sysfs, as in some containers; or a number that is none
        none = Capability(measure=False, move=False, interface="", unit="", units=0, why_not=str(e))
        found = dict.fromkeys(RESOURCES, none)
    return {name: dataclasses.asdict(found[name]) for name in RESOURCES}


def _clock(roots: Roots) -> dict[str, Any]:
    """Measure how late this process wakes up: the least that a tick can be off by."""
    late_ns = np.zeros(SLEEPS, np.int64)
    for i in range(SLEEPS):
        start = time.monotonic_ns()
        time.sleep(SLEEP_NS * 1e-9)
        late_ns[i] = time.monotonic_ns() - start - SLEEP_NS
    p50, p99 = np.percentile(late_ns / 1e3, [50, 99])
    return {
        "source": read_text(f"{roots.sys}/devices/system/clocksource/clocksource0/current_clocksource"),
        "resolution_ns": round(time.clock_getres(time.CLOCK_MONOTONIC) * 1e9),
        "sleep_overshoot_us": {"p50": round(float(p50), 1), "p99": round(float(p99), 1)},
    }


def _host(roots: Roots) -> dict[str, Any]:
    fields = cpu_fields(roots)
    host: dict[str, Any] = {
        "kernel": read_text(f"{roots.proc}/sys/kernel/osrelease"),
        "cpu_model": fields.get("model name") or fields.get("Model") or None,
        "zones": None, "sockets": None, "cores": None, "threads": None, "why_unknown": "",
        "why_no_core_scheduling": cookies.why_none() if roots == Roots() else "not this machine's own files",
    }  # fmt: skip
    try:
        layout = discover(roots)
    except (InputError, ValueError) as e:  # ValueError: a number of thousands of digits
        host["why_unknown"] = str(e)
        return host
    host["zones"] = len(layout.node_id)
    host["sockets"] = int(layout.socket.max()) + 1
    host["cores"] = int(layout.core.max()) + 1
    host["threads"] = len(layout.cpu_id)
    return host


def _cgroup(roots: Roots) -> dict[str, Any]:
    """Return the version of each controller that foreshare uses, None where it is not mounted."""
    hierarchies = find_hierarchies(roots)
    versions = {c: hierarchies.controllers[c].version if c in hierarchies.controllers else None for c in _CONTROLLERS}
    unified = hierarchies.unified
    return {
        "versions": versions,
        "v2_mount": unified.path if unified else None,
        "mounts": {c: m.path for c, m in hierarchies.controllers.items() if c in _CONTROLLERS},
        "why_none": "" if hierarchies.controllers else f"no cgroup controller is mounted under {roots.cgroup}",
    }


def advice(report: dict[str, Any], *, psi: bool) -> list[str]:
    """Return what to install, mount or boot so that more can be measured or moved; most useful first."""
    out: list[str] = []
    resources, found, versions = report["resources"], report["inventory"], report["cgroup"]["versions"]
    if not report["root"]:
        out.append(
            "Run as root: cgroups and other users' threads can then be moved, and the firmware's tables be read."
        )
    if report["cgroup"]["why_none"]:
        out.append(
            "Mount the cgroup file system (mount -t cgroup2 none /sys/fs/cgroup), or in a container, pass it through"
            " (for instance with --cgroupns=host -v /sys/fs/cgroup:/sys/fs/cgroup:rw); until then only thread"
            " affinity is left."
        )
    elif versions["cpu"] is None or versions["cpuset"] is None:
        missing = " and ".join(c for c in ("cpu", "cpuset") if versions[c] is None)
        out.append(
            f"Enable the {missing} controller: on cgroup v2, write +cpu +cpuset +io to cgroup.subtree_control of every"
            " cgroup above the VMs (systemd: Delegate=yes); on v1, mount it."
        )
    out += _qos_advice(found["qos"], moves=resources["cache"]["move"] or resources["memory"]["move"])
    if not resources["io"]["move"] and (versions["io"] or versions["blkio"]):
        disks = [d for d in found["block"]["devices"] if d["number"] and not d["virtual"]]
        named = f'io = [{{ device = "/dev/{disks[0]["name"]}", bandwidth = "200MB/s" }}]' if disks else "io = [...]"
        out.append(f"Name the disks and what they can do in the configuration's [host] table: {named}.")
    if not psi:
        out.append("Boot with psi=1 (and a kernel with CONFIG_PSI): pressure tells demand that a limit hides.")
    memory = found["memory"]["host"]
    if memory["channels"] is None and not found["qos"]["hypervisor"]:
        out.append(f"To see the memory channels, load the EDAC driver of this platform: now {memory['why_unknown']}.")
    late = report["clock"]["sleep_overshoot_us"]["p99"]
    if late > LATE_US:
        out.append(
            f"Timers wake up {late:.0f} us late at p99: keep a CPU free of VMs for foreshare, or make its ticks longer."
        )
    if not any(vm["cgroup"] for vm in report["vms"]):
        out.append(
            "No VM with a cgroup of its own was found: start one, or name any cgroup in the configuration (a service's,"
            " a container's, or one that you make: mkdir, then write the PIDs to cgroup.procs)."
        )
    return out


def _qos_advice(qos: dict[str, Any], *, moves: bool) -> list[str]:
    """Return how to get cache ways and memory bandwidth under control."""
    resctrl = qos["resctrl"]
    if moves:
        return []
    if not qos["flags"] and not resctrl["in_kernel"]:
        return [
            f"Cache ways and memory bandwidth stay as they are: {qos['why_none'] or 'the CPU has no such feature'}."
        ]
    if not resctrl["in_kernel"]:
        return [
            "The CPU can divide cache or memory bandwidth, the kernel does not: boot one with CONFIG_X86_CPU_RESCTRL"
            " (and look for rdt=! on its command line)."
        ]
    if not resctrl["mounted"]:
        return ["Mount resctrl to see what it offers for cache and memory: mount -t resctrl resctrl /sys/fs/resctrl."]
    return []
