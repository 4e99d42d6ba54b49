"""The doctor's report for people: first what can be measured and moved, then what there is, then what would help.

One description of the page, two printers: rich on a terminal, plain text anywhere else.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, TextIO

from .tables import encodable, printable

PLAIN_WIDTH: Final = 110
MAX_ROWS: Final = 40
UNKNOWN: Final = "unknown"


@dataclass(frozen=True, slots=True)
class Section:
    """A heading, a table (its last column wraps), and sentences under it."""

    title: str
    columns: tuple[str, ...] = ()
    rows: Sequence[tuple[str, ...]] = ()
    notes: Sequence[str] = ()


def render(report: dict[str, Any], stream: TextIO | None = None) -> str:
    """Return the report as text: coloured and as wide as the terminal where ``stream`` is one, else plain."""
    page = [_resources(report), _host(report), _memory(report), _pcie(report), _disks(report), _power(report)]
    page += [
        _vms(report),
        _libvirt(report),
        Section("What would help", notes=report["advice"] or ["Nothing: all of it is there."]),
    ]
    text = _rich(page, stream) if stream is not None and stream.isatty() else _plain(page)
    return encodable(text, stream)


def _resources(report: dict[str, Any]) -> Section:
    rows = [
        (
            name,
            "yes" if r["measure"] else "no",
            "yes" if r["move"] else "no",
            f"{r['units']} x {r['unit']}" if r["move"] else "-",
            r["interface"] or "-",
            r["why_not"] or "-",
        )
        for name, r in report["resources"].items()
    ]
    columns = ("resource", "measure", "move", "units", "interface", "why not")
    return Section("What this host can measure and move", columns, rows)


def _host(report: dict[str, Any]) -> Section:
    host, clock, qos = report["host"], report["clock"], report["inventory"]["qos"]
    versions = report["cgroup"]["versions"]
    mounted = ", ".join(f"{name} v{version}" for name, version in versions.items() if version)
    late = clock["sleep_overshoot_us"]
    counts = (
        f"sockets: {host['sockets']}, NUMA nodes: {host['zones']}, cores: {host['cores']}, threads: {host['threads']}"
        if host["threads"]
        else f"{UNKNOWN}: {host['why_unknown']}"
    )
    resctrl = qos["resctrl"]
    state = f"mounted at {resctrl['mount_point']}" if resctrl["mounted"] else "not mounted"
    state += ", in the kernel" if resctrl["in_kernel"] else ", not in the kernel"
    rows = [
        ("kernel", _said(host["kernel"])),
        ("processor", _said(host["cpu_model"])),
        ("topology", counts),
        ("core scheduling", f"none: {why}" if (why := host["why_no_core_scheduling"]) else "yes"),
        ("running as root", "yes" if report["root"] else "no"),
        ("cgroups", mounted or report["cgroup"]["why_none"] or "none of the controllers that matter"),
        ("cache and memory QoS", " ".join(qos["flags"]) or f"none: {qos['why_none']}"),
        ("resctrl", state),
        ("resctrl offers", _offers(report["resctrl"])),
        (
            "clock",
            f"{_said(clock['source'])}, resolution {clock['resolution_ns']} ns, wakes up {late['p50']:.0f} us late at"
            f" p50, {late['p99']:.0f} us at p99",
        ),
    ]
    return Section("The host", ("what", "is"), rows)


def _offers(facts: dict[str, Any]) -> str:
    if facts["why_none"]:
        return f"nothing: {facts['why_none']}"
    cache, bandwidth = facts["cache"], facts["bandwidth"]
    parts = [f"{facts['classes']} classes, {facts['classes_free']} of them free"]
    if cache:
        shape = "in one run" if cache["contiguous"] else "in any pattern"
        each = f"{cache['way_bytes'] / 2**20:.1f} MiB in each of {len(facts['domains'])} L3 domains"
        parts.append(
            f"{cache['ways']} ways of {each}, {cache['ways_to_own']} to own, at least {cache['least_ways']}, {shape},"
            f" bits shared with IO: {cache['shareable_bits']}"
            + (", code and data apart" if cache["code_and_data_apart"] else "")
        )
    if bandwidth:
        parts.append(f"memory bandwidth in {bandwidth['unit']} from {bandwidth['least']} to {bandwidth['most']}")
    events = facts["monitoring"]["events"]
    parts.append(f"{facts['monitoring']['ids']} monitoring ids ({', '.join(events)})" if events else "no monitoring")
    return "; ".join(parts)


def _memory(report: dict[str, Any]) -> Section:
    memory = report["inventory"]["memory"]
    rows = []
    for node in memory["nodes"]:
        entry = node
        if node["channels"] is None and len(memory["nodes"]) == 1:
            entry = {**memory["host"], **{k: node[k] for k in ("node", "memory_bytes")}}
        rows.append(_memory_row(f"node {node['node']}", node["memory_bytes"], entry))
    if len(memory["nodes"]) > 1 and memory["host"]["channels"] is not None:
        rows.append(_memory_row("all", None, memory["host"]))
    columns = ("where", "size", "channels", "speed", "bandwidth", "source, or why unknown")
    return Section("Memory channels", columns, rows, [_sentence("Not moved", memory["why_not_per_vm"])])


def _memory_row(where: str, size: int | None, entry: dict[str, Any]) -> tuple[str, ...]:
    return (
        where,
        _bytes(size),
        _said(entry["channels"]),
        f"{entry['speed_mt_s']} MT/s" if entry["speed_mt_s"] else UNKNOWN,
        _rate(entry["bandwidth_bytes_per_s"]),
        entry["why_unknown"] or entry["source"],
    )


def _pcie(report: dict[str, Any]) -> Section:
    pcie = report["inventory"]["pcie"]
    rows = []
    for d in pcie["devices"]:
        path = d["path"]
        narrow = path["limited_by"] not in (None, d["address"])
        rows.append(
            (
                d["address"],
                _said(d["class"]),
                _said(d["driver"], "none"),
                _said(d["numa_node"], "-"),
                _link(d["link"]["current"]),
                _link(d["link"]["max"]),
                _rate(path["bytes_per_s"]) + (f" (by {path['limited_by']})" if narrow else ""),
                f"{_said(d['sriov']['enabled'])} of {d['sriov']['most']}" if d["sriov"] else "-",
            )
        )
    notes = []
    if pcie["why_unknown"]:
        notes.append(_sentence("", pcie["why_unknown"]))
    elif not rows:
        notes.append(
            f"None of the {pcie['without_link']} PCI devices tells a link (virtual and on-chip ones have none)."
        )
    notes.append(_sentence("Not moved", pcie["why_not_per_vm"]))
    if any(d["sriov"] for d in pcie["devices"]):
        notes.append(_sentence("Virtual functions", pcie["sriov_why_not_moved"]))
    columns = ("device", "class", "driver", "node", "link now", "link at most", "bandwidth", "VFs")
    return Section("PCIe links", columns if rows else (), rows, notes)


def _link(link: dict[str, Any] | None) -> str:
    if link is None or link["lanes"] is None or link["gt_per_s"] is None:
        return UNKNOWN
    return f"x{link['lanes']} {link['gt_per_s']:g} GT/s"


def _disks(report: dict[str, Any]) -> Section:
    block = report["inventory"]["block"]
    kinds = {True: "spinning (or says so)", False: "solid state", None: UNKNOWN}
    rows = [
        (
            d["name"],
            _said(d["number"]),
            _bytes(d["size_bytes"]),
            "virtual" if d["virtual"] else kinds[d["rotational"]],
            _said(d["scheduler"], "none"),
        )
        for d in block["devices"]
    ]
    notes = [_sentence("", block["why_unknown"])] if block["why_unknown"] else []
    return Section("Disks", ("name", "number", "size", "kind", "scheduler") if rows else (), rows, notes)


def _power(report: dict[str, Any]) -> Section:
    names = {"platform_profile": "platform profile", "amd_pmf": "AMD PMF", "hsmp": "AMD HSMP"}
    rows = []
    for key, entry in report["inventory"]["power"].items():
        state = entry.get("value") or entry.get("cnqf_enable")
        there = f"there{f' ({state})' if state else ''}" if entry["present"] else "not there"
        rows.append((names.get(key, key), there, entry["why_not_per_vm"]))
    return Section("Power controls, none of them per VM", ("control", "here", "why not per VM"), rows)


def _vms(report: dict[str, Any]) -> Section:
    rows = [
        (vm["name"], vm["cgroup"] or "none of its own", _said(vm["uuid"], "-"), _said(vm["pid"], "-"))
        for vm in report["vms"]
    ]
    notes = [] if rows else ["None found: no QEMU process, no libvirt scope. Any other cgroup can be named too."]
    return Section(
        "VMs that a configuration could name", ("name", "cgroup", "uuid", "pid") if rows else (), rows, notes
    )


def _libvirt(report: dict[str, Any]) -> Section:
    rows = [
        (d["name"], d["uuid"], "runs" if d["running"] else "is off", str(d["vcpus"]), d["cgroup"] or "-",
         ", ".join([*d["disks"], *d["nics"]]) or "-")
        for d in report["libvirt"]["domains"]
    ]  # fmt: skip
    notes = [_sentence("", report["libvirt"]["why_none"])] if report["libvirt"]["why_none"] else []
    columns = ("name", "uuid", "state", "vCPUs", "cgroup", "disks and NICs") if rows else ()
    return Section("Domains of libvirt, which a configuration can name by uuid alone", columns, rows, notes)


def _said(value: object, otherwise: str = UNKNOWN) -> str:
    return otherwise if value is None or value == "" else str(value)


def _bytes(size: int | None) -> str:
    return UNKNOWN if size is None else f"{size / 2**30:.1f} GiB"


def _rate(bytes_per_s: float | None) -> str:
    return UNKNOWN if bytes_per_s is None else f"{bytes_per_s / 1e9:.1f} GB/s"


def _sentence(head: str, text: str) -> str:
    return f"{head}: {text}." if head else f"{text[:1].upper()}{text[1:]}."


def _cells(section: Section) -> list[tuple[str, ...]]:
    """Return the rows that are shown, made harmless for a terminal."""
    return [tuple(printable(cell, 300) for cell in row) for row in section.rows[:MAX_ROWS]]


def _more(section: Section) -> list[str]:
    left = len(section.rows) - MAX_ROWS
    return [f"And {left} more: foreshare doctor --json has them all."] if left > 0 else []


def _plain(page: Sequence[Section]) -> str:
    lines: list[str] = []
    for section in page:
        lines += [section.title, "-" * len(section.title)]
        if section.columns:
            lines += _plain_table(section.columns, _cells(section))
        for note in [*_more(section), *section.notes]:
            lines += textwrap.wrap(printable(note, 500), PLAIN_WIDTH, initial_indent="* ", subsequent_indent="  ")
        lines.append("")
    return "\n".join(lines)


def _plain_table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    """Lay out a table; cells of the last two columns wrap, the others are as wide as their widest."""
    table = [columns, *rows]
    widths = [max(len(row[i]) for row in table) for i in range(len(columns))]
    room = PLAIN_WIDTH - 2 * (len(columns) - 1)
    excess = sum(widths) - room
    if excess > 0:
        # Only the widest columns give way, the widest first, none below 16 characters.
        for i in sorted(range(len(widths)), key=lambda i: -widths[i]):
            cut = min(excess, max(widths[i] - 40, 0)) if i != len(widths) - 1 else 0
            widths[i] -= cut
            excess -= cut
        widths[-1] = max(widths[-1] - max(excess, 0), 24)
    out: list[str] = []
    for row in table:
        cells = [textwrap.wrap(cell, width) or [""] for cell, width in zip(row, widths, strict=True)]
        for k in range(max(map(len, cells))):
            parts = [(cell[k] if k < len(cell) else "").ljust(width) for cell, width in zip(cells, widths, strict=True)]
            out.append("  ".join(parts).rstrip())
    return out


def _rich(page: Sequence[Section], stream: TextIO | None) -> str:
    from rich.console import Console, Group
    from rich.table import Table
    from rich.text import Text

    parts: list[Any] = []
    for section in page:
        parts.append(Text(section.title, style="bold"))
        if section.columns:
            table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
            for i, column in enumerate(section.columns):
                table.add_column(column, overflow="fold", ratio=1 if i == len(section.columns) - 1 else None)
            for row in _cells(section):
                table.add_row(*(Text(cell, style=_STYLES.get(cell, "")) for cell in row))
            parts.append(table)
        parts += [Text(f"* {printable(note, 500)}") for note in [*_more(section), *section.notes]]
        parts.append(Text(""))
    width = Console(file=stream).width
    console = Console(file=io.StringIO(), width=width, force_terminal=True)
    with console.capture() as captured:
        console.print(Group(*parts))
    return captured.get()


_STYLES: Final = {"yes": "green", "no": "yellow", UNKNOWN: "dim"}
