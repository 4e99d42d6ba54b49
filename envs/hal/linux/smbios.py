"""Memory modules as the firmware lists them: structures 17 and 19 of the SMBIOS tables.

Layout: DMTF DSP0134 (System Management BIOS Reference Specification) 3.6, sections 6.1.2 (structure header), 7.18
(type 17, Memory Device) and 7.20 (type 19, Memory Array Mapped Address). Files: sysfs-firmware-dmi-tables and
sysfs-firmware-dmi-entries in Documentation/ABI/testing; only root may read them. Firmware writes nonsense at times:
what cannot be understood is left out, nothing here raises for content.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from typing import Final

from .roots import Roots

MAX_BYTES: Final = 1 << 20
MAX_STRUCTURES: Final = 4096
_MEMORY_TYPES: Final = {
    0x18: "DDR3", 0x1A: "DDR4", 0x1B: "LPDDR", 0x1C: "LPDDR2", 0x1D: "LPDDR3", 0x1E: "LPDDR4", 0x20: "HBM",
    0x21: "HBM2", 0x22: "DDR5", 0x23: "LPDDR5", 0x24: "HBM3",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Module:
    """One populated memory slot."""

    array: int
    """Handle of the memory array that it belongs to."""
    locator: str
    """What the board calls the slot."""
    bank: str
    """What the board calls the bank; often names socket and channel, in no standard form."""
    type: str
    """"DDR5"; "unknown" for anything that DSP0134 7.18.2 does not name as DRAM of today."""
    size_bytes: int
    data_width_bits: int | None
    speed_mt_s: int | None
    """Configured speed, where the firmware gives one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tables:
    """What was found."""

    modules: tuple[Module, ...]
    ranges: tuple[tuple[int, int, int], ...]
    """(array handle, first byte, last byte) of the physical addresses that an array serves."""
    source: str
    """The file or folder read; empty where there is none."""
    why_not: str
    """Empty where there are modules; else one sentence."""


def read_tables(roots: Roots) -> Tables:
    """Return the memory modules and address ranges that the firmware tells."""
    whole, folder = f"{roots.sys}/firmware/dmi/tables/DMI", f"{roots.sys}/firmware/dmi/entries"
    data, refused = _read(whole)
    source = whole
    if not data:
        data, also_refused = _entries(folder)
        source, refused = folder, refused or also_refused
    if not data:
        why = (
            "only root may read the firmware's tables (SMBIOS)"
            if refused
            else "the firmware offers no tables (SMBIOS), as in many virtual machines and on many ARM boards"
        )
        return Tables(modules=(), ranges=(), source="", why_not=why)
    modules: list[Module] = []
    ranges: list[tuple[int, int, int]] = []
    for kind, body, strings in _structures(data):
        if kind == 17:
            module = _module(body, strings)
            if module is not None:
                modules.append(module)
        elif kind == 19:
            span = _span(body)
            if span is not None:
                ranges.append(span)
    why = "" if modules else f"{source} lists no populated memory slot"
    return Tables(modules=tuple(modules), ranges=tuple(ranges), source=source, why_not=why)


def _read(path: str) -> tuple[bytes, bool]:
    """Return (content, refused): empty and True where the file is there but not for us."""
    try:
        with open(path, "rb", buffering=0) as file:
            parts = []
            # sysfs may hand out less than asked for: read until it has no more.
            while part := file.read(MAX_BYTES):
                parts.append(part)
                if sum(map(len, parts)) > MAX_BYTES:
                    break
            return b"".join(parts)[:MAX_BYTES], False
    except PermissionError:
        return b"", True
    except OSError:
        return b"", False


def _entries(folder: str) -> tuple[bytes, bool]:
    """Return the structures of types 17 and 19, one after the other as in the table itself."""
    try:
        names = sorted(n for n in os.listdir(folder) if n.startswith(("17-", "19-")))
    except OSError:
        return b"", False
    parts: list[bytes] = []
    refused = False
    for name in names[:MAX_STRUCTURES]:
        data, denied = _read(f"{folder}/{name}/raw")
        refused |= denied
        parts.append(data)
    return b"".join(parts), refused


def _structures(data: bytes) -> list[tuple[int, bytes, list[str]]]:
    """Return (type, formatted area, strings) of each structure; stops at the first that does not fit."""
    out: list[tuple[int, bytes, list[str]]] = []
    at = 0
    while at + 4 <= len(data) and len(out) < MAX_STRUCTURES:
        kind, length = data[at], data[at + 1]
        if length < 4 or at + length > len(data):
            break
        end = data.find(b"\0\0", at + length)
        if end < 0:
            break
        texts = data[at + length : end].split(b"\0")
        out.append((kind, data[at : at + length], [t.decode("ascii", "replace").strip() for t in texts]))
        at = end + 2
        if kind == 127:  # end of table
            break
    return out


def _module(body: bytes, strings: list[str]) -> Module | None:
    if len(body) < 0x17:
        return None
    array, data_width, size = (struct.unpack_from("<H", body, at)[0] for at in (0x04, 0x0A, 0x0C))
    if size in (0, 0xFFFF):  # empty slot, unknown size
        return None
    if size == 0x7FFF and len(body) >= 0x20:
        size_bytes = (struct.unpack_from("<I", body, 0x1C)[0] & 0x7FFFFFFF) << 20
    else:
        size_bytes = (size & 0x7FFF) << (10 if size & 0x8000 else 20)
    return Module(
        array=array,
        locator=_string(strings, body[0x10]),
        bank=_string(strings, body[0x11]),
        type=_MEMORY_TYPES.get(body[0x12], "unknown"),
        size_bytes=size_bytes,
        data_width_bits=None if data_width in (0, 0xFFFF) else data_width,
        # What the module could do is no answer to what it does: only the configured speed counts, where there is one.
        speed_mt_s=_speed(body, 0x20, 0x58) if len(body) >= 0x22 else _speed(body, 0x15, 0x54),
    )


def _speed(body: bytes, at: int, extended_at: int) -> int | None:
    speed: int = struct.unpack_from("<H", body, at)[0]
    if speed == 0xFFFF:
        if len(body) < extended_at + 4:
            return None
        speed = struct.unpack_from("<I", body, extended_at)[0] & 0x7FFFFFFF
    return speed or None


def _span(body: bytes) -> tuple[int, int, int] | None:
    if len(body) < 0x0F:
        return None
    first, last = struct.unpack_from("<II", body, 0x04)
    array: int = struct.unpack_from("<H", body, 0x0C)[0]
    if first == 0xFFFFFFFF:
        if len(body) < 0x1F:
            return None
        first_byte, last_byte = struct.unpack_from("<QQ", body, 0x0F)
    else:
        first_byte, last_byte = first << 10, (last << 10) + 1023
    return (array, first_byte, last_byte) if last_byte > first_byte else None


def _string(strings: list[str], number: int) -> str:
    return strings[number - 1][:64] if 0 < number <= len(strings) else ""
