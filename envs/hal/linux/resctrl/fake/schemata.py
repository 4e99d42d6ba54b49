"""The schemata file: what a write may say, in which order it is refused, and how it reads back.

rdtgroup_schemata_write(), parse_line(), parse_cbm(), cbm_validate() and bw_validate() in fs/resctrl/ctrlmondata.c.
"""

from __future__ import annotations

import errno
import re

from .groups import Group, Kernel, fail

_SPACE = " \t\n\v\f\r"
PAGE = 4096


def show(kernel: Kernel, group: Group) -> str:
    """Return what the file reads."""
    width = kernel.hw.width
    lines = []
    for name, form in (("MB", f"{{}}={{:{width}d}}" if width else "{}={:d}"), ("L3", f"{{}}={{:0{width or 1}x}}")):
        values = kernel.ctrl[name]
        lines.append(f"{name}:" + ";".join(form.format(d, values[d][group.closid]) for d in sorted(values)))
    return "\n".join(lines) + "\n"


def size(kernel: Kernel, group: Group) -> str:
    """Return the bytes of cache behind each mask; MB rows repeat the value."""
    unit = kernel.hw.cache_bytes // kernel.hw.cbm_bits
    mb, l3 = kernel.ctrl["MB"], kernel.ctrl["L3"]
    return (
        "MB:" + ";".join(f"{d}={mb[d][group.closid]}" for d in sorted(mb)) + "\n"
        "L3:" + ";".join(f"{d}={l3[d][group.closid].bit_count() * unit}" for d in sorted(l3)) + "\n"
    )  # fmt: skip


def write(kernel: Kernel, group: Group, data: str) -> None:
    """Apply a write wholly or not at all. Raises OSError."""
    if len(data) >= PAGE:
        fail(errno.E2BIG)
    if not data.endswith("\n"):
        fail(errno.EINVAL)
    kernel.status = ""
    staged: dict[tuple[str, int], int] = {}
    for line in data[:-1].split("\n"):
        name, colon, rest = line.partition(":")
        name = name.strip(_SPACE)
        if not colon:
            _refuse(kernel, "Missing ':'")
        if not rest:
            _refuse(kernel, f"Missing '{name}' value")
        if name not in kernel.ctrl or group.closid >= _closids(kernel, name):
            _refuse(kernel, f"Unknown or unsupported resource name '{name}'")
        _line(kernel, group, name, rest, staged)
    for (name, domain), value in staged.items():
        kernel.ctrl[name][domain][group.closid] = value


def _closids(kernel: Kernel, name: str) -> int:
    return kernel.hw.l3_closids if name == "L3" else kernel.hw.mb_closids


def _line(kernel: Kernel, group: Group, name: str, rest: str, staged: dict[tuple[str, int], int]) -> None:
    if name == "MB" and not kernel.hw.linear and not kernel.hw.amd:
        _refuse(kernel, "No support for non-linear MB domains")
    parts = rest.split(";")
    for i, part in enumerate(parts):
        if not part:
            if i == len(parts) - 1:
                return  # a semicolon at the end
            _refuse(kernel, "Missing '=' or non-numeric domain")
        word, equals, value = part.partition("=")
        if not equals or not re.fullmatch(r"\+?[0-9]+", word, re.ASCII):
            _refuse(kernel, "Missing '=' or non-numeric domain")
        domain = int(word)
        if domain not in kernel.ctrl[name]:
            fail(errno.EINVAL)
        if (name, domain) in staged:
            _refuse(kernel, f"Duplicate domain {domain}")
        value = value.strip(_SPACE)
        staged[name, domain] = (
            _mask(kernel, group, domain, value) if name == "L3" else _bandwidth(kernel, value)
        )  # fmt: skip


def _mask(kernel: Kernel, group: Group, domain: int, text: str) -> int:
    hw = kernel.hw
    if not re.fullmatch(r"\+?(0[xX])?[0-9a-fA-F]+", text, re.ASCII) or int(text, 16) >= 1 << 64:
        _refuse(kernel, f"Non-hex character in the mask {text}")
    mask = int(text, 16)
    if (hw.min_cbm_bits > 0 and mask == 0) or mask > hw.cbm_mask:
        _refuse(kernel, "Mask out of range")
    run = mask & ~(mask + (mask & -mask)) if mask else 0
    if not hw.sparse and run != mask:
        _refuse(kernel, f"The mask {mask:x} has non-consecutive 1-bits")
    if run.bit_count() < hw.min_cbm_bits:
        _refuse(kernel, f"Need at least {hw.min_cbm_bits} bits in the mask")
    if kernel.overlaps(domain, mask, group.closid, exclusive=True):
        _refuse(kernel, "Overlaps with exclusive group")
    if group.mode == "exclusive" and kernel.overlaps(domain, mask, group.closid, exclusive=False):
        _refuse(kernel, "Overlaps with other group")
    return mask


def _bandwidth(kernel: Kernel, text: str) -> int:
    hw = kernel.hw
    if not re.fullmatch(r"\+?[0-9]+", text, re.ASCII) or int(text) >= 1 << 32:
        _refuse(kernel, f"Invalid MB value {text}")
    value = int(text)
    if not hw.mb_min <= value <= hw.mb_max:
        _refuse(kernel, f"MB value {value} out of range [{hw.mb_min},{hw.mb_max}]")
    return -(-value // hw.mb_gran) * hw.mb_gran


def _refuse(kernel: Kernel, text: str) -> None:
    kernel.say(text)
    fail(errno.EINVAL)
