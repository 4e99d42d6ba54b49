"""What our groups are called: a prefix and then a VM's UUID in hex or a number; never anything that a user wrote."""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from foreshare.policies.errors import HostError, InputError
from foreshare.policies.host import Isolation, VmTable

_PREFIX = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,31}", re.ASCII)
PQOS = "COS"
"""intel/intel-cmt-cat reads groups that are called COS1, COS2, ...; with this prefix ours all have numbers."""


@dataclass(frozen=True, slots=True)
class GroupNames:
    """Makes names and knows its own. Raises InputError for a prefix that is none."""

    prefix: str

    def __post_init__(self) -> None:
        if not _PREFIX.fullmatch(self.prefix) or self.prefix in ("info", "mon_", "mon_groups", "mon_data"):
            raise InputError(
                f"{self.prefix[:40]!r} cannot start the names of resctrl groups: 1 to 32 letters, digits, - and _,"
                " a letter first"
            )

    def vm(self, identity: str, number: int) -> str:
        """Return the name of the ``number``-th group, which is one VM's own."""
        if self.prefix == PQOS:
            return f"{PQOS}{number + 1}"
        return self.prefix + vm_hex(identity)

    def shared(self, number: int) -> str:
        """Return the name of the ``number``-th group, a class that VMs share."""
        return f"{PQOS}{number + 1}" if self.prefix == PQOS else f"{self.prefix}class{number}"

    def ours(self, name: str) -> bool:
        """Return whether a group could be one of ours. pqos' own look like ours where its prefix is used."""
        rest = name.removeprefix(self.prefix)
        if rest == name or self.prefix == PQOS:
            return False
        return re.fullmatch(r"[0-9a-f]{32}|class[0-9]{1,3}", rest, re.ASCII) is not None


def vm_hex(identity: str) -> str:
    """Return 32 hex digits for a VM's identity, whatever that holds."""
    try:
        return uuid.UUID(identity).hex
    except ValueError:
        return uuid.uuid5(uuid.NAMESPACE_OID, identity).hex


def plan_groups(names: GroupNames, table: VmTable, most: int) -> list[tuple[str, int]]:
    """Return (name, VM whose own it is or -1) of each group: one for each VM if ``most`` are enough for that.

    Else one for each isolated VM, and classes for the rest. Raises HostError where no class would be left.
    """
    n = len(table)
    own = list(range(n)) if n <= most else np.flatnonzero(table.isolation != Isolation.SHARED).tolist()
    if len(own) >= most and len(own) < n:
        raise HostError(
            f"{len(own)} isolated VMs need a resctrl group each and the others one together; this host has {most}"
            " left (other tools' groups count)"
        )
    out = [(names.vm(table.uuid[row], k), row) for k, row in enumerate(own)]
    if len(own) < n:
        out += [(names.shared(k), -1) for k in range(len(own), most)]
    return out


def previous_groups(doc: Mapping[str, Any]) -> list[str]:
    """Return the names of the groups that a record remembers."""
    return [name for item in doc.get("items", ()) if item.get("what") == "resctrl" for name in item["groups"]]
