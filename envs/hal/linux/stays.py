"""What no plan writes, looked at again and again: somebody else may have reset it, or a cgroup may have come.

systemd does the former on every daemon-reload (systemd/systemd#17938): weight, cpu.idle, the quota's period.
"""

from __future__ import annotations

from contextlib import suppress

from foreshare.policies.errors import HostError

from .actuation import Writer
from .claim import Taken
from .controls import VmControls, gather
from .restore import put_weight
from .threads import LOOK_TICKS, VmThreads

STAYS_TICKS = 2
"""Between two VMs whose weight, cpu.idle and period are read."""
GATHER_TICKS = 5


def tend(
    turn: int, writer: Writer, controls: list[VmControls], threads: list[VmThreads], taken: list[Taken | None],
    present: list[bool],
) -> None:  # fmt: skip
    """Do the part of one tick, the ``turn``-th: some of the VMs, one of them more closely."""
    _gather(writer, controls, threads)
    for row in range(turn % LOOK_TICKS, len(controls), LOOK_TICKS):
        if present[row]:
            with suppress(OSError, HostError):  # it is being taken apart; the next plan for it, or its turn, says more
                writer.tend_children(row)
    row = turn // STAYS_TICKS % max(len(controls), 1)
    if turn % STAYS_TICKS or not present or not present[row]:
        return
    found = taken[row]
    if found is not None:
        with suppress(OSError):  # as above
            put_weight(controls[row].cpu, found.weight, found.idle)
            writer.tend_period(row)


def _gather(writer: Writer, controls: list[VmControls], threads: list[VmThreads]) -> None:
    """Bring threads back that a v1 cpuset without CPUs has lost to the one above it."""
    scattered = writer.shelter.scattered
    for row, left in list(scattered.items()):
        scattered[row] = left - 1
        if left <= 1:
            del scattered[row]
        elif left % GATHER_TICKS == 0:
            with suppress(OSError):  # it is gone, or its cpuset has no CPU yet: the next turn says
                gather(controls[row], threads[row].nodes)
