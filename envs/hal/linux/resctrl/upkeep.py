"""Every tick's small repairs: what another tool, a hot-plug, an umount or a new thread did to our groups.

One group is read back in each tick; all of them when a group comes or goes, or when the set of online CPUs changes (a
domain whose last CPU goes and returns has full masks in every group). A group that was removed is made again, threads
are put back where they belong, a mount that went away is given up and taken again when it returns. Nothing here raises
for what the kernel refuses: it is kept in ``Partitions.trouble`` and tried again.
"""

from __future__ import annotations

import os

import numpy as np

from foreshare.envs.classes import regroup
from foreshare.envs.hal.linux.cgroups import GONE
from foreshare.envs.hal.linux.roots import Roots
from foreshare.policies.errors import HostError
from foreshare.policies.host import Isolation

from .files import explain
from .groups import Tree
from .members import Members
from .monitor import Monitor
from .others import Others
from .partitions import PATIENCE_NS, Partitions
from .state import GROW_NS

RETRY_NS = 1_000_000_000
"""Between two tries to make a group again."""
REGROUP_NS = 1_000_000_000
MOUNT_TICKS = 10
STRAY_TICKS = 100
RETURN_NS = 500_000_000
"""Ways that other tools' groups have left are planned with again after so long: each time all is laid out anew."""
FOLLOW_TICKS = 10
FOLLOW_MOST = 64
"""Threads that one tick moves into their group; the others wait for the next."""


