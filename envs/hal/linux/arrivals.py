"""VMs that are named by their UUID, followed from one cgroup to the next as they stop and start.

The rows of a host stay the same; what changes is whether a row's VM is there, and where. A VM that arrives is reported
as absent for as many readings as make it gone for good: whoever believed that it still held something has given that
up by then, reads its controls afresh and decides anew.
"""

from __future__ import annotations

from collections.abc import Callable

from foreshare.envs.hal.spec import VmSpec
from foreshare.policies.errors import ForeshareError, InputError
from foreshare.policies.presence import GONE_TICKS

from .discovery.spec import DiscoverySpec, Found
from .discovery.watch import Watch
from .roots import Roots

RETRY_TICKS = 100
"""Between two tries to open a VM that could not be: its cgroup may be half made."""


class Arrivals:
    """Where each VM lives, and who has just arrived."""

    def __init__(self, specs: tuple[VmSpec, ...], discovery: DiscoverySpec, roots: Roots) -> None:
        """Look for the VMs for the first time. Raises InputError for one that nothing can find."""
        self.specs = specs
        for vm in specs:
            if not vm.cgroup and not vm.uuid:
                raise InputError(f"VM {vm.name!r} has neither a cgroup nor a uuid to find it by")
        self._watch: Watch | None = None
        if discovery.all_domains or any(not vm.cgroup and vm.uuid for vm in specs):
            self._watch = Watch(discovery, roots)
            first = self._watch.first()
            if discovery.all_domains:
                named = {vm.uuid.lower() for vm in specs}
                self.specs += tuple(
                    VmSpec(name=d.name or d.uuid, uuid=d.uuid, reservation=discovery.reservation)
                    for d in sorted(first.domains, key=lambda d: d.uuid) if d.uuid not in named
                )  # fmt: skip
        self._rows = {vm.uuid.lower(): row for row, vm in enumerate(self.specs) if not vm.cgroup and vm.uuid}
        self._home = [vm.cgroup for vm in self.specs]
        self._wait = [0] * len(self.specs)
        """Readings until a VM is reported as present, or (negative) until the next try to open it."""
        homes = self.found.homes
        for uuid, row in self._rows.items():
            self._home[row] = homes.get(uuid, "")
        self.trouble = ""
        """Why the latest arrival could not be opened."""

    @property
    def found(self) -> Found:
        """What is known now."""
        return self._watch.found if self._watch is not None else Found()

    def home(self, row: int) -> str:
        """Return the cgroup that a VM lives in; "": nowhere."""
        return self._home[row]

    def follow(self, present: list[bool], attach: Callable[[int, str], None], arrived: Callable[[int], None]) -> None:
        """Do one reading's part; ``present`` is as the latest reading found it.

        ``attach`` opens a VM in another cgroup, ``arrived`` is called when it counts as there.
        """
        if self._watch is None:
            return
        homes = self._watch.found.homes
        for uuid, row in self._rows.items():
            wait = self._wait[row]
            if wait > 0:
                self._wait[row] -= 1
                if wait == 1:
                    arrived(row)
                continue
            if wait < 0:
                self._wait[row] += 1
                continue
            home = homes.get(uuid, "")
            if not home or (present[row] and home == self._home[row]):
                continue
            try:
                attach(row, home)
            except (ForeshareError, OSError) as error:
                self.trouble = f"VM {self.specs[row].name!r} in {home}: {error}"
                self._wait[row] = -RETRY_TICKS
                continue
            self._home[row] = home
            self._wait[row] = GONE_TICKS

    def close(self) -> None:
        """Stop looking."""
        if self._watch is not None:
            self._watch.close()
