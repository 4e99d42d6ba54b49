"""Knobs: the fields of a policy's frozen dataclass that a tuner may turn, each with its range beside its default."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from .errors import InputError


@dataclass(frozen=True, kw_only=True, slots=True)
class Range:
    """Between which values a knob is searched, both included."""

    low: float
    high: float
    log: bool = False
    """Search its logarithm: factors matter, not differences."""


def knob(default: float, low: float, high: float, *, log: bool = False) -> Any:
    """Return a dataclass field with a default and a range to search; an integer default makes an integer knob."""
    if not low <= default <= high or (log and low <= 0):
        raise InputError(f"a knob of {default:g} with the range {low:g} to {high:g}")
    return field(default=default, metadata={"range": Range(low=low, high=high, log=log)})


def ranges(kind: type[Any]) -> dict[str, Range]:
    """Return the range of every field of a knobs class that has one, in the order of the fields."""
    return {f.name: f.metadata["range"] for f in fields(kind) if "range" in f.metadata}


def draw(kind: type[Any], rng: np.random.Generator) -> Any:
    """Return knobs drawn uniformly (in the logarithm where the range says so), every field once."""
    values: dict[str, Any] = {}
    for f in fields(kind):
        u = float(rng.random())
        span = f.metadata.get("range")
        if span is None:
            continue
        if span.log:
            value = math.exp(math.log(span.low) + u * math.log(span.high / span.low))
        else:
            value = span.low + u * (span.high - span.low)
        values[f.name] = round(value) if isinstance(f.default, int) else float(f"{value:.4g}")
    return kind(**values)


def perturb(knobs: Any, rng: np.random.Generator, share: float) -> Any:
    """Return ``knobs`` with every value moved by a normal step of ``share`` of its range, kept within it."""
    values: dict[str, Any] = {}
    for f in fields(knobs):
        span = f.metadata.get("range")
        z = float(rng.standard_normal())
        now = getattr(knobs, f.name)
        if span is None:
            values[f.name] = now
            continue
        if span.log:
            value = math.exp(math.log(now) + z * share * math.log(span.high / span.low))
        else:
            value = now + z * share * (span.high - span.low)
        value = min(max(value, span.low), span.high)
        values[f.name] = round(value) if isinstance(f.default, int) else float(f"{value:.4g}")
    return type(knobs)(**values)
