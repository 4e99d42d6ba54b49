"""The figures of the run report, as inline SVG that takes its colours from the page and so reads on light and dark."""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from foreshare.runtime.runlog import NOBODY, SEVERAL
from foreshare.runtime.tables import printable

from .page import PALETTE, esc

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Floats = npt.NDArray[np.floating[Any]]
Rows = npt.NDArray[np.int64]

# Matplotlib wants colours, the page has variables: each stand-in below is exchanged in the finished SVG.
INK, SOFT, GRID, DEMAND, ALLOC, FILL, SHORT, MARK = (f"#01010{i}" for i in range(1, 9))
VARIABLES = {
    INK: "--ink", SOFT: "--soft", GRID: "--grid", DEMAND: "--demand", ALLOC: "--alloc", FILL: "--alloc-fill",
    SHORT: "--short", MARK: "--mark",
}  # fmt: skip
PANEL = (4.7, 1.85)
"""Inches of a VM's panel; one inch is 72 px."""
BROAD = (5.4, 1.9)
"""Inches of a panel of the whole host."""
BUCKETS = 110
"""Slices of time in a panel, each drawn with its smallest and largest value."""
WIDE = 10.0
SEVERAL_RGBA = (128, 128, 128, 115)


@contextmanager
def drawing() -> Iterator[None]:
    """Set matplotlib's parameters while figures are drawn, and put the caller's back."""
    import matplotlib as mpl

    style: dict[Any, Any] = {
        "svg.fonttype": "none", "text.parse_math": False, "font.size": 9, "text.color": INK, "axes.labelcolor": SOFT,
        "xtick.color": SOFT, "ytick.color": SOFT, "axes.edgecolor": GRID, "grid.color": GRID, "axes.facecolor": "none",
        "figure.facecolor": "none", "axes.grid": True, "axes.spines.top": False, "axes.spines.right": False,
        "axes.linewidth": 0.8, "grid.linewidth": 0.6, "lines.linewidth": 1.2, "axes.axisbelow": True,
        "xtick.major.size": 0, "xtick.major.pad": 6, "ytick.major.size": 0, "axes.labelsize": 9, "path.simplify": True,
    }  # fmt: skip
    with mpl.rc_context(), warnings.catch_warnings():
        mpl.rcdefaults()  # a user's matplotlibrc must not change the report
        mpl.rcParams.update(style)
        # Labels are measured here but drawn by the browser, which has the glyphs that matplotlib's font lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def draw(tag: str, size: tuple[float, float], paint: Callable[[Axes], None], label: str) -> str:
    """Return what ``paint`` puts on fresh axes as an SVG element. ``tag`` is unique in the page: ids derive from it."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    mpl.rcParams["svg.hashsalt"] = tag  # inside drawing()'s rc_context; makes ids unique and the page reproducible
    width, height = size
    fig = Figure(figsize=size, dpi=72)
    FigureCanvasSVG(fig)
    left, bottom = 46 / (72 * width), 23 / (72 * height)
    ax = fig.add_axes((left, bottom, 1 - left - 8 / (72 * width), 1 - bottom - 7 / (72 * height)))
    paint(ax)
    out = io.StringIO()
    fig.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return _inline(out.getvalue(), label)


def _inline(svg: str, label: str) -> str:
    """Return a matplotlib SVG document as an element of the page: small, of any size, with the page's colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", svg, flags=re.S)
    used = set(re.findall(r"#([\w.-]+)", svg))
    svg = re.sub(r' id="([^"]*)"', lambda m: m.group(0) if m.group(1) in used else "", svg)
    svg = re.sub(r"font-family: [^;\"]*;?|font: ([0-9.]+px) [^;\"]*", lambda m: _font(m.group(1)), svg)
    svg = re.sub(r' d="([^"]*)"', lambda m: f' d="{shorter_path(m.group(1))}"', svg)
    for stand_in, variable in VARIABLES.items():
        svg = svg.replace(stand_in, f"var({variable})")
    head, _, rest = svg.partition(">")
    box = re.search(r'viewBox="[^"]*"', head)
    links = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    where = box.group(0) if box else ""
    return f'<svg {links} {where} role="img" aria-label="{esc(label, 200)}">' + re.sub(r">\s+<", "><", rest.strip())


