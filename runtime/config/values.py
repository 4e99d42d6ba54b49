"""One value of the configuration file: what each kind of key accepts, and the sentence that says why it refuses.

A *reader* takes what tomllib made of a value and returns what the program uses. It raises :class:`Refused`, which knows
the path of the key below the value it was given; the loader adds file and line.
"""

from __future__ import annotations

import difflib
import math
import re
import unicodedata
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from foreshare.envs.hal.linux import cpulist
from foreshare.policies.errors import InputError

from .toml_lines import TomlPath

T = TypeVar("T")

MAX_CPUS: Final = 8192
"""CPUs in one amount: CONFIG_NR_CPUS goes to 8192 on x86-64 (arch/x86/Kconfig)."""
MAX_RATE: Final = 1e15
"""Bytes per second; more is a slip of the pen, and would not fit into the arrays."""
MAX_NAME: Final = 256
MAX_COMPONENT_BYTES: Final = 255
"""NAME_MAX of include/uapi/linux/limits.h: cgroup directories obey it."""
MAX_PATH_BYTES: Final = 4095
"""PATH_MAX of include/uapi/linux/limits.h, less the final NUL."""

_SIZE: Final = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)(/s)?\s*", re.ASCII)
_SIZE_UNITS: Final = {
    "B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40,
}  # fmt: skip
_UUID: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_DEVICE: Final = re.compile(r"/dev/[^/\s]+(?:/[^/\s]+)*|[0-9]{1,4}:[0-9]{1,7}", re.ASCII)
# Characters that move the cursor or turn the text around: control characters, line and paragraph separators, and the
# bidirectional controls of Unicode Technical Report 36, section 2.
_UNSAFE_CATEGORIES: Final = frozenset({"Cc", "Cs", "Zl", "Zp"})
_BIDI: Final = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


class Refused(ValueError):  # noqa: N818 - control flow inside the loader, which turns it into a ConfigError
    """A value that cannot be: ``why``, and where below the value that the reader was given.

    ``why`` continues a sentence that begins with the key, unless ``sentence`` says that it is one of its own.
    """

    def __init__(self, why: str, path: TomlPath = (), *, sentence: bool = False) -> None:
        super().__init__(why)
        self.why, self.path, self.sentence = why, path, sentence


@dataclass(frozen=True, slots=True)
class Reader(Generic[T]):
    """Reads one kind of value."""

    accepts: str
    """What it accepts, for the reference: "5 to 1000"."""
    read: Callable[[Any], T]
    """Returns what the program uses; raises Refused."""


def shown(value: object, limit: int = 60) -> str:
    """Return ``value`` for an error message: quoted, on one line, cut to ``limit`` characters."""
    if isinstance(value, int) and abs(value) >= 10**18:
        return "a huge integer"  # Python refuses to print one of more than 4300 digits
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 4] + "..." + text[-1]


def kind(value: object) -> str:
    """Return what TOML calls the type of ``value``."""
    names: tuple[tuple[type | tuple[type, ...], str], ...] = (
        (bool, "a boolean"), (int, "an integer"), (float, "a float"), (str, "a string"), (dict, "a table"),
        (list, "an array"),
    )  # fmt: skip
    return next((name for types, name in names if isinstance(value, types)), "a date or time")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return a hint at the nearest word that exists, or at all of them."""
    words = sorted(known)
    near = difflib.get_close_matches(word.lower(), words, n=1, cutoff=0.6)
    if near:
        return f"did you mean {near[0]!r}?"
    return f"known: {', '.join(words)}" if words else "nothing is known here"


def _wrong(expected: str, value: object) -> Refused:
    said = "" if isinstance(value, dict | list) else f" {shown(value)}"
    return Refused(f"must be {expected}, not {kind(value)}{said}")


def _real(value: object, what: str) -> float:
    """Return a finite number of at least 0."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _wrong(what, value)
    if isinstance(value, float) and not math.isfinite(value):
        raise Refused(f"must be {what}, not {value}: no infinities, no NaN")
    if value < 0:
        raise Refused(f"must be {what}, not negative ({shown(value)})")
    return min(float(min(value, 10**300)), 1e300)  # integers of any length are valid TOML; the caller's bound refuses


def number(low: float, high: float, unit: str = "") -> Reader[float]:
    """Return a reader for a finite number from ``low`` to ``high``, both allowed."""
    what = f"a number from {low:g} to {high:g}{' ' + unit if unit else ''}"

    def read(value: Any) -> float:
        x = _real(value, what)
        if not low <= x <= high:
            raise Refused(f"must be {what}, not {shown(value)}")
        return x

    return Reader(what, read)


