"""One frame of the live view: from a snapshot to lines of styled text that fit the terminal."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from foreshare.policies.host import RESOURCES, R, Resource
from foreshare.runtime.report.page import PALETTE
from foreshare.runtime.runlog import SEVERAL
from foreshare.runtime.tables import TOLERANCE, amount, printable

if TYPE_CHECKING:
    from rich.segment import Segment, Segments
    from rich.style import Style

    from .snapshot import Snapshot

Line = list["Segment"]
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
SHORT = {"shared": "shr", "isolated": "iso", "security": "sec"}
MAX_STRIP_LINES = 3
MAX_EVENT_LINES = 5
SHRINK = 0.985
"""How fast the scale of the bars comes down again, for each frame: by half in five seconds."""
MEMORY = 0.8
"""What a VM's shortage of the last frame counts in the order of rows; keeps rows from jumping about."""


def compact(numbers: Iterable[int], limit: int) -> str:
    """Return CPU numbers as ranges ("0-3,7"), cut to ``limit`` characters."""
    spans: list[list[int]] = []
    for n in numbers:
        if spans and n == spans[-1][1] + 1:
            spans[-1][1] = n
        else:
            spans.append([n, n])
    text = ",".join(f"{a}" if a == b else f"{a}-{b}" for a, b in spans)
    return text if len(text) <= limit else text[: max(limit - 1, 0)] + "…"


def bar(allocation: float, demand: float, scale: float, width: int, glyphs: Sequence[str]) -> list[tuple[str, str]]:
    """Return a bar as (text, role) pieces that are ``width`` cells long together.

    ``glyphs``: what is held, the mark of demand, what is missing, nothing. Roles: held, mark, short, empty.
    """
    held, mark, lacking, empty = glyphs
    if not math.isfinite(allocation) or scale <= 0 or width <= 0:
        return [(empty * max(width, 0), "empty")]
    full = round(min(width, max(0.0, width * allocation / scale)))
    if not math.isfinite(demand):
        return [(held * full, "held"), (empty * (width - full), "empty")]
    at = int(min(width - 1, max(0.0, width * demand / scale)))
    if demand > TOLERANCE * allocation:
        at = max(at, min(full, width - 1))
        full = min(full, at)
        pieces = [(held * full, "held"), (lacking * (at - full), "short"), (mark, "short")]
        return [*pieces, (empty * (width - at - 1), "empty")]
    if at < full:
        return [
            (held * at, "held"),
            (mark, "mark"),
            (held * (full - at - 1), "held"),
            (empty * (width - full), "empty"),
        ]
    return [(held * full, "held"), (empty * (at - full), "empty"), (mark, "mark"), (empty * (width - at - 1), "empty")]


