"""Hardware facts that nobody moves, read-only: memory channels, PCIe links, disks, power profiles, QoS features.

Everything comes with its source. What a file does not say, or says in a form that cannot be understood, is None with a
reason; nothing here raises for the content of a file. Interfaces that look like controls but are not per VM are listed
with one sentence that says why.

Sources: Documentation/ABI/testing/{sysfs-bus-pci,sysfs-block,sysfs-platform_profile,sysfs-amd-pmf},
Documentation/arch/x86/amd_hsmp.rst, Documentation/filesystems/resctrl.rst.
"""

from __future__ import annotations

import os
import re
from typing import Any, Final

from .memory_channels import memory_channels
from .roots import Roots, read_text

MAX_DEVICES: Final = 4096
# Share of the raw bits that carries packets. PCI Express Base Specification 6.0: 8b/10b (4.2.1), 128b/130b (4.2.2), and
# the 256-byte flit of 1b/1b, 242 bytes of which are TLPs and DLPs and 14 are CRC and FEC (4.2.3).
_GENERATIONS: Final = {
    2.5: (1, 8 / 10), 5.0: (2, 8 / 10), 8.0: (3, 128 / 130), 16.0: (4, 128 / 130), 32.0: (5, 128 / 130),
    64.0: (6, 242 / 256),
}  # fmt: skip
_SPEED: Final = re.compile(r"(\d{1,3}(?:\.\d)?) GT/s(?: PCIe)?", re.ASCII)
_ADDRESS: Final = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
_CLASSES: Final = {  # pci.ids, "C" lines
    0x0101: "IDE", 0x0104: "RAID", 0x0106: "SATA", 0x0107: "SAS", 0x0108: "NVMe", 0x0200: "Ethernet",
    0x0207: "InfiniBand", 0x0280: "network", 0x0300: "VGA", 0x0302: "3D", 0x0380: "display", 0x0600: "host bridge",
    0x0601: "ISA bridge", 0x0604: "PCI bridge", 0x0C03: "USB", 0x0502: "CXL memory",
}  # fmt: skip
_BASE_CLASSES: Final = {
    0x01: "storage", 0x02: "network", 0x03: "display", 0x04: "multimedia", 0x05: "memory", 0x06: "bridge",
    0x07: "communication", 0x08: "system", 0x0C: "serial bus", 0x0D: "wireless", 0x10: "encryption",
    0x11: "signal processing", 0x12: "processing accelerator",
}  # fmt: skip
QOS_FLAGS: Final = (
    "cat_l3", "cat_l2", "cdp_l3", "cdp_l2", "mba", "smba", "rdt_a", "cqm", "cqm_llc", "cqm_occup_llc",
    "cqm_mbm_total", "cqm_mbm_local", "bmec", "abmc", "sdciae",
)  # fmt: skip
"""arch/x86/include/asm/cpufeatures.h, as /proc/cpuinfo prints them."""
WHY_NOT_PER_VM: Final = {
    "pcie": "no software control moves PCIe lanes between devices or VMs while they run (firmware bifurcates); the"
    " bandwidth behind them is handed out per VM through IO limits (io.max, blkio.throttle)",
    "sriov": "the number of virtual functions only changes by way of 0, which cuts every VM off; shown, never moved",
    "platform_profile": "one setting for the whole machine's power and cooling, followed over seconds",
    "amd_pmf": "AMD PMF manages the power of client laptops: one switch (cnqf_enable) for the whole chip; what divides"
    " cache and bandwidth on AMD is AMD QoS, reached through resctrl",
    "hsmp": "HSMP messages set power, link widths and fabric states of a whole socket, for root only; changing them"
    " under load affects every VM alike",
}


def inventory(roots: Roots) -> dict[str, Any]:
    """Return the facts as JSON values: ``memory``, ``pcie``, ``block``, ``power``, ``qos``."""
    return {
        "memory": memory_channels(roots),
        "pcie": pcie(roots),
        "block": block_devices(roots),
        "power": power(roots),
        "qos": qos(roots),
    }


def link_bytes_per_s(gt_per_s: float, lanes: int) -> float | None:
    """Return the bandwidth in one direction behind a PCIe link, before packet headers; None for unknown speeds.

    speed x encoding / 8 bits x lanes; PCI Express Base Specification 6.0, section 4.2.
    """
    known = _GENERATIONS.get(gt_per_s)
    return None if known is None or lanes < 1 else gt_per_s * 1e9 * known[1] / 8 * lanes


