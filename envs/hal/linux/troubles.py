"""What does not work on a host now, in words, for whoever runs it."""

from __future__ import annotations

import numpy as np

from .arrivals import Arrivals
from .cpu_partitions import CpuPartitions
from .resctrl.monitor import Monitor
from .resctrl.partitions import Partitions


def troubles_of(
    arrivals: Arrivals, cpus: CpuPartitions, partitions: Partitions | None, monitor: Monitor | None, names: list[str]
) -> tuple[str, ...]:
    """Return one line each: VMs that could not be opened, partitions that are none, what resctrl refused last."""
    lines = [arrivals.trouble, *(f"VM {names[row]!r}: {why}" for row, why in cpus.why_not.items() if why)]
    if partitions is not None:
        lines.append(partitions.trouble)
    if monitor is not None:
        lines.append(
            f"cache and memory bandwidth are not measured any more: {monitor.failed}" if monitor.failed else ""
        )
        lines += [
            f"VM {names[row]!r} fills cache ways that it does not have: does a tool write the registers past resctrl?"
            for row in np.flatnonzero(monitor.overfull).tolist()
        ]
    return tuple(line for line in lines if line)
