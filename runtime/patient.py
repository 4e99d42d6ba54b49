"""A host whose system calls may hang (fault 15: state D, a lock that nobody gives back) without taking the loop along.

A call that hangs in the kernel cannot be ended, not even with its process, so the calls are made by a thread and waited
for a bounded time. After that the host counts as **dead**: every further call fails at once, nothing is tried on it
again, and the loop goes on deciding with nothing but missing values. When the call comes back after all, so does the
host; what its controls hold is then read before anything is written. Handing a call over costs some tens of us.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Mapping

from foreshare.envs.hal import Clock, Complains, Hal, Plan, Receipt
from foreshare.policies.errors import ForeshareError, HalError
from foreshare.policies.host import IntArray, Placement, Topology, VmTable
from foreshare.policies.reading import Reading

CLOSING_S = 30.0
"""How long putting the host back may take."""


class PatientHal:
    """Another HAL, asked from a thread of its own. What that thread fills is copied, so a late answer spoils nothing.

    Beyond what the other raises: HalError (ETIMEDOUT) for a call that did not return in time, and for every later one
    until it does.
    """

    def __init__(self, hal: Hal, patience_s: float) -> None:
        self._hal, self._patience_s = hal, patience_s
        self._go, self._done = threading.Lock(), threading.Lock()
        self._go.acquire()
        self._done.acquire()
        self._call: Callable[[], None] | None = None
        self._error: Exception | None = None
        self.stuck = ""
        """The call that has not returned; empty: the host lives."""
        self.times = 0
        """How often the host was given up."""
        self._closed = False
        self._fresh()
        threading.Thread(target=self._work, name="foreshare-hal", daemon=True).start()

    @property
    def name(self) -> str:
        """See Hal."""
        return self._hal.name

    @property
    def topology(self) -> Topology:
        """See Hal."""
        return self._hal.topology

    @property
    def vms(self) -> VmTable:
        """See Hal."""
        return self._hal.vms

    @property
    def clock(self) -> Clock:
        """See Hal."""
        return self._hal.clock

    def claim(
        self, remember: Callable[[Mapping[str, object]], None], previous: Mapping[str, object] | None = None
    ) -> None:
        """See Hal. It is waited for: without it there is no run."""
        self._hal.claim(remember, previous)

    def describe(self, plan: Plan) -> list[str]:
        """See Hal; makes no system call."""
        return self._hal.describe(plan)

    def troubles(self) -> tuple[str, ...]:
        """See Complains; makes no system call."""
        return self._hal.troubles() if isinstance(self._hal, Complains) else ()

    def sample(self, reading: Reading) -> None:
        """See Hal. Raises HalError."""
        mine = self._reading
        self._within("sample", lambda: self._hal.sample(mine), self._patience_s)
        reading.t_ns, reading.dt_ns = mine.t_ns, mine.dt_ns
        for name in ("usage", "demand_low", "limit", "wait_ns", "quality", "present"):
            getattr(reading, name)[:] = getattr(mine, name)

    def apply(self, plan: Plan, deadline_ns: int, receipt: Receipt) -> None:
        """See Hal. Raises HalError. A call that comes back late has passed its deadline and writes nothing more."""
        mine = Receipt()
        # The plan is the loop's for one tick only; without a deadline (the first plan) there is one all the same.
        kept = Plan(plan.control.copy(), plan.vm.copy(), plan.value.copy(), plan.cpu_sets.copy())
        latest = deadline_ns or self._hal.clock.now_ns() + round(self._patience_s * 1e9)
        self._within("apply", lambda: self._hal.apply(kept, latest, mine), self._patience_s)
        receipt.done, receipt.system_calls = mine.done, mine.system_calls
        receipt.last_write_ns = mine.last_write_ns
        receipt.failures[:] = mine.failures

    def read_back(self, into: Placement, rows: IntArray | None = None) -> None:
        """See Hal. Raises HalError."""
        mine, some = self._placement, slice(None) if rows is None else rows
        mine.units[some], mine.cpus[some], mine.ways[some] = into.units[some], into.cpus[some], into.ways[some]
        asked = None if rows is None else rows.copy()
        self._within("read back", lambda: self._hal.read_back(mine, asked), self._patience_s)
        into.units[some], into.cpus[some], into.ways[some] = mine.units[some], mine.cpus[some], mine.ways[some]

    def close(self) -> None:
        """See Hal. Raises HalError where a call still hangs: the journal then keeps what is to be put back."""
        if self._closed:
            return
        self._closed = True
        self._within("restore", self._hal.close, CLOSING_S)
        self._call = None
        self._go.release()

    def _fresh(self) -> None:
        self._reading = Reading.empty(len(self._hal.vms))
        self._placement = Placement.empty(len(self._hal.vms), self._hal.topology.cpus)

    def _within(self, what: str, call: Callable[[], None], patience_s: float) -> None:
        if self.stuck:
            if not self._done.acquire(blocking=False):
                raise HalError(what, "host", errno.ETIMEDOUT, f"{self.stuck} still hangs in the kernel")
            self.stuck = ""  # it came back, and whatever it brought is too old
        self._call, self._error = call, None
        self._go.release()
        if not self._done.acquire(timeout=patience_s):
            self.stuck = what
            self.times += 1
            self._fresh()
            text = f"it has hung in the kernel for {patience_s:g} s: nothing is written until it returns"
            raise HalError(what, "host", errno.ETIMEDOUT, text)
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        while True:
            self._go.acquire()
            if self._call is None:
                return
            try:
                self._call()
            except (OSError, ForeshareError) as error:
                self._error = error
            finally:
                self._done.release()