def pcie(roots: Roots) -> dict[str, Any]:
    """Return every PCIe function with a link or virtual functions, and how many have neither."""
    base = f"{roots.sys}/bus/pci/devices"
    names = sorted(n for n in _names(base) if _ADDRESS.fullmatch(n))
    devices: list[dict[str, Any]] = []
    for address in names[:MAX_DEVICES]:
        folder = f"{base}/{address}"
        links = {which: _link(folder, which) for which in ("current", "max")}
        total = _number(read_text(f"{folder}/sriov_totalvfs"))
        if links["current"] is None and links["max"] is None and not total:
            continue
        parent = _target(f"{folder}/physfn")
        devices.append(
            {
                "address": address,
                "class": _class_name(read_text(f"{folder}/class")),
                "driver": _target(f"{folder}/driver"),
                "numa_node": _number(read_text(f"{folder}/numa_node")),  # the kernel writes -1 where it knows none
                "link": links,
                "path": _path(folder),
                "sriov": None
                if not total
                else {"enabled": _number(read_text(f"{folder}/sriov_numvfs")), "most": total},
                "virtual_function_of": parent,
            }
        )
    return {
        "devices": devices,
        "without_link": len(names) - len(devices),
        "source": base if names else "",
        "why_unknown": "" if names else "no PCI devices are listed in sysfs",
        "why_not_per_vm": WHY_NOT_PER_VM["pcie"],
        "sriov_why_not_moved": WHY_NOT_PER_VM["sriov"],
    }


def _link(folder: str, which: str) -> dict[str, Any] | None:
    speed, width = read_text(f"{folder}/{which}_link_speed"), read_text(f"{folder}/{which}_link_width")
    if speed is None and width is None:
        return None
    found = _SPEED.fullmatch(speed or "")
    gt_per_s = float(found.group(1)) if found else None
    # A device that has dropped off the bus answers all ones: 63 lanes. Real widths go up to 32.
    lanes = _number(width)
    if lanes is not None and not 1 <= lanes <= 32:
        lanes = None
    known = _GENERATIONS.get(gt_per_s or 0.0)
    return {
        "gt_per_s": gt_per_s,
        "generation": known[0] if known else None,
        "lanes": lanes,
        "bytes_per_s": link_bytes_per_s(gt_per_s, lanes) if gt_per_s is not None and lanes is not None else None,
    }


def _path(folder: str) -> dict[str, Any]:
    """Return the slowest link from the device up to the root, as pcie_bandwidth_available() in drivers/pci/pci.c."""
    slowest: tuple[float, str] | None = None
    at = os.path.realpath(folder)
    while _ADDRESS.fullmatch(os.path.basename(at)):
        link = _link(at, "current")
        if (
            link is not None
            and link["bytes_per_s"] is not None
            and (slowest is None or link["bytes_per_s"] < slowest[0])
        ):
            slowest = link["bytes_per_s"], os.path.basename(at)
        at = os.path.dirname(at)
    if slowest is None:
        return {"bytes_per_s": None, "limited_by": None}
    return {"bytes_per_s": slowest[0], "limited_by": slowest[1]}


def _class_name(text: str | None) -> str | None:
    if text is None or not re.fullmatch(r"0x[0-9a-f]{6}", text):
        return None
    code = int(text, 16) >> 8
    return _CLASSES.get(code) or _BASE_CLASSES.get(code >> 8, f"class {code:04x}")


def block_devices(roots: Roots) -> dict[str, Any]:
    """Return the block devices of any size: the ones that IO limits can name by MAJ:MIN."""
    base = f"{roots.sys}/block"
    devices: list[dict[str, Any]] = []
    for name in sorted(_names(base))[:MAX_DEVICES]:
        folder = f"{base}/{name}"
        sectors, number = _number(read_text(f"{folder}/size")), read_text(f"{folder}/dev") or ""
        if sectors == 0:
            continue  # an unused loop or ram device
        scheduler = re.search(r"\[([\w-]{1,32})\]", read_text(f"{folder}/queue/scheduler") or "", re.ASCII)
        rotational = read_text(f"{folder}/queue/rotational")
        devices.append(
            {
                "name": name,
                "number": number if re.fullmatch(r"\d{1,4}:\d{1,7}", number, re.ASCII) else None,
                # Sectors are 512 bytes here, whatever the device's own are (Documentation/ABI/stable/sysfs-block).
                "size_bytes": None if sectors is None else sectors * 512,
                "rotational": {"0": False, "1": True}.get(rotational or ""),
                "scheduler": scheduler.group(1) if scheduler else None,
                "virtual": "/devices/virtual/" in os.path.realpath(folder),
            }
        )
    return {
        "devices": devices,
        "source": base if devices else "",
        "why_unknown": "" if devices else "no block devices are listed in sysfs",
    }


