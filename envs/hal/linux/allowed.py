"""CPUs that other programs keep from our VMs: cpuset partitions of cgroup v2, and cpusets above the VMs' own.

A cpuset can run only where the one above it can (cpuset.cpus.effective), and a partition takes its CPUs away from
there (Documentation/admin-guide/cgroup-v2.rst). To list such a CPU in a VM's cpuset all the same would end somebody
else's partition. So what is missing above is planned without, as if it were offline, until it is there again; what our
own VMs' partitions took is ours.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from foreshare.policies.errors import HostError, InputError

from . import cpulist
from .cgroups import Cgroup, Hierarchies
from .cpu_partitions import FILE

EFFECTIVE = "cpuset.cpus.effective"


class Allowed:
    """The files above the VMs' cgroups, open. ``homes`` returns where the VMs live now; "" is nowhere."""

    def __init__(self, hierarchies: Hierarchies, homes: Callable[[], list[str]]) -> None:
        self._homes = homes
        self._mount = hierarchies.controllers.get("cpuset")
        self._fds: dict[str, int] = {}
        for cgroup in homes():
            self.above(cgroup)

    def above(self, cgroup: str) -> None:
        """Look above one more VM's cgroup; where that is not there, or is a v1 one, there is nothing to look at."""
        if self._mount is None or self._mount.version == 1 or not cgroup:
            return
        parent = cgroup.rpartition("/")[0]
        if parent in self._fds:
            return
        try:
            if not parent:
                self._fds[parent] = os.open(f"{self._mount.path}/{EFFECTIVE}", os.O_RDONLY | os.O_CLOEXEC)
                return
            group = Cgroup.open(self._mount, parent)
        except (OSError, HostError, InputError):
            return  # opening the VM itself says more
        try:
            self._fds[parent] = group.open_file(EFFECTIVE, os.O_RDONLY)
        except OSError:
            return
        finally:
            group.close()

    def among(self, cpus: frozenset[int] | None) -> frozenset[int] | None:
        """Return those of ``cpus`` (None: all) that VMs may be given; None: nothing says. Raises InputError."""
        found = self.cpus(self.texts())
        return cpus if found is None else found if cpus is None else cpus & found

    def texts(self) -> tuple[bytes, ...]:
        """Return what the files hold: as long as that is the same, so is the answer."""
        out = []
        for fd in self._fds.values():
            try:
                out.append(os.pread(fd, 4096, 0))
            except OSError:  # the cgroup above is gone, and the VM with it
                out.append(b"")
        return tuple(out)

    def cpus(self, texts: tuple[bytes, ...]) -> frozenset[int] | None:
        """Return the CPUs that all VMs may be given, seeing ``texts``; None where nothing says."""
        found = [cpulist.parse(text.decode("ascii", "replace")) for text in texts if text.strip()]
        return frozenset.intersection(*found) | self._ours() if found else None

    def _ours(self) -> frozenset[int]:
        out: frozenset[int] = frozenset()
        for home in self._homes():
            if not home or self._mount is None:
                continue
            try:
                vm = Cgroup.open(self._mount, home)
            except HostError:
                continue
            try:
                if (vm.read(FILE) or b"").strip() in (b"root", b"isolated"):
                    out |= cpulist.parse((vm.read(EFFECTIVE) or b"").decode("ascii", "replace"))
            finally:
                vm.close()
        return out

    def close(self) -> None:
        """Close the files; closing twice is fine."""
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()
