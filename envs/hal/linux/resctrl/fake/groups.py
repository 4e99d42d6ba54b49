"""Groups, CLOSIDs and RMIDs: what mkdir, rmdir, rename and mode do. fs/resctrl/rdtgroup.c has the originals."""

from __future__ import annotations

import errno
from dataclasses import dataclass, field
from typing import NoReturn

from .hardware import Hardware


@dataclass(eq=False, slots=True)
class Group:
    """A control group, or (with ``parent``) a monitoring group."""

    name: str
    closid: int
    rmid: int
    parent: Group | None = None
    mode: str = "shareable"
    cpus: set[int] = field(default_factory=set)
    children: dict[str, Group] = field(default_factory=dict)
    removed: bool = False

    @property
    def path(self) -> str:
        """Path below the mount; empty for the default group."""
        if self.parent is None:
            return self.name
        above = self.parent.path
        return f"{above}/mon_groups/{self.name}" if above else f"mon_groups/{self.name}"


def fail(code: int) -> NoReturn:
    """Raise OSError as a system call would."""
    raise OSError(code, errno.errorcode[code])


class Kernel:
    """The state behind the files."""

    def __init__(self, hardware: Hardware) -> None:
        self.hw = hardware
        self.online = set().union(*hardware.domains.values())
        self.status = ""
        self.tasks: dict[int, Group] = {}
        """Group of each thread that was moved; all others are in the default group."""
        self.free_rmids = list(range(1, hardware.rmids))
        self.limbo: list[int] = []
        """RMIDs that were freed but whose lines are still in a cache; :meth:`settle_rmids` empties it."""
        self.root = Group("", 0, 0, cpus=set(self.online))
        self.groups: dict[str, Group] = {}
        self.ctrl: dict[str, dict[int, list[int]]] = {"L3": {}, "MB": {}}
        """Value of each resource, domain and CLOSID."""
        for domain in hardware.domains:
            self.add_domain(domain)

    def say(self, text: str) -> None:
        """Append to last_cmd_status (a seq_buf of 512 bytes)."""
        self.status = (self.status + text + "\n")[:512]

    def add_domain(self, domain: int) -> None:
        """Give a domain the defaults for every CLOSID: domain_setup_ctrlval()."""
        self.ctrl["L3"][domain] = [self.hw.cbm_mask] * self.hw.l3_closids
        self.ctrl["MB"][domain] = [self.hw.mb_max] * self.hw.mb_closids

    def all_groups(self) -> list[Group]:
        """Return the default group and every control group."""
        return [self.root, *self.groups.values()]

    def overlaps(self, domain: int, mask: int, closid: int, *, exclusive: bool) -> bool:
        """rdtgroup_cbm_overlaps(): with exclusive groups only, or with any group and with what hardware shares."""
        if not exclusive and mask & self.hw.shareable:
            return True
        return any(
            mask & self.ctrl["L3"][domain][g.closid]
            for g in self.all_groups()
            if g.closid != closid and (g.mode == "exclusive" or not exclusive)
        )

    def make(self, name: str) -> Group:
        """Make a control group: rdtgroup_mkdir_ctrl_mon()."""
        if "\n" in name:
            fail(errno.EINVAL)
        if name in self.groups or name in RESERVED:
            fail(errno.EEXIST)
        taken = {g.closid for g in self.all_groups()}
        closid = next((c for c in range(self.hw.closids) if c not in taken), None)
        if closid is None:
            self.say("Out of CLOSIDs")
            fail(errno.ENOSPC)
        new: dict[int, int] = {}
        for domain, values in self.ctrl["L3"].items():
            used = mine = self.hw.shareable
            for g in self.all_groups():
                used |= values[g.closid]
                if g.mode == "shareable":
                    mine |= values[g.closid]
            mine = lowest_run(mine | (self.hw.cbm_mask & ~used))
            if mine.bit_count() < max(self.hw.min_cbm_bits, 1):
                self.say(f"No space on L3:{domain}")
                fail(errno.ENOSPC)
            new[domain] = mine
        rmid = self._rmid()
        for domain, mask in new.items():
            self.ctrl["L3"][domain][closid] = mask
            self.ctrl["MB"][domain][closid] = self.hw.mb_max
        group = self.groups[name] = Group(name, closid, rmid)
        return group

    def make_monitor(self, parent: Group, name: str) -> Group:
        """Make a monitoring group: rdtgroup_mkdir_mon()."""
        if "\n" in name:
            fail(errno.EINVAL)
        if name in parent.children:
            fail(errno.EEXIST)
        group = parent.children[name] = Group(name, parent.closid, self._rmid(), parent)
        return group

    def _rmid(self) -> int:
        if not self.hw.monitors:
            return 0
        if not self.free_rmids:
            self.say("Out of RMIDs")
            fail(errno.EBUSY if self.limbo else errno.ENOSPC)
        return self.free_rmids.pop(0)

    def settle_rmids(self) -> None:
        """Let the caches forget all freed RMIDs."""
        self.free_rmids += self.limbo
        self.limbo.clear()

    def remove(self, group: Group) -> None:
        """Remove a group; its tasks and CPUs go to the default group or to the parent."""
        for child in list(group.children.values()):
            self.remove(child)
        heir = group.parent or self.root
        for tid, where in list(self.tasks.items()):
            if where is group:
                self.tasks[tid] = heir
        if group.parent is None:
            self.root.cpus |= group.cpus
            del self.groups[group.name]
        else:
            del group.parent.children[group.name]
        if group.rmid:
            self.limbo.append(group.rmid)
        group.removed = True

    def reparent(self, group: Group, parent: Group, name: str) -> None:
        """Move a monitoring group, its tasks with it: mongrp_reparent()."""
        self.status = ""
        if group.parent is None:
            self.say("Source must be a MON group")
            fail(errno.EPERM)
        if group.cpus and group.parent is not parent:
            self.say("Cannot move a MON group that monitors CPUs")
            fail(errno.EPERM)
        if name in parent.children:
            fail(errno.EEXIST)
        del group.parent.children[group.name]
        group.parent, group.name, group.closid = parent, name, parent.closid
        parent.children[name] = group

    def set_mode(self, group: Group, data: str) -> None:
        """rdtgroup_mode_write()."""
        if not data.endswith("\n"):
            fail(errno.EINVAL)
        self.status = ""
        mode = data[:-1]
        if mode == group.mode:
            return
        if mode == "exclusive":
            for domain, values in self.ctrl["L3"].items():
                if self.overlaps(domain, values[group.closid], group.closid, exclusive=False):
                    self.say("Schemata overlaps")
                    fail(errno.EINVAL)
        elif mode == "pseudo-locksetup":
            self.say("Pseudo-locking not supported")
            fail(errno.EINVAL)
        elif mode != "shareable":
            self.say("Unknown or unsupported mode")
            fail(errno.EINVAL)
        group.mode = mode

    def set_online(self, cpu: int, online: bool) -> None:
        """Take a CPU away or bring it back, to the default group; a domain that returns is at its defaults."""
        domain = next(d for d, cpus in self.hw.domains.items() if cpu in cpus)
        if online:
            self.online.add(cpu)
            self.root.cpus.add(cpu)
            if domain not in self.ctrl["L3"]:
                self.add_domain(domain)
            return
        self.online.discard(cpu)
        for group in self.all_groups():
            for g in (group, *group.children.values()):
                g.cpus.discard(cpu)
        if not self.hw.domains[domain] & self.online:
            for resource in self.ctrl.values():
                del resource[domain]


RESERVED = frozenset({"info", "mon_data", "mon_groups", "cpus", "cpus_list", "tasks", "schemata", "mode", "size"})


def lowest_run(mask: int) -> int:
    """Return the lowest run of ones: cbm_ensure_valid(), which does so on AMD too."""
    low = mask & -mask
    return mask & ~(mask + low) if mask else 0
