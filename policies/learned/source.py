"""Learned policies by name: ``champion``, a bundle's folder or a network's file, wherever a policy can be named."""

from __future__ import annotations

import hashlib
from pathlib import Path

from .bundle import integrity_only, read_bundle
from .champion import shipped
from .network import Network

CHAMPION = "champion"


def is_learned(name: str) -> bool:
    """Return whether ``name`` names a learned policy: ``champion``, or a path (with a slash, or of a folder)."""
    return name == CHAMPION or "/" in name or name.endswith(".npz") or (name != "" and Path(name).is_dir())


def read_network(name: str) -> Network:
    """Return the network that ``name`` names, whole but signed by nobody that was asked.

    For judging one; a host asks for more (runtime/keys.py). Raises InputError where there is none or it is damaged.
    """
    if name == CHAMPION:
        return shipped().network
    if name.endswith(".npz"):
        return Network.load(name)
    return read_bundle(name, integrity_only).network


def network_identity(name: str) -> str:
    """Return the hash of what the network that ``name`` names computes with."""
    return hashlib.sha256(read_network(name).packed()).hexdigest()
