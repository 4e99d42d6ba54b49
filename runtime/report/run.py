"""A run log as the report sees it: checked, with what was short, who is worth drawing, and in which colour."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from foreshare.policies.errors import InputError
from foreshare.policies.host import RESOURCES, R, Resource
from foreshare.runtime.runlog import RunLog
from foreshare.runtime.tables import TOLERANCE, nested, number

from .page import PALETTE, esc, name

Floats = npt.NDArray[np.floating[Any]]

MAX_PANELS = 24
"""VMs that get figures; the table has all of them."""


@dataclass(frozen=True, eq=False)
class Run:
    """A log with what every part of the report asks of it, and defaults where its meta is silent."""

    log: RunLog
    n: int
    t_s: Floats
    """(T,) seconds since the start."""
    demand: Floats
    allocation: Floats
    """(T, N, R) units."""
    short: npt.NDArray[np.bool_]
    """(T, N, R) demand exceeds allocation noticeably."""
    contended: npt.NDArray[np.bool_]
    """(T, N)."""
    movable: tuple[Resource, ...]

    @classmethod
    def of(cls, log: RunLog) -> Run:
        """Prepare ``log``. Raises InputError where its arrays do not fit together."""
        s = log.series
        missing = {"t_ns", "demand", "allocation", "cpu_owner", "stage_us", "contended"} - s.keys()
        if missing:
            raise InputError(f"run log: no series {', '.join(sorted(missing))}")
        shape = s["demand"].shape
        if len(shape) != 3 or shape[2] != R or s["allocation"].shape != shape or s["contended"].shape != shape[:2]:
            raise InputError(
                f"run log: demand is {shape}, allocation {s['allocation'].shape}, they must be (T, N, {R})"
            )
        log = log.trimmed()
        s = log.series
        demand, allocation = s["demand"], s["allocation"]
        with np.errstate(invalid="ignore"):
            short = demand > TOLERANCE * allocation
        # A VM without ways of its own fills those that nobody owns: that is no shortage.
        short[..., Resource.CACHE] &= allocation[..., Resource.CACHE] > 0
        moves = log.meta.get("movable", {})
        said = [moves.get(r, True) for r in RESOURCES] if isinstance(moves, dict) else [*moves, *[True] * R]
        movable = tuple(r for r in Resource if said[r])
        short[..., [r for r in Resource if r not in movable]] = False
        return cls(log, shape[1], s["t_ns"] / 1e9, demand, allocation, short, s["contended"], movable)

    def unit(self, resource: Resource) -> str:
        """Return the name of one unit, not escaped."""
        units = self.log.meta.get("units", {})
        return str(units.get(resource.name.lower(), "units")) if isinstance(units, dict) else "units"

    def capacity(self, resource: Resource) -> float:
        """Return the whole host's units, NaN where unknown."""
        return nested(self.log.meta, "capacity", resource.name.lower())

    def bound(self, which: str, vm: int, resource: Resource) -> float:
        """Return a VM's ``reservation`` or ``cap`` in units, NaN where unknown."""
        rows = self.log.meta.get(which, [])
        return number(rows[vm][resource]) if vm < len(rows) else math.nan

    def vm_name(self, vm: int) -> str:
        """Return a VM's name as HTML."""
        return name(self.entry("vm_names", vm, f"VM {vm}")) if vm >= 0 else "the host"

    def entry(self, key: str, vm: int, default: Any = "") -> Any:
        """Return one VM's value in a list of the meta."""
        values = self.log.meta.get(key, [])
        return values[vm] if 0 <= vm < len(values) else default

    def isolation(self, vm: int) -> str:
        """Return a VM's isolation class as a word."""
        return esc(self.entry("vm_isolation", vm, "shared"), 16)


def vms_of_interest(run: Run) -> list[int]:
    """Return the VMs to draw: all in their order if few, else those most often short or contended, worst first."""
    if run.n <= MAX_PANELS:
        return list(range(run.n))
    score = run.short.any(axis=2).sum(axis=0) + run.contended.sum(axis=0)
    return [int(i) for i in np.argsort(-score, kind="stable")[:MAX_PANELS]]


def vm_colours(run: Run) -> npt.NDArray[np.uint8]:
    """(N, 4) RGBA: the VMs that owned most CPU time come first in the palette, which repeats after its last colour."""
    owner = run.log.series["cpu_owner"]
    held = np.bincount(owner[(owner >= 0) & (owner < run.n)].ravel(), minlength=run.n)[: run.n]
    place = np.empty(run.n, np.int64)
    place[np.argsort(-held, kind="stable")] = np.arange(run.n)
    rgb = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in PALETTE], np.uint8)
    return np.column_stack([rgb[place % len(PALETTE)], np.full(run.n, 255, np.uint8)]).astype(np.uint8)
