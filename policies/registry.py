"""The allocators by name, each with the forecaster that feeds it."""

from __future__ import annotations

from collections.abc import Callable

from .allocators import Allocator, Equal, PrioritySort, Static, WaterFilling
from .decide import DecideOptions, Mind
from .errors import InputError
from .forecast import Ewma, Forecaster, LastValue
from .host import Host

POLICIES: dict[str, tuple[Callable[[Host], Forecaster], Callable[[], Allocator], str]] = {
    "static": (LastValue, Static, "the whole host in proportion to the reservations, for ever"),
    "equal": (LastValue, Equal, "every pool in equal parts"),
    "last-value": (LastValue, PrioritySort, "the priority sort on the last observed demand"),
    "priority": (Ewma, PrioritySort, "the priority sort on an EWMA forecast"),
    "forecast": (Ewma, WaterFilling, "water-filling on an EWMA forecast"),
}
DEFAULT = "forecast"


def make_mind(name: str, host: Host, options: DecideOptions | None = None) -> Mind:
    """Return a mind that decides by the named policy. Raises InputError for a name that does not exist."""
    if name not in POLICIES:
        raise InputError(f"no policy named {name!r}; there are {', '.join(POLICIES)}")
    forecaster, allocator, _ = POLICIES[name]
    return Mind(host, forecaster(host), allocator(), options)
