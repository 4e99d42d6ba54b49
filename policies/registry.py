"""The policies by name: each is a forecaster and the allocator that it feeds, and knobs where there is something to tune."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from functools import partial
from typing import Any

from .allocators import Allocator, BacklogWaterFilling, Equal, PrioritySort, Static, Triage, TriageKnobs, WaterFilling
from .backlog_forecast import BacklogForecaster, BacklogKnobs
from .decide import DecideOptions, Mind
from .errors import InputError
from .forecast import Ewma, Forecaster, LastValue
from .host import Host
from .tuned import TUNED

Parts = tuple[Callable[[Host], Forecaster], Callable[[], Allocator]]


def _backlog(knobs: BacklogKnobs) -> Parts:
    return partial(BacklogForecaster, knobs=knobs), BacklogWaterFilling


def _triage(knobs: TriageKnobs) -> Parts:
    return partial(BacklogForecaster, knobs=knobs), partial(Triage, knobs)


KNOBS: dict[str, tuple[type[Any], Callable[[Any], Parts]]] = {
    "backlog": (BacklogKnobs, _backlog),
    "triage": (TriageKnobs, _triage),
}
"""The policies that can be tuned: their knobs, and what makes forecaster and allocator of them."""


def tuned_knobs(name: str) -> Any:
    """Return the knobs of a policy as they were tuned (policies/tuned.py), the defaults where they were not.

    Raises InputError for a policy without knobs, or a tuned value that is no knob.
    """
    if name not in KNOBS:
        raise InputError(f"policy {name!r} has no knobs; {', '.join(KNOBS)} have")
    kind, values = KNOBS[name][0], TUNED.get(name, {})
    unknown = set(values) - {f.name for f in fields(kind)}
    if unknown:
        raise InputError(f"tuned values of {name!r}: {', '.join(sorted(unknown))} are no knobs of {kind.__name__}")
    return kind(**values)


def _parts(name: str, about: str) -> tuple[Callable[[Host], Forecaster], Callable[[], Allocator], str]:
    forecaster, allocator = KNOBS[name][1](tuned_knobs(name))
    return forecaster, allocator, about


POLICIES: dict[str, tuple[Callable[[Host], Forecaster], Callable[[], Allocator], str]] = {
    "static": (LastValue, Static, "the whole host in proportion to the reservations, for ever"),
    "equal": (LastValue, Equal, "every pool in equal parts"),
    "last-value": (LastValue, PrioritySort, "the priority sort on the last observed demand"),
    "priority": (Ewma, PrioritySort, "the priority sort on an EWMA forecast"),
    "forecast": (Ewma, WaterFilling, "water-filling on an EWMA forecast"),
    "backlog": _parts("backlog", "water-filling of demand and of the backlog to be cleared in time"),
    "triage": _parts("triage", "serves whole whom it helps most where not everybody can be, water-fills the rest"),
}
DEFAULT = "forecast"


def make_mind(name: str, host: Host, options: DecideOptions | None = None, *, knobs: Any = None) -> Mind:
    """Return a mind that decides by the named policy, with its tuned knobs unless others are given.

    Raises InputError for a name that does not exist, or knobs that are not this policy's.
    """
    if name not in POLICIES:
        raise InputError(f"no policy named {name!r}; there are {', '.join(POLICIES)}")
    forecaster, allocator, _ = POLICIES[name]
    if knobs is not None:
        if name not in KNOBS or type(knobs) is not KNOBS[name][0]:
            raise InputError(f"policy {name!r} has no knobs of type {type(knobs).__name__}")
        forecaster, allocator = KNOBS[name][1](knobs)
    return Mind(host, forecaster(host), allocator(), options)
