"""VMs followed from one cgroup to the next as they stop and start, and taken in when they come later.

The number of rows of a host stays the same; what changes is whether a row's VM is there, where, and, in the rows that
are kept free for those that nobody names, which VM it is. A VM that arrives is reported as absent until it has been so
for as many readings as make it gone for good: whoever believed that it still held something has given that up by then,
reads its controls afresh and decides anew.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from foreshare.envs.hal.spec import VmSpec
from foreshare.policies.errors import ForeshareError, InputError
from foreshare.policies.presence import GONE_TICKS

from .cgroups import Hierarchies
from .discovery.spec import DiscoverySpec, Found
from .discovery.watch import Watch
from .roots import Roots

RETRY_TICKS = 100
"""Between two tries to open a VM that could not be: its cgroup may be half made."""
LOOK_TICKS = 3
"""Between two looks for the cgroup of a VM that is known by it and is not there."""
SOON_TICKS = 2
_SPARE = "00000000-0000-0000-0000-{:012x}"
"""UUID of a row that no VM has taken yet."""


class Arrivals:
    """Where each VM lives, and who has just arrived."""

    def __init__(self, specs: tuple[VmSpec, ...], discovery: DiscoverySpec, roots: Roots, where: Hierarchies) -> None:
        """Look for the VMs for the first time. Raises InputError for one that nothing can find."""
        self.specs = specs
        for vm in specs:
            if not vm.cgroup and not vm.uuid:
                raise InputError(f"VM {vm.name!r} has neither a cgroup nor a uuid to find it by")
        self._watch: Watch | None = None
        if discovery.all_domains or discovery.spare or any(not vm.cgroup and vm.uuid for vm in specs):
            self._watch = Watch(discovery, roots)
            first = self._watch.first()
            if discovery.all_domains:
                named = {vm.uuid.lower() for vm in specs}
                self.specs += tuple(
                    VmSpec(name=d.name or d.uuid, uuid=d.uuid, reservation=discovery.reservation)
                    for d in sorted(first.domains, key=lambda d: d.uuid) if d.uuid not in named
                )  # fmt: skip
        self._free = list(range(len(self.specs), len(self.specs) + discovery.spare))
        """Rows whose VM may be replaced by one that nobody names."""
        self.specs += tuple(
            VmSpec(name=f"(free {k + 1})", uuid=_SPARE.format(k + 1), reservation=discovery.reservation)
            for k in range(discovery.spare)
        )
        self._rows = {vm.uuid.lower(): row for row, vm in enumerate(self.specs) if not vm.cgroup and vm.uuid}
        mount = where.controllers.get("cpu") or where.unified
        self._top = mount.path if mount is not None else where.root
        self._by_path = [(row, f"{self._top}/{vm.cgroup}") for row, vm in enumerate(self.specs) if vm.cgroup]
        self._home = [vm.cgroup for vm in self.specs]
        if discovery.wait:
            for row, path in self._by_path:
                self._home[row] = self.specs[row].cgroup if os.path.isdir(path) else ""
        self._wait = [0] * len(self.specs)
        """Readings until a VM is reported as present, or (negative) until the next try to open it."""
        self._absent = [GONE_TICKS] * len(self.specs)
        """Readings for which each VM has been absent."""
        self._turn = 0
        self._seen: Found | None = None
        self._moving: frozenset[int] = frozenset()
        homes = self.found.homes
        for uuid, row in self._rows.items():
            self._home[row] = homes.get(uuid, "")
        self._closed_to_us: dict[int, tuple[str, str]] = {}
        """By row: the cgroup of a VM that arrived and could not be opened, and why."""
        self._rowless = ""

    @property
    def found(self) -> Found:
        """What is known now."""
        return self._watch.found if self._watch is not None else Found()

    @property
    def moving(self) -> frozenset[int]:
        """Rows of the VMs that migrate, or are being saved, and are still here."""
        found = self.found
        if found is not self._seen:
            self._seen = found
            moving = {d.uuid for d in found.domains if d.moving and d.number >= 0}
            rows = {vm.uuid.lower(): row for row, vm in enumerate(self.specs) if vm.uuid} | self._rows
            self._moving = frozenset(rows[uuid] for uuid in moving & rows.keys())
        return self._moving

    def troubles(self) -> list[str]:
        """Return a line for each VM that is not managed though it runs, and one where libvirt does not answer."""
        closed = (why for _, why in self._closed_to_us.values())
        return [self._rowless, *closed, *([t] if (t := self.found.trouble) else ())]

    def home(self, row: int) -> str:
        """Return the cgroup that a VM lives in; "": nowhere."""
        return self._home[row]

    def all_homes(self) -> list[str]:
        """Return every VM's cgroup; "": nowhere."""
        return list(self._home)

    def follow(
        self, present: list[bool], attach: Callable[[int, str], None], arrived: Callable[[int], None],
        renamed: Callable[[], None],
    ) -> None:  # fmt: skip
        """Do one reading's part; ``present`` is as the latest reading found it.

        ``renamed`` is called when a row has another VM (``specs`` then says which), ``attach`` opens a VM in another
        cgroup, ``arrived`` is called when it counts as there.
        """
        self._turn += 1
        self._absent = [0 if here else n + 1 for here, n in zip(present, self._absent, strict=True)]
        look = self._turn % LOOK_TICKS == 0
        for row, path in self._by_path:
            if self._waits(row, arrived) or present[row] or not look:
                continue
            if os.path.isdir(path):
                self._take(row, self.specs[row].cgroup, attach, SOON_TICKS)
            else:
                self._closed_to_us.pop(row, None)
        if self._watch is None:
            return
        homes = self._watch.found.homes
        self._rowless = ""
        if self._free and not homes.keys() <= self._rows.keys():
            self._welcome(present, renamed)
        for uuid, row in self._rows.items():
            home = homes.get(uuid, "")
            if row in self._closed_to_us and self._closed_to_us[row][0] != home:
                # What could not be opened delays no other cgroup: the row's VM, or the one after it, lives in another.
                del self._closed_to_us[row]
                self._wait[row] = max(self._wait[row], 0)
            if self._waits(row, arrived) or not home or (present[row] and home == self._home[row]):
                continue
            if os.path.isdir(f"{self._top}/{home}"):  # else it went a moment ago, and the watch has yet to see that
                self._take(row, home, attach, RETRY_TICKS)

    def close(self) -> None:
        """Stop looking."""
        if self._watch is not None:
            self._watch.close()

    def _waits(self, row: int, arrived: Callable[[int], None]) -> bool:
        """Count a reading; return whether the row's turn has yet to come."""
        wait = self._wait[row]
        self._wait[row] += (wait < 0) - (wait > 0)
        if wait == 1:
            arrived(row)
        return wait != 0

    def _take(self, row: int, home: str, attach: Callable[[int, str], None], retry: int) -> None:
        try:
            attach(row, home)
        except (ForeshareError, OSError) as error:
            self._closed_to_us[row] = home, f"VM {self.specs[row].name!r} in {home}: {error}"
            self._wait[row] = -retry
            return
        self._closed_to_us.pop(row, None)
        self._home[row] = home
        self._wait[row] = max(GONE_TICKS - self._absent[row], 1)

    def _welcome(self, present: list[bool], renamed: Callable[[], None]) -> None:
        """Give rows to VMs that nobody names: rows that had none yet, then rows of those that do not run any more."""
        found = self.found
        names = {d.uuid: d.name for d in found.domains}
        others = {vm.cgroup for vm in self.specs if vm.cgroup}
        new = [u for u, home in sorted(found.homes.items()) if u not in self._rows and home not in others]
        idle = [r for r in self._free if not present[r] and self.specs[r].uuid not in found.homes and not self._wait[r]]
        idle.sort(key=lambda r: not self.specs[r].name.startswith("(free "))
        if len(new) > len(idle):
            self._rowless = f"{len(new) - len(idle)} VMs have no row: keep more free ([host.discovery] spare)"
        specs = list(self.specs)
        for uuid, row in zip(new, idle, strict=False):
            del self._rows[specs[row].uuid]
            self._rows[uuid] = row
            self._home[row] = ""
            specs[row] = VmSpec(name=names.get(uuid) or uuid, uuid=uuid, reservation=specs[row].reservation)
        if new and idle:
            self.specs = tuple(specs)
            renamed()
