"""Cache ways and memory bandwidth of one host: claimed, planned, written, read back.

:class:`~.state.State` knows what should be, :class:`~.groups.Tree` what is; this joins them. What another tool or a
hot-plug breaks is mended in :mod:`.upkeep`.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from typing import Any

import numpy as np

from foreshare.envs.classes import regroup
from foreshare.envs.hal.linux.cgroups import GONE
from foreshare.envs.hal.linux.threads import VmThreads
from foreshare.envs.hal.protocol import Clock
from foreshare.envs.hal.types import Control, Plan, Receipt, WriteFailure
from foreshare.policies.errors import HostError
from foreshare.policies.host import IntArray, Placement, Resource, VmTable

from .fights import Fights
from .files import Files
from .groups import Group, Tree, packed
from .members import Members
from .names import PQOS, GroupNames, plan_groups
from .offer import Offer
from .spec import ResctrlSpec
from .state import UNKNOWN, State

_WAYS, _MEMORY = int(Control.WAYS), int(Control.MEMORY)
PATIENCE_NS = 500_000
"""How long a tick waits for the lock on resctrl; pqos waits 100 ms, which is ten ticks."""
MOST_DOMAINS = 128
"""In one line: at most 15 bytes each, so that a line with its name stays within a page."""


class Partitions:
    """The groups of one host. Opening writes nothing."""

    def __init__(
        self, files: Files, offer: Offer, table: VmTable, threads: list[VmThreads], spec: ResctrlSpec, clock: Clock
    ) -> None:
        self.offer, self.spec, self.table, self.clock = offer, spec, table, clock
        self.files = files
        self.tree = Tree(files, offer.info.path)
        self.names = GroupNames(spec.prefix)
        self.named = plan_groups(self.names, table, offer.groups)
        """Name of each group and the VM whose own it is (-1: a class)."""
        self.state = State(offer, table, len(self.named), round(spec.quarantine_ms * 1e6))
        self.members = Members(self.tree, threads, table.uuid)
        self.groups: list[Group | None] = [None] * len(self.named)
        """Open groups; None: not made yet, or lost."""
        self.fights = Fights(len(self.named))
        self.claimed = False
        self.dirty = False
        self.noted: list[tuple[str, bytes]] | None = None
        """Where calls on schemata files are noted for the floor measurement; an empty payload is a read."""
        self.relaid = False
        """The line of ways is another one than that which groups were last written for."""
        self.trouble = self.intruders = ""
        """The latest refusal, in words; and other tools' groups that fill ways of VMs."""
        self._refusals: dict[int, tuple[int, str]] = {}
        """Groups that refused a write in the latest :meth:`reconcile`: errno and words."""
        self.classes = np.array([s for s, (_, row) in enumerate(self.named) if row < 0], np.int64)
        self.loose = np.array([i for i in range(len(table)) if self._own(i) < 0], np.int64)
        """VMs without a group of their own."""
        self._cache_names = [n.encode() for n in (offer.info.cache.names if offer.info.cache and offer.ways else ())]
        self._first_grouping()

    def _own(self, row: int) -> int:
        return next((s for s, (_, r) in enumerate(self.named) if r == row), -1)

    def _first_grouping(self) -> None:
        state = self.state
        for s, (_, row) in enumerate(self.named):
            if row >= 0:
                state.group[row] = s
        if not len(self.loose):
            return
        need = self.table.reservation[self.loose, Resource.MEMORY].astype(float)
        start = np.arange(len(self.loose)) % len(self.classes)
        at, _ = regroup(
            need, self.table.zone[self.loose], np.zeros(len(self.loose), bool), self.table.rank[self.loose],
            np.ones(len(self.loose), np.int64), start, len(self.classes), 1 << 30,
        )  # fmt: skip
        state.group[self.loose] = self.classes[at]

    # taking hold and letting go

    def remember(self) -> dict[str, Any]:
        """Return what restore needs: JSON values only. Raises HostError where VMs are in other tools' groups."""
        self.tree.lease()
        planned = [name for name, _ in self.named]
        try:
            self.refuse_foreign(self.members.all_threads())
            root = self.tree.root_values() if self.spec.confine_host else {}
        except OSError as error:
            raise HostError(f"{self.tree.path}: {self.tree.words(error)}") from error
        kept = {name: {str(d): v for d, v in root.get(name, {}).items()} for name in root if name.startswith("L3")}
        return {"what": "resctrl", "cgroup": "", "device": self.spec.prefix, "groups": planned, "root": kept,
                "path": self.tree.path}  # fmt: skip

    def refuse_foreign(self, threads: set[int]) -> None:
        """Raise HostError where some of ``threads`` are in another tool's group; OSError where that cannot be told."""
        planned = {name for name, _ in self.named}
        names = self.tree.names() if self.tree.top >= 0 else ()  # it is unmounted: nobody has groups
        for name in sorted(n for n in names if n not in planned and not self.names.ours(n)):
            if threads & self.tree.tasks_of(name):
                raise HostError(
                    f"threads of the VMs are in the resctrl group {name!r} of another tool (libvirt's cachetune?):"
                    ' take them out of it, or leave cache and memory to it with use = "off" in [host.resctrl]'
                )

    def take(self, previous: Iterable[str]) -> None:
        """Make the groups, give each what it may have, and only then move the threads.

        ``previous``: groups that a run that was killed had remembered; those that are planned again keep what they
        hold. Raises OSError and HostError; what was made by then is for restore.
        """
        now = self.clock.now_ns()
        before = set(previous)
        with self.tree.locked(100 * PATIENCE_NS):
            there = self.tree.names()
            planned = {name for name, _ in self.named}
            if self.names.prefix == PQOS and (planned & there) - before:
                raise HostError(
                    f"groups called {PQOS}1, {PQOS}2, ... are there already: pqos, or somebody else, uses them"
                )
            for name in sorted(there - planned):
                if self.names.ours(name) or name in before:
                    self.tree.remove(name)
            for s, (name, _) in enumerate(self.named):
                self._make(s)
                if name in there and self.named[s][1] >= 0:
                    self.state.adopt(s, self.named[s][1], now)
            self.relaid = True
            self.reconcile(now)
        short = [self.named[s][0] for s in range(len(self.named)) if not self._settled(s)]
        if short:
            raise HostError(f"{self.tree.path}/{short[0]} does not hold what was written: {self.trouble or 'no error'}")
        for row in range(len(self.table)):
            group = self.groups[int(self.state.group[row])]
            if group is None or not self.state.here[row]:
                continue
            if row in self.loose:
                self.members.give_monitor(row, group, now)
            try:
                self.members.settle(row, group)
            except OSError as error:
                if error.errno not in GONE:
                    raise
        self.claimed = True

    def _make(self, s: int) -> None:
        try:
            self.groups[s] = self.tree.group(self.named[s][0])
        except OSError as error:
            words = self.tree.words(error)
            if error.errno == errno.EBUSY:
                words += ": monitoring ids of removed groups are still resting, try again in some seconds"
            raise HostError(f"cannot make the resctrl group {self.named[s][0]}: {words}") from error
        self.look(s)

    def close(self) -> None:
        """Close every file; restore is what removes the groups."""
        self.claimed = False
        self.members.close()
        for s, group in enumerate(self.groups):
            if group is not None:
                group.close()
                self.groups[s] = None
        self.tree.close()

    def apply(self, plan: Plan, present: list[bool], deadline_ns: int, receipt: Receipt, *, moved: bool) -> None:
        """Carry out the writes to ways and memory among the first ``receipt.done`` of ``plan``.

        ``moved``: VMs have other CPUs than before, and their limits follow. Donors come first whatever the plan's
        order. Refused writes are added to the receipt, with the kernel's words, and what they would have given is not
        promised.
        """
        control = plan.control[: receipt.done]
        at = np.flatnonzero((control == _WAYS) | (control == _MEMORY))
        if not len(at) and not moved:
            return
        state, now = self.state, self.clock.now_ns()
        before = state.ways.copy(), state.memory.copy()
        entries: list[tuple[int, int]] = []
        again: list[tuple[int, int, int]] = []
        for k, row, value in zip(at.tolist(), plan.vm[at].tolist(), plan.value[at].tolist(), strict=True):
            if not present[row]:
                receipt.failures.append(WriteFailure(k, errno.ENOENT, "the VM is gone", True))
            elif deadline_ns and now > deadline_ns:
                receipt.failures.append(WriteFailure(k, errno.EAGAIN, "no time was left for resctrl in this tick"))
            elif control[k] == _MEMORY:
                state.memory[row] = min(max(value, 1), max(self.offer.memory_units, 1))
                entries.append((k, row))
            elif state.promise_ways(row, value, now):
                entries.append((k, row))
            else:
                again.append((k, row, value))
        # After drift, what a plan takes for shrinking may be another VM's until that shrinks.
        for k, row, value in again:
            if state.promise_ways(row, value, now):
                entries.append((k, row))
            else:
                text = f"way mask {value:#x} is illegal here, or some of it is another VM's"
                receipt.failures.append(WriteFailure(k, errno.EINVAL, text))
        self._refusals.clear()
        try:
            with self.tree.locked(PATIENCE_NS):
                calls = self.reconcile(now)
        except OSError as error:
            self._revert(entries, before, error.errno or 0, error.strerror or str(error), receipt)
            return
        if calls:
            receipt.system_calls += calls
            receipt.last_write_ns = self.clock.now_ns()
        failed = [(k, row) for k, row in entries if not self._settled(int(state.group[row]))]
        if failed:
            # What no kernel refused waits for another group to shrink.
            self._revert(failed, before, errno.EAGAIN, "others have to give it up first", receipt)

    def _revert(
        self, entries: list[tuple[int, int]], before: tuple[IntArray, IntArray], code: int, text: str, receipt: Receipt
    ) -> None:
        """Take promises back all together: what one was to give another is its own again.

        A VM whose group was lost while others took over its ways is left without any; reading it back shows that.
        """
        self.state.ways[[row for _, row in entries]] = 0
        for k, row in entries:
            why = self._refusals.get(int(self.state.group[row]), (code, text))
            receipt.failures.append(WriteFailure(k, *why))
            self.state.memory[row] = before[1][row]
            self.state.promise_ways(row, int(before[0][row]), 0)
        self.dirty = True

    def _settled(self, s: int) -> bool:
        """Return whether a group holds what it should; one that rests or has no kernel group yet is on its way."""
        if self.groups[s] is None:
            return False
        live = self.state.live
        mask, mb, _ = self._wanted
        return bool(
            (self.state.held_mask[s, live] == mask[s, live]).all()
            and (self.state.held_mb[s, live] == mb[s, live]).all()
        )

    def reconcile(self, now_ns: int) -> int:
        """Write what differs from what should be, donors first; return the system calls. The lock must be held."""
        state = self.state
        self._wanted = state.want(now_ns)
        mask, mb, alone = self._wanted
        self.dirty = False
        self._refusals.clear()
        same = (state.held_mask == mask)[:, state.live].all() and (state.held_mb == mb)[:, state.live].all()
        if same and not self.relaid:
            return 0
        calls = 0
        first_mask, first_mb = state.shrink(mask, mb)
        written = []
        first = self._differing(first_mask, first_mb)
        if self.relaid:  # the lowest ways, where those go who keep none, may be what an owner has yet to leave
            first.sort(key=lambda s: bool((first_mask[s] & ~state.held_mask[s]).any()))
        for s in first:
            calls += 1
            if self._write(s, first_mask[s], first_mb[s]):
                written.append(s)
        for s in written:
            calls += 1
            self.look(s)
        if self.relaid and self.spec.confine_host and self._cache_names:
            self.tree.confine(self._cache_names, self.offer.kernel_mask(state.base))
        self.relaid = False
        for s in self._differing(mask, mb):
            goal = mask[s].copy()
            for d in np.flatnonzero((goal != state.held_mask[s]) & state.live).tolist():
                if not state.clear_of_others(s, d, int(goal[d]), alone):
                    goal[d] = state.held_mask[s, d]
                    self.dirty = True
            calls += 1
            self._write(s, goal, mb[s])
        return calls

    def _differing(self, mask: IntArray, mb: IntArray) -> list[int]:
        state = self.state
        differs = (((state.held_mask != mask) | (state.held_mb != mb)) & state.live).any(axis=1)
        ours = [group is not None and not self.fights.left_alone(s) for s, group in enumerate(self.groups)]
        return np.flatnonzero(differs & np.array(ours, bool)).tolist()

    def _write(self, s: int, mask: IntArray, mb: IntArray) -> bool:
        """Write the changed domains of one group, in one call where it fits; return whether the kernel took it."""
        state, group = self.state, self.groups[s]
        if group is None:
            return False
        lines: list[bytes] = []
        for names, new, held, form, shift in (
            (self._cache_names, mask, state.held_mask[s], "%d=%x", self.offer.first_way),
            ([b"MB"], mb, state.held_mb[s], "%d=%d", 0),
        ):
            at = np.flatnonzero((new != held) & state.live)
            if names == [b"MB"] and not self.offer.memory_units:
                continue
            for some in (at[k : k + MOST_DOMAINS] for k in range(0, len(at), MOST_DOMAINS)):
                pairs = zip(self.offer.domain_id[some].tolist(), (new[some] << shift).tolist(), strict=True)
                values = ";".join(form % pair for pair in pairs)
                lines += [b"%s:%s\n" % (name, values.encode()) for name in names]
        for data in packed(lines):
            if self.noted is not None:
                self.noted.append((f"{self.tree.path}/{group.name}/schemata", data))
            try:
                self.files.pwrite(group.schemata, data, 0)
            except OSError as error:
                self._refused(s, group, error)
                return False
        state.held_mask[s, state.live], state.held_mb[s, state.live] = mask[state.live], mb[state.live]
        return True

    def _refused(self, s: int, group: Group, error: OSError) -> None:
        self.trouble = f"{self.tree.path}/{group.name}/schemata: {self.tree.words(error)}"
        self._refusals[s] = error.errno or errno.EIO, self.trouble
        self.dirty = True
        if error.errno in GONE:
            self.lose(s)
        else:
            self.look(s)  # a domain may have gone, which is EINVAL without a word

    def lose(self, s: int) -> None:
        """Note that a group is not there any more; upkeep makes it again."""
        group = self.groups[s]
        if group is not None:
            group.close()
        self.groups[s] = None
        self.state.held_mask[s], self.state.held_mb[s] = UNKNOWN, UNKNOWN
        for row in np.flatnonzero(self.state.group == s).tolist():
            self.members.forget(row)
        self.dirty = True

    def look(self, s: int) -> bool:
        """Read a group back and believe it; return whether it was as believed."""
        group, state = self.groups[s], self.state
        if group is None:
            return False
        if self.noted is not None:
            self.noted.append((f"{self.tree.path}/{group.name}/schemata", b""))
        try:
            values = group.values()
        except OSError as error:
            if error.errno not in GONE:
                raise
            self.lose(s)
            return False
        name = self._cache_names[0].decode() if self._cache_names else "MB"
        cache, mb = dict(values.get(name, {})), values.get("MB", {})
        for code in self._cache_names[1:]:  # one mask for both: where they differ, neither is what was written
            cache |= {d: UNKNOWN for d, m in values.get(code.decode(), {}).items() if cache.get(d, m) != m}
        ids = self.offer.domain_id.tolist()
        state.live[:] = [d in cache for d in ids]
        plain = self.offer.kernel_value(0)
        masks = np.full(len(ids), state.full)
        if self._cache_names:
            masks = self.offer.our_masks(np.array([cache.get(d, UNKNOWN) for d in ids], np.int64))
        bandwidth = np.array([mb.get(d, UNKNOWN) if self.offer.memory_units else plain for d in ids], np.int64)
        same = bool((state.held_mask[s] == masks).all() and (state.held_mb[s] == bandwidth).all())
        state.held_mask[s], state.held_mb[s] = masks, bandwidth
        if not same:
            self.dirty = True
        return same

    def read_back(self, into: Placement, present: list[bool], rows: Iterable[int]) -> None:
        """Fill ways and memory of ``rows`` with what the kernel holds.

        A group that holds what it should stands for what its VMs were promised (rounding, resting ways and a class on
        its way to its owner are all accounted for); any other is reported as it is.
        """
        looked: dict[int, bool] = {}
        state = self.state
        for row in rows:
            if not present[row]:
                continue
            s = int(state.group[row])
            if self.claimed and s not in looked:
                looked[s] = self.look(s)
            units = int(state.memory[row]) or self.offer.memory_units
            ways = int(state.ways[row])
            if self.claimed and not looked[s]:
                home = np.flatnonzero((self.offer.domain_zone == self.table.zone[row]) & state.live)
                held = state.held_mask[s, home[0]] if len(home) else UNKNOWN
                owned = ((1 << self.offer.ways) - 1) << self.offer.shared_ways
                ways = int(held) & owned if held != UNKNOWN and ways else 0
                if not len(home) or (state.held_mb[s, home] == UNKNOWN).any():
                    units = self.offer.memory_units
                elif row == self.named[s][1]:
                    units = state.bandwidth.units_of(row, state.held_mb[s], state.live)
            into.ways[row] = ways
            into.units[row, Resource.CACHE] = ways.bit_count()
            into.units[row, Resource.MEMORY] = units
