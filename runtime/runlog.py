"""What a run leaves behind for people: arrays over time, events, and facts. Bounded, so that a long run stays small."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from foreshare.policies.host import R

STAGES = ("sample", "forecast", "decide", "guard", "place", "apply", "verify")
NOBODY, SEVERAL = -1, -2
MAX_ROWS = 1500
MAX_EVENTS = 10_000


@dataclass(slots=True)
class Event:
    """Something that happened to a VM, or to the host.

    Kinds: contention, throttled, migrate; gone, returned; write-failed, drift, disobeys, obeys; distrusted, trusted; of
    the policy fallback, late, benched, asked-again; of the forecast forecast-bad, forecast-good; host-fault.
    """

    t_ns: int
    """Since the start of the run."""
    kind: str
    vm: int
    """Row, or -1 for the host."""
    text: str


@dataclass(eq=False)
class RunLog:
    """One row for every ``every``-th tick. Amounts are in units of the pools; NaN where unknown."""

    meta: dict[str, Any]
    """JSON values: hal, policy, tick_ms, scenario, seed, vm_names, vm_uuids, vm_isolation, vm_priority, units (name of
    one unit by resource), capacity (units by resource, whole host), movable (by resource), cpu_ids, cpu_zone,
    reservation and cap (N x R lists)."""
    every: int
    series: dict[str, npt.NDArray[Any]]
    """By name, one row for each logged tick: ``t_ns`` (T,) since the start; ``demand`` (T, N, R) true demand on
    simulated hosts, elsewhere what is known to be demanded at least; ``usage`` and ``allocation`` (T, N, R);
    ``request`` and ``request_high`` (T, N, R) what each VM's analyzer expects it to demand when the decision lands, and
    what demand stays below nine times out of ten;
    ``cpu_owner`` (T, C) row of the one VM that may run on each managed CPU, NOBODY, or SEVERAL; ``stage_us``
    (T, len(STAGES)); ``by_policy`` (T,) the policy decided, not the fallback; ``contended`` (T, N) the VM asked for
    more than it could be granted."""
    events: list[Event] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    """The keys of ``foreshare run --json``."""
    rows: int = 0

    @classmethod
    def for_run(cls, *, ticks: int, n: int, cpus: int, meta: dict[str, Any]) -> RunLog:
        """Return an empty log for a run of ``ticks`` (0: unknown, the newest rows win)."""
        every = max(1, -(-ticks // MAX_ROWS))
        t = min(MAX_ROWS, max(ticks, 1)) if ticks else MAX_ROWS
        series: dict[str, npt.NDArray[Any]] = {
            "t_ns": np.zeros(t, np.int64),
            "cpu_owner": np.full((t, cpus), NOBODY, np.int16),
            "stage_us": np.zeros((t, len(STAGES)), np.float32),
            "by_policy": np.zeros(t, bool),
            "contended": np.zeros((t, n), bool),
        }
        for name in ("demand", "usage", "allocation", "request", "request_high"):
            series[name] = np.full((t, n, R), np.nan, np.float32)
        return cls(meta, every, series)

    def trimmed(self) -> RunLog:
        """Return the log cut to the rows that were filled, oldest first (views where nothing wrapped)."""
        t = len(self.series["t_ns"])
        order = np.arange(self.rows) if self.rows <= t else (np.arange(t) + self.rows) % t
        series = {k: a[order] for k, a in self.series.items()}
        return RunLog(self.meta, self.every, series, self.events, self.summary, len(order))

    def save(self, path: Path) -> None:
        """Write one .npz without pickles; events, facts and summary as JSON in it."""
        log = self.trimmed()
        doc = {
            "meta": log.meta, "every": log.every, "summary": log.summary,
            "events": [[e.t_ns, e.kind, e.vm, e.text] for e in log.events],
        }  # fmt: skip
        text = np.frombuffer(json.dumps(doc).encode(), np.uint8)
        with path.open("wb") as file:
            np.savez_compressed(file, document=text, allow_pickle=False, **log.series)

    @classmethod
    def load(cls, path: Path) -> RunLog:
        """Read what :meth:`save` wrote."""
        with np.load(path, allow_pickle=False) as z:
            doc = json.loads(z["document"].tobytes())
            series = {k: z[k] for k in z.files if k != "document"}
        events = [Event(*e) for e in doc["events"]]
        return cls(doc["meta"], doc["every"], series, events, doc["summary"], len(series["t_ns"]))
