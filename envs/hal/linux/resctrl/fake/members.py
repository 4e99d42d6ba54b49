"""Who is in a group: the tasks, cpus and cpus_list files. rdtgroup_tasks_write() and rdtgroup_cpus_write()."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable

from foreshare.envs.hal.linux import cpulist
from foreshare.policies.errors import InputError

from .groups import Group, Kernel, fail


def show_tasks(kernel: Kernel, group: Group, alive: Callable[[], set[int]]) -> str:
    """Return the living threads of a group (a control group lists its own and its monitoring groups')."""
    members = []
    for tid in sorted(alive()):
        where = kernel.tasks.get(tid, kernel.root)
        if where is group or (group.parent is None and where.parent is group):
            members.append(f"{tid}\n")
    return "".join(members)


def move_tasks(kernel: Kernel, group: Group, data: str, alive: Callable[[], set[int]], writer: int) -> None:
    """Move the threads of a comma list one after another; what was moved before an error stays moved."""
    kernel.status = ""
    for part in data.split(","):
        if part[:1] in ("", "\n"):
            return  # the loop ends at the end of the text or of the line
        word = part.strip()
        if not re.fullmatch(r"[+-]?(0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*)", word, re.ASCII):
            kernel.say(f"Task list parsing error pid {word}")
            fail(errno.EINVAL)
        tid = int(word, 8) if re.fullmatch(r"[+-]?0[0-7]+", word) else int(word, 0)
        if tid < 0:
            kernel.say(f"Invalid pid {tid}")
            fail(errno.EINVAL)
        _move(kernel, group, tid or writer, alive)


def _move(kernel: Kernel, group: Group, tid: int, alive: Callable[[], set[int]]) -> None:
    if tid not in alive():
        kernel.say(f"No task {tid}")
        kernel.say(f"Error while processing task {tid}")
        fail(errno.ESRCH)
    now = kernel.tasks.get(tid, kernel.root)
    if group.parent is not None and now.closid != group.closid:
        kernel.say("Can't move task to different control group")
        kernel.say(f"Error while processing task {tid}")
        fail(errno.EINVAL)
    kernel.tasks[tid] = group


def show_cpus(kernel: Kernel, group: Group, *, as_list: bool) -> str:
    """Return the CPUs of a group as a list or as a mask."""
    if as_list:
        return cpulist.form(group.cpus) + "\n"
    most = max(kernel.hw.domains[max(kernel.hw.domains)]) + 1
    return f"{sum(1 << c for c in group.cpus):0{-(-most // 4)}x}\n"


def set_cpus(kernel: Kernel, group: Group, data: str, *, as_list: bool) -> None:
    """Set a group's CPUs. The status is added to, not cleared, as in 6.12."""
    try:
        text = data.strip()
        cpus = set(cpulist.parse(text)) if as_list else {c for c in range(64) if int(text or "0", 16) >> c & 1}
    except (ValueError, InputError):
        kernel.say("Bad CPU list/mask")
        fail(errno.EINVAL)
    if any(c >= 8 * -(-(max(kernel.hw.domains[max(kernel.hw.domains)]) + 1) // 8) for c in cpus):
        kernel.say("Bad CPU list/mask")
        fail(errno.ERANGE if as_list else errno.EOVERFLOW)
    if cpus - kernel.online:
        kernel.say("Can only assign online CPUs")
        fail(errno.EINVAL)
    if group.parent is not None:
        if cpus - group.parent.cpus:
            kernel.say("Can only add CPUs to mongroup that belong to parent")
            fail(errno.EINVAL)
        group.cpus = cpus
        return
    dropped = group.cpus - cpus
    if dropped and group is kernel.root:
        kernel.say("Can't drop CPUs from default group")
        fail(errno.EINVAL)
    kernel.root.cpus |= dropped
    for other in kernel.all_groups():
        if other is not group:
            other.cpus -= cpus
        for child in other.children.values():
            child.cpus &= other.cpus if other is not group else cpus
    group.cpus = cpus
