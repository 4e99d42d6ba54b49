"""cpuset.cpus, cpuset.mems and cpuset.cpus.partition (kernel/cgroup/cpuset.c), without cpuset.cpus.exclusive."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from .group import Group
from .numbers import bitmap_parselist, refuse

if TYPE_CHECKING:
    from .tree import FakeCgroups

_NODES = 64
"""MAX_NUMNODES of a small kernel."""
_EMPTY = "cpuset.cpus and cpuset.cpus.exclusive are empty"
_NOT_ALLOWED = "Invalid cpu list in cpuset.cpus.exclusive"
_NOT_EXCLUSIVE = "Cpu list in cpuset.cpus not exclusive"
_PARENT_NONE = "Parent is not a partition root"
_PARENT_INVALID = "Parent is an invalid partition root"
_NOTHING_LEFT = "Parent unable to distribute cpu downstream"
_WORDS = ("member", "root", "isolated")


def listed(ids: frozenset[int]) -> str:
    """Return a set as the kernel prints it."""
    runs: list[list[int]] = []
    for i in sorted(ids):
        if runs and runs[-1][1] == i - 1:
            runs[-1][1] = i
        else:
            runs.append([i, i])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def files(tree: FakeCgroups, group: Group) -> dict[str, str]:
    """Return what the controller's files read."""
    state = group.partition
    if group.invalid is not None:
        state += " invalid" + (f" ({group.invalid})" if group.invalid else "")
    return {
        "cpuset.cpus": listed(group.cpus), "cpuset.cpus.effective": listed(effective(tree, group)),
        "cpuset.cpus.partition": state, "cpuset.mems": listed(group.mems),
        "cpuset.mems.effective": listed(_mems(tree, group)),
    }  # fmt: skip


def is_partition(group: Group) -> bool:
    """Return whether a cgroup is a partition root now; the top is one."""
    return group.parent is None or (group.partition != "member" and group.invalid is None)


def effective(tree: FakeCgroups, group: Group) -> frozenset[int]:
    """Return the CPUs that threads in this cgroup may use."""
    if is_partition(group):
        own = _owned(tree, group) & tree.online
    else:
        above = effective(tree, group.parent) if group.parent is not None else tree.online
        return group.cpus & above or above
    for child in group.children.values():
        if is_partition(child):
            own -= _owned(tree, child)
    return own


def _owned(tree: FakeCgroups, group: Group) -> frozenset[int]:
    return tree.possible if group.parent is None else group.cpus & _owned(tree, group.parent)


def _mems(tree: FakeCgroups, group: Group) -> frozenset[int]:
    above = tree.nodes if group.parent is None else _mems(tree, group.parent)
    return group.mems & above or above


def write_cpus(tree: FakeCgroups, group: Group, text: str) -> None:
    """See update_cpumask() and validate_change(): what partitions forbid is taken all the same, and ends them."""
    new = bitmap_parselist(text, len(tree.possible)) if text.strip() else frozenset()
    if new == group.cpus:
        return
    if group.cpus and not new and tree.populated(group):
        raise refuse(errno.ENOSPC)
    group.cpus = new
    rivals = _rivals(group, was=is_partition(group))
    for rival in rivals:
        _invalidate(rival, "")
    if group.partition != "member":
        if rivals:
            _invalidate(group, "")
        else:
            _judge(tree, group)
    _judge_below(tree, group)


def write_mems(tree: FakeCgroups, group: Group, text: str) -> None:
    """See update_nodemask()."""
    new = bitmap_parselist(text, _NODES) if text.strip() else frozenset()
    if not new <= tree.nodes:
        raise refuse(errno.EINVAL)
    if group.mems and not new and tree.populated(group):
        raise refuse(errno.ENOSPC)
    group.mems = new


def write_partition(tree: FakeCgroups, group: Group, text: str) -> None:
    """See update_prstate(): any known word is accepted, and what comes of it is there to be read."""
    word = text.strip()
    if word not in _WORDS:
        raise refuse(errno.EINVAL)
    if word == group.partition:
        return
    group.partition = word
    if word == "member":
        group.invalid = None
    else:
        _judge(tree, group)
    _judge_below(tree, group)


def after_hotplug(tree: FakeCgroups) -> None:
    """Look at every partition again."""
    _judge_below(tree, tree.top)


def last_of_a_partition(tree: FakeCgroups, cpu: int) -> bool:
    """Return whether a partition would be left without a CPU: the scheduler then refuses to let it go (EBUSY)."""
    return any(effective(tree, g) == {cpu} for g in tree.top.walk() if is_partition(g))


def _rivals(group: Group, *, was: bool) -> list[Group]:
    """Return the siblings that may not have some of the CPUs, because they or ``group`` are partitions."""
    if group.parent is None:
        return []
    siblings = [s for s in group.parent.children.values() if s is not group]
    return [s for s in siblings if s.cpus & group.cpus and (was or is_partition(s))]


def _invalidate(group: Group, why: str) -> None:
    if group.partition != "member":
        group.invalid = why


def _judge(tree: FakeCgroups, group: Group) -> None:
    """Find out whether what was asked for can be (update_parent_effective_cpumask(), remote_partition_enable())."""
    group.invalid = _why_not(tree, group)


def _why_not(tree: FakeCgroups, group: Group) -> str | None:
    parent = group.parent
    if parent is None:
        return None
    if _rivals(group, was=True):
        return _NOT_EXCLUSIVE
    if not group.cpus:
        return _EMPTY
    if not is_partition(parent) or not group.cpus & _owned(tree, parent):
        return _NOT_ALLOWED
    group.invalid = ""  # as if it were none: what would be left?
    left = effective(tree, parent) - group.cpus
    crowded = any(tree.populated(c) for c in parent.children.values() if c is not group and not is_partition(c))
    if not left and (crowded or tree.inside(parent)):
        return _NOTHING_LEFT
    return None


def _judge_below(tree: FakeCgroups, group: Group) -> None:
    """Let a partition's children follow: they are none below one that is none, and may be again."""
    for child in group.children.values():
        if child.partition != "member":
            if is_partition(group):
                if child.invalid is not None:
                    _judge(tree, child)
            elif child.invalid is None:
                _invalidate(child, _PARENT_NONE if group.partition == "member" else _PARENT_INVALID)
        _judge_below(tree, child)
