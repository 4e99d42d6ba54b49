"""The result of ``foreshare evaluate`` for people: a table of text, and one HTML file with the same and a figure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from foreshare.training.drive import ORACLE_PREFIX

from .report.page import PALETTE, esc, figure, page, section, table, tabs, tile
from .tables import NO_VALUE, printable

NO_CLOSURE = "closure: not shown, it takes oracle-paying among the policies, a point or more below the base"
_COLUMNS = (
    ("late requests %", "slo_violation_pct", 2),
    ("VMs late %", "late_vms_pct", 1),
    ("VMs starved %", "starved_vms_pct", 1),
    ("P99/alone", "p99_alone_median", 1),
    ("worst 10th", "p99_alone_worst_decile", 1),
    ("converge", "converge_ticks", 1),
    ("moves/tick", "moves_per_tick", 1),
    ("fairness", "fairness", 2),
    ("broken", "reservations_broken", 0),
    ("us", "decision_us", 0),
)
_MEANING = (
    ("late requests %", "priority-weighted share of requests that missed their latency target; lower is better"),
    ("over the base", "how far above the base (the best that is neither learned nor an oracle), on the same arrivals"),
    ("VMs late, starved", "VMs with more than 1 %, more than 50 % of their requests late"),
    ("P99/alone", "99th percentile of latency over that with the host to itself: median, and worst tenth of the VMs"),
    ("converge", "ticks after a step of one VM's load until its lateness is steady again"),
    ("moves/tick", "allocations of one resource to one VM that changed"),
    ("broken", "times that a VM had less than min(reservation, demand) for more than two ticks"),
    ("EMU", "highest load, % of capacity, with at most 1 % late requests and no VM starved"),
    ("us", "microseconds of one decision on this machine, median"),
)
Result = Mapping[str, Any]


def _ranked(result: Result, load: str) -> list[str]:
    return sorted(result["policies"], key=lambda p: result["policies"][p][load]["slo_violation_pct"])


def _shown(value: object, digits: int) -> str:
    return f"{value:.{digits}f}" if isinstance(value, int | float) and math.isfinite(value) else NO_VALUE


def _interval(figures: Result) -> str:
    return f"[{_shown(figures['slo_violation_low'], 2)}, {_shown(figures['slo_violation_high'], 2)}]"


def _above(figures: Result, policy: str, base: str) -> str:
    if policy == base:
        return "the base"
    low, high = figures["above_base_low"], figures["above_base_high"]
    return f"{figures['above_base']:+.2f} [{low:+.2f}, {high:+.2f}]"


def _closure(figures: Result) -> str:
    if figures["closure_paying"] is None:
        return NO_VALUE
    return (
        f"{figures['closure_paying']:.0f} [{figures['closure_paying_low']:.0f}, {figures['closure_paying_high']:.0f}]"
    )


def _has_closure(result: Result) -> bool:
    return any(f["closure_paying"] is not None for loads in result["policies"].values() for f in loads.values())


def _loads(result: Result) -> list[str]:
    return list(next(iter(result["policies"].values())))


def _rows(result: Result, load: str) -> tuple[list[str], list[list[str]]]:
    """Return the head and the rows of one load class, best policy first."""
    closure = _has_closure(result)
    head = ["policy", _COLUMNS[0][0], "95 % interval", "over the base"]
    head += ["closure %"] if closure else []
    head += ["EMU", *(name for name, _, _ in _COLUMNS[1:])]
    rows = []
    for policy in _ranked(result, load):
        f = result["policies"][policy][load]
        row = [policy, _shown(f["slo_violation_pct"], 2), _interval(f), _above(f, policy, result["base"][load])]
        row += [_closure(f)] if closure else []
        row += [_shown(result["emu"][policy], 1), *(_shown(f[key], digits) for _, key, digits in _COLUMNS[1:])]
        rows.append(row)
    return head, rows


def text(result: Result) -> str:
    """Return the tables as text, one for each load class."""
    lines = [
        f"suite {printable(result['suite'])}, hash {result['suite_hash']}: {len(result['scenarios'])} scenarios,"
        f" {result['seeds']} seeds; intervals are 95 %, over scenarios and seeds"
    ]
    for load in _loads(result):
        head, rows = _rows(result, load)
        width = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
        lines += ["", f"{load} load" if load != "all" else "all loads"]
        for row in [head, *rows]:
            first, *rest = (
                cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, width, strict=True))
            )
            lines.append("  ".join([first, *rest]).rstrip())
    lines.append("")
    if not _has_closure(result):
        lines.append(NO_CLOSURE)
    return "".join(f"{line}\n" for line in lines)


def render(result: Result) -> str:
    """Return the report as one HTML document: no script, nothing from elsewhere."""
    loads = _loads(result)
    ranked = _ranked(result, "all")
    best = next((p for p in ranked if not p.startswith(ORACLE_PREFIX)), ranked[0])
    figures = result["policies"][best]["all"]
    tiles = "".join(
        [
            tile(esc(best), "fewest late requests over all loads"),
            tile(f"{figures['slo_violation_pct']:.2f} %", f"of its requests late, {_interval(figures)}"),
            tile(str(len(result["scenarios"])), f"scenarios, {result['seeds']} seeds each"),
            tile(f"<code>{esc(result['suite_hash'])}</code>", f"hash of suite {esc(result['suite'])}"),
        ]
    )
    pages = []
    for load in loads:
        head, rows = _rows(result, load)
        cells = table([esc(h) for h in head], [[esc(c) for c in row] for row in rows], range(1, len(head)))
        pages.append((esc(load), figure(_dots(result, load), wide=True) + cells))
    by_scenario = []
    for load in loads:
        policies = _ranked(result, load)
        rows = [
            [name, *(_shown(of[p][load]["slo_violation_pct"], 2) for p in policies)]
            for name, of in result["scenarios"].items()
        ]
        cells = table(
            ["scenario", *map(esc, policies)], [[esc(c) for c in r] for r in rows], range(1, len(policies) + 1)
        )
        by_scenario.append((esc(load), cells))
    note = "" if _has_closure(result) else f'<p class="soft">{NO_CLOSURE}.</p>'
    meaning = table(["figure", "what it says"], [[esc(a), esc(b, 200)] for a, b in _MEANING], about=1)
    body = (
        f"<h1>foreshare evaluate</h1><p class='lead'>Suite {esc(result['suite'])}. All policies met the same arrivals;"
        f" intervals are 95 %, paired bootstrap over scenarios and seeds.</p><div class='tiles'>{tiles}</div>"
        + section("policies", "Policies", note + tabs("load", pages))
        + section("scenarios", "Late requests by scenario, %", tabs("scenario", by_scenario))
        + section("meaning", "What the figures mean", meaning)
        + f"<p class='soft'>code {esc(result['code_version'])}</p>"
    )
    return page(f"foreshare evaluate: {esc(result['suite'])}", body)


def _dots(result: Result, load: str) -> str:
    """Return an SVG with V of every policy at one load, a dot with its interval as a shaded bar."""
    policies = _ranked(result, load)
    of = {p: result["policies"][p][load] for p in policies}
    highest = max(f["slo_violation_high"] for f in of.values())
    step = _round_step(max(highest, 0.1) / 5.0)
    top = step * max(math.ceil(highest / step - 1e-9), 1)
    left, width, row = 130, 560, 24
    height = row * len(policies) + 46

    def x(value: float) -> float:
        return float(left + width * value / top)

    parts = [f'<svg viewBox="0 0 {left + width + 30} {height}" role="img" font-size="12" fill="currentColor">']
    for i in range(round(top / step) + 1):
        at = x(i * step)
        parts.append(f'<line x1="{at:.1f}" x2="{at:.1f}" y1="6" y2="{height - 38}" stroke="var(--grid)"/>')
        parts.append(f'<text x="{at:.1f}" y="{height - 24}" text-anchor="middle">{i * step:g}</text>')
    for i, policy in enumerate(policies):
        y, f, colour = 6 + row * (i + 0.5), of[policy], PALETTE[list(result["policies"]).index(policy) % len(PALETTE)]
        low, high = x(f["slo_violation_low"]), x(f["slo_violation_high"])
        parts.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{esc(policy)}</text>')
        parts.append(
            f'<rect x="{low:.1f}" y="{y - 5:.1f}" width="{max(high - low, 1):.1f}" height="10"'
            f' fill="{colour}" opacity="0.35"/>'
        )
        parts.append(f'<circle cx="{x(f["slo_violation_pct"]):.1f}" cy="{y:.1f}" r="4.5" fill="{colour}"/>')
    parts.append(
        f'<text x="{left + width / 2}" y="{height - 6}" text-anchor="middle">late requests, % (V)</text></svg>'
    )
    return "".join(parts)


def _round_step(value: float) -> float:
    """Return 1, 2 or 5 times a power of ten, at least ``value``."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(k * power for k in (1.0, 2.0, 5.0, 10.0) if k * power >= value * (1 - 1e-9))
