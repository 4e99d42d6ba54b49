"""Suites: which scenarios at which loads a policy is judged on, as versioned data with a hash.

A suite file (``suites/NAME.toml``) lists scenarios: drawn ones by seed and what is fixed of the draw
(scenario_draw.py), or shipped ones by name. ``draw:SEED`` is the suite ``standard`` with every seed drawn anew: as many
hosts, of the same sizes, that nobody has seen.

:func:`suite_hash` covers all that changes results but the policy: the scenarios' contents (what a seed draws, not the
seed), loads, lengths and SIMULATOR_VERSION. It is shown with every result; figures under different hashes are not
comparable.
"""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from foreshare.policies.errors import ConfigError, InputError

from .scenario import Scenario, load_scenario
from .scenario_draw import DRAW_STREAM, draw, to_toml

FORMAT_VERSION = 1
SIMULATOR_VERSION = 1
"""Raise it with every change of the simulator after which the same scenario and seed give other numbers."""
LOADS = {"mild": 0.45, "tight": 0.65, "over": 0.90}
"""The load classes: mean demand of the scarcest resource over capacity."""
_FOLDER = Path(__file__).parent / "suites"
_ROW_KEYS = {"name", "scenario", "seed", "cpus", "vms", "zones", "kinds", "telemetry", "units"}
_NUMBERS = {
    "ticks": (20, 10_000_000),
    "warm_ticks": (0, 1_000_000),
    "step_ticks": (0, 100_000),
    "emu_ticks": (0, 1_000_000),
    "emu_rounds": (0, 20),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Suite:
    """Scenarios with unique names, the load classes they run at, and for how long."""

    name: str
    scenarios: tuple[Scenario, ...]
    loads: tuple[tuple[str, float], ...] = tuple(LOADS.items())
    """(class, mean demand over capacity)."""
    ticks: int
    """Ticks of a run that count."""
    warm_ticks: int
    """Ticks before them that do not: policies start without any history."""
    step_ticks: int
    """Ticks before and after the step in the run that measures convergence; 0: not measured."""
    emu_ticks: int
    """Ticks that count in each run of the EMU bisection."""
    emu_rounds: int
    """Halvings of the bisection; 0: EMU is not measured."""
    about: str = ""

    def at(self, scenario: Scenario, load: str) -> Scenario:
        """Return ``scenario`` at a load class of this suite."""
        return replace(scenario, load=dict(self.loads)[load])


def scenario_named(name: str, *, vms: int | None = None, load: float | None = None) -> Scenario:
    """Return a shipped scenario by name, one from a file, or the one that ``draw:SEED`` draws.

    ``vms`` and ``load`` change it. Raises InputError or ConfigError for what there is not.
    """
    if match := re.fullmatch(r"draw:(\d{1,18})", name):
        scenario = draw(int(match[1]), vms=vms)
    else:
        scenario = load_scenario(name, vms=vms)
    return scenario if load is None else replace(scenario, load=load)


def suite_names() -> tuple[str, ...]:
    """Return the names of the suites that ship with foreshare."""
    return tuple(sorted(p.stem for p in _FOLDER.glob("*.toml")))


def load_suite(name: str) -> Suite:
    """Return a shipped suite, ``draw:SEED``, or one from a file (with a slash or ending in .toml).

    Raises InputError for a name that does not exist, ConfigError (file and key) for a wrong file.
    """
    if match := re.fullmatch(r"draw:(\d{1,18})", name):
        return _read(_FOLDER / "standard.toml", name, int(match[1]))
    if "/" in name or name.endswith(".toml"):
        return _read(Path(name), Path(name).stem, None)
    if name not in suite_names():
        raise InputError(f"no suite {name!r}: there are {', '.join(suite_names())}, draw:SEED, or give a .toml file")
    return _read(_FOLDER / f"{name}.toml", name, None)


def suite_hash(suite: Suite) -> str:
    """Return the hash of everything in ``suite`` that changes results, 16 hexadecimal digits."""
    return content_hash(
        {
            "simulator": SIMULATOR_VERSION,
            "scenarios": {s.name: scenario_text(s) for s in suite.scenarios},
            "loads": suite.loads,
            "lengths": [getattr(suite, key) for key in _NUMBERS],
        }
    )


def scenario_text(scenario: Scenario) -> str:
    """Return what of a scenario changes results, as text: keys at their default are left out, and so is ``about``."""
    return to_toml(replace(scenario, about=""))


def content_hash(content: object) -> str:
    """Return 16 hexadecimal digits of the SHA-256 of JSON values; the order of keys does not matter."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _read(path: Path, name: str, fresh: int | None) -> Suite:
    """Read a suite file; with ``fresh`` every seed in it is replaced by one drawn from that number."""
    where = str(path)
    try:
        table: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise ConfigError(f"cannot be read: {e.strerror}", path=where) from e
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as e:
        raise ConfigError(f"is not TOML: {e}".splitlines()[0], path=where) from e
    if table.pop("version", None) != FORMAT_VERSION:
        raise ConfigError(f"this foreshare reads version = {FORMAT_VERSION}", path=where)
    rows, about, loads = table.pop("scenario", None), table.pop("about", ""), table.pop("loads", list(LOADS))
    if not isinstance(rows, list) or not rows:
        raise ConfigError("scenario: must be an array of at least one table", path=where)
    if not isinstance(loads, list) or not loads or not all(isinstance(x, str) and x in LOADS for x in loads):
        raise ConfigError(f"loads: must name some of {', '.join(LOADS)}", path=where)
    for key in table:
        if key not in _NUMBERS:
            raise ConfigError(f"{key}: unknown key; known are {', '.join([*_NUMBERS, 'loads'])}", path=where)
    for key, (low, high) in _NUMBERS.items():
        value = table.setdefault(key, 0)
        if type(value) is not int or not low <= value <= high:
            raise ConfigError(f"{key}: must be a whole number from {low} to {high}", path=where)
    scenarios = tuple(_scenario(row, i, fresh, where) for i, row in enumerate(rows))
    names = [s.name for s in scenarios]
    if len(set(names)) != len(names):
        raise ConfigError("scenario: two of them have one name", path=where)
    return Suite(
        name=name, scenarios=scenarios, loads=tuple((x, LOADS[x]) for x in LOADS if x in loads), about=str(about),
        **table,
    )  # fmt: skip


def _scenario(row: object, index: int, fresh: int | None, where: str) -> Scenario:
    at = f"scenario[{index}]"
    if not isinstance(row, dict) or row.keys() - _ROW_KEYS:
        raise ConfigError(f"{at}: must be a table with some of {', '.join(sorted(_ROW_KEYS))}", path=where)
    if ("seed" in row) == ("scenario" in row):
        raise ConfigError(f"{at}: needs either seed (a draw) or scenario (a shipped one)", path=where)
    for key in ("seed", "cpus", "vms", "zones"):
        if key in row and (type(row[key]) is not int or row[key] < 0):
            raise ConfigError(f"{at}.{key}: must be a whole number of at least 0", path=where)
    try:
        if "scenario" in row:
            scenario = load_scenario(str(row["scenario"]), vms=row.get("vms"))
            return replace(scenario, name=str(row.get("name", scenario.name)))
        seed = row["seed"] if fresh is None else _fresh_seed(fresh, index)
        return draw(seed, **{key: row[key] for key in _ROW_KEYS - {"seed", "scenario"} if key in row})
    except ConfigError:
        raise
    except InputError as e:
        raise ConfigError(f"{at}: {e}", path=where) from e


def _fresh_seed(seed: int, index: int) -> int:
    return int(np.random.SeedSequence(seed, spawn_key=(DRAW_STREAM, 1, index)).generate_state(1, np.uint64)[0] >> 1)