def whole(low: int, high: int) -> Reader[int]:
    """Return a reader for an integer from ``low`` to ``high``, both allowed."""
    what = f"an integer from {low} to {high}"

    def read(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise _wrong(what, value)
        if not low <= value <= high:
            raise Refused(f"must be {what}, not {shown(value)}")
        return value

    return Reader(what, read)


def boolean() -> Reader[bool]:
    """Read true or false."""

    def read(value: Any) -> bool:
        if not isinstance(value, bool):
            raise _wrong("true or false", value)
        return value

    return Reader("true or false", read)


def rate(*, positive: bool = False) -> Reader[float]:
    """Return a reader for bytes per second: a number, or a string with a unit."""
    what = 'bytes per second: a number, or a string such as "200MB/s" or "1.5GiB"'

    def read(value: Any) -> float:
        x = _size(value) if isinstance(value, str) else _real(value, what)
        if x > MAX_RATE:
            raise Refused(f"is more than {MAX_RATE:g} bytes per second")
        if positive and x < 1:
            raise Refused("must be at least 1 byte per second")
        return x

    return Reader(what, read)


def _size(text: str) -> float:
    found = _SIZE.fullmatch(text)
    if found is None:
        raise Refused(f'must be bytes per second such as "200MB/s", "1.5GiB/s" or 200000000, not {shown(text)}')
    amount, unit = found.group(1), found.group(2)
    if unit not in _SIZE_UNITS:
        near = next((u for u in _SIZE_UNITS if u.lower() == unit.lower()), None)
        bits = " (bits are not understood: give bytes)" if unit.endswith("b") else ""
        hint = f"did you mean {near!r}?{bits}" if near else f"known: {', '.join(_SIZE_UNITS)}"
        raise Refused(f"{shown(text)} has {'no unit' if not unit else f'the unknown unit {shown(unit)}'}; {hint}")
    return float(amount[:400]) * _SIZE_UNITS[unit]


def text(limit: int) -> Reader[str]:
    """Return a reader for a string for people: anything but control characters, not blank."""
    what = f"a string of 1 to {limit} characters"

    def read(value: Any) -> str:
        if not isinstance(value, str):
            raise _wrong(what, value)
        if not value.strip():
            raise Refused("must not be empty")
        if len(value) > limit:
            raise Refused(f"has {len(value)} characters, at most {limit} are allowed")
        refuse_controls(value)
        return value

    return Reader(what, read)


def refuse_controls(value: str) -> None:
    """Raise Refused where ``value`` holds a character that could garble a terminal, a log or a path."""
    for c in value:
        if unicodedata.category(c) in _UNSAFE_CATEGORIES or c in _BIDI:
            raise Refused(f"holds the control character U+{ord(c):04X}: {shown(value)}")


def choice(options: Iterable[str]) -> Reader[str]:
    """Return a reader for one of ``options``."""
    words = tuple(options)
    what = " | ".join(words)

    def read(value: Any) -> str:
        if not isinstance(value, str):
            raise _wrong(f"one of {what}", value)
        if value not in words:
            raise Refused(f"must be one of {what}, not {shown(value)}; {did_you_mean(value, words)}")
        return value

    return Reader(what, read)


def cpu_list() -> Reader[frozenset[int]]:
    """Return a reader for CPU numbers in the kernel's list format: "0-3,6"."""
    what = 'CPU numbers and ranges, such as "0-3,6"'

    def read(value: Any) -> frozenset[int]:
        if not isinstance(value, str):
            raise _wrong(what, value)
        if not value.strip() or len(value) > MAX_PATH_BYTES:
            raise Refused(f"must be {what}, not {shown(value)}")
        try:
            return cpulist.parse(value)
        except InputError as e:
            raise Refused(f"must be {what}: {e}") from None

    return Reader(what, read)


def uuid_text() -> Reader[str]:
    """Return a reader for a UUID as 8-4-4-4-12 hexadecimal digits; comes out in lower case."""
    what = 'a UUID such as "6f1d0b5e-6c57-4b0b-9a55-5f0e5ba5e000"'

    def read(value: Any) -> str:
        if not isinstance(value, str) or not _UUID.fullmatch(value):
            raise Refused(f"must be {what}, not {shown(value)}")
        return str(uuid.UUID(value))

    return Reader(what, read)


def cgroup_path() -> Reader[str]:
    """Return a reader for a path below the cgroup root that cannot lead anywhere else."""
    what = 'a path below the cgroup root, such as "machine.slice/redis.scope"'

    def read(value: Any) -> str:
        if not isinstance(value, str):
            raise _wrong(what, value)
        if value.startswith("/"):
            raise Refused(f"must be {what}, without a leading slash, not {shown(value)}")
        refuse_controls(value)
        if len(value.encode()) > MAX_PATH_BYTES:
            raise Refused(f"is longer than {MAX_PATH_BYTES} bytes")
        for part in value.split("/"):
            if not part:
                raise Refused(f"must be {what}; {shown(value)} has an empty component")
            if part in (".", ".."):
                raise Refused(f"must stay below the cgroup root; {shown(value)} has the component {part!r}")
            if part.startswith("cgroup."):
                raise Refused(f"the component {shown(part)} is a name that the kernel keeps for itself")
            if len(part.encode()) > MAX_COMPONENT_BYTES:
                raise Refused(f"the component {shown(part)} is longer than {MAX_COMPONENT_BYTES} bytes")
        return value

    return Reader(what, read)


def block_device() -> Reader[str]:
    """Return a reader for a block device: its node below /dev, or MAJOR:MINOR."""
    what = 'a block device such as "/dev/vda" or "254:0"'

    def read(value: Any) -> str:
        if not isinstance(value, str):
            raise _wrong(what, value)
        refuse_controls(value)
        if not _DEVICE.fullmatch(value) or len(value) > MAX_NAME or ".." in value.split("/"):
            raise Refused(f"must be {what}, not {shown(value)}")
        return value

    return Reader(what, read)


def absolute_path() -> Reader[str]:
    """Return a reader for an absolute path of this host."""
    what = "an absolute path"

    def read(value: Any) -> str:
        if not isinstance(value, str):
            raise _wrong(what, value)
        refuse_controls(value)
        if not value.startswith("/"):
            raise Refused(f"must be {what}, not {shown(value)}")
        if ".." in value.split("/"):
            raise Refused(f"must not have a '..' in it: {shown(value)}")
        if len(value.encode()) > MAX_PATH_BYTES:
            raise Refused(f"is longer than {MAX_PATH_BYTES} bytes")
        return value

    return Reader(what, read)
