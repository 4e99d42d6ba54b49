"""The policies by name: each is a forecaster, the allocator that it feeds, and knobs where there are any."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from functools import partial
from typing import Any

from .allocators import (
    Allocator,
    BacklogWaterFilling,
    Bayesian,
    BayesianKnobs,
    Equal,
    Heracles,
    HeraclesKnobs,
    Parties,
    PartiesKnobs,
    PrioritySort,
    SideBySide,
    SmartHarvest,
    SmartHarvestKnobs,
    Static,
    Triage,
    TriageKnobs,
    WaterFilling,
)  # fmt: skip
from .analyzer import Analyzer, AnalyzerOptions
from .backlog_forecast import BacklogForecaster, BacklogKnobs
from .decide import DecideOptions, Mind
from .errors import InputError
from .forecast import Ewma, EwmaKnobs, Forecaster, LastValue
from .host import Host
from .learned.policy import learned_mind
from .learned.source import is_learned, read_network
from .tuned import TUNED

Parts = tuple[Callable[[Host], Forecaster], Callable[[], Allocator]]


def _backlog(knobs: BacklogKnobs) -> Parts:
    return partial(BacklogForecaster, knobs=knobs), BacklogWaterFilling


def _ewma(allocator: type[Allocator]) -> Callable[[EwmaKnobs], Parts]:
    def parts(k: EwmaKnobs) -> Parts:
        forecaster = partial(Ewma, rise=k.rise, fall=k.fall, error_gain=k.error_gain, margin=k.margin)
        return forecaster, allocator

    return parts


def _triage(knobs: TriageKnobs) -> Parts:
    return partial(BacklogForecaster, knobs=knobs), partial(Triage, knobs)


KNOBS: dict[str, tuple[type[Any], Callable[[Any], Parts]]] = {
    "priority": (EwmaKnobs, _ewma(PrioritySort)),
    "forecast": (EwmaKnobs, _ewma(WaterFilling)),
    "backlog": (BacklogKnobs, _backlog),
    "triage": (TriageKnobs, _triage),
    "parties": (PartiesKnobs, lambda knobs: (BacklogForecaster, partial(Parties, knobs))),
    "heracles": (HeraclesKnobs, lambda knobs: (BacklogForecaster, partial(Heracles, knobs))),
    "smartharvest": (SmartHarvestKnobs, lambda knobs: (BacklogForecaster, partial(SmartHarvest, knobs))),
    "bayesian": (BayesianKnobs, lambda knobs: (BacklogForecaster, partial(Bayesian, knobs))),
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


def _foreseen(host: Host) -> Forecaster:
    return Analyzer(host, AnalyzerOptions(backlog=tuned_knobs("triage")))


POLICIES: dict[str, tuple[Callable[[Host], Forecaster], Callable[[], Allocator], str]] = {
    "static": (LastValue, Static, "the whole host in proportion to the reservations, for ever"),
    "equal": (LastValue, Equal, "every pool in equal parts"),
    "last-value": (LastValue, PrioritySort, "the priority sort on the last observed demand"),
    "priority": _parts("priority", "the priority sort on an EWMA forecast"),
    "forecast": _parts("forecast", "water-filling on an EWMA forecast"),
    "backlog": _parts("backlog", "water-filling of demand and of the backlog to be cleared in time"),
    "triage": _parts("triage", "serves whole whom it helps most where not everybody can be, water-fills the rest"),
    "triage-usage": (
        _parts("forecast", "")[0],
        lambda: Triage(tuned_knobs("triage")),
        "triage fed by an EWMA of usage: what estimating demand and backlog is held against",
    ),
    "triage-mixture": (
        _foreseen,
        lambda: Triage(tuned_knobs("triage")),
        "triage fed by the mixture of forecasts, with its quantiles learnt online",
    ),
    "parties": _parts("parties", "one unit of one resource of one VM at a time, by slack (PARTIES, ASPLOS'19)"),
    "heracles": _parts("heracles", "the lowest priority lives on what the others can spare (Heracles, ISCA'15)"),
    "smartharvest": _parts("smartharvest", "learns each VM's next peak online, with safeguards (SmartHarvest-like)"),
    "bayesian": _parts("bayesian", "Bayesian optimisation over whole partitions (CLITE-like)"),
}
DEFAULT = "triage"
LEARNED_BASE = "triage"
"""What learned policies correct."""


def is_plug_in(name: str) -> bool:
    """Return whether ``name`` names somebody's code, ``package.module:callable``, not a policy of POLICIES."""
    module, colon, attribute = name.partition(":")
    return bool(colon) and all(part.isidentifier() for part in (*module.split("."), attribute))


def make_mind(name: str, host: Host, options: DecideOptions | None = None, *, knobs: Any = None) -> Mind:
    """Return a mind that decides by the named policy, with its tuned knobs unless others are given.

    A learned policy is named as learned/source.py says. Raises InputError for a name that does not exist, or knobs that
    are not this policy's.
    """
    if name not in POLICIES and is_learned(name):
        if knobs is not None:
            raise InputError(f"policy {name!r} is learned: it has no knobs")
        return learned_mind(read_network(name), make_mind(LEARNED_BASE, host, options), options, name)
    if name not in POLICIES:
        raise InputError(f"no policy named {name!r}; there are {', '.join(POLICIES)}, champion, or a bundle's folder")
    forecaster, allocator, _ = POLICIES[name]
    if knobs is not None:
        if name not in KNOBS or type(knobs) is not KNOBS[name][0]:
            raise InputError(f"policy {name!r} has no knobs of type {type(knobs).__name__}")
        forecaster, allocator = KNOBS[name][1](knobs)
    policy = allocator()
    if host.batch and not policy.batched:
        policy = SideBySide(allocator, host.batch[0])
    return Mind(host, forecaster(host), policy, options)
