"""From a VM's identity to its cgroup, and never to one that a stranger could have made.

libvirt's scopes are found by the number of the run that is in their name (https://libvirt.org/cgroups.html: names are
escaped and cut, so they are not put together here), and must hold a process that was started with the UUID. A QEMU
process that nobody manages must have a cgroup with nothing else in it.
"""

from __future__ import annotations

import os
import re
import time

from foreshare.envs.hal.linux.candidates import scopes, vm_process
from foreshare.envs.hal.linux.cgroups import Cgroup, find_hierarchies
from foreshare.envs.hal.linux.roots import Roots
from foreshare.envs.hal.linux.threads import start_time
from foreshare.policies.errors import ForeshareError

from .spec import Domain

_NUMBERED = re.compile(r"(?:machine-)?qemu(?:-|\\x2d)(\d+)(?:-|\\x2d)", re.ASCII)
MOST_PROCESSES = 100_000
AFRESH_S = 1.0
"""So often every process is looked at again; in between only those that are young."""
YOUNG_S = 5.0
"""For so long a process that appeared may yet become QEMU (a shell that executes it), or move to its cgroup."""


class Homes:
    """Remembers what was found and asks again only for what is new."""

    def __init__(self, roots: Roots) -> None:
        self._roots = roots
        self._of_run: dict[tuple[str, int], str] = {}
        self._known: dict[int, float] | None = None
        """Processes looked at before, and until when they are young."""
        self._afresh = 0.0
        self._plain: dict[str, tuple[int, int | None, str]] = {}
        """By UUID: (process, its start, cgroup)."""

    def of_domains(self, domains: tuple[Domain, ...]) -> tuple[dict[str, str], bool]:
        """Return (cgroup by UUID of those that run, whether one that runs has none yet)."""
        running = {(d.uuid, d.number) for d in domains if d.number >= 0}
        self._of_run = {run: home for run, home in self._of_run.items() if run in running}
        missing = running - self._of_run.keys()
        if missing:
            for cgroup in scopes(self._roots):
                found = _NUMBERED.match(cgroup.rsplit("/", 1)[-1])
                for uuid, number in missing if found else ():
                    if found and int(found[1]) == number and uuid in self._inside(cgroup):
                        self._of_run[uuid, number] = cgroup
        out = {uuid: home for (uuid, _), home in self._of_run.items()}
        return out, len(out) < len(running)

    def of_processes(self) -> dict[str, str]:
        """Return the cgroup by UUID of QEMU processes that have one to themselves."""
        try:
            now = {int(n) for n in os.listdir(self._roots.proc) if n.isascii() and n.isdigit()}
        except OSError:
            return {}
        moment = time.monotonic()
        known = dict.fromkeys(now, moment) if self._known is None else self._known
        afresh = moment >= self._afresh
        if afresh:  # one that was QEMU may be a zombie
            self._afresh = moment + AFRESH_S
            for uuid, (pid, _, _) in list(self._plain.items()):
                found = vm_process(self._roots, pid)
                if found is None or found["uuid"] != uuid:
                    del self._plain[uuid]
        for uuid, (pid, start, _) in list(self._plain.items()):
            if pid not in now or start_time(self._roots, pid) != start:
                del self._plain[uuid]
                known.pop(pid, None)
        found_already = {pid for pid, _, _ in self._plain.values()}
        looks = (p for p in now - found_already if afresh or p not in known or moment < known[p])
        for pid in sorted(looks)[:MOST_PROCESSES]:
            self._look_at(pid)
        self._known = {pid: known.get(pid, moment + YOUNG_S) for pid in now}
        return {uuid: home for uuid, (_, _, home) in self._plain.items()}

    def _look_at(self, pid: int) -> None:
        start = start_time(self._roots, pid)
        found = vm_process(self._roots, pid)
        if found is None or found["uuid"] is None or found["cgroup"] is None or found["uuid"] in self._plain:
            return
        if self._inside(found["cgroup"]) == {found["uuid"]} and start_time(self._roots, pid) == start:
            self._plain[found["uuid"]] = pid, start, found["cgroup"]

    def _inside(self, cgroup: str) -> set[str | None]:
        """Return the UUIDs of the VMs whose processes are in a cgroup or below; None stands for any other process."""
        hierarchies = find_hierarchies(self._roots)
        mount = hierarchies.controllers.get("cpu") or hierarchies.unified
        if mount is None:
            return set()
        try:
            top = Cgroup.open(mount, cgroup)
        except ForeshareError:
            return set()
        out: set[str | None] = set()
        for node in top.walk():
            for pid in (node.read("cgroup.procs") or b"").split():
                found = vm_process(self._roots, int(pid))
                out.add(found["uuid"] if found is not None else None)
            node.close()
        return out
