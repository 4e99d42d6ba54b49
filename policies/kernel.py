"""The compiled kernel: the judgement's inner loops in C, where a compiler was at hand when foreshare was installed.

A tick of 64 VMs is some hundred numpy calls on arrays of 256 numbers, each of which costs more than its arithmetic. The
C functions (compiled/, one for each numpy form) go over the same arrays once. The numpy forms stay: they are the
reference that the tests compare with, and what runs where nothing was compiled or ``FORESHARE_KERNEL=numpy`` is set.
Sums are in another order and powers from another library, so that amounts agree to rounding, not to the bit.
"""

from __future__ import annotations

import importlib
import os
from types import ModuleType
from typing import Protocol, runtime_checkable
from weakref import WeakKeyDictionary

import numpy as np

from .host import Host, IntArray, R

VARIABLE = "FORESHARE_KERNEL"


def load(name: str) -> ModuleType | None:
    """Return the compiled module of that full name, or None where it was not built or is not wanted."""
    if os.environ.get(VARIABLE, "") == "numpy":
        return None
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        return None


compiled = load("foreshare.policies._kernel")
"""The module of C functions, or None. Looked up at every call, so that tests can take it away."""


_new_memo = compiled.memo if compiled is not None else None


class Memo:
    """What a compiled call has found out about its arrays (compiled/memo.h), for the next call with the same ones.

    Those arrays must keep their place: they are written to, never replaced. A copy remembers nothing.
    """

    __slots__ = ("held",)

    def __init__(self) -> None:
        self.held: object = _new_memo() if _new_memo is not None else None

    def __reduce__(self) -> tuple[type[Memo], tuple[()]]:
        """Return how to make a copy: a new one."""
        return Memo, ()


@runtime_checkable
class Remembers(Protocol):
    """Whoever makes compiled calls over arrays that are checked once."""

    memo: Memo


@runtime_checkable
class Touches(Protocol):
    """Whoever knows by itself what it will read."""

    def touch(self) -> None:
        """Read it."""
        ...


def touch(*parts: object) -> None:
    """Read what the next compiled calls of ``parts`` will: it is in the caches then. Others are passed over."""
    if compiled is not None:
        compiled.touch(*(part.memo.held for part in parts if isinstance(part, Remembers)))
        for part in parts:
            if isinstance(part, Touches):
                part.touch()


_packed: WeakKeyDictionary[Host, IntArray] = WeakKeyDictionary()


def kind() -> str:
    """Return what the inner loops are here: "compiled" or "numpy"."""
    return "compiled" if compiled is not None else "numpy"


def hosts_in(host: Host) -> int:
    """Return how many hosts one call goes over."""
    return int(np.prod(host.batch, dtype=np.int64)) if host.batch else 1


def tables(host: Host) -> IntArray:
    """Return the bounds of a host as one array, in the order that compiled/module.c reads them; not to be written to.

    Half a dozen parts of a mind ask for those of the same host: they are packed once.
    """
    found = _packed.get(host)
    if found is None:
        found = _packed[host] = _pack(host)
        found.setflags(write=False)
    return found


def _pack(host: Host) -> IntArray:
    n, v, t = len(host), host.vms, host.topology
    pools: list[IntArray] = []
    pool_of = np.zeros((n, R), np.int64)
    for g in host.groups:
        rows = np.arange(n)[g.rows]
        for j, resource in enumerate(range(R)[g.cols]):
            pool_of[rows, resource] = len(pools)
            pools.append(np.array([resource, g.capacity[j], len(rows), *rows.tolist()], np.int64))
    importance = np.empty(n, np.int64)
    importance[np.lexsort((-v.rank, v.priority))] = np.arange(n)
    head = np.array([n, len(pools), t.ways, t.min_ways, t.max_classes], np.int64)
    bounds = (host.floor, host.reservation, host.cap, host.granule, pool_of)
    return np.concatenate([
        head, *(b.astype(np.int64).ravel() for b in bounds), v.rank, np.argsort(v.rank), importance, *pools
    ])  # fmt: skip
