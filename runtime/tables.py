"""The numbers at the end of a run, beside the static partition's, and text that is safe to show to people."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TextIO

LINE_LIKE = {"Zl", "Zp"}
HARMFUL = {"Cc", "Cf", "Cs"}
"""Unicode categories that can move the cursor, turn the writing direction, hide, or not be encoded at all."""
NO_VALUE = "–"
TOLERANCE = 1.05
"""A VM is short where its demand exceeds its allocation by more than this factor."""


def printable(text: object, limit: int = 60) -> str:
    """Return ``text`` on one line, without control, bidi or surrogate characters, at most ``limit`` characters long.

    Names of VMs and kernel messages may hold anything. This makes them harmless for a terminal; HTML still needs
    escaping on top.
    """
    raw = str(text)[: 4 * limit + 16]  # a name may be megabytes long
    kept: list[str] = []
    marks = 0
    for char in raw:
        category = unicodedata.category(char)
        if category in {"Mn", "Me"}:
            marks += 1
            if marks > 2:  # stacked accents paint over the lines above and below
                continue
        else:
            marks = 0
        if char in "\t\n\r" or category in LINE_LIKE:
            kept.append(" ")
        elif category not in HARMFUL:
            kept.append(char)
    clean = " ".join("".join(kept).split())
    if len(clean) > limit or len(str(text)) > len(raw):
        clean = clean[: max(limit - 1, 0)].rstrip() + "…"
    return clean


def number(value: object) -> float:
    """Return ``value`` as a float, NaN where it is missing or no number."""
    if isinstance(value, int | float):
        return float(value)
    return math.nan


def amount(value: float, digits: int = 0) -> str:
    """Return ``value`` with a comma between thousands, or a dash where it is not known."""
    return f"{value:,.{digits}f}" if math.isfinite(value) else NO_VALUE


def encodable(text: str, stream: TextIO | None) -> str:
    """Return ``text`` with question marks for what the encoding of ``stream`` cannot say."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, "replace").decode(encoding)


def nested(summary: Mapping[str, Any], *keys: str) -> float:
    """Return the number at ``keys`` in a summary, NaN where any of them is missing."""
    node: Any = summary
    for key in keys:
        if not isinstance(node, Mapping) or key not in node:
            return math.nan
        node = node[key]
    return number(node)


def policy_share_pct(summary: Mapping[str, Any]) -> float:
    """Return the percentage of ticks that the policy decided, not its fallback; NaN where nobody decided."""
    policy, fallback = nested(summary, "decided_by", "policy"), nested(summary, "decided_by", "fallback")
    total = policy + fallback
    return 100.0 * policy / total if total > 0 else math.nan


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the summary table: text for people, and the values that it came from."""

    label: str
    ours: str
    theirs: str
    values: tuple[float, float]
    """Ours and the baseline's: the first number of the line, NaN where unknown."""
    better: int
    """+1 if more is better, -1 if less is, 0 if neither."""
    about: str
    """One sentence for people who do not know the word."""

    @property
    def verdict(self) -> int:
        """+1 where ours is better than the baseline, -1 where worse, 0 where equal or not comparable."""
        ours, theirs = self.values
        if not (self.better and math.isfinite(ours) and math.isfinite(theirs)) or ours == theirs:
            return 0
        return self.better if ours > theirs else -self.better


