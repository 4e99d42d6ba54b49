"""Memory channels behind each NUMA node, where the host tells: EDAC first, then the firmware's tables, else unknown.

Nothing here can be moved: Linux has no control that hands a DRAM channel from one VM to another while it runs. What it
can hand out is the bandwidth behind the channels, where the CPU has memory bandwidth allocation.

Sources: Documentation/ABI/testing/sysfs-devices-edac (mcN/dimmM/{dimm_location,dimm_label,dimm_mem_type,size}),
Documentation/ABI/stable/sysfs-devices-node, and DMTF DSP0134 through :mod:`.smbios`.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from foreshare.policies.errors import InputError

from . import cpulist, smbios
from .roots import Roots, read_text

BYTES_PER_TRANSFER: Final = 8
"""A DDR channel moves 64 bits of data in each transfer (JEDEC JESD79-4; a DDR5 channel is two halves of 32)."""
WHY_NOT_PER_VM: Final = (
    "software cannot move a memory channel from one VM to another while they run; the bandwidth behind it can be handed"
    " out where the CPU has memory bandwidth allocation (resctrl MB)"
)
_DDR: Final = re.compile(r"DDR[345]", re.IGNORECASE)
# Labels of drivers/edac/skx_common.c and sb_edac.c.
_LABEL_SOCKET: Final = re.compile(r"(?:CPU_SrcID|Skt)#(\d{1,3})_", re.IGNORECASE)
_AMD_CONTROLLER: Final = re.compile(r"F[0-9A-F]{2}h", re.IGNORECASE)  # drivers/edac/amd64_edac.c: one per node
_CHANNEL: Final = re.compile(r"CHAN(?:NEL)?[ _#-]*([A-Z]|\d{1,2})(?![A-Z])", re.IGNORECASE)
_DIMM_LETTER: Final = re.compile(r"DIMM[ _-]?([A-Z])\d", re.IGNORECASE)
_CONTROLLER: Final = re.compile(r"(?:NODE|I?MC)[ _#-]?\d{1,2}", re.IGNORECASE)
_SOCKET: Final = re.compile(r"\b(?:P|CPU|PROC|SOCKET|NODE)[ _#-]?(\d{1,2})(?!\d)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class _Channel:
    """One channel that has memory on it."""

    name: str
    node: int | None
    """NUMA node; None where the host does not tell."""
    ddr: bool


def memory_channels(roots: Roots) -> dict[str, Any]:
    """Return ``nodes`` (per NUMA node), ``host`` (all together) and ``modules``; JSON values, None for unknown.

    Each entry has ``channels``, ``speed_mt_s``, ``bandwidth_bytes_per_s`` (theoretical: speed x 8 bytes x channels),
    ``source`` and ``why_unknown``.
    """
    layout = _Layout(roots)
    tables = smbios.read_tables(roots)
    channels, source, why = _edac(roots, layout)
    if not channels:
        found, why_firmware = _firmware(tables, layout)
        channels, source = found, tables.source if found else ""
        why = why_firmware if not found else ""
        why = f"the EDAC driver lists no memory controller, and {why}" if why else ""
    speeds = [m.speed_mt_s for m in tables.modules]
    speed = min((s for s in speeds if s is not None), default=None) if None not in speeds else None
    # A speed is only believed when DRAM runs at it; hypervisors and some boards write 0, 1 or 65535.
    if speed is not None and not 200 <= speed <= 20_000:
        speed = None
    sources = " + ".join(dict.fromkeys(s for s in (source, tables.source if speed else "") if s))
    located = all(c.node is not None for c in channels)
    nodes = []
    for node in layout.nodes:
        own = [c for c in channels if c.node == node]
        reason = why or ("" if located else "which node a channel serves cannot be told (sub-NUMA clustering, perhaps)")
        nodes.append({"node": node, "memory_bytes": layout.memory_bytes(node), **_entry(own, speed, sources, reason)})
    return {
        "nodes": nodes,
        "host": _entry(channels, speed, sources, why),
        "modules": [
            {"locator": m.locator, "bank": m.bank, "type": m.type, "size_bytes": m.size_bytes,
             "speed_mt_s": m.speed_mt_s} for m in tables.modules
        ],
        "modules_why_unknown": tables.why_not,
        "why_not_per_vm": WHY_NOT_PER_VM,
    }  # fmt: skip


def _entry(channels: list[_Channel], speed: int | None, source: str, why: str) -> dict[str, Any]:
    if why or not channels:
        return {
            "channels": None, "channel_names": [], "speed_mt_s": speed, "bandwidth_bytes_per_s": None, "source": source,
            "why_unknown": why or "no channel with memory on it is listed here",
        }  # fmt: skip
    if not all(c.ddr for c in channels):
        why = "the width of a channel is known for DDR3 to DDR5 only"
    elif speed is None:
        why = "how fast the modules run is not told (SMBIOS, read as root, would)"
    return {
        "channels": len(channels),
        "channel_names": sorted(c.name for c in channels),
        "speed_mt_s": speed,
        "bandwidth_bytes_per_s": None if why or speed is None else speed * 10**6 * BYTES_PER_TRANSFER * len(channels),
        "source": source,
        "why_unknown": why,
    }


class _Layout:
    """NUMA nodes, the packages that they are in, and their memory."""

    def __init__(self, roots: Roots) -> None:
        self._sys = roots.sys
        self._proc = roots.proc
        self.nodes = numbered(f"{roots.sys}/devices/system/node", "node") or [0]  # a kernel without NUMA shows none
        self._blocks: dict[int, int] | None = None

    def memory_bytes(self, node: int) -> int | None:
        text = read_text(f"{self._base(node)}/meminfo")
        if text is None and len(self.nodes) == 1:
            text = read_text(f"{self._proc}/meminfo")
        found = re.search(r"MemTotal:\s*(\d{1,15}) kB", text or "")
        return int(found.group(1)) * 1024 if found else None

    def _base(self, node: int) -> str:
        return f"{self._sys}/devices/system/node/node{node}"

    def only(self) -> int | None:
        """Return the node of a host that has one; such hosts may also show none at all."""
        return self.nodes[0] if len(self.nodes) == 1 else None

    def of_package(self, rank: Callable[[list[int]], int | None]) -> int | None:
        """Return the one node in the package that ``rank`` picks from the sorted package ids; None if several."""
        packages: dict[int, set[int]] = defaultdict(set)
        for node in self.nodes:
            for cpu in cpus(read_text(f"{self._base(node)}/cpulist")) or ():
                package = read_text(f"{self._sys}/devices/system/cpu/cpu{cpu}/topology/physical_package_id") or ""
                if re.fullmatch(r"\d{1,6}", package):
                    packages[int(package)].add(node)
                    break  # a node lies in one package, so its first CPU tells
        picked = rank(sorted(packages))
        nodes = packages.get(picked, set()) if picked is not None else set()
        return next(iter(nodes)) if len(nodes) == 1 else None

    def of_range(self, first: int, last: int) -> int | None:
        """Return the node that physical memory from ``first`` to ``last`` belongs to, None where it is several."""
        text = read_text(f"{self._sys}/devices/system/memory/block_size_bytes") or ""
        if not re.fullmatch(r"[0-9a-f]{1,16}", text) or not int(text, 16):
            return None
        size = int(text, 16)
        if self._blocks is None:
            self._blocks = {b: n for n in self.nodes for b in numbered(self._base(n), "memory")}
        owners = {n for b, n in self._blocks.items() if first // size <= b <= last // size}
        return owners.pop() if len(owners) == 1 else None


def _edac(roots: Roots, layout: _Layout) -> tuple[list[_Channel], str, str]:
    """Return (channels, source, why none)."""
    base = f"{roots.sys}/devices/system/edac/mc"
    controllers = numbered(base, "mc")
    found: dict[tuple[int, str], _Channel] = {}
    for mc in controllers:
        folder = f"{base}/mc{mc}"
        by_node = bool(_AMD_CONTROLLER.search(read_text(f"{folder}/mc_name") or "")) and len(controllers) == len(
            layout.nodes
        )
        for kind in ("dimm", "rank"):
            for i in numbered(folder, kind):
                slot = f"{folder}/{kind}{i}"
                size = read_text(f"{slot}/size") or ""
                if not re.fullmatch(r"\d{1,12}", size) or not int(size):
                    continue
                where = _location(read_text(f"{slot}/dimm_location") or "")
                if where is None:
                    # ghes_edac and drivers like it know modules, not channels.
                    return [], "", "the EDAC driver does not tell channels apart"
                label = _LABEL_SOCKET.search(read_text(f"{slot}/dimm_label") or "")
                node = layout.only()
                if node is None and label:
                    socket = int(label.group(1))
                    node = layout.of_package(lambda ids, s=socket: s if s in ids else None)  # type: ignore[misc] # mypy cannot type a default that binds the loop's variable
                if node is None and by_node:
                    node = layout.nodes[mc]
                memory_type = read_text(f"{slot}/dimm_mem_type") or ""
                found[mc, where] = _Channel(f"mc{mc} {where}", node, bool(_DDR.search(memory_type)))
    return list(found.values()), base if found else "", "" if found else "no EDAC memory controller"


def _location(text: str) -> str | None:
    """Return the part of a dimm_location that names its channel: "channel 0 slot 1" -> "channel 0"."""
    words = text.split()
    pairs = dict(zip(words[::2], words[1::2], strict=False))
    kept = {k: v for k, v in pairs.items() if k in ("branch", "channel") and v.isascii() and v.isdigit()}
    return " ".join(f"{k} {v}" for k, v in sorted(kept.items())) if "channel" in kept else None


def _firmware(tables: smbios.Tables, layout: _Layout) -> tuple[list[_Channel], str]:
    """Return (channels, why none) from what the board calls its slots: there is no standard, only habits."""
    if not tables.modules:
        return [], tables.why_not
    sockets = sorted({int(s.group(1)) for m in tables.modules if (s := _SOCKET.search(f"{m.bank} {m.locator}"))})
    found: dict[tuple[object, ...], _Channel] = {}
    for m in tables.modules:
        channel = _CHANNEL.search(m.bank) or _CHANNEL.search(m.locator) or _DIMM_LETTER.search(m.locator)
        if channel is None:
            return [], f"the board's slot names tell no channel ({m.locator[:32]!r})"
        socket = _SOCKET.search(f"{m.bank} {m.locator}")
        node = layout.only()
        if node is None:
            spans = {layout.of_range(first, last) for array, first, last in tables.ranges if array == m.array}
            node = spans.pop() if len(spans) == 1 else None
        if node is None and socket is not None:
            nth = sockets.index(int(socket.group(1)))  # boards count sockets from 0 or from 1
            node = layout.of_package(
                lambda ids, n=nth: ids[n] if len(ids) == len(sockets) else None  # type: ignore[misc] # as above
            )
        home = f"socket {socket.group(1)} " if socket else f"array {m.array} " if len(layout.nodes) > 1 else ""
        parts = " ".join(c.group().lower() for c in _CONTROLLER.finditer(f"{m.bank} {m.locator}"))
        name = f"{home}{parts + ' ' if parts else ''}channel {channel.group(1).upper()}"
        found[name, node] = _Channel(name, node, bool(_DDR.fullmatch(m.type)))
    return list(found.values()), ""


def numbered(folder: str, prefix: str) -> list[int]:
    """Return the numbers N of the entries prefixN in a folder, ascending; none where it cannot be read."""
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    pattern = re.compile(re.escape(prefix) + r"(\d{1,6})", re.ASCII)
    return sorted(int(found.group(1)) for n in names if (found := pattern.fullmatch(n)))


def cpus(text: str | None) -> list[int] | None:
    """Return the CPUs in a list of the kernel's, ascending; None where there is none or it is malformed."""
    if text is None:
        return None
    try:
        return sorted(cpulist.parse(text))
    except (InputError, ValueError):  # the latter for numbers of thousands of digits
        return None
