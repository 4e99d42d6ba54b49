"""What a training is told: the tables of a configuration file (``training/configs/NAME.toml``), with their defaults.

A key that does not exist, or a value that cannot be, is refused with its name. The sentence under a field is its help.
"""

from __future__ import annotations

import tomllib
from dataclasses import asdict, dataclass, replace
from enum import IntEnum
from pathlib import Path
from typing import Any

from foreshare.envs.simulator.suites import content_hash
from foreshare.envs.simulator.toml_table import from_table, number
from foreshare.policies.errors import ConfigError, InputError
from foreshare.policies.learned import Widths

_FOLDER = Path(__file__).parents[1] / "configs"
MOST_STEPS = 10**12
LEAST_AVERAGE = 1e-3
DEADLINE = "deadline"
GROUPS = {
    "forecast": ("ask_", "need_", "load_", "trend", "fits", "served", "short", "below", "standby", "asked_",
                 "needed_"),
    "backlog": ("backlog_", "delay", "slack", "due_", "rate", "overdue", "hidden", "seen_rate", "short_rate",
                "pressed_", "mean_delay"),
    "reservations": ("reservation_", "over"),
    "memory": ("lately_", "swing_"),
    "standby": ("below", "standby"),
}  # fmt: skip
"""What an ablation takes away: names of features, or what they begin with; what is remembered of one goes with it."""


class Learner(IntEnum):
    """Who learns."""

    PPO = 0
    ES = 1


class Surrogate(IntEnum):
    """What PPO's ratio is of: the actions of one VM, or those of a whole host together."""

    VM = 0
    JOINT = 1


class Runner(IntEnum):
    """What collects episodes: ours, from whole arrays, or RLlib's own."""

    FAST = 0
    DEFAULT = 1


class Shaping(IntEnum):
    """What becomes of the scores of an evolution strategy's members: centred ranks, or standard scores."""

    RANK = 0
    NORMAL = 1


class Layers(IntEnum):
    """Which arrays an evolution strategy moves: the direct one (lin_w), those that give outputs, or all.

    Tied: the direct one, and what is needed of CPU, memory and IO is corrected alike.
    """

    LINEAR = 0
    OUTPUTS = 1
    ALL = 2
    TIED = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class ScenesConfig:
    """Which hosts are learnt on."""

    suite: str = "train"
    """All scenarios of this suite, at every load."""
    drawn_share: float = number(0.0, 1.0, default=0.3)
    """Share of the hosts that are drawn anew each time: hardware, delays, reservations, workloads, load."""
    resctrl_share: float = number(0.0, 1.0, default=0.0)
    """Share of the drawn hosts that do what resctrl does: a quarantine for ways, limits in steps and on few classes."""
    load_low: float = number(0.05, 3.0, default=0.4)
    """Drawn hosts, and those of the suite ..."""
    load_high: float = number(0.05, 3.0, default=1.0)
    """... have loads between these; the suite's by their class, give or take a tenth."""
    most_vms: int = number(1, 256, default=32)
    """Hosts with more VMs are left out: everybody is padded to the most."""
    ticks: int = number(2, 1_000_000, default=200)
    """Ticks of an episode."""
    warm_ticks: int = number(0, 1_000_000, default=60)
    """Ticks before it, in which nothing is corrected."""
    move_cost: float = number(0.0, 1000.0, default=0.0)
    """What moving every unit of a host would cost, in shares of late requests."""

    def __post_init__(self) -> None:
        """Refuse a range that is none."""
        if self.load_low > self.load_high:
            raise InputError(f"load_low {self.load_low:g} is above load_high {self.load_high:g}")


@dataclass(frozen=True, kw_only=True, slots=True)
class NetworkConfig:
    """How wide the hidden layers are; 0 takes one away."""

    encoder: int = number(0, 1024, default=24)
    context: int = number(0, 1024, default=16)
    head: int = number(0, 1024, default=24)
    without: str = ""
    """Ablation: groups of features that it is blind to, with commas (GROUPS)."""

    def __post_init__(self) -> None:
        """Refuse a group that does not exist."""
        for name in self.hidden:
            if name not in GROUPS:
                raise InputError(f"no group of features {name!r}: there are {', '.join(GROUPS)}")

    @property
    def hidden(self) -> tuple[str, ...]:
        """Return the groups that ``without`` names."""
        return tuple(name.strip() for name in self.without.split(",") if name.strip())

    @property
    def widths(self) -> Widths:
        """Return them as the network has them."""
        return Widths(self.encoder, self.context, self.head)


@dataclass(frozen=True, kw_only=True, slots=True)
class PpoConfig:
    """Proximal policy optimisation (Schulman et al. 2017, arXiv:1707.06347)."""

    hosts: int = number(1, 4096, default=48)
    """Side by side in each runner."""
    scenarios: int = number(1, 4096, default=12)
    """Different ones among them at a time."""
    runners: int = number(0, 256, default=0)
    """Processes that collect episodes; 0: the learner does."""
    runner: Runner = Runner.FAST
    surrogate: Surrogate = Surrogate.VM
    own: float = number(0.0, 1.0, default=0.5)
    """How much of a VM's advantage is its own: 0, all VMs of a host have their sum; 1, each only its own."""
    rate: float = number(0.0, 1.0, default=1e-3)
    """Learning rate."""
    clip: float = number(0.0, 10.0, default=0.2)
    epochs: int = number(1, 1000, default=4)
    minibatch: int = number(1, 10**7, default=1024)
    """Host-ticks."""
    gamma: float = number(0.0, 1.0, default=0.95)
    lam: float = number(0.0, 1.0, default=0.9)
    entropy: float = number(0.0, 10.0, default=0.0)
    noise: float = number(1e-3, 2.0, default=0.15)
    """Standard deviation of exploration at the start, in shares of the actions' range."""
    grad_clip: float = number(0.0, 1e6, default=0.5)


