"""The replay backend: a recorded host, read-only. Readings come at their recorded times; writes move nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from foreshare.policies.errors import ForeshareError
from foreshare.policies.host import IntArray, Placement, Topology, VmTable
from foreshare.policies.reading import Quality, Reading

from .protocol import Clock
from .recording import Block, iter_blocks, read_host
from .types import Plan, Receipt
from .virtual import HeldPlacement, VirtualClock, blank


class EndOfTrace(ForeshareError):  # noqa: N818 - the end is no error, it is how every replay ends
    """The recording has been played to its end."""


class ReplayHal:
    """Plays the recording in ``folder``. The clock is virtual and starts at the first recorded tick.

    ``sample`` takes every recorded tick up to half a tick ahead of the clock, so that a loop at the recorded rate gets
    one each in spite of jitter; several are averaged, none (a gap) is missing. A block at a time is in memory.
    """

    name = "replay"

    def __init__(self, folder: Path) -> None:
        """Open the recording. Raises TraceError with one clear line."""
        self._host = read_host(folder)
        self._folder = folder
        self._blocks = iter_blocks(folder, self._host)
        self._block: Block | None = next(self._blocks, None)
        self._at = 0
        start = int(self._block.t_ns[0]) if self._block is not None else self._host.monotonic_ns
        self.clock: Clock = VirtualClock(start)
        self._held = HeldPlacement(self._host.topology, self._host.vms)
        self._sampled_ns: int | None = None

    @property
    def topology(self) -> Topology:
        """The recorded hardware."""
        return self._host.topology

    @property
    def vms(self) -> VmTable:
        """The recorded contracts; a VM's name is the start of its UUID."""
        return self._host.vms

    @property
    def tick_ns(self) -> int:
        """Time between two recorded ticks."""
        return self._host.tick_ns

    def sample(self, reading: Reading) -> None:
        """Fill ``reading`` with what was recorded since the previous call. Raises EndOfTrace when all was played."""
        if self._block is None:
            raise EndOfTrace(f"{self._folder}: the recording has ended")
        now = self.clock.now_ns()
        due: list[tuple[Block, int]] = []
        while self._block is not None and int(self._block.t_ns[self._at]) <= now + self._host.tick_ns // 2:
            due.append((self._block, self._at))
            self._at += 1
            if self._at == len(self._block.t_ns):
                self._block, self._at = next(self._blocks, None), 0
        before, self._sampled_ns = self._sampled_ns, int(due[-1][0].t_ns[due[-1][1]]) if due else now
        reading.t_ns = self._sampled_ns
        reading.dt_ns = max(self._sampled_ns - before, 0) if before is not None else 0
        if due:
            block, at = due[-1]
            np.copyto(reading.present, block.present[at])
            np.copyto(self._held.present, block.present[at])
        if not due or before is None:
            blank(reading)
            return
        reading.limit[:] = block.limit[at]
        _mean(reading, due)

    def claim(
        self, remember: Callable[[Mapping[str, object]], None], previous: Mapping[str, object] | None = None
    ) -> None:
        """Take hold; there is nothing to remember."""
        remember({})
        self._held.claimed = True

    def describe(self, plan: Plan) -> list[str]:
        """Return one line for each write."""
        return self._held.describe(plan)

    def apply(self, plan: Plan, deadline_ns: int, receipt: Receipt) -> None:
        """Note the plan, so that it reads back; the recorded VMs do not feel it."""
        receipt.clear()
        now = self.clock.now_ns()
        if not deadline_ns or now <= deadline_ns:
            self._held.apply(plan, receipt, now)

    def read_back(self, into: Placement, rows: IntArray | None = None) -> None:
        """Fill ``into`` with what was noted."""
        self._held.read_back(into, rows)

    def close(self) -> None:
        """Forget what was noted."""
        self._held.reset()


def _mean(reading: Reading, due: list[tuple[Block, int]]) -> None:
    """Fill the rates of ``reading`` with the mean over the ticks in ``due`` that have a value."""
    for values, name in ((reading.usage, "usage"), (reading.demand_low, "demand_low")):
        stack = np.stack([getattr(b, name)[i] for b, i in due]).astype(np.float64)
        known = ~np.isnan(stack)
        count = known.sum(axis=0)
        values[:] = np.where(count > 0, np.where(known, stack, 0.0).sum(axis=0) / np.maximum(count, 1), np.nan)
    reading.wait_ns[:] = np.stack([b.wait_ns[i] for b, i in due]).sum(axis=0)
    gone = ~reading.present
    for values in (reading.usage, reading.demand_low, reading.wait_ns):
        values[gone] = np.nan
    quality = np.bitwise_or.reduce([b.quality[i] for b, i in due])
    missing = np.isnan(reading.usage)
    reading.quality[:] = np.where(missing, quality | Quality.MISSING, quality & ~np.uint8(Quality.MISSING))
