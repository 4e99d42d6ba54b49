"""What the host's controls are believed to hold: written plan by plan, read back, and believed as the kernel says it.

Where a call fails it is unknown what a plan has written; until that has been read back nothing else is written, for
only then is it known what is nobody's.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from foreshare.envs.hal import Hal, Plan, Receipt
from foreshare.envs.hal.plan import advance
from foreshare.policies.errors import HalError
from foreshare.policies.host import BoolArray, Host, IntArray, Placement

from .actuator import Obedience
from .verify import Rounds


class Controls:
    """The controls of one host's VMs. ``failed(what, error)`` is told of calls into the HAL that fail as a whole."""

    def __init__(
        self, hal: Hal, n: int, verify_ticks: int, failed: Callable[[str, Exception], None],
        event: Callable[[str, int, str], None],
    ) -> None:  # fmt: skip
        self._hal, self._failed, self._event = hal, failed, event
        cpus = hal.topology.cpus
        self.held = Placement.empty(n, cpus)
        """What they are believed to hold."""
        self._seen = Placement.empty(n, cpus)
        self.unknown: BoolArray = np.zeros(n, bool)
        """(N,) VMs of which it is not known what they hold."""
        self.receipt = Receipt()
        """Of the latest plan."""
        self.rounds = Rounds(n, verify_ticks)
        self.obedience = Obedience(n)

    def read(self, rows: IntArray | None = None) -> bool:
        """Read back ``rows`` (all if None); return whether that went well. What was unknown of them is then known."""
        return self._read(self.held, rows)

    def _read(self, into: Placement, rows: IntArray | None) -> bool:
        try:
            self._hal.read_back(into, rows)
        except (OSError, HalError) as error:
            self._failed("read-back", error)
            return False
        self.unknown[slice(None) if rows is None else rows] = False
        return True

    def all_known(self) -> bool:
        """Return whether it is known what every VM holds, once what is not has been read."""
        if self.unknown.any():
            self.read(self.unknown.nonzero()[0])
        return not self.unknown.any()

    def apply(self, plan: Plan, target: Placement, host: Host, deadline_ns: int) -> None:
        """Write a plan towards ``target`` and bring up to date what is held; ``deadline_ns`` as of ``Hal.apply``."""
        try:
            self._hal.apply(plan, deadline_ns, self.receipt)
        except (OSError, HalError) as error:
            self.receipt.clear()
            self.unknown[plan.vm] = True
            self._failed("apply", error)
            return
        advance(self.held, plan, self.receipt, target, host)

    def verify(self, plan: Plan, host: Host, budget_ns: int) -> int:
        """Read back some VMs' controls and believe what the kernel says; return how many held something else."""
        now, held, seen, drift = self._hal.clock.now_ns, self.held, self._seen, 0
        written = plan.vm[: self.receipt.done]
        self.rounds.suspect(written)
        tested = self.obedience.pinned.copy()
        tested[written] = True  # who was not written to has not shown that it obeys
        for failure in self.receipt.failures:
            if not failure.gone and not failure.deferred:  # what is deferred waits, and is no disobedience
                self.obedience.strike(int(plan.vm[failure.index]), failure.text)
        for rows in self.rounds.rows(now, now() + budget_ns):
            seen.units[rows], seen.cpus[rows], seen.ways[rows] = held.units[rows], held.cpus[rows], held.ways[rows]
            if not self._read(seen, rows):
                self.rounds.suspect(rows)
                break
            differs = (
                (seen.units[rows] != held.units[rows]).any(axis=1)
                | (seen.cpus[rows] != held.cpus[rows]).any(axis=1)
                | (seen.ways[rows] != held.ways[rows])
            ) & host.active[rows]
            if differs.any():
                for row in rows[differs]:
                    drift += 1
                    held.units[row], held.cpus[row], held.ways[row] = seen.units[row], seen.cpus[row], seen.ways[row]
                    text = "the controls held something else than was written"
                    self._event("drift", int(row), f"{text}; writing again")
                    self.obedience.strike(int(row), text)
                self.rounds.suspect(rows[differs])
            self.obedience.good(rows[~differs & tested[rows]])
        return drift

    def release(self, row: int) -> None:
        """Forget a VM that is gone for good."""
        self.obedience.forget(row)
        self.unknown[row] = False
        self.held.units[row], self.held.cpus[row], self.held.ways[row] = 0, False, 0