@dataclass(frozen=True, kw_only=True, slots=True)
class EsConfig:
    """An evolution strategy (Salimans et al. 2017, arXiv:1703.03864), antithetic, with common random numbers."""

    pairs: int = number(1, 4096, default=16)
    """Each is two members: a perturbation of the weights, and its opposite."""
    scenarios: int = number(1, 4096, default=8)
    """Hosts that every member of a generation meets."""
    liars: int = number(0, 4096, default=0)
    """Pairs of hosts besides, one of each with VMs that ask otherwise than they need (liars.py)."""
    honesty: float = number(0.0, 1000.0, default=3.0)
    """Points of V that a point costs which these gain."""
    sigma: float = number(1e-6, 10.0, default=0.05)
    """Standard deviation of a perturbation, for inputs normalised to one."""
    rate: float = number(0.0, 10.0, default=0.02)
    """Adam's step."""
    decay: float = number(0.0, 1.0, default=0.0)
    """Share of the weights that is lost each generation."""
    layers: Layers = Layers.LINEAR
    shaping: Shaping = Shaping.NORMAL
    whiten: float = number(0.0, 1e6, default=0.0)
    """0: weights move input by input; else along whitened inputs (directions.py), and this is what is added to the
    variances of inputs that are normalised to one. For the layers LINEAR and TIED."""
    average: float = number(LEAST_AVERAGE, 1.0, default=1.0)
    """How fast the running mean of the weights, which is what is learnt, follows them; 1: it is the newest."""

    def __post_init__(self) -> None:
        """Refuse whitened directions for layers that see no inputs."""
        if self.whiten and self.layers not in (Layers.LINEAR, Layers.TIED):
            raise InputError(f"es.whiten is for layers linear and tied, not {self.layers.name.lower()}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ValidateConfig:
    """How it is watched."""

    suite: str = "validate"
    every: int = number(1, 10**6, default=10)
    """Iterations between two looks."""
    patience: int = number(1, 10**6, default=10)
    """Looks without a better score after which training stops."""
    seeds: int = number(1, 1000, default=1)
    ticks: int = number(0, 10**6, default=0)
    """Ticks of a run; 0: as the suite says."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RangeConfig:
    """A value that is searched."""

    key: str
    """Such as ``ppo.rate``."""
    low: float = number(-1e9, 1e9)
    high: float = number(-1e9, 1e9)
    log: int = number(0, 1, default=0)
    """1: as likely in each decade."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchConfig:
    """What ``foreshare tune`` does: ASHA (Li et al. 2020, MLSys) over the ranges."""

    trials: int = number(1, 10**6, default=8)
    iterations: int = number(1, 10**6, default=50)
    """The longest trial."""
    grace: int = number(1, 10**6, default=10)
    """The shortest one."""
    reduction: int = number(2, 100, default=3)
    """One trial in so many goes on."""
    range: tuple[RangeConfig, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """A whole configuration."""

    learner: Learner = Learner.PPO
    steps: int = number(1, MOST_STEPS, default=20_000_000)
    """Simulator steps (ticks of one VM) to spend: warm-up, the base policy's runs and every member's included."""
    init: str = ""
    """File of a network to begin with (npz), or ``deadline``: ask faster where deadlines are near (scenes.py)."""
    base: str = "triage"
    """The policy that is corrected, and measured against."""
    scenes: ScenesConfig = ScenesConfig()
    network: NetworkConfig = NetworkConfig()
    ppo: PpoConfig = PpoConfig()
    es: EsConfig = EsConfig()
    validate: ValidateConfig = ValidateConfig()
    search: SearchConfig = SearchConfig()


def load_config(name: str) -> TrainConfig:
    """Return a shipped configuration by name, or one from a file. Raises InputError or ConfigError (file and key)."""
    path = Path(name) if "/" in name or name.endswith(".toml") else _FOLDER / f"{name}.toml"
    if not path.exists() and path.parent == _FOLDER:
        known = ", ".join(sorted(p.stem for p in _FOLDER.glob("*.toml")))
        raise InputError(f"no configuration {name!r}: there are {known}, or give a .toml file")
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise ConfigError(f"cannot be read: {e.strerror}", path=str(path)) from e
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as e:
        raise ConfigError(f"is not TOML: {e}".splitlines()[0], path=str(path)) from e
    return from_table(TrainConfig, table, "", str(path))


def as_table(config: TrainConfig) -> dict[str, Any]:
    """Return the configuration as JSON values, enumerations by name: :func:`from_values` reads it back."""
    table: dict[str, Any] = _plain(asdict(config))
    return table


def from_values(values: dict[str, Any]) -> TrainConfig:
    """Return the configuration of :func:`as_table`'s values. Raises ConfigError with the key that is wrong."""
    return from_table(TrainConfig, values, "", "")


def with_value(config: TrainConfig, key: str, value: float) -> TrainConfig:
    """Return the configuration with the number ``key`` (``table.name``) set. Raises ConfigError for no such one."""
    table, _, name = key.rpartition(".")
    values = as_table(config)
    inner = values.get(table) if table else values
    if not isinstance(inner, dict) or isinstance(inner.get(name), bool | str | None | list | dict):
        raise ConfigError(f"{key}: is no number of a configuration")
    inner[name] = round(value) if isinstance(inner[name], int) else float(value)
    return from_values(values)


def config_hash(config: TrainConfig) -> str:
    """Return the identity of what is learnt and how: all but how long."""
    return content_hash(as_table(replace(config, steps=1)))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value.name.lower() if isinstance(value, IntEnum) else value
