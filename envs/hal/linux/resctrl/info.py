"""What resctrl offers on this host: classes, ways, bandwidth units, monitoring, L3 domains.

Files and formats: Documentation/filesystems/resctrl.rst. A resource whose directory is missing is None; a file that
says something unexpected is a HostError, because everything that is written later rests on it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from foreshare.envs.hal.linux.cgroups import GONE
from foreshare.envs.hal.linux.roots import Roots, read_text
from foreshare.policies.errors import HostError
from foreshare.policies.host import IntArray

from .files import DIRECTORY, Files, explain

MBA_STEP_BYTES = 1e9 / 8
"""One unit of AMD's limit: 1/8 GB/s (resctrl.rst, "Memory bandwidth Allocation ... on AMD systems")."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheInfo:
    """info/L3, or L3DATA and L3CODE where code and data are apart (CDP)."""

    names: tuple[str, ...]
    """Lines of a schemata file that hold this mask."""
    closids: int
    bits: int
    """Bits of a mask; cbm_mask is a run from bit 0 on."""
    min_bits: int
    """Fewest bits of a mask that we write; AMD accepts 0, which would leave a VM no cache to fill."""
    sparse: bool
    shareable: int
    """Bits that other agents of the hardware (IO) fill too."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BandwidthInfo:
    """info/MB."""

    closids: int
    percent: bool
    """Intel: a throttle in percent. Otherwise AMD: a limit in 1/8 GB/s."""
    minimum: int
    step: int
    most: int
    """The value that limits nothing."""
    why_not: str = ""
    """Not empty: it is there and cannot be used, for this reason."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ResctrlInfo:
    """All of it."""

    path: str
    cache: CacheInfo | None
    bandwidth: BandwidthInfo | None
    closids: int
    """Groups that there can be, the default one included."""
    rmids: int
    features: tuple[str, ...]
    """Monitoring events: llc_occupancy, mbm_total_bytes, mbm_local_bytes."""
    domains: tuple[int, ...]
    """L3 domains that are online."""


def read_info(files: Files, path: str, options: str = "") -> ResctrlInfo:
    """Read info/ below the mount at ``path``; ``options`` are its mount options. Raises HostError."""
    try:
        top = files.open(path, DIRECTORY)
    except OSError as error:
        raise HostError(f"{path}: {explain(error)}") from error
    try:
        return _read(files, top, path, options)
    except OSError as error:
        raise HostError(f"{path}: {explain(error)}") from error
    finally:
        files.close(top)


def _read(files: Files, top: int, path: str, options: str) -> ResctrlInfo:
    def text(name: str) -> str | None:
        try:
            fd = files.open(f"info/{name}", os.O_RDONLY, dir_fd=top)
        except OSError as error:
            if error.errno in GONE:
                return None
            raise
        try:
            return files.pread(fd, 4096, 0).decode("ascii", "replace").strip()
        finally:
            files.close(fd)

    def number(name: str, base: int = 10, default: int | None = None) -> int:
        found = text(name)
        if found is None and default is not None:
            return default
        try:
            return int(found or "", base)
        except ValueError:
            raise HostError(f"{path}/info/{name} reads {found!r}, which is no number") from None

    schemata = parse_schemata(read_file(files, top, "schemata"))
    cache = None
    names = ("L3",) if text("L3/num_closids") else ("L3DATA", "L3CODE") if text("L3DATA/num_closids") else ()
    if names:
        mask = number(f"{names[0]}/cbm_mask", 16)
        cache = CacheInfo(
            names=names, closids=number(f"{names[0]}/num_closids"), bits=mask.bit_length(),
            min_bits=max(number(f"{names[0]}/min_cbm_bits"), 1), sparse=number(f"{names[0]}/sparse_masks", 10, 0) == 1,
            shareable=number(f"{names[0]}/shareable_bits", 16, 0),
        )  # fmt: skip
    bandwidth = None
    if text("MB/num_closids"):
        linear = number("MB/delay_linear", 10, 1) == 1
        intel = text("MB/thread_throttle_mode") is not None or linear
        why = ""
        if intel and not linear:
            why = "this processor's bandwidth throttle is not linear, and the kernel refuses to set it"
        elif "mba_MBps" in options:
            why = "resctrl is mounted with mba_MBps, whose loop in the kernel sets the throttle: mount it without"
        bandwidth = BandwidthInfo(
            closids=number("MB/num_closids"), percent=intel, minimum=number("MB/min_bandwidth"),
            step=max(number("MB/bandwidth_gran"), 1), why_not=why,
            most=100 if intel else max([2048, *schemata.get("MB", {}).values()]),
        )  # fmt: skip
    limits = [r.closids for r in (cache, bandwidth) if r is not None]
    return ResctrlInfo(
        path=path, cache=cache, bandwidth=bandwidth, closids=min(limits, default=0),
        rmids=number("L3_MON/num_rmids", 10, 0), features=tuple((text("L3_MON/mon_features") or "").split()),
        domains=tuple(sorted(schemata.get(names[0] if names else "MB", {}))),
    )  # fmt: skip