def summary_rows(summary: Mapping[str, Any], baseline: Mapping[str, Any] | None) -> list[Row]:
    """Return the end-of-run table, line by line. Times are in microseconds, shares in percent."""
    other: Mapping[str, Any] = baseline or {}
    rows = []

    def one(label: str, value: Any, digits: int, better: int, about: str) -> None:
        a, b = value(summary), value(other)
        rows.append(Row(label, amount(a, digits), amount(b, digits), (a, b), better, about))

    def pair(label: str, key: str, about: str) -> None:
        texts, firsts = [], []
        for source in (summary, other):
            p50, p99 = nested(source, key, "p50"), nested(source, key, "p99")
            known = math.isfinite(p50) or math.isfinite(p99)
            texts.append(f"{amount(p50)} / {amount(p99)}" if known else NO_VALUE)
            firsts.append(p99)
        # Time is what deciding costs; a static partition decides nothing, so neither side is "better".
        rows.append(Row(label, texts[0], texts[1], (firsts[0], firsts[1]), 0, about))

    one("SLO violations %", lambda s: nested(s, "slo_violation_pct"), 2, -1,
        "Requests that missed their latency target, weighted by the priority of their VM.")  # fmt: skip
    one("utilisation %", lambda s: nested(s, "utilisation_pct"), 1, 1,
        "How much of the hardware did work, on average.")  # fmt: skip
    one("contention events", lambda s: nested(s, "contentions"), 0, -1,
        "Times a VM asked for more than it could be granted.")  # fmt: skip
    one("missed ticks", lambda s: nested(s, "missed_ticks"), 0, -1,
        "Turns of the control loop that were skipped because an earlier one took too long.")  # fmt: skip
    pair(
        "tick p50 / p99 µs", "tick_us", "One whole turn of the loop: half of all, and 99 in 100, are faster than this."
    )
    pair("decision p50 / p99 µs", "decision_us", "The part of a turn from the forecast to the last write.")
    one("decided by policy %", policy_share_pct, 2, 0,
        "The rest was decided by the fallback, because the policy was late, absent or wrong.")  # fmt: skip
    if summary.get("policy_faults"):
        ours, theirs = (_counted(source.get("policy_faults")) for source in (summary, other))
        rows.append(Row("ticks without its answer", ours, theirs, (math.nan, math.nan), 0,
                        "What kept the policy from answering in time, and in how many ticks."))  # fmt: skip
    return rows


def _counted(faults: Any) -> str:
    """Return kinds and how often each was, the most frequent first."""
    if not isinstance(faults, Mapping) or not faults:
        return NO_VALUE
    ranked = sorted(faults.items(), key=lambda item: (-number(item[1]), str(item[0])))
    return ", ".join(f"{printable(kind, 24)} {amount(number(count))}" for kind, count in ranked)


def column_titles(summary: Mapping[str, Any]) -> tuple[str, str]:
    """Return the titles of the two columns: foreshare with the name of its policy, and the static partition."""
    policy = printable(summary.get("policy") or "", 24)
    return (f"foreshare ({policy})" if policy else "foreshare", "static")


def summary_table(summary: Mapping[str, Any], baseline: Mapping[str, Any] | None, stream: TextIO | None = None) -> str:
    """Return the end-of-run table as text that ends in a newline: coloured where ``stream`` is a terminal.

    ``summary`` and ``baseline`` have the keys of ``foreshare run --json``, plus ``tick_us`` and ``policy``; whatever
    is missing shows as a dash. Without a baseline the second column is left out.
    """
    rows = summary_rows(summary, baseline)
    titles = column_titles(summary)
    if stream is None or not stream.isatty():
        return encodable(_plain(rows, titles, baseline is not None), stream)
    return encodable(_styled(rows, titles, baseline is not None, stream), stream)


def _plain(rows: list[Row], titles: tuple[str, str], both: bool) -> str:
    cells = [("", *titles)] + [(row.label, row.ours, row.theirs) for row in rows]
    used = 3 if both else 2
    width = [max(len(line[i]) for line in cells) for i in range(used)]
    lines = []
    for line in cells:
        right = [line[i].rjust(width[i]) for i in range(1, used)]
        lines.append("  ".join([line[0].ljust(width[0]), *right]).rstrip())
    lines.insert(1, "  ".join("-" * w for w in width))
    return "\n".join(lines) + "\n"


def _styled(rows: list[Row], titles: tuple[str, str], both: bool, stream: TextIO) -> str:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    colour = {1: "bold green", 0: "bold", -1: "bold yellow"}
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    table.add_column("")
    for title in titles[: 2 if both else 1]:
        table.add_column(Text(title), justify="right")
    for row in rows:
        cells = [Text(row.label), Text(row.ours, style=colour[row.verdict if both else 0])]
        table.add_row(*cells, *([Text(row.theirs)] if both else []))
    console = Console(file=stream, highlight=False)
    with console.capture() as capture:
        console.print(table)
    return capture.get()
