"""What a view is fed with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from foreshare.runtime.runlog import Event


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Snapshot:
    """The state of a run at one moment. Arrays are read at once and not kept; amounts are in units, NaN if unknown."""

    t_s: float
    """Host time since the start."""
    seconds_total: float | None
    """Host time that the run will take; None if it has no end."""
    ticks: int
    missed_ticks: int
    by_policy: int
    """Ticks that the policy decided."""
    by_fallback: int
    demand: npt.NDArray[Any]
    usage: npt.NDArray[Any]
    allocation: npt.NDArray[Any]
    """(N, R) each."""
    cpu_owner: npt.NDArray[Any]
    """(C,) row of the one VM that may run on each managed CPU, NOBODY or SEVERAL."""
    decision_p50_us: float
    decision_p99_us: float
    contentions: int
    events: tuple[Event, ...] = ()
    """The newest few, newest last."""
    cpus: npt.NDArray[np.bool_] | None = None
    """(N, C) whether each VM may run on each CPU; without it only CPUs that a VM has alone are listed."""
    policy_fault: str = ""
    """Why the policy did not decide the newest tick in time (policies/ask.py); empty if it did."""