def read_file(files: Files, dir_fd: int, name: str) -> str:
    """Return the text of a file below a directory. Raises OSError."""
    fd = files.open(name, os.O_RDONLY, dir_fd=dir_fd)
    try:
        data = b""
        while part := files.pread(fd, 1 << 16, len(data)):
            data += part
        return data.decode("ascii", "replace")
    finally:
        files.close(fd)


def parse_schemata(text: str) -> dict[str, dict[int, int]]:
    """Return value by resource and domain; masks are hex, bandwidths decimal. Padding of either kind is fine.

    Kernels pad names, values or neither (interfaces differ between 4.x and 6.16). A value that is no number
    ("uninitialized" of a pseudo-locked group) is left out.
    """
    out: dict[str, dict[int, int]] = {}
    for line in text.splitlines():
        name, colon, rest = line.partition(":")
        name = name.strip()
        if not colon:
            continue
        values = out.setdefault(name, {})
        base = 16 if name.startswith(("L2", "L3")) else 10
        for part in rest.split(";"):
            domain, _, value = part.partition("=")
            try:
                values[int(domain)] = int(value, base)
            except ValueError:
                continue
    return out


def mount_options(roots: Roots) -> str:
    """Return the options of the resctrl mount as mountinfo has them; empty where there is none."""
    for line in (read_text(f"{roots.proc}/self/mountinfo") or "").splitlines():
        right = line.partition(" - ")[2]
        if right.startswith("resctrl "):
            return right.split(" ", 2)[-1]
    return ""


def domain_of_cpus(roots: Roots, cpus: IntArray) -> dict[int, int]:
    """Return the L3 domain id of each CPU that tells one (Documentation/ABI/testing/sysfs-devices-system-cpu)."""
    out: dict[int, int] = {}
    for cpu in cpus.tolist():
        base = f"{roots.sys}/devices/system/cpu/cpu{cpu}/cache"
        for index in range(8):
            if read_text(f"{base}/index{index}/level") == "3":
                text = read_text(f"{base}/index{index}/id") or ""
                if text.isdigit():
                    out[cpu] = int(text)
                break
    return out


def way_bytes(roots: Roots, cpu: int, bits: int) -> float:
    """Return the bytes behind one way of ``cpu``'s L3; 0 where sysfs does not tell."""
    base = f"{roots.sys}/devices/system/cpu/cpu{cpu}/cache"
    for index in range(8):
        if read_text(f"{base}/index{index}/level") == "3":
            text = read_text(f"{base}/index{index}/size") or ""
            return int(text[:-1]) * 1024 / max(bits, 1) if text[:-1].isdigit() and text.endswith("K") else 0.0
    return 0.0