class Painter:
    """Composes frames. Remembers the scale of the bars, how short each VM was, and the pace."""

    def __init__(self, meta: Mapping[str, Any], *, ascii_only: bool = False) -> None:
        from rich.style import Style

        self._glyphs = tuple("#|!." if ascii_only else "█┃▒·")
        self._dot = " - " if ascii_only else " · "
        names = [printable(n, 64) for n in meta.get("vm_names", [])]
        self._names = [n.encode("ascii", "replace").decode() for n in names] if ascii_only else names
        self._ellipsis = "~" if ascii_only else "…"
        self._isolation = [SHORT.get(str(i), printable(i, 3)) for i in meta.get("vm_isolation", [])]
        self._priority = [printable(p, 3) for p in meta.get("vm_priority", [])]
        self._cpu_ids = [int(i) for i in meta.get("cpu_ids", [])]
        self._cpu_zone = [int(z) for z in meta.get("cpu_zone", [])]
        moves = meta.get("movable", {})
        self._movable = [r for r in Resource if not isinstance(moves, dict) or moves.get(RESOURCES[r], True)]
        units = meta.get("units", {})
        self._units = [printable(units.get(r, "units"), 20) for r in RESOURCES] if isinstance(units, dict) else []
        about = [("policy", ""), ("hal", ""), ("scenario", "scenario "), ("seed", "seed ")]
        self._title = [f"{word}{printable(meta[key], 32)}" for key, word in about if meta.get(key) not in {None, ""}]
        self._scale = np.ones(R)
        self._score = np.zeros(0)
        self._pace: tuple[float, int, float] | None = None
        self._plain = Style()
        self._bold, self._dim = Style(bold=True), Style(dim=True)
        self._role = {
            "held": Style(color="cyan"), "mark": Style(bold=True, color="yellow", bgcolor="cyan"),
            "short": Style(bold=True, color="bright_red"), "empty": self._dim,
        }  # fmt: skip
        self._vm_style = [_on(colour) for colour in PALETTE]

    def frame(self, snapshot: Snapshot, width: int, height: int, now_s: float) -> list[Line]:
        """Return at most ``height`` lines of at most ``width`` cells. ``now_s`` (monotonic) tells the pace."""
        from rich.segment import Segment

        self._learn(snapshot, now_s)
        head = [*self._header(snapshot, width), *self._strip(snapshot, width)]
        events = self._events(snapshot, min(MAX_EVENT_LINES, max(0, (height - 12) // 2)))
        n = len(snapshot.allocation)
        room = height - len(head) - len(events) - 2  # the legend and the titles of the columns
        rows = np.arange(n)
        more = ""
        if n > room:
            room -= 1  # the line that says how many more
            shown = max(room, 0)
            rows = np.argsort(-self._score, kind="stable")[:shown]
            more = f"and {n - shown} more; those that lack most come first"
        body = [*self._titles(width), *(self._row(snapshot, int(i), width) for i in rows)]
        if more:
            body.append([Segment(more, self._dim)])
        if not n:
            body.append([Segment("no VMs", self._dim)])
        lines = [*head, *body, *events][:height]
        return [Segment.adjust_line_length(line, width, pad=False) for line in lines]

    def joined(self, lines: Sequence[Line]) -> Segments:
        """Return the lines as one thing to print, without a line end after the last."""
        from rich.segment import Segment, Segments

        out: Line = []
        for i, line in enumerate(lines):
            if i:
                out.append(Segment.line())
            out.extend(line)
        return Segments(out)

    def _learn(self, s: Snapshot, now_s: float) -> None:
        allocation = np.asarray(s.allocation, float)
        top = np.nanmax(np.where(np.isfinite(allocation), allocation, 0.0), axis=0, initial=0.0)
        self._scale = np.maximum(np.maximum(SHRINK * self._scale, 1.25 * top), 1.0)
        lack = (np.asarray(s.demand, float) - allocation) / np.maximum(allocation, 1.0)
        lack[:, Resource.CACHE][allocation[:, Resource.CACHE] == 0] = 0.0  # it uses the ways that nobody owns
        worst = np.clip(np.nan_to_num(lack[:, self._movable], nan=0.0), 0.0, 10.0).max(axis=1, initial=0.0)
        if self._score.shape != worst.shape:
            self._score = worst
        self._score = MEMORY * self._score + (1 - MEMORY) * worst
        if self._pace is None:
            self._pace = (now_s, s.ticks, math.nan)
        elif now_s - self._pace[0] >= 0.5:
            rate = (s.ticks - self._pace[1]) / (now_s - self._pace[0])
            self._pace = (now_s, s.ticks, rate)

    def _header(self, s: Snapshot, width: int) -> list[Line]:
        from rich.segment import Segment

        clock = f"{s.t_s:.1f} s" if not s.seconds_total else f"{s.t_s:.1f} of {s.seconds_total:.1f} s"
        rate = self._pace[2] if self._pace else math.nan
        clock += f"{self._dot}{amount(rate)} ticks/s" if math.isfinite(rate) else ""
        title = "foreshare" + "".join(self._dot + t for t in self._title)
        first = [
            Segment(_fit(title, max(width - len(clock) - 2, 9), self._ellipsis), self._bold),
            Segment("  " + clock),
        ]
        decided = s.by_policy + s.by_fallback
        share = f"{100.0 * s.by_policy / decided:.1f} % policy" if decided else "nothing decided yet"
        share += f" ({printable(s.policy_fault, 12)})" if s.policy_fault else ""
        facts = [
            f"{s.ticks:,} ticks, {s.missed_ticks:,} missed", share, f"{s.contentions:,} contentions",
            f"{'decision ' if width >= 96 else ''}p50 {amount(s.decision_p50_us)} p99 {amount(s.decision_p99_us)} us",
        ]  # fmt: skip
        return [first, [Segment(self._dot.join(facts))]]

    def _strip(self, s: Snapshot, width: int) -> list[Line]:
        from rich.segment import Segment

        lines: list[Line] = [[Segment("cores ", self._dim)]]
        used = 6
        owners = s.cpu_owner.tolist()
        for i, vm in enumerate(owners):
            gap = 0 < i < len(self._cpu_zone) and self._cpu_zone[i] != self._cpu_zone[i - 1]
            if used + 1 + gap > width:
                if len(lines) == MAX_STRIP_LINES:
                    lines[-1][-1] = Segment(self._ellipsis, self._dim)
                    break
                lines.append([Segment("      ")])
                used, gap = 6, False
            if gap:
                lines[-1].append(Segment(" "))
            lines[-1].append(self._letter(vm))
            used += 1 + gap
        return lines if owners else []

    def _letter(self, vm: int) -> Segment:
        from rich.segment import Segment

        if vm < 0:
            return Segment("*" if vm == SEVERAL else self._glyphs[3], self._dim)
        return Segment(LETTERS[vm % len(LETTERS)], self._vm_style[vm % len(self._vm_style)])

    def _columns(self, width: int) -> tuple[int, int, int, int]:
        """Widths of: the name, the list of CPUs, the bar of a resource, its number."""
        name = 20 if width >= 130 else 14 if width >= 96 else 10
        cpus = 16 if width >= 130 else 10 if width >= 96 else 7
        number = 9 if width >= 130 else 4
        each = (width - 2 - name - 1 - 4 - 4 - 4 - cpus - 1) // max(1, len(self._movable))
        return name, cpus, max(3, each - number - 2), number

    def _titles(self, width: int) -> list[Line]:
        from rich.segment import Segment

        name, cpus, length, number = self._columns(width)
        held, mark, lacking, _ = self._glyphs
        units = ", ".join(f"{RESOURCES[r]} {self._units[r]}" for r in self._movable if self._units)
        legend = [
            Segment(held, self._role["held"]), Segment(" held "), Segment(mark, self._role["mark"]),
            Segment(" wanted "), Segment(lacking, self._role["short"]), Segment(" lacking  "),
            Segment("one unit: " + units, self._dim),
        ]  # fmt: skip
        titles = f"  {'VM':{name}} iso pri CPUs{'':{cpus}} "
        for r in self._movable:
            what = "held/want" if number >= 9 else "held"
            titles += f"{RESOURCES[r][:length]:{length}} {what:>{number}} "
        return [legend, [Segment(titles, self._bold)]]

    def _row(self, s: Snapshot, vm: int, width: int) -> Line:
        from rich.segment import Segment

        name, room, length, number = self._columns(width)
        label = self._names[vm] if vm < len(self._names) else f"VM {vm}"
        isolation = self._isolation[vm] if vm < len(self._isolation) else ""
        priority = self._priority[vm] if vm < len(self._priority) else ""
        held = np.flatnonzero(s.cpus[vm] if s.cpus is not None else s.cpu_owner == vm).tolist()
        ids = sorted(self._cpu_ids[i] if i < len(self._cpu_ids) else i for i in held)
        listed = compact(ids, room).replace("…", self._ellipsis) if ids else "shared"[:room]
        line = [
            self._letter(vm), Segment(" " + _fit(label, name, self._ellipsis)),
            Segment(f" {isolation:3} {priority:>3} {len(ids):>3} {listed:{room}} "),
        ]  # fmt: skip
        for r in self._movable:
            allocation, demand = float(s.allocation[vm, r]), float(s.demand[vm, r])
            for text, role in bar(allocation, demand, float(self._scale[r]), length, self._glyphs):
                if text:
                    line.append(Segment(text, self._role[role]))
            figure = _short(allocation) + (f"/{_short(demand)}" if number >= 9 else "")
            style = self._role["short"] if demand > TOLERANCE * allocation else self._plain
            line.append(Segment(f" {figure:>{number}} ", style))
        return line

    def _events(self, s: Snapshot, count: int) -> list[Line]:
        from rich.segment import Segment

        out: list[Line] = []
        for e in reversed(s.events[-count:] if count else ()):
            who = self._names[e.vm] if 0 <= e.vm < len(self._names) else "host"
            text = f"{e.t_ns / 1e9:8.2f} s {printable(e.kind, 12):12} {printable(who, 24)}: {printable(e.text, 120)}"
            out.append([Segment(text, self._dim)])
        return out


def _on(colour: str) -> Style:
    """Return black or white on ``colour``, whichever reads better (relative luminance, WCAG 2.2)."""
    from rich.style import Style

    parts = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return Style(color="#000000" if luminance > 0.179 else "#ffffff", bgcolor=colour)


def _fit(text: str, cells: int, ellipsis: str) -> str:
    """Return ``text`` cut or padded to ``cells`` columns of the terminal; wide characters take two."""
    from rich.cells import cell_len, set_cell_size

    return set_cell_size(text, cells) if cell_len(text) <= cells else set_cell_size(text, cells - 1) + ellipsis


def _short(value: float) -> str:
    """Return an amount in at most four characters."""
    if not math.isfinite(value):
        return "?" if math.isnan(value) else "inf"
    for suffix in ("", "k", "M", "G"):
        if abs(value) < (9999.5 if not suffix else 999.5):
            return f"{value:.0f}{suffix}"
        value /= 1000.0
    return "lots"


def plain(lines: Iterable[Line]) -> list[str]:
    """Return the lines without their styles."""
    return ["".join(segment.text for segment in line) for line in lines]
