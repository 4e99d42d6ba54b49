"""What no plan writes, looked at again and again: somebody else may have reset it, or a cgroup may have come.

systemd does the former on every daemon-reload (systemd/systemd#17938): weight, cpu.idle, the quota's period.
"""

from __future__ import annotations

from contextlib import suppress

from foreshare.policies.errors import HostError

from .actuation import Writer
from .claim import Taken
from .controls import VmControls
from .restore import put_weight
from .threads import LOOK_TICKS

STAYS_TICKS = 2
"""Between two VMs whose weight, cpu.idle and period are read."""


def tend(turn: int, writer: Writer, controls: list[VmControls], taken: list[Taken | None], present: list[bool]) -> None:
    """Do the part of one tick, the ``turn``-th: some of the VMs, one of them more closely."""
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
