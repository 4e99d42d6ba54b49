"""An isolated VM's memory on the node that its cores are on: bound when it is taken in, and never again.

Writing cpuset.mems of v2 moves the pages that are elsewhere, and returns when they are moved
(https://docs.kernel.org/admin-guide/cgroup-v2.html; cpuset_migrate_mm() in kernel/cgroup/cpuset.c): a matter of seconds
for a VM that has run for long, so that needs to be asked for. v1 moves none (cpuset.memory_migrate is 0).
"""

from __future__ import annotations

import os
from typing import Literal

from foreshare.policies.errors import InputError

from . import cpulist
from .cgroups import Cgroup
from .facts import node_bytes

MemoryNodes = Literal["off", "auto", "bind"]
MOST_MOVED = 256 << 20
"""Bytes elsewhere with which a VM is still bound without being asked for: some tens of ms."""


def bind_memory(tree: list[Cgroup], node: int, *, move: bool) -> str:
    """Bind a cpuset and (v1) all below it to ``node``; return why that was not done, empty where it was.

    ``move``: however much memory is elsewhere.
    """
    if not tree:
        return "its memory is not bound to a node: it has no cpuset"
    top = tree[0]
    one = top.mount.version == 1
    try:
        if cpulist.parse((top.read("cpuset.mems" if one else "cpuset.mems.effective") or b"").decode()) == {node}:
            return ""
        if not (one or move):
            data = top.read("memory.numa_stat")
            if data is None:
                return f"its memory is not bound to node {node}: nothing tells how much is elsewhere"
            elsewhere = sum(size for n, size in node_bytes(data, one=False).items() if n != str(node))
            if elsewhere > MOST_MOVED:
                return (
                    f"{elsewhere / 1e9:.1f} GB of its memory are on other nodes than {node}, and stay there:"
                    ' memory_nodes = "bind" moves them'
                )
        for group in reversed(tree):  # v1: no child may have what its parent lacks
            group.write("cpuset.mems", b"%d\n" % node)
    except (OSError, InputError) as error:
        why = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
        return f"its memory cannot be bound to node {node}: {why}"
    return ""
