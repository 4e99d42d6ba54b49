"""The hardware abstraction layer: four narrow capabilities, and the backend that has them all.

One contract suite (tests/contract) runs over every backend. Rules that hold for all of them:

- amounts are units of the topology's pools; rows are the rows of ``vms``;
- nothing here raises for a VM that has vanished: it is not ``present`` in the reading and its writes fail as ``gone``;
- ``claim`` comes before the first ``apply``; ``close`` puts everything back as it was found, and may be called twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol, runtime_checkable

from foreshare.policies.host import IntArray, Placement, Topology, VmTable
from foreshare.policies.reading import Reading

from .types import Plan, Receipt


class Clock(Protocol):
    """Monotonic time: the kernel's, or the simulator's own."""

    def now_ns(self) -> int:
        """Return monotonic nanoseconds."""
        ...

    def sleep_until(self, t_ns: int) -> None:
        """Return at ``t_ns`` or as soon after it as can be."""
        ...


class TopologySource(Protocol):
    """What there is."""

    @property
    def topology(self) -> Topology:
        """The hardware that may be handed out."""
        ...

    @property
    def vms(self) -> VmTable:
        """The VMs' contracts."""
        ...


class Telemetry(Protocol):
    """What the VMs do."""

    def sample(self, reading: Reading) -> None:
        """Fill ``reading`` in place with rates since the previous call. The first call has dt_ns 0 and no rates."""
        ...


class Actuation(Protocol):
    """What can be moved."""

    def claim(
        self, remember: Callable[[Mapping[str, object]], None], previous: Mapping[str, object] | None = None
    ) -> None:
        """Take hold of the controls.

        ``previous`` is what an earlier process that did not come to ``close`` was given to remember: where it names a
        control, its value is the original, not what is found now; what it names and this host no longer manages is put
        back at once.

        Before the first write, ``remember`` is called with what is needed to put them back (JSON values only); when it
        returns, that is durable. Raises HostError where the host does not allow it.
        """
        ...

    def describe(self, plan: Plan) -> list[str]:
        """Return one line for each write of ``plan``, for people: what would be written where."""
        ...

    def apply(self, plan: Plan, deadline_ns: int, receipt: Receipt) -> None:
        """Write ``plan`` in order, stop at ``deadline_ns`` (monotonic; 0 for none), fill ``receipt`` in place."""
        ...

    def read_back(self, into: Placement, rows: IntArray | None = None) -> None:
        """Fill ``rows`` of ``into`` (all if None) with what the controls hold now, read afresh.

        What cannot be read stays as it is.
        """
        ...

    def close(self) -> None:
        """Put the host back as it was found and let go of it."""
        ...


@runtime_checkable
class Complains(Protocol):
    """A backend that can say what is wrong with its host."""

    def troubles(self) -> tuple[str, ...]:
        """Return one line for each thing that does not work now though nothing failed. Not for every tick."""
        ...


@runtime_checkable
class IsComputed(Protocol):
    """A backend whose host does not live on by itself."""

    def live_until(self, t_ns: int) -> None:
        """Work out now what will have happened by ``t_ns``; nothing is applied before then.

        Otherwise that is done when it is sampled, in the middle of a tick, to which no real host's life adds anything.
        """
        ...


class Hal(TopologySource, Telemetry, Actuation, Protocol):
    """A whole backend."""

    @property
    def name(self) -> str:
        """simulated, linux or replay."""
        ...

    @property
    def clock(self) -> Clock:
        """The clock that this host lives by."""
        ...