class Upkeep:
    """Looks after one host's partitions."""

    def __init__(self, parts: Partitions, roots: Roots, monitor: Monitor | None) -> None:
        self._parts, self._monitor = parts, monitor
        self._tick = 0
        self._retry_ns = [0] * len(parts.groups)
        self._regroup_ns = self._grow_ns = self._token_ns = 0
        self._tokens = float(parts.spec.moves_per_s)
        self._down = False
        planned = frozenset(name for name, _ in parts.named)
        self._others = Others(
            parts.files, parts.offer.info.cache, lambda name: name in planned or parts.names.ours(name)
        )
        self._avoided = parts.offer.taken
        self._returned_ns = 0
        apart = parts.table.zone[parts.table.isolation != Isolation.SHARED]
        self._least = int(np.bincount(apart).max(initial=0)) * parts.state.min_bits
        self._online = b""
        self._links = -1
        self.repairs = 0
        """Groups found to hold something else than they should, or gone."""
        try:
            self._online_fd = os.open(f"{roots.sys}/devices/system/cpu/online", os.O_RDONLY | os.O_CLOEXEC)
            self._online = os.pread(self._online_fd, 4096, 0)
        except OSError:
            self._online_fd = -1  # no sysfs: then there is no hot-plug to see either

    @property
    def down(self) -> bool:
        """Whether the mount is gone."""
        return self._down

    def tend(self, present: list[bool]) -> None:
        """Do one tick's part."""
        parts = self._parts
        if not parts.claimed:
            return
        now = parts.clock.now_ns()
        self._tick += 1
        try:
            self._absent(present, now)
            if (self._down or self._tick % MOUNT_TICKS == 0) and not self._mounted(now):
                return
            self._look(now)
            self._around(now)
            self._mend(now)
            self._classes(now)
            if parts.fights.over(now) or parts.state.expire(now) or now >= self._grow_ns:
                self._grow_ns = now + GROW_NS
                parts.dirty = True
            if parts.dirty:
                with parts.tree.locked(PATIENCE_NS):
                    parts.reconcile(now)
            self._follow(present, now)
            if not parts.dirty and None not in parts.groups:
                parts.trouble = ""
        except OSError as error:
            parts.trouble = parts.tree.words(error) if not self._down else explain(error)
            parts.dirty = True

    def welcome(self, row: int) -> None:
        """Take in a VM that came, or came back, with threads of its own."""
        parts = self._parts
        parts.state.here[row] = True
        parts.members.forget(row)
        parts.dirty = True
        if parts.claimed:
            self._settle(row, parts.clock.now_ns())
            self._watch()

    def close(self) -> None:
        """Close the file that tells of hot-plug, and other tools' groups."""
        self._others.close()
        if self._online_fd >= 0:
            os.close(self._online_fd)
            self._online_fd = -1

    def _absent(self, present: list[bool], now: int) -> None:
        state = self._parts.state
        for row in np.flatnonzero(state.here).tolist():
            if not present[row]:
                state.forget(row, now)
                self._parts.dirty = True

    def _look(self, now: int) -> None:
        parts = self._parts
        online = os.pread(self._online_fd, 4096, 0) if self._online_fd >= 0 else b""
        links = parts.tree.links()
        every = range(len(parts.groups))
        if links != self._links or self._others.lost:
            self._others.list(parts.tree.top)
        elif online == self._online:
            turn = self._tick % (len(parts.groups) + len(self._others))
            if turn >= len(parts.groups):
                self._others.look(turn - len(parts.groups))
            every = every[turn : turn + 1]
        plugged = online != self._online
        self._online, self._links = online, links
        for s in every:
            if parts.groups[s] is not None and not parts.look(s):
                self.repairs += 1
                if not plugged:
                    parts.fights.changed(s, now)

    def _around(self, now: int) -> None:
        """Leave ways to other tools' groups as soon as they keep them, take them back some time after they have not."""
        parts, others = self._parts, self._others
        around = self._avoided
        if others.taken & ~around:
            around |= others.taken
        elif others.taken == around:
            self._returned_ns = 0
        elif not self._returned_ns:
            self._returned_ns = now + RETURN_NS
        elif now >= self._returned_ns:
            around, self._returned_ns = others.taken, 0
        if around == self._avoided:
            return
        self._avoided = around
        offer = parts.offer.around(around, self._least)
        if offer is not parts.offer:
            parts.state.lay_out(offer, now)
            parts.offer, parts.relaid, parts.dirty = offer, True, True
            for s in range(len(parts.groups)):
                parts.look(s)
        planned = offer.kernel_mask((1 << offer.bits) - 1) if offer.ways else 0
        parts.intruders = "; ".join(
            f"the resctrl group {name!r} of another tool keeps ways {kept & planned:x} that are VMs' here: too few are"
            " left to plan without them"
            for name, kept in sorted(others.kept.items()) if kept & planned
        )  # fmt: skip

    def _mend(self, now: int) -> None:
        """Make lost groups again: values first, then the threads."""
        parts = self._parts
        lost = [
            s for s, g in enumerate(parts.groups)
            if g is None and now >= self._retry_ns[s] and not parts.fights.left_alone(s)
        ]  # fmt: skip
        if not lost:
            return
        made = []
        self._links = -1
        with parts.tree.locked(PATIENCE_NS):
            for s in lost:
                self._retry_ns[s] = now + RETRY_NS
                try:
                    parts.groups[s] = parts.tree.group(parts.named[s][0])
                except OSError as error:
                    parts.trouble = f"cannot make {parts.named[s][0]} again: {parts.tree.words(error)}"
                    if error.errno in GONE:
                        break
                    continue
                parts.look(s)
                made.append(s)
            parts.reconcile(now)
        for s in made:
            self._retry_ns[s] = 0
            for row in np.flatnonzero((parts.state.group == s) & parts.state.here).tolist():
                self._settle(row, now)
        if made:
            self._watch()

    def _settle(self, row: int, now: int) -> None:
        parts = self._parts
        group = parts.groups[int(parts.state.group[row])]
        if group is None:
            return
        try:
            if row in parts.loose:
                parts.members.give_monitor(row, group, now)
            parts.members.settle(row, group)
        except OSError as error:  # the VM or the group went away again; the others' turn comes all the same
            if error.errno not in GONE:
                parts.trouble = parts.tree.words(error)

    def _classes(self, now: int) -> None:
        """Group VMs anew where there are more of them than groups: owners at once, the others once a second."""
        parts, state = self._parts, self._parts.state
        if len(parts.loose) == 0 or len(parts.classes) == 0:
            return
        self._tokens = min(
            self._tokens + (now - self._token_ns) * 1e-9 * parts.spec.moves_per_s, parts.spec.moves_per_s
        )
        self._token_ns = now
        rows = parts.loose[state.here[parts.loose]]
        owner = state.ways[rows] != 0
        alone = state.exclusive()[state.group[rows]] == rows
        if now < self._regroup_ns and not (owner & ~alone).any():
            return
        if now >= self._regroup_ns:
            self._regroup_ns = now + REGROUP_NS
        if self._tokens < 1 or not len(rows):
            return
        slot = np.full(len(parts.groups), -1, np.int64)
        slot[parts.classes] = np.arange(len(parts.classes))
        at = slot[state.group[rows]]
        need = np.where(state.memory[rows] > 0, state.memory[rows], parts.table.reservation[rows, 2]).astype(float)
        threads = np.array([max(parts.members.count(int(r)), 1) for r in rows], np.int64)
        new, moved = regroup(
            need, parts.table.zone[rows], owner, parts.table.rank[rows], threads, at, len(parts.classes),
            int(self._tokens),
        )  # fmt: skip
        self._tokens -= moved
        for i in np.flatnonzero(new != at).tolist():
            self._change(int(rows[i]), int(parts.classes[new[i]]))

    def _change(self, row: int, to: int) -> None:
        """Move one VM. Where one of the two groups was removed meanwhile, that is found out and the move waits."""
        parts, state = self._parts, self._parts.state
        at = int(state.group[row])
        old, new = parts.groups[at], parts.groups[to]
        if old is None or new is None:
            return
        parts.dirty = True
        try:
            parts.members.change(row, old, new)
        except OSError as error:
            if error.errno not in GONE:
                raise
            for s in (at, to):
                if not parts.look(s):
                    self.repairs += 1
            return
        state.group[row] = to
        self._watch()

    def _follow(self, present: list[bool], now: int) -> None:
        parts, left = self._parts, FOLLOW_MOST
        for row in range(self._tick % FOLLOW_TICKS, len(present), FOLLOW_TICKS):
            group = parts.groups[int(parts.state.group[row])]
            if not present[row] or group is None or left <= 0:
                continue
            if row in parts.loose and not parts.members.monitored(row) and parts.members.give_monitor(row, group, now):
                self._watch()
            left -= parts.members.follow(row, group, left)
        row = self._tick // STRAY_TICKS % max(len(present), 1)
        if self._tick % STRAY_TICKS == 0 and present and present[row]:
            group = parts.groups[int(parts.state.group[row])]
            if group is not None and parts.members.strayed(row, group):
                self.repairs += 1

    def _watch(self) -> None:
        if self._monitor is not None:
            self._monitor.watch(self._parts)

    def _mounted(self, now: int) -> bool:
        """Give the mount up when it is gone, take it again when there is one; return whether it can be used."""
        parts = self._parts
        mount = parts.files.mount_id(parts.tree.path)
        if not self._down and mount == parts.tree.mount_id:
            return True
        if not self._down:
            self._down = True
            self.repairs += 1
            for s in range(len(parts.groups)):
                parts.lose(s)
            parts.tree.close()
            self._others.close()
            self._links = -1
            self._watch()
            parts.trouble = f"resctrl is no longer mounted at {parts.tree.path}: ways and bandwidth are nobody's now"
        if mount is None or now < self._retry_ns[0]:
            return False
        self._retry_ns = [now + RETRY_NS] * len(parts.groups)
        try:
            parts.tree = Tree(parts.files, parts.tree.path)
            parts.tree.lease()
        except HostError as error:
            parts.tree.close()
            parts.trouble = str(error)
            return False
        old = parts.members
        parts.members = Members(parts.tree, old.threads, parts.table.uuid)
        self._retry_ns = [0] * len(parts.groups)
        self._down = False
        return True
