"""Readers for values on the command line: what they refuse becomes one line and exit code 2."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable
from pathlib import Path

from foreshare.policies.errors import InputError


def number(low: float, high: float, unit: str) -> Callable[[str], float]:
    """Return a reader of finite numbers in [low, high]."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number of {unit} from {low:g} to {high:g}")
        return value

    return read


def whole(low: int, high: int) -> Callable[[str], int]:
    """Return a reader of integers in [low, high]."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {low} to {high}")
        return value

    return read


def writable(option: str, path: Path) -> None:
    """Raise InputError unless a file can be put at ``path``: said before hours of work, not after."""
    if not (path.parent.is_dir() and os.access(path.parent, os.W_OK)):
        raise InputError(f"{option} {path}: the folder {path.parent} cannot be written")


def cpus() -> int:
    """Return how many CPUs this process may use."""
    return len(os.sched_getaffinity(0))
