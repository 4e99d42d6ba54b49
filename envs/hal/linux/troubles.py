"""What does not work on a host now, in words, for whoever runs it."""

from __future__ import annotations

import numpy as np

from .arrivals import Arrivals
from .claim import Taken
from .cpu_partitions import CpuPartitions
from .hotplug import Shelter
from .resctrl.monitor import Monitor
from .resctrl.partitions import Partitions


def troubles_of(
    names: list[str], cpus: list[str], taken: list[Taken | None], shelter: Shelter, arrivals: Arrivals,
    cpusets: CpuPartitions, partitions: Partitions | None, monitor: Monitor | None,
) -> tuple[str, ...]:  # fmt: skip
    """Return one line each: CPUs that are offline, VMs that could not be opened, what resctrl refuses, and so on.

    ``names`` are the VMs', ``cpus`` the lines about CPUs.
    """
    lines = [*cpus, *shelter.troubles(names), *arrivals.troubles()]
    lines += [
        f"VM {names[row]!r}: {t.why_not_bound}" for row, t in enumerate(taken) if t is not None and t.why_not_bound
    ]
    lines += [f"VM {names[row]!r}: {why}" for row, why in cpusets.why_not.items() if why]
    if partitions is not None:
        lines += [partitions.trouble, partitions.intruders, partitions.members.failed]
        lines += partitions.fights.lines([name for name, _ in partitions.named])
    if monitor is not None:
        lines.append(
            f"cache and memory bandwidth are not measured any more: {monitor.failed}" if monitor.failed else ""
        )
        lines += [
            f"VM {names[row]!r} fills cache ways that it does not have: does a tool write the registers past resctrl?"
            for row in np.flatnonzero(monitor.overfull).tolist()
        ]
    return tuple(line for line in lines if line)
