"""What the kernel keeps of one cgroup."""

from __future__ import annotations

from collections.abc import Iterator

THREADED = frozenset({"cpu", "cpuset"})
"""Controllers that threads of one process may be told apart by (of those here)."""
NO_LIMIT = -1


class Group:
    """One cgroup; its files are rendered from this."""

    def __init__(self, path: str, parent: Group | None) -> None:
        self.path, self.parent = path, parent
        self.name = path.rpartition("/")[2]
        self.children: dict[str, Group] = {}
        self.on: list[str] = []
        """Controllers that it passes on (cgroup.subtree_control)."""
        self.threaded: bool = parent is not None and parent.threaded
        for controller in ("cpu", "cpuset", "io"):
            self.reset(controller)

    def reset(self, controller: str) -> None:
        """Forget what a controller keeps: it was switched off, or is new."""
        if controller == "cpu":
            self.quota_us, self.period_us, self.burst_us = NO_LIMIT, 100_000, 0
            self.weight, self.idle = 100, 0
        elif controller == "cpuset":
            self.cpus: frozenset[int] = frozenset()
            self.mems: frozenset[int] = frozenset()
            self.partition = "member"
            self.invalid: str | None = None
            """Why what was asked for (root, isolated) is none, "" where the kernel gives no reason; None: it is one."""
        elif controller == "io":
            self.limits: dict[str, list[int]] = {}
            """By disk: bytes and operations per second, read and written (rbps, wbps, riops, wiops)."""

    def walk(self) -> Iterator[Group]:
        """Yield this cgroup and all below it, parents first."""
        yield self
        for child in self.children.values():
            yield from child.walk()
