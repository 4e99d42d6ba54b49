"""The sections of the run report, each from the run (and the baseline) to HTML."""

from __future__ import annotations

import importlib.metadata
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from foreshare.policies.host import Resource
from foreshare.runtime.runlog import MAX_EVENTS, STAGES
from foreshare.runtime.tables import NO_VALUE, amount, column_titles, nested, policy_share_pct, summary_rows

from . import figures
from .page import PALETTE, esc, figure, keys, table, tabs, tile
from .run import Floats, Run, vms_of_interest

MAX_LISTED_EVENTS = 200
STAGE_COLOURS = [PALETTE[i] for i in (0, 1, 5, 9, 8, 6, 3)]


def _pct(mask: npt.NDArray[np.bool_]) -> float:
    return 100.0 * float(mask.mean()) if mask.size else math.nan


def _css(rgba: npt.NDArray[np.uint8]) -> str:
    return f"#{rgba[0]:02x}{rgba[1]:02x}{rgba[2]:02x}"


def head(run: Run, base: Run | None) -> str:
    """Return the title, the verdict in one sentence, the headline numbers and links to the sections."""
    meta, summary = run.log.meta, run.log.summary
    seconds = float(run.t_s[-1]) if len(run.t_s) else 0.0
    cpus = run.log.series["cpu_owner"].shape[1]
    facts = [
        f"{esc(meta.get('hal', 'unknown'))} host", f"scenario {esc(meta['scenario'])}" if meta.get("scenario") else "",
        f"policy {esc(meta.get('policy', 'unknown'))}", f"{run.n} VMs on {cpus} CPUs",
        f"{seconds:.1f} s in ticks of {esc(meta.get('tick_ms', '?'))} ms",
    ]  # fmt: skip
    return (
        f'<h1>foreshare run</h1><p class="soft full">{" · ".join(f for f in facts if f)}</p>'
        f'<p class="lead">{_verdict(summary, base)}</p>{_tiles(summary, base)}'
        '<nav><a href="#numbers">Numbers</a><a href="#host">The host</a><a href="#vms">Each VM</a>'
        '<a href="#cores">Core map</a><a href="#ticks">Tick time</a><a href="#events">Events</a>'
        '<a href="#about">About this run</a></nav>'
    )


def _verdict(summary: dict[str, Any], base: Run | None) -> str:
    ours = nested(summary, "slo_violation_pct")
    theirs = nested(base.log.summary, "slo_violation_pct") if base else math.nan
    if not math.isfinite(ours):
        return "This host does not tell whether requests were late, so there is no SLO figure."
    if not math.isfinite(theirs):
        return f"{ours:.2f} % of the requests missed their latency target (weighted by priority)."
    change = "as many as" if ours == theirs else "fewer than" if ours < theirs else "<b>more</b> than"
    return (
        f"{ours:.2f} % of the requests missed their latency target, {change} the {theirs:.2f} % under a static"
        " partition that met the same demand. (Both weighted by the priority of the VMs.)"
    )


def _tiles(summary: dict[str, Any], base: Run | None) -> str:
    other = base.log.summary if base else {}
    out = []
    for row in summary_rows(summary, base.log.summary if base else None)[:4]:
        label, _, percent = row.label.partition(" %")
        suffix = " %" if percent or row.label.endswith("%") else ""
        known = base is not None and row.theirs != NO_VALUE
        note = f"static {row.theirs}{suffix}" if known else ""
        out.append(tile(row.ours + (suffix if row.ours != NO_VALUE else ""), esc(label), note, row.verdict))
    p99, theirs = nested(summary, "tick_us", "p99"), nested(other, "tick_us", "p99")
    note = f"static {amount(theirs)} µs" if math.isfinite(theirs) else ""
    out.append(tile(f"{amount(p99)} µs" if math.isfinite(p99) else NO_VALUE, "tick time, p99", note))
    share = policy_share_pct(summary)
    out.append(tile(f"{amount(share, 2)} %" if math.isfinite(share) else NO_VALUE, "decided by the policy"))
    return f'<div class="tiles">{"".join(out)}</div>'


