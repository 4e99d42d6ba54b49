"""cpu.max, cpu.max.burst, cpu.weight and cpu.idle (kernel/sched/core.c)."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from .group import NO_LIMIT, Group
from .numbers import kstrtoll, kstrtoull, leading_number, refuse

if TYPE_CHECKING:
    from .tree import FakeCgroups

_LEAST_US, _LONGEST_US = 1000, 1_000_000
_MOST_US = (1 << 44) - 1
"""MAX_BW."""
_MOST_WEIGHT = 10_000
_IDLE_SHOWN = 1
"""What cpu.weight reads while cpu.idle is 1: WEIGHT_IDLEPRIO in hundredths, at least 1."""


def files(group: Group) -> dict[str, str]:
    """Return what the controller's files read."""
    quota = "max" if group.quota_us == NO_LIMIT else str(group.quota_us)
    return {
        "cpu.max": f"{quota} {group.period_us}", "cpu.max.burst": str(group.burst_us),
        "cpu.weight": str(_IDLE_SHOWN if group.idle else group.weight), "cpu.idle": str(group.idle),
    }  # fmt: skip


def write_max(_: FakeCgroups, group: Group, text: str) -> None:
    """See cpu_period_quota_parse() and tg_set_cfs_bandwidth(): what is no number behind the quota leaves the period."""
    words = text.split()
    if not words:
        raise refuse(errno.EINVAL)
    said = leading_number(words[0][:20])
    if said is None and words[0] != "max":
        raise refuse(errno.EINVAL)
    quota = NO_LIMIT if said is None else said
    period = leading_number(words[1]) if len(words) > 1 else None
    _set(group, quota, group.period_us if period is None else period, group.burst_us)


def write_burst(_: FakeCgroups, group: Group, text: str) -> None:
    """See cpu_burst_write_u64()."""
    _set(group, group.quota_us, group.period_us, kstrtoull(text))


def _set(group: Group, quota: int, period: int, burst: int) -> None:
    if not _LEAST_US <= period <= _LONGEST_US:
        raise refuse(errno.EINVAL)
    if quota != NO_LIMIT and not (_LEAST_US <= quota <= _MOST_US and burst <= quota and burst + quota <= _MOST_US):
        raise refuse(errno.EINVAL)
    group.quota_us, group.period_us, group.burst_us = quota, period, burst


def write_weight(_: FakeCgroups, group: Group, text: str) -> None:
    """See cpu_weight_write_u64(): an idle group takes none."""
    weight = kstrtoull(text)
    if not 1 <= weight <= _MOST_WEIGHT:
        raise refuse(errno.ERANGE)
    if group.idle:
        raise refuse(errno.EINVAL)
    group.weight = weight


def write_idle(_: FakeCgroups, group: Group, text: str) -> None:
    """See sched_group_set_idle(): whoever leaves idle has the default weight."""
    idle = kstrtoll(text)
    if idle not in (0, 1):
        raise refuse(errno.EINVAL)
    if group.idle != idle:
        group.idle, group.weight = idle, 100
