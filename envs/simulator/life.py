"""What becomes of VMs during a run: they come and go, get more vCPUs, and turn to other work."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple

from .scenario import VmShape


class Change(Enum):
    """What can happen to a VM."""

    ARRIVE = 0
    LEAVE = 1
    HOT_ADD = 2
    PHASE = 3


class Event(NamedTuple):
    """One change of one VM. ``value``: vCPUs of a hot-add, relative load of a phase."""

    vm: int
    change: Change
    value: float = 0.0


def life_of(shapes: Sequence[VmShape], tick_ms: float) -> dict[int, list[Event]]:
    """Return the changes by the tick that they happen before. A VM that comes later is gone until then."""
    out: dict[int, list[Event]] = {}

    def add(at_ms: float, event: Event) -> None:
        out.setdefault(max(round(at_ms / tick_ms), 1), []).append(event)

    for i, v in enumerate(shapes):
        if v.arrive_ms:
            add(v.arrive_ms, Event(i, Change.ARRIVE))
        if v.hot_add.at_ms:
            add(v.hot_add.at_ms, Event(i, Change.HOT_ADD, max(v.hot_add.vcpus, v.vcpus)))
        if v.phase_change.at_ms:
            add(v.phase_change.at_ms, Event(i, Change.PHASE, v.phase_change.load))
        if v.leave_ms:
            add(v.leave_ms, Event(i, Change.LEAVE))
    return out


def most_vcpus(v: VmShape) -> int:
    """Return the most vCPUs that a VM ever has."""
    return max(v.vcpus, v.hot_add.vcpus) if v.hot_add.at_ms else v.vcpus
