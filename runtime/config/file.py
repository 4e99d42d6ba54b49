"""The configuration file: TOML in natural units, read into frozen values, refused with file, line and reason.

Ten lines are enough::

    [host]
    io = [{ device = "/dev/vda", bandwidth = "200MB/s" }]
    [[vm]]
    name = "redis"
    cgroup = "demo/redis"
    priority = 2
    reservation = { cpu = 0.5, io = "20MB/s" }
    [[vm]]
    name = "batch"
    cgroup = "demo/batch"

The sentence under each field below is the help that :func:`describe_config` prints. What the owner wrote comes out as
:class:`~foreshare.envs.hal.spec.VmSpec`, still in natural units: only the hardware can turn them into its own.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import textwrap
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from foreshare.envs.hal.linux.spec import LinuxSpec
from foreshare.envs.hal.spec import Amounts, VmSpec
from foreshare.policies.errors import ConfigError
from foreshare.policies.learned.source import is_learned
from foreshare.policies.registry import is_plug_in

from .schema import (
    AmountsConfig,
    Document,
    HostConfig,
    IoDeviceConfig,
    MigrateConfig,
    PolicyConfig,
    ResctrlConfig,
    VmConfig,
    fill,
)
from .toml_lines import TomlPath, TooDeepError, index_lines, nearest
from .values import Refused, did_you_mean, shown

MAX_BYTES: Final = 1 << 20
"""Largest file that is read."""
_LINE_IN_ERROR: Final = re.compile(r" \(at line (\d+), column \d+\)$")


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """A configuration file, read and checked. Whether the host can do it is for the host to say."""

    path: str
    """The file, for messages."""
    host: HostConfig
    policy: PolicyConfig
    migrate: MigrateConfig | None
    """None: nothing is ever run."""
    vms: tuple[VmSpec, ...]
    vm_lines: tuple[int, ...]
    """(N,) line at which each VM's table starts, for messages that come later."""

    def linux_spec(self) -> LinuxSpec:
        """Return what the linux backend is opened with."""
        return LinuxSpec(
            vms=self.vms,
            cpus=self.host.cpus,
            placement=self.host.placement,
            cpu_partitions=self.host.cpu_partitions,
            core_scheduling=self.host.core_scheduling,
            memory_nodes=self.host.memory_nodes,
            io=tuple(d.spec() for d in self.host.io),
            resctrl=self.host.resctrl.spec(),
            discovery=self.host.discovery.spec(),
        )


def load_config(path: Path, *, policies: frozenset[str] | None = None, need_cgroups: bool = False) -> Config:
    """Read and check the file at ``path``.

    ``policies`` are the names that ``policy.name`` may have (None: any). ``need_cgroups`` refuses VMs without a cgroup
    or a uuid, for backends that have no other way to find them. Raises ConfigError with one line: file, line, and why.
    """
    name = str(path) if str(path).isprintable() else repr(str(path))
    return parse_config(_read(path, name), path=name, policies=policies, need_cgroups=need_cgroups)


def parse_config(
    text: str, *, path: str = "", policies: frozenset[str] | None = None, need_cgroups: bool = False
) -> Config:
    """Check a configuration that is already in memory; ``path`` is for messages. Otherwise as :func:`load_config`."""
    try:
        lines = index_lines(text)  # first, because it stays small whatever the text; tomllib does not
        raw = tomllib.loads(text)
    except TooDeepError as e:
        raise ConfigError(f"tables and keys are {e}", path=path, line=e.line) from None
    except tomllib.TOMLDecodeError as e:
        message = str(e)
        found = _LINE_IN_ERROR.search(message)
        line = int(found.group(1)) if found else text.count("\n") + 1
        raise ConfigError(f"not valid TOML: {_LINE_IN_ERROR.sub('', message)}", path=path, line=line) from None
    except RecursionError:
        raise ConfigError("not valid TOML: nested too deeply", path=path) from None
    except ValueError:  # an integer of more digits than Python converts
        raise ConfigError("not valid TOML: a number has too many digits", path=path) from None
    try:
        document = fill(Document, raw)
        _check(document, policies, need_cgroups)
    except Refused as e:
        why = e.why if e.sentence or not e.path else f"{_dotted(e.path)} {e.why}"
        raise ConfigError(why, path=path, line=nearest(lines, e.path)) from None
    return Config(
        path=path,
        host=document.host,
        policy=document.policy,
        migrate=document.migrate,
        vms=tuple(vm.spec() for vm in document.vm),
        vm_lines=tuple(nearest(lines, ("vm", i)) for i in range(len(document.vm))),
    )


def _read(path: Path, name: str) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as e:
        raise ConfigError(f"cannot be read: {e.strerror or e}", path=name) from None
    except ValueError:  # a NUL in the path
        raise ConfigError("is not a possible file name", path=name) from None
    if len(content) > MAX_BYTES:
        raise ConfigError("is larger than 1 MiB, the most that a configuration may have", path=name)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        line = content.count(b"\n", 0, e.start) + 1
        raise ConfigError(f"is not UTF-8: byte 0x{content[e.start]:02x}", path=name, line=line) from None