def power(roots: Roots) -> dict[str, Any]:
    """Return what there is of platform profile, AMD PMF and AMD HSMP, each with why it is no control per VM."""
    profile = f"{roots.sys}/firmware/acpi/platform_profile"
    now = read_text(profile)
    platform = f"{roots.sys}/devices/platform"
    cnqf = [f"{platform}/{n}/cnqf_enable" for n in sorted(_names(platform)) if n.startswith("AMDI")]
    pmf = [p for p in cnqf if os.path.exists(p)]
    pmf_driver = f"{roots.sys}/bus/platform/drivers/amd-pmf"
    hsmp = f"{roots.sys}/class/misc/hsmp"
    monitors = f"{roots.sys}/class/hwmon"
    hsmp_monitors = [
        f"{monitors}/{n}" for n in sorted(_names(monitors)) if "hsmp" in (read_text(f"{monitors}/{n}/name") or "")
    ]
    return {
        "platform_profile": {
            "present": now is not None,
            "value": _word(now),
            "choices": [w for w in (read_text(f"{profile}_choices") or "").split()[:16] if _word(w)],
            "source": profile if now is not None else "",
            "why_not_per_vm": WHY_NOT_PER_VM["platform_profile"],
        },
        "amd_pmf": {
            "present": bool(pmf) or bool(_names(pmf_driver)),
            "cnqf_enable": _word(read_text(pmf[0])) if pmf else None,
            "source": pmf[0] if pmf else pmf_driver if _names(pmf_driver) else "",
            "why_not_per_vm": WHY_NOT_PER_VM["amd_pmf"],
        },
        "hsmp": {
            "present": os.path.exists(hsmp) or bool(hsmp_monitors),
            "device": "hsmp" if os.path.exists(hsmp) else None,
            "hwmon": [os.path.basename(p) for p in hsmp_monitors],
            "source": hsmp if os.path.exists(hsmp) else hsmp_monitors[0] if hsmp_monitors else "",
            "why_not_per_vm": WHY_NOT_PER_VM["hsmp"],
        },
    }


def qos(roots: Roots) -> dict[str, Any]:
    """Return which cache and bandwidth features the CPU announces, and whether resctrl is in the kernel and mounted."""
    fields = cpu_fields(roots)
    flags = set(fields.get("flags", "").split())
    kernel = _all_of(f"{roots.proc}/filesystems")
    mounts = (line.partition(" - ") for line in (_all_of(f"{roots.proc}/self/mountinfo") or "").splitlines())
    points = [left.split(" ")[4] for left, _, right in mounts if right.startswith("resctrl ") and left.count(" ") >= 4]
    why = ""
    if not fields:
        why = f"{roots.proc}/cpuinfo cannot be read"
    elif "flags" not in fields:
        why = "this processor announces no such features in /proc/cpuinfo (on arm64 only the kernel knows of MPAM)"
    elif not flags & set(QOS_FLAGS):
        why = (
            "the hypervisor does not show these features to its guests; they are found on the host itself"
            if "hypervisor" in flags
            else "the processor has none of them, or they were switched off at boot (rdt=, clearcpuid=)"
        )
    return {
        "flags": [f for f in QOS_FLAGS if f in flags],
        "source": f"{roots.proc}/cpuinfo" if fields else "",
        "why_none": why,
        "hypervisor": "hypervisor" in flags if "flags" in fields else None,
        "resctrl": {
            "in_kernel": None if kernel is None else any(w.split()[-1:] == ["resctrl"] for w in kernel.splitlines()),
            "mounted": bool(points),
            "mount_point": points[0] if points else None,
            "source": f"{roots.proc}/filesystems, {roots.proc}/self/mountinfo",
        },
    }


def cpu_fields(roots: Roots) -> dict[str, str]:
    """Return the first processor's block of /proc/cpuinfo; empty where it cannot be read."""
    fields: dict[str, str] = {}
    for line in (_all_of(f"{roots.proc}/cpuinfo") or "").splitlines():
        if not line.strip() and fields:
            break
        key, colon, value = line.partition(":")
        if colon:
            fields.setdefault(key.strip(), value.strip())
    return fields


def _all_of(path: str) -> str | None:
    """Return the whole text of a file below /proc: those come a page at a time, however much is asked for."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(1 << 20)
    except OSError:
        return None


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and re.fullmatch(r"\d{1,18}", text, re.ASCII) else None


def _word(text: str | None) -> str | None:
    return text if text and re.fullmatch(r"[\w-]{1,32}", text, re.ASCII) else None


def _target(link: str) -> str | None:
    try:
        return os.path.basename(os.readlink(link))
    except OSError:
        return None
