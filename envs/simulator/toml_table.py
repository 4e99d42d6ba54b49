"""TOML tables as frozen dataclasses: every key is a field, an unknown or impossible one is refused with its name.

Fields may be numbers (declared with :func:`number`), short strings, integer enumerations (by name, in lower case),
other dataclasses (tables) and tuples of these (arrays of tables).
"""

from __future__ import annotations

import math
from dataclasses import MISSING, field, fields, is_dataclass
from enum import IntEnum
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from foreshare.policies.errors import ConfigError, InputError

_T = TypeVar("_T")


def number(low: float, high: float = math.inf, **keywords: Any) -> Any:
    """Return a dataclass field for a number within bounds."""
    return field(metadata={"low": low, "high": high}, **keywords)


def from_table(kind: type[_T], table: object, where: str, path: str) -> _T:
    """Return the frozen dataclass ``kind`` made of a TOML table, or raise ConfigError with the key."""
    if not is_dataclass(kind) or not isinstance(table, dict):
        raise ConfigError(f"{where}: must be a table", path=path)
    known = {f.name: f for f in fields(kind)}
    for key in table:
        if key not in known:
            raise ConfigError(f"{where}{key}: unknown key; known are {', '.join(sorted(known))}", path=path)
    hints = get_type_hints(kind)
    values: dict[str, Any] = {}
    for key, f in known.items():
        if key in table:
            values[key] = _value(hints[key], table[key], f"{where}{key}", path, f.metadata)
        elif f.default is MISSING:
            raise ConfigError(f"{where}{key}: is missing", path=path)
    try:
        return kind(**values)
    except ConfigError:
        raise
    except InputError as e:
        raise ConfigError(f"{where.rstrip('.')}: {e}", path=path) from e


def _value(hint: Any, value: object, where: str, path: str, limits: Any) -> Any:
    if get_origin(hint) is tuple:
        if not isinstance(value, list):
            raise ConfigError(f"{where}: must be an array of tables", path=path)
        return tuple(from_table(get_args(hint)[0], v, f"{where}[{i}].", path) for i, v in enumerate(value))
    if is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, dict):
            raise ConfigError(f"{where}: must be a table", path=path)
        return from_table(hint, value, f"{where}.", path)
    if isinstance(hint, type) and issubclass(hint, IntEnum):
        choices = {i.name.lower(): i for i in hint}
        if not isinstance(value, str) or value not in choices:
            raise ConfigError(f"{where}: must be one of {', '.join(choices)}", path=path)
        return choices[value]
    if hint is str:
        if not isinstance(value, str) or not value.isprintable() or len(value) > 1000:
            raise ConfigError(f"{where}: must be a short printable string", path=path)
        return value
    if isinstance(value, bool) or not isinstance(value, int if hint is int else int | float):
        raise ConfigError(f"{where}: must be {'a whole number' if hint is int else 'a number'}", path=path)
    if not limits["low"] <= value <= limits["high"] or not math.isfinite(value):
        raise ConfigError(f"{where}: {value} is not between {limits['low']:g} and {limits['high']:g}", path=path)
    return hint(value)
