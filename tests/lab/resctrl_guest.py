"""What the lab's tests of resctrl share: groups, processes in them, and what the kernel's own files say."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from foreshare.envs.hal.linux import cpulist
from foreshare.envs.hal.linux.hal import LinuxHal
from foreshare.envs.hal.linux.resctrl.files import OsFiles
from foreshare.envs.hal.linux.resctrl.info import parse_schemata
from foreshare.envs.hal.linux.resctrl.masks import is_run
from foreshare.envs.hal.linux.resctrl.spec import ResctrlSpec
from foreshare.envs.hal.linux.roots import Roots
from foreshare.envs.hal.linux.spec import LinuxSpec
from foreshare.envs.hal.spec import Amounts, VmSpec
from foreshare.policies.host import CPU, Host, IntArray, Isolation

ROOT = Path("/sys/fs/resctrl")
PREFIX = "foreshare-"
SLEEPER = "sleep 9999 & sleep 9999 & exec sleep 9999"
IN_LAB = (
    pytest.mark.lab,
    pytest.mark.skipif(os.environ.get("FORESHARE_IN_LAB") != "1", reason="runs inside the lab guest"),
)
_OPEN: list[LinuxHal] = []
MOUNT = ["mount", "-t", "resctrl", "resctrl", str(ROOT)]


@contextlib.contextmanager
def clean_mount() -> Iterator[None]:
    """Fail unless the groups are the same before and after.

    The guest's invented occupancy is never low, so monitoring ids that were used once rest for ever unless the
    threshold can be raised (it cannot with AMD's): each boot has 63 of them to spend.
    """
    if OsFiles().mount_id(str(ROOT)) is None:
        subprocess.run(MOUNT, check=True)
    with contextlib.suppress(OSError):
        (ROOT / "info/L3_MON/max_threshold_occupancy").write_text(str(16 << 20))
    before = tree()
    try:
        yield
    finally:
        while _OPEN:
            _OPEN.pop().close()
    assert tree() == before


def open_host(spec: LinuxSpec, roots: Roots | None = None) -> LinuxHal:
    """Open a host that :func:`clean_mount` lets go of where the test does not come to it."""
    hal = LinuxHal(spec, roots)
    _OPEN.append(hal)
    return hal


def tree() -> dict[str, str]:
    """Return the schemata of every group, ours and others'."""
    found = {"": (ROOT / "schemata").read_text()}
    for path in sorted(ROOT.iterdir()):
        if path.is_dir() and path.name not in ("info", "mon_groups", "mon_data"):
            with contextlib.suppress(OSError):  # it may be removed meanwhile
                found[path.name] = (path / "schemata").read_text()
    return found


def make(
    n: int, paths: list[str], isolated: tuple[int, ...], reserved: tuple[int, ...] = (), **fields: object
) -> LinuxHal:
    """Return a host of ``n`` VMs; those of ``reserved`` have a fifth of a CPU, the others a unit."""
    vms = tuple(
        VmSpec(name=f"vm{i}", cgroup=paths[i], zone=i % 2, reservation=Amounts(cpu=0.2 if i in reserved else None),
               isolation=Isolation.ISOLATED if i in isolated else Isolation.SHARED)
        for i in range(n)
    )  # fmt: skip
    spec = ResctrlSpec(use="require", memory_bandwidth=40e9, **fields)  # type: ignore[arg-type]  # by name
    return open_host(LinuxSpec(vms=vms, resctrl=spec))


def masks(hal: LinuxHal, found: dict[str, dict[int, int]] | None = None) -> dict[int, list[int]]:
    """Return, read from the kernel's own files, each VM's masks in the domains of its zone."""
    parts = hal.partitions
    assert parts is not None
    found = found or {name: parse_schemata(text)["L3"] for name, text in tree().items()}
    out = {}
    for row in range(len(hal.vms)):
        name = parts.named[int(parts.state.group[row])][0]
        l3 = found[name]
        zone = parts.offer.domain_zone == hal.vms.zone[row]
        out[row] = [l3[d] for d in parts.offer.domain_id[zone].tolist() if d in l3]
    return out


def check(hal: LinuxHal, owners: list[int]) -> list[str]:
    """Return what is wrong with the kernel's files: illegal masks, ways of an owner that somebody else may fill."""
    wrong = []
    kernel = {name: parse_schemata(text)["L3"] for name, text in tree().items()}
    for name, values in kernel.items():
        if name.startswith(PREFIX):
            for domain, mask in values.items():
                if not is_run(mask) or mask >> 12:
                    wrong.append(f"{name} has the mask {mask:x} in domain {domain}")
    parts = hal.partitions
    assert parts is not None
    found = masks(hal, kernel)
    for a in owners:
        for b in range(len(hal.vms)):
            if a == b or hal.vms.zone[a] != hal.vms.zone[b]:
                continue
            for x, y in zip(found[a], found[b], strict=False):
                if x & y & ~parts.offer.kernel_mask(parts.state.base):  # those are nobody's own
                    wrong.append(f"VMs {a} and {b} share the ways {x & y:x}")
    return wrong


def check_cpus(paths: list[str], host: Host, wanted: IntArray, lost: frozenset[int]) -> list[str]:
    """Return what is wrong with the kernel's cpusets and quotas: shared cores, reservations that are not held.

    ``wanted`` (N,) CPU units that the VMs ask for; ``lost``: rows of whose zone no CPU is left.
    """
    wrong, top = [], Path("/sys/fs/cgroup")
    where = [cpulist.parse((top / path / "cpuset.cpus.effective").read_text()) for path in paths]
    cores = []
    for cpus in where:
        siblings = [Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/core_cpus_list").read_text() for cpu in cpus]
        cores.append(frozenset[int]().union(*map(cpulist.parse, siblings)))
    upc = host.topology.units_per_cpu
    for row, path in enumerate(paths):
        owed = min(int(wanted[row]), int(host.reservation[row, CPU]))
        if host.vms.isolation[row] != Isolation.SHARED:
            if row not in lost:
                wrong += [
                    f"VMs {row} and {b} share a core" for b in range(len(paths)) if b != row and cores[row] & where[b]
                ]
            held = len(where[row]) * upc
        else:
            quota, period = (top / path / "cpu.max").read_text().split()
            held = len(where[row]) * upc if quota == "max" else int(quota) * upc // int(period)
            held = min(held, len(where[row]) * upc)
        if held < owed and row not in lost:
            wrong.append(f"VM {row} has {held} units of CPU and is owed {owed}")
    return wrong


@contextlib.contextmanager
def sleepers(paths: list[str]) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Put a process of three threads into each cgroup."""
    running: list[subprocess.Popen[bytes]] = []
    try:
        for path in paths:
            process = subprocess.Popen(
                ["sh", "-c", "sleep 9999 & sleep 9999 & exec sleep 9999"], start_new_session=True
            )
            running.append(process)
            (Path("/sys/fs/cgroup") / path / "cgroup.procs").write_text(str(process.pid))
        yield running
    finally:
        for process in running:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def group_of(pid: int) -> str:
    text = Path(f"/proc/{pid}/cpu_resctrl_groups").read_text()
    return text.splitlines()[0].removeprefix("res:").strip("/")


def ids_come_back() -> bool:
    """Return whether monitoring ids of removed groups can be used again."""
    return int((ROOT / "info/L3_MON/max_threshold_occupancy").read_text()) > 8 << 20
