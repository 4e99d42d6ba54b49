"""How long things took: the newest samples of every stage in fixed memory, and their percentiles."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .runlog import STAGES

KEEP = 100_000
_DECISION = slice(STAGES.index("forecast"), STAGES.index("apply") + 1)


class Latency:
    """A ring of the last ``KEEP`` ticks, in microseconds."""

    def __init__(self, keep: int = KEEP) -> None:
        self._stage = np.zeros((keep, len(STAGES)), np.float32)
        self._tick = np.zeros(keep, np.float32)
        self._reaction = np.zeros(keep, np.float32)
        self._count = 0

    def add(self, stage_ns: npt.NDArray[np.int64], tick_ns: int, reaction_ns: int) -> None:
        """Take note of one tick: ns of each of STAGES, of it all, and from sample to last write (0: no write)."""
        at = self._count % len(self._tick)
        self._stage[at] = stage_ns * 1e-3
        self._tick[at] = tick_ns * 1e-3
        self._reaction[at] = reaction_ns * 1e-3
        self._count += 1

    @property
    def _kept(self) -> int:
        return min(self._count, len(self._tick))

    def tick(self) -> dict[str, float]:
        """Return p50, p99 and p999 of the whole tick, in us."""
        return percentiles(self._tick[: self._kept])

    def decision(self) -> dict[str, float]:
        """Return p50, p99 and p999 from the start of forecast to the end of apply, in us."""
        return percentiles(self._stage[: self._kept, _DECISION].sum(axis=1))

    def recent_decision(self, ticks: int = 1000) -> dict[str, float]:
        """Return the same of about the newest ``ticks``; cheap enough to ask in a tick's slack."""
        at = (self._count - 1 - np.arange(min(ticks, self._kept))) % len(self._tick)
        return percentiles(self._stage[at, _DECISION].sum(axis=1))

    def reaction(self) -> dict[str, float]:
        """Return percentiles from the use of a sample to the last write that answers it, in us, where there was one."""
        kept = self._reaction[: self._kept]
        return percentiles(kept[kept > 0])

    def stages(self) -> dict[str, dict[str, float]]:
        """Return the percentiles of every stage, in us."""
        return {name: percentiles(self._stage[: self._kept, i]) for i, name in enumerate(STAGES)}


def percentiles(samples: npt.NDArray[np.floating]) -> dict[str, float]:
    """Return {p50, p99, p999} of ``samples``; zeros where there are none."""
    if not len(samples):
        return {"p50": 0.0, "p99": 0.0, "p999": 0.0}
    p50, p99, p999 = np.percentile(samples, (50, 99, 99.9))
    return {"p50": round(float(p50), 1), "p99": round(float(p99), 1), "p999": round(float(p999), 1)}
