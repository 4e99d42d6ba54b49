"""A backtest as the one object that ``foreshare forecast backtest --json`` prints."""

from __future__ import annotations

from typing import Any

import numpy as np

from foreshare.policies.forecast.history import HORIZONS, LEVELS
from foreshare.policies.host import RESOURCES, BoolArray

from .backtest import REFERENCES, Backtest
from .scores import gain

_KEYS = ("q50", "q90", "q99")
LONG_TICKS = 20_000
"""Coverage of a VM alone is shown where it has so many uncensored ticks."""


def summarise(done: Backtest) -> dict[str, Any]:
    """Return scores by model and horizon: means over series, coverage over ticks, and what the mixture gains."""
    names = done.options.models
    out: dict[str, Any] = {
        "models": {name: {h.name: _row(done, name, k) for k, h in enumerate(HORIZONS)} for name in names},
        "series": len(done.series),
        "programs": int(done.programs.max()) + 1,
        "sessions": len({s.session for s in done.series}),
        "resources": sorted({RESOURCES[s.resource] for s in done.series}, key=RESOURCES.index),
        "censored_share": round(float(np.mean([s.censored_share for s in done.series])), 6),
    }
    for name in names:
        out["models"][name]["call_us"] = round(float(np.mean(done.call_us[name])), 1)
    references = [name for name in names if name in REFERENCES]
    if "mixture" in names and references:
        everything = np.ones(len(done.series), bool)
        out["gain"] = {h.name: _gains(done, k, references, everything) for k, h in enumerate(HORIZONS)}
        resource = np.array([s.resource for s in done.series])
        out["gain_by_resource"] = {
            RESOURCES[r]: {h.name: _gains(done, k, references, resource == r) for k, h in enumerate(HORIZONS)}
            for r in np.unique(resource)
        }
        uuid = np.array([s.uuid for s in done.series])
        out["gain_by_vm"] = {
            str(u): {h.name: _shares(done, k, references, uuid == u) for k, h in enumerate(HORIZONS)}
            for u in np.unique(uuid)
        }
    if "mixture" in names:
        vms = sorted({x.uuid for x in done.series})
        out["coverage_by_vm"] = {u: {h.name: _coverage(done, k, u) for k, h in enumerate(HORIZONS)} for u in vms}
        rows = [row for horizons in out["coverage_by_vm"].values() for of in horizons.values() for row in of.values()]
        worst = [abs(row["q90"] - LEVELS[1]) for row in rows if row["ticks"] >= LONG_TICKS]
        out["coverage_by_vm_worst"] = round(max(worst), 4) if worst else None
    return out


def _coverage(done: Backtest, k: int, uuid: str) -> dict[str, dict[str, Any]]:
    """Return a VM's uncensored ticks and the shares that the mixture covers: of all its resources, and of each.

    Ticks of all its sessions count.
    """
    whose = np.array([s.uuid == uuid for s in done.series])
    resource = np.array([s.resource for s in done.series])
    _, _, covered, uncensored = done.table("mixture", k)
    rows: dict[str, dict[str, Any]] = {}
    for r in (None, *np.unique(resource).tolist()):
        chosen = whose if r is None else whose & (resource == r)
        sure = chosen & (uncensored > 0)
        ticks = int(uncensored[sure].sum())
        if ticks:
            shares = (covered[sure] * uncensored[sure, None]).sum(axis=0) / ticks
            name = "all" if r is None else RESOURCES[r]
            rows[name] = {"ticks": ticks} | {key: round(float(shares[q]), 4) for q, key in enumerate(_KEYS)}
    return rows


def _row(done: Backtest, name: str, k: int) -> dict[str, Any]:
    mase, pinball, covered, uncensored = done.table(name, k)
    sure = uncensored > 0
    weight = uncensored[sure] / max(uncensored.sum(), 1)
    row: dict[str, Any] = {"mase": round(float(mase.mean()), 5)}
    row |= {f"pinball_{key}": round(float(pinball[:, q].mean()), 5) for q, key in enumerate(_KEYS)}
    row |= {f"coverage_{key}": round(float((covered[sure, q] * weight).sum()), 5) for q, key in enumerate(_KEYS)}
    long = uncensored >= LONG_TICKS
    if long.any():
        row["coverage_q90_worst"] = round(float(np.abs(covered[long, 1] - LEVELS[1]).max()), 5)
    return row


def _shares(done: Backtest, k: int, references: list[str], chosen: BoolArray) -> dict[str, float]:
    """Return by level how far the mixture's loss over some series lies below that of the reference best for them."""
    ours = done.table("mixture", k)[1][chosen].mean(axis=0)
    best = np.min([done.table(name, k)[1][chosen].mean(axis=0) for name in references], axis=0)
    return {key: round(float(1.0 - ours[q] / max(best[q], 1e-300)), 4) for q, key in enumerate(_KEYS)}


def _gains(done: Backtest, k: int, references: list[str], chosen: BoolArray) -> dict[str, Any]:
    """Return by level how far the mixture's loss lies below that of the best reference, with its interval."""
    rows: dict[str, Any] = {}
    programs = np.unique(done.programs[chosen], return_inverse=True)[1]
    for q, key in enumerate(_KEYS):
        losses = {name: done.table(name, k)[1][chosen, q] for name in (*references, "mixture")}
        best = min(references, key=lambda name: float(losses[name].mean()))
        share, low, high = gain(losses["mixture"], losses[best], programs)
        rows[key] = {"best": best, "share": round(share, 4), "low": round(low, 4), "high": round(high, 4)}
    return rows