def _dotted(path: TomlPath) -> str:
    """Return a path for people. Which element of an array it is, the line says."""
    return ".".join(key for key in path if isinstance(key, str))


def _check(document: Document, policies: frozenset[str] | None, need_cgroups: bool) -> None:
    """Refuse what is wrong between keys that are fine one by one."""
    name = document.policy.name
    if policies is not None and name not in policies and not is_plug_in(name) and not is_learned(name):
        why = f"is {shown(document.policy.name)}, no such allocator; {did_you_mean(document.policy.name, policies)}"
        raise Refused(why, ("policy", "name"))
    _unique("io device", [d.device for d in document.host.io], ("host", "io"), "device")
    vms = [vm.spec() for vm in document.vm]
    for key in ("name", "uuid", "cgroup"):
        _unique(f"VM {key}", [getattr(vm, key) for vm in vms], ("vm",), key)
    _unique("VM identity", [vm.identity for vm in vms], ("vm",), "uuid")
    homes = {vm.cgroup: vm.name for vm in vms if vm.cgroup}
    for i, vm in enumerate(vms):
        if need_cgroups and not vm.cgroup and not vm.uuid:
            why = (
                "'cgroup' is missing, such as cgroup = \"demo/redis\", or the 'uuid' of a libvirt domain to find it by"
            )
            raise Refused(why, ("vm", i), sentence=True)
        for above in _ancestors(vm.cgroup):
            if above in homes:
                raise Refused(f"is inside the cgroup of VM {shown(homes[above])}", ("vm", i, "cgroup"))
        for f in dataclasses.fields(Amounts):
            low, high = getattr(vm.reservation, f.name), getattr(vm.cap, f.name)
            if low is not None and high is not None and high < low:
                raise Refused(f"is below reservation.{f.name} ({high:g} < {low:g})", ("vm", i, "cap", f.name))


def _ancestors(cgroup: str) -> list[str]:
    parts = cgroup.split("/")
    return ["/".join(parts[:n]) for n in range(1, len(parts))]


def _unique(what: str, values: list[str], array: TomlPath, key: str) -> None:
    """Refuse the second of two equal values of ``key`` in an array of tables; an empty one was not given."""
    seen: dict[str, int] = {}
    for i, value in enumerate(values):
        if value and seen.setdefault(value, i) != i:
            raise Refused(f"the {what} {shown(value)} is used twice", (*array, i, key), sentence=True)


def describe_config() -> str:
    """Return the reference of the file: every table, key, default and meaning, generated from the fields above."""
    out = ["The configuration file is TOML. Every key that is not marked as required may be left out.", ""]
    for header, section, note in (
        ("[host]", HostConfig, ""),
        ("[[host.io]]", IoDeviceConfig, "May also be written in one line, as shown above."),
        ("[host.resctrl]", ResctrlConfig, ""),
        ("[policy]", PolicyConfig, ""),
        ("[migrate]", MigrateConfig, ""),
        ("[[vm]]", VmConfig, ""),
        ("[vm.reservation] and [vm.cap]", AmountsConfig, "May also be written in one line, as shown above."),
    ):
        out += [header, *_wrapped(f"{inspect.getdoc(section)} {note}".strip(), "  ")]
        help_text = field_help(section)
        for f in dataclasses.fields(section):
            out += [f"  {f.name} = {f.metadata['shows']}"]
            out += _wrapped(help_text[f.name], "      ")
            out += _wrapped(f"({_need(f)}; {f.metadata['reader'].accepts})", "      ")
        out.append("")
    out += [
        "Bytes per second are a number, or a string with one of B, kB, MB, GB, TB, KiB, MiB, GiB, TiB;",
        '"/s" may follow.',
    ]
    return "\n".join(out) + "\n"


def _need(f: dataclasses.Field[Any]) -> str:
    """Return whether a key must be there, and whether what the reference shows is its default."""
    if f.default is dataclasses.MISSING:
        return "required"
    shown_value = f.metadata["reader"].read(tomllib.loads(f"x = {f.metadata['shows']}")["x"])
    return "the default" if shown_value == f.default else "an example"


def _wrapped(sentence: str, indent: str) -> list[str]:
    return textwrap.wrap(sentence, 100, initial_indent=indent, subsequent_indent=indent, break_long_words=False)


def field_help(section: type) -> dict[str, str]:
    """Return the sentence under each field of a class, by field name, taken from the class's own source."""
    body = ast.parse(textwrap.dedent(inspect.getsource(section))).body[0]
    if not isinstance(body, ast.ClassDef):
        raise TypeError(f"{section!r} is not a class")
    out: dict[str, str] = {}
    for statement, following in zip(body.body, body.body[1:], strict=False):
        if (
            isinstance(statement, ast.AnnAssign)
            and isinstance(statement.target, ast.Name)
            and isinstance(following, ast.Expr)
            and isinstance(following.value, ast.Constant)
            and isinstance(following.value.value, str)
        ):
            out[statement.target.id] = inspect.cleandoc(following.value.value)
    return out