def numbers(run: Run, base: Run | None) -> str:
    """Return the summary table, beside the baseline where there is one."""
    rows = summary_rows(run.log.summary, base.log.summary if base else None)
    ours, theirs = column_titles(run.log.summary)
    colour = {1: ' class="good"', 0: "", -1: ' class="bad"'}
    if base is None:
        return table(["", esc(ours), "what it means"], [[r.label, r.ours, r.about] for r in rows], (1,), about=2)
    cells = [[r.label, f"<b{colour[r.verdict]}>{r.ours}</b>", r.theirs, r.about] for r in rows]
    return (
        "<p>The static partition gives every VM a fixed share and never moves anything; it met the same demand.</p>"
        + table(["", esc(ours), theirs, "what it means"], cells, (1, 2), about=3)
    )


def _unmet_pct(run: Run, resource: Resource) -> tuple[Floats, Floats]:
    """Return times (s) and the share of the host's demand for ``resource`` that was not granted then, in percent."""
    demand = run.demand[..., resource].astype(float)
    lacking = np.where(run.short[..., resource], demand - run.allocation[..., resource], 0.0)
    total = np.nansum(demand, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = 100.0 * np.nansum(lacking, axis=1) / np.where(total > 0, total, np.nan)
    return figures.bucketed(run.t_s, 150, np.nanmean), figures.bucketed(share, 150, np.nanmean)


def together(run: Run, resource: Resource) -> tuple[Floats, Floats]:
    """Return demand and allocation (T,) of all VMs; of ways those of VMs that hold some, as in :attr:`Run.short`."""
    demand, allocation = run.demand[..., resource].astype(float), run.allocation[..., resource]
    blank = np.isnan(demand).all(axis=1)
    if resource == Resource.CACHE:
        demand = np.where(allocation > 0, demand, 0.0)
    return np.where(blank, np.nan, np.nansum(demand, axis=1)), np.nansum(allocation, axis=1)


def host(run: Run, base: Run | None) -> str:
    """Return demand against allocation of all VMs together, and the demand that was not granted."""
    if not run.n or not len(run.t_s):
        return "<p>Nothing was partitioned: there was no VM, or no tick.</p>"
    wholes, lacks = [], []
    for r in run.movable:
        word = r.name.lower()
        demand, allocation = together(run, r)
        svg = figures.amounts(
            f"host-{word}", run.t_s, demand, allocation, unit=run.unit(r), cap_name="capacity",
            cap=run.capacity(r), label=f"{word}: demand and allocation of all VMs over time", size=figures.BROAD,
        )  # fmt: skip
        whose = "; VMs with ways of their own: the others fill the rest" if r == Resource.CACHE else ""
        wholes.append(figure(svg, f"<b>{word}</b>, one unit: {esc(run.unit(r), 40)}{whose}"))
        curves = [(*_unmet_pct(run, r), figures.ALLOC, 1.2)]
        if base is not None:
            curves.insert(0, (*_unmet_pct(base, r), figures.MARK, 1.0))
        svg = figures.lines(f"lack-{word}", curves, unit="% of demand", label=f"{word}: demand not granted over time")
        lacks.append(figure(svg, f"<b>{word}</b>, demand not granted"))
    sides = [("var(--alloc)", "rule", "this run")]
    if base is not None:
        sides.append(("var(--mark)", "rule", "static partition"))
    return (
        "<p>All VMs together. Demand is what they would use if nothing limited them; allocation is what foreshare let"
        " them use. Red is demand above allocation.</p>"
        + _amount_keys(None, "capacity of the host")
        + f'<div class="grid two">{"".join(wholes)}</div><h3>Demand that was not granted</h3>'
        "<p>Summed over the VMs that wanted more than they held: lower is better.</p>"
        + keys([(c, "rule", label) for c, _, label in sides])
        + f'<div class="grid two">{"".join(lacks)}</div>'
    )


def _amount_keys(base: Run | None, cap: str) -> str:
    items: list[Any] = [
        ("var(--alloc-fill)", "chip", "allocation"), ("var(--demand)", "rule", "demand"),
        ("var(--short)", "chip", "demand above allocation"),
    ]  # fmt: skip
    if cap == "cap":
        items.append(("var(--alloc)", "dashes", "reservation: given back at once"))
        items.append(("var(--mark)", "rule", "cap: never more than this"))
    else:
        items.append(("var(--mark)", "rule", cap))
    if base is not None:
        items.append(("var(--ink)", "dots", "allocation of the static partition"))
    return keys(items)


def _counterparts(run: Run, base: Run | None) -> dict[int, int]:
    """Row in the baseline of each VM of the run, by UUID."""
    if base is None:
        return {}
    ours, theirs = run.log.meta.get("vm_uuids", []), base.log.meta.get("vm_uuids", [])
    rows = {uuid: j for j, uuid in enumerate(theirs[: base.n])}
    return {i: rows[uuid] for i, uuid in enumerate(ours[: run.n]) if uuid in rows}


def vms(run: Run, base: Run | None, colours: npt.NDArray[np.uint8]) -> str:
    """Return a panel for each VM worth drawing, a tab for each resource, and a table of all VMs."""
    if not run.n or not len(run.t_s):
        return "<p>There was no VM, or no tick.</p>"
    chosen = vms_of_interest(run)
    same = _counterparts(run, base)
    pages = []
    for r in run.movable:
        panels = "".join(_panel(run, base, same, colours, i, r) for i in chosen)
        ways = (
            " A VM that holds no ways of its own fills those that nobody owns; that is not counted as short."
            if r == Resource.CACHE
            else ""
        )
        intro = (
            f"<p>One unit of {r.name.lower()} is {esc(run.unit(r), 40)}. Each chart has a scale of its own.{ways}</p>"
        )
        pages.append((r.name.lower(), f'{intro}<div class="grid">{panels}</div>'))
    fixed = [r.name.lower() for r in Resource if r not in run.movable]
    still = f"<p>Not shown, because this host cannot move it: {', '.join(fixed)}.</p>" if fixed else ""
    which = (
        f"<p>{len(chosen)} of {run.n} VMs are drawn: those most often short of what they wanted or contended, worst"
        " first. The table below has all of them.</p>"
        if run.n > len(chosen)
        else ""
    )
    short = (
        '<p>"Short" is the share of the time in which demand exceeded allocation by more than 5 %; "contended" the'
        " share in which the VM asked for more than it could be granted.</p>"
    )
    return which + short + still + _amount_keys(base, "cap") + tabs("resource", pages) + _vm_table(run, base, same)


def _panel(
    run: Run, base: Run | None, same: dict[int, int], colours: npt.NDArray[np.uint8], vm: int, r: Resource
) -> str:
    demand, allocation = run.demand[:, vm, r], run.allocation[:, vm, r]
    note = f"short {_share(_pct(run.short[:, vm, r]))}"
    static = None
    if base is not None and vm in same:
        note += f", under static {_share(_pct(base.short[:, same[vm], r]))}"
        static = np.interp(run.t_s, base.t_s, base.allocation[:, same[vm], r]) if len(base.t_s) else None
    chip = f'<i class="chip" style="background:{_css(colours[vm])}"></i>'
    caption = f"{chip} <b>{run.vm_name(vm)}</b><br>{note}"
    if not (np.isfinite(demand).any() or np.isfinite(allocation).any()):
        return figure("", f"{caption}<br>not measured")
    svg = figures.amounts(
        f"vm-{vm}-{r}", run.t_s, demand, allocation, unit=run.unit(r), reservation=run.bound("reservation", vm, r),
        cap=run.bound("cap", vm, r), static=static, label=f"VM {vm}: {r.name.lower()} demand and allocation over time",
    )  # fmt: skip
    return figure(svg, caption)


def _share(pct: float) -> str:
    if not math.isfinite(pct):
        return NO_VALUE
    return "never" if pct == 0 else "below 0.1 %" if pct < 0.1 else f"{pct:.1f} %"


def _mean(values: Floats) -> str:
    good = values[np.isfinite(values)]
    return amount(float(good.mean()), 1) if len(good) else NO_VALUE


def _vm_table(run: Run, base: Run | None, same: dict[int, int]) -> str:
    head = ["VM", "isolation", "priority", "short", "static: short", "contended"]
    if base is None:
        head.remove("static: short")
    fixed = len(head)
    head += [f"{r.name.lower()}: mean demand / allocation" for r in run.movable]
    short = np.asarray(run.short.any(axis=2))
    before = np.asarray(base.short.any(axis=2)) if base is not None else None
    rows = []
    for i in range(run.n):
        row = [
            run.vm_name(i),
            run.isolation(i),
            esc(run.entry("vm_priority", i, NO_VALUE), 12),
            _share(_pct(short[:, i])),
        ]
        if before is not None:
            row.append(_share(_pct(before[:, same[i]])) if i in same else NO_VALUE)
        row.append(_share(_pct(run.contended[:, i])))
        row += [f"{_mean(run.demand[:, i, r])} / {_mean(run.allocation[:, i, r])}" for r in run.movable]
        rows.append(row)
    body = table(head, rows, range(2, fixed + len(run.movable)))
    return f'<details><summary>All {run.n} VMs as a table</summary><div class="tall">{body}</div></details>'


def cores(run: Run, colours: npt.NDArray[np.uint8]) -> str:
    """Return the map of who may run on which CPU when."""
    owner = run.log.series["cpu_owner"]
    if not owner.size:
        return "<p>No CPU was managed.</p>"
    cpus = owner.shape[1]
    ids = np.asarray([*run.log.meta.get("cpu_ids", [])][:cpus], np.int64)
    ids = ids if len(ids) == cpus else np.arange(cpus)
    zone = np.asarray([*run.log.meta.get("cpu_zone", [])][:cpus], np.int64)
    zone = zone if len(zone) == cpus else np.zeros(cpus, np.int64)
    zones = len(np.unique(zone))
    items: list[Any] = [("rgb(128 128 128/.45)", "chip", "several VMs share it"), ("transparent", "chip", "no VM")]
    held = np.bincount(owner[(owner >= 0) & (owner < run.n)].ravel(), minlength=run.n)[: run.n]
    order = [int(i) for i in np.argsort(-held, kind="stable") if held[i]]
    items += [(_css(colours[i]), "chip", run.vm_name(i)) for i in order[: len(PALETTE)]]
    more = (
        f"<p>{len(order) - len(PALETTE)} more VMs owned CPUs; they repeat these colours in the same order.</p>"
        if len(order) > len(PALETTE)
        else ""
    )
    lines = f" A line separates the {zones} NUMA nodes (CPUs with memory of their own)." if zones > 1 else ""
    alone, shared, free = _pct(owner >= 0), _pct(owner == -2), _pct(owner == -1)
    return (
        "<p>Read it from left to right: each row is one CPU, and its colour says which VM alone may run there at that"
        f" moment. A change of colour is a CPU that changed hands.{lines} Over the run, {alone:.0f} % of the CPU time"
        f" belonged to one VM, {shared:.0f} % was shared by several and {free:.0f} % was given to nobody.</p>"
        + keys(items)
        + more
        + figure(figures.core_map(run.t_s, owner, colours, ids, zone), wide=True)
    )


def ticks(run: Run, base: Run | None) -> str:
    """Return how long ticks took, stage by stage, and their distribution."""
    stage_us = run.log.series["stage_us"]
    if not stage_us.size or not np.isfinite(stage_us).any():
        return "<p>No tick was timed.</p>"
    total = np.nansum(stage_us, axis=1)
    svg, top = figures.stages_over_time(run.t_s, stage_us, STAGE_COLOURS)
    above = int((total > top).sum())
    cut = (
        f" {above} of {len(total)} ticks lie above the chart; the slowest took {total.max():,.0f} µs." if above else ""
    )
    legend: list[Any] = [(c, "chip", s) for c, s in zip(STAGE_COLOURS, STAGES, strict=True)]
    rows = []
    for label, values in [*zip(STAGES, stage_us.T, strict=True), ("all stages", total)]:
        good = values[np.isfinite(values)]
        cells = [amount(float(np.percentile(good, q)), 1) if len(good) else NO_VALUE for q in (50, 99, 100)]
        part = 100.0 * float(good.sum()) / float(total.sum()) if total.sum() > 0 else math.nan
        rows.append([label, *cells, f"{amount(part, 1)} %" if math.isfinite(part) else NO_VALUE])
    every = run.log.every
    sampled = "every tick" if every <= 1 else f"one tick in {every}"
    theirs = np.nansum(base.log.series["stage_us"], axis=1) if base is not None and len(base.t_s) else None
    outline = ", the dotted outline is the static partition" if theirs is not None else ""
    return (
        "<p>A tick is one turn of the control loop: it reads the counters (sample), forecasts the demand, decides,"
        " makes the decision safe (guard), picks cores and ways (place), writes them (apply) and reads them back "
        f"(verify). Colours are the mean of each stage, the line is the slowest tick of each moment.{cut}</p>"
        + keys([*legend, ("var(--ink)", "rule", "slowest tick")])
        + figure(svg, wide=True)
        + table(["stage", "p50 µs", "p99 µs", "slowest µs", "share of the time"], rows, (1, 2, 3, 4))
        + f"<p><small>From the log, which holds {sampled}. p50: half of the ticks were faster; p99: 99 of 100"
        f" were.</small></p><h3>How often a tick took how long</h3><p>The time axis is logarithmic{outline}.</p>"
        + figure(figures.distribution(total, theirs), wide=True)
    )


def events(run: Run) -> str:
    """Return when events happened and the last of them in words."""
    events = run.log.events
    if not events:
        return "<p>Nothing happened that is worth an entry: no contention, no throttling, no fallback.</p>"
    by_kind: dict[str, list[float]] = {}
    for e in events:
        by_kind.setdefault(e.kind, []).append(e.t_ns / 1e9)
    ranked = sorted(by_kind.items(), key=lambda item: -len(item[1]))
    if len(ranked) > 10:
        ranked = [*ranked[:9], ("other", [t for _, times in ranked[9:] for t in times])]
    lanes = [(kind, np.array(times)) for kind, times in ranked]
    end_s = max(float(run.t_s[-1]) if len(run.t_s) else 0.0, *(float(t.max()) for _, t in lanes))
    last = events[-MAX_LISTED_EVENTS:]
    rows = [[f"{e.t_ns / 1e9:.2f}", esc(e.kind, 24), run.vm_name(e.vm), esc(e.text, 160)] for e in reversed(last)]
    full = f" The log keeps {MAX_EVENTS:,} at most." if len(events) >= MAX_EVENTS else ""
    return (
        "<p><b>contention</b>: a VM asked for more than it could be granted. <b>throttled</b>: it was held to its"
        " reservation. <b>migrate</b>: it was short for so long that another host would serve it better."
        " <b>fallback</b>: the policy was late or wrong, so the priority sort decided; <b>late</b>: its answer to the"
        " tick before did. <b>benched</b>: after several faults it is not asked for a while. <b>disobeys</b>: writes to"
        " a VM failed or had no effect, <b>distrusted</b>: its telemetry is missing or cannot be true; either has its"
        " reservation until that is over. <b>drift</b>: its controls held something else than was written."
        " <b>forecast-bad</b>: a VM's forecast is worse than its last value, which stands in for it."
        " <b>host-fault</b>: a call to the host failed. Higher bars are more events in"
        f" the same moment, each kind on a scale of its own; the number is the total.{full}</p>"
        + figure(figures.events_over_time(run.t_s, lanes, end_s), wide=True)
        + f"<h3>The last {len(last)} events, newest first</h3>"
        + f'<div class="tall">{table(["time, s", "kind", "VM", "what"], rows, (0,))}</div>'
    )


def about(run: Run) -> str:
    """Return what identifies this run: backend, policy, scenario, seed, units, versions."""
    meta = dict(run.log.meta)
    versions = meta.pop("versions", {})
    lists = {"vm_names", "vm_uuids", "vm_isolation", "vm_priority", "cpu_ids", "cpu_zone", "reservation", "cap"}
    rows = [[esc(k), esc(_flat(v), 200)] for k, v in meta.items() if k not in lists]
    if isinstance(versions, dict):
        rows += [[f"version of {esc(k)}", esc(v)] for k, v in versions.items()]
    rows.append(["ticks", amount(nested(run.log.summary, "ticks"))])
    rows.append(["rows in the log", f"{len(run.t_s):,}, one for every {run.log.every} ticks"])
    rows.append(["report drawn with", f"matplotlib {esc(importlib.metadata.version('matplotlib'))}"])
    return table(["what", "value"], rows)


def _flat(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k}: {_flat(v)}" for k, v in value.items())
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