def _font(size: str | None) -> str:
    return f"font-size: {size}" if size else ""


def shorter_path(path: str) -> str:
    """Return an SVG path of straight lines with relative coordinates to a tenth of a pixel: a third of the bytes."""
    tokens = path.split()
    out: list[str] = []
    x = y = 0  # tenths
    i = 0
    while i < len(tokens):
        op = tokens[i]
        if op in {"z", "Z"}:
            out.append("z")
            i += 1
            continue
        if op not in {"M", "L"}:
            return " ".join(tokens)  # a curve: markers and rounded shapes stay as they are
        nx, ny = round(float(tokens[i + 1]) * 10), round(float(tokens[i + 2]) * 10)
        i += 3
        if op == "M":
            out.append(f"M{nx / 10:g} {ny / 10:g}")
        elif ny == y:
            out.append(f"h{(nx - x) / 10:g}")
        elif nx == x:
            out.append(f"v{(ny - y) / 10:g}")
        else:
            out.append(f"l{(nx - x) / 10:g} {(ny - y) / 10:g}")
        x, y = nx, ny
    return "".join(out)


def thin_rows(y: Floats, buckets: int) -> Rows:
    """Return the rows of ``y`` (T,) to draw: each bucket's smallest and largest, so that no burst is lost."""
    t = len(y)
    if t <= 2 * buckets:
        return np.arange(t)
    width = -(-t // buckets)
    padded = np.full(buckets * width, np.nan)
    padded[:t] = y
    blocks = padded.reshape(buckets, width)
    hole = np.isnan(blocks)
    start = np.arange(buckets) * width
    low = start + np.where(hole, np.inf, blocks).argmin(axis=1)
    high = start + np.where(hole, -np.inf, blocks).argmax(axis=1)
    rows: Rows = np.unique(np.concatenate([low, high, [0, t - 1]]))
    return rows[rows < t]


def bucketed(y: Floats, buckets: int, how: Callable[..., Any]) -> Floats:
    """Return ``y`` (T, ...) reduced over time to at most ``buckets`` rows with ``how`` (a nan-aware reduction)."""
    t = len(y)
    n = max(1, min(buckets, t))
    edges = np.linspace(0, t, n + 1).astype(int)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a bucket without a value is NaN, that is the answer
        return np.stack([how(y[a:b], axis=0) for a, b in pairwise(edges)])


def time_axis(ax: Axes, t_s: Floats) -> None:
    """Give the axes the run's time in seconds, labelled at the ticks."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    low, high = (float(t_s[0]), float(t_s[-1])) if len(t_s) else (0.0, 1.0)
    ax.set_xlim(low, high if high > low else low + 1.0)
    ax.xaxis.set_major_locator(MaxNLocator(6))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g} s"))


def amounts(
    tag: str, t_s: Floats, demand: Floats, allocation: Floats, *, unit: str, label: str, reservation: float = math.nan,
    cap: float = math.nan, cap_name: str = "cap", static: Floats | None = None, size: tuple[float, float] = PANEL,
) -> str:  # fmt: skip
    """Return the panel of one VM and resource: allocation as a filled step, demand as a line, shortage between them.

    ``demand``, ``allocation`` and ``static`` (the baseline's allocation) are (T,) in units; all NaN is allowed.
    """
    from matplotlib.ticker import MaxNLocator

    def paint(ax: Axes) -> None:
        rows = np.union1d(thin_rows(demand, BUCKETS), thin_rows(allocation, BUCKETS))
        t, d, a = t_s[rows], demand[rows], allocation[rows]
        ax.fill_between(t, 0, a, step="post", color=FILL, linewidth=0)
        ax.fill_between(t, a, d, where=d > a, step="post", color=SHORT, linewidth=0)
        ax.plot(t, d, color=DEMAND, linewidth=0.9)
        if static is not None:
            kept = thin_rows(static, 40)
            ax.plot(t_s[kept], static[kept], color=INK, linewidth=0.9, dashes=(1, 2))
        known = np.concatenate([demand, allocation])
        known = known[np.isfinite(known)]
        top = float(np.percentile(known, 99.8)) if len(known) else 1.0
        top = max(top, float(np.nanmax(allocation, initial=0.0)), reservation if math.isfinite(reservation) else 0, 1.0)
        if math.isfinite(reservation):
            ax.axhline(reservation, color=ALLOC, linewidth=0.9, linestyle=(0, (5, 3)))
        if math.isfinite(cap) and cap <= 1.4 * top:
            top = max(top, cap)
            ax.axhline(cap, color=MARK, linewidth=0.9)
        elif math.isfinite(cap):
            ax.annotate(
                f"{cap_name} {cap:g} ↑", (1, 1), xycoords="axes fraction", ha="right", va="top", color=SOFT, fontsize=8
            )
        ax.set_ylim(0, 1.08 * top)
        ax.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        ax.set_ylabel(printable(unit, 22))
        time_axis(ax, t_s)

    return draw(tag, size, paint, label)


def lines(tag: str, curves: Sequence[tuple[Floats, Floats, str, float]], *, unit: str, label: str) -> str:
    """Return a panel of curves: (time in s, values, colour, line width) each."""

    def paint(ax: Axes) -> None:
        top = 0.0
        for t_s, y, colour, width in curves:
            ax.plot(t_s, y, color=colour, linewidth=width)
            top = max(top, float(np.nanmax(y, initial=0.0)))
        ax.set_ylim(0, 1.08 * top if top > 0 else 1.0)
        ax.set_ylabel(unit)
        time_axis(ax, curves[0][0])

    return draw(tag, BROAD, paint, label)


def core_map(
    t_s: Floats, owner: npt.NDArray[np.integer[Any]], colour_of: npt.NDArray[np.uint8], cpu_ids: Rows, zone: Rows
) -> str:
    """Return the map of CPUs over time. ``owner`` (T, C) rows of VMs, NOBODY or SEVERAL; ``colour_of`` (N, 4) RGBA."""
    from matplotlib.ticker import FuncFormatter

    order = np.lexsort((cpu_ids, zone))
    ids, zones = cpu_ids[order], zone[order]
    columns = np.linspace(t_s[0], t_s[-1], min(len(t_s), 1500))
    now = np.clip(np.searchsorted(t_s, columns, side="right") - 1, 0, None)  # what held then holds until the next row
    cells = owner[now][:, order].T
    lut = np.zeros((len(colour_of) + 2, 4), np.uint8)
    lut[2:] = colour_of
    lut[2 + SEVERAL] = SEVERAL_RGBA
    lut[2 + NOBODY] = (0, 0, 0, 0)
    index = np.where((cells >= SEVERAL) & (cells < len(colour_of)), cells, NOBODY) + 2
    cpus = len(ids)

    def paint(ax: Axes) -> None:
        span = (columns[0], max(columns[-1], columns[0] + 1e-9), cpus - 0.5, -0.5)
        ax.imshow(lut[index], aspect="auto", interpolation="none", extent=span)
        every = max(1, -(-cpus // 24))
        ax.set_yticks(np.arange(0, cpus, every))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{ids[int(v)]}" if 0 <= int(v) < cpus else ""))
        for edge in np.flatnonzero(np.diff(zones)):
            ax.axhline(edge + 0.5, color=INK, linewidth=1.2)
        ax.grid(visible=False)
        ax.set_ylabel("CPU number")
        time_axis(ax, t_s)

    height = float(np.clip(0.13 * cpus, 1.3, 7.5)) + 0.5
    return draw("cores", (WIDE, height), paint, f"Which VM may run on each of {cpus} CPUs over time")


def stages_over_time(t_s: Floats, stage_us: Floats, colours: Sequence[str]) -> tuple[str, float]:
    """Return stacked mean stage times with the worst tick of each moment as a line, and where the axis was cut (us)."""
    mean = np.nan_to_num(bucketed(stage_us, 220, np.nanmean))
    worst = bucketed(np.nansum(stage_us, axis=1), 220, np.nanmax)
    t = bucketed(t_s, 220, np.nanmean)
    top = 1.1 * max(float(np.nanpercentile(worst, 98)), float(mean.sum(axis=1).max()), 1.0)

    def paint(ax: Axes) -> None:
        ax.stackplot(t, mean.T, colors=list(colours), linewidth=0)
        ax.plot(t, worst, color=INK, linewidth=0.7)
        ax.set_ylim(0, top)
        ax.set_ylabel("µs in one tick")
        time_axis(ax, t_s)

    return draw("stages", (WIDE, 2.7), paint, "Mean time of each stage of a tick, over time"), top


def distribution(ours_us: Floats, static_us: Floats | None) -> str:
    """Return how often a tick took how long: (T,) totals in us, on a logarithmic axis, the baseline as an outline."""
    from matplotlib.ticker import FuncFormatter, NullLocator

    both = ours_us if static_us is None else np.concatenate([ours_us, static_us])
    both = both[np.isfinite(both) & (both > 0)]
    low, high = (float(both.min()), float(both.max())) if len(both) else (1.0, 10.0)
    low, high = 10 ** (math.log10(low) - 0.05), 10 ** (math.log10(high) + 0.05)
    edges = np.geomspace(low, high, 61)

    def share(values: Floats) -> Floats:
        counts = np.histogram(values[np.isfinite(values)], edges)[0]
        return np.asarray(100.0 * counts / max(1, counts.sum()))

    def paint(ax: Axes) -> None:
        ax.set_xscale("log")
        ax.stairs(share(ours_us), edges, fill=True, color=FILL, linewidth=0)
        ax.stairs(share(ours_us), edges, color=ALLOC, linewidth=1)
        if static_us is not None:
            ax.stairs(share(static_us), edges, color=INK, linewidth=0.9, linestyle=(0, (1, 2)))
        good = ours_us[np.isfinite(ours_us)]
        for q in (50, 99) if len(good) else ():
            at = float(np.percentile(good, q))
            ax.axvline(at, color=DEMAND, linewidth=1)
            ax.annotate(
                f"p{q} {at:,.0f} µs", (at, 0.98), xycoords=("data", "axes fraction"), va="top", color=INK,
                xytext=(4, 0), textcoords="offset points",
            )  # fmt: skip
        ax.set_xlim(low, high)
        steps = (1, 1.5, 2, 3, 4, 5, 7) if high < 15 * low else (1, 2, 5) if high < 2000 * low else (1,)
        ticks = [m * 10.0**e for e in range(-1, 9) for m in steps]
        ax.set_xticks([v for v in ticks if low <= v <= high])
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,g} µs"))
        ax.set_ylabel("% of the ticks")

    return draw("distribution", (WIDE, 2.2), paint, "How often a tick took how long")


def events_over_time(t_s: Floats, lanes: Sequence[tuple[str, Floats]], end_s: float) -> str:
    """Return a lane for each kind of event; the bars say how many in each slice of time. ``lanes``: (kind, times)."""
    edges = np.linspace(0.0, max(end_s, 1e-9), 181)

    def paint(ax: Axes) -> None:
        for i, (_, at) in enumerate(lanes):
            counts = np.histogram(at, edges)[0]
            base = len(lanes) - 1 - i
            heights = base + 0.6 * np.sqrt(counts / max(1, counts.max()))  # a root: single events stay visible
            ax.stairs(heights, edges, baseline=base, fill=True, color=PALETTE[i % len(PALETTE)], linewidth=0)
        ax.set_yticks([len(lanes) - 1 - i + 0.35 for i in range(len(lanes))], [""] * len(lanes))
        for i, (kind, at) in enumerate(lanes):
            text, top = f"{printable(kind, 24)} ({len(at):,})", len(lanes) - 1 - i + 0.98
            ax.text(0.005, top, text, va="top", color=INK, transform=ax.get_yaxis_transform())
            ax.axhline(len(lanes) - 1 - i, color=GRID, linewidth=0.8)
        ax.set_ylim(0, len(lanes))
        ax.grid(axis="y", visible=False)
        time_axis(ax, t_s)
        ax.set_xlim(0, max(end_s, 1e-9))

    return draw("events", (WIDE, 0.5 * max(1, len(lanes)) + 0.5), paint, "Events of each kind over time")
