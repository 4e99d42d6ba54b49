"""The configuration file: what it means, and the one line that says why it is refused."""

from __future__ import annotations

import math
import pickle
import re
import textwrap
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foreshare.envs.hal.spec import Amounts
from foreshare.policies.errors import ConfigError
from foreshare.policies.host import Isolation
from foreshare.policies.registry import DEFAULT
from foreshare.runtime.config import MAX_BYTES, Config, describe_config, field_help, load_config, parse_config
from foreshare.runtime.config import file as config_module
from foreshare.runtime.config.schema import (
    AmountsConfig,
    HostConfig,
    IoDeviceConfig,
    MigrateConfig,
    ResctrlConfig,
    VmConfig,
)

FULL = """\
[host]
tick_ms = 20
cpus = "0-3,6"
placement = "affinity"
io = [{ device = "/dev/vda", bandwidth = "200MB/s" }, { device = "254:0", bandwidth = 1e8 }]
state_dir = "/run/elsewhere"
[policy]
name = "priority"
[migrate]
command = ["/usr/local/bin/migrate", "--vm={uuid}", "{reason}", "a{}b"]
after_s = 1
deadline_s = 2.5
[[vm]]
name = "redis"
cgroup = "demo/redis"
uuid = "6F1D0B5E-6C57-4B0B-9A55-5F0E5BA5E000"
priority = -2
isolation = "security"
zone = 1
reservation = { cpu = 0.5, cache = 2, memory = "2GB/s", io = "20 MiB" }
cap = { cpu = 2 }
[[vm]]
name = "../Ünïcode; rm -rf"
[vm.cap]
io = "1.5kB/s"
"""
NAMES = frozenset({"triage", "forecast", "static", "equal", "last-value", "priority"})


def test_every_key_comes_out_in_natural_units(tmp_path: Path) -> None:
    file = tmp_path / "f.toml"
    file.write_text(FULL)
    c = load_config(file, policies=NAMES)
    assert c.path == str(file)
    assert (c.host.tick_ms, c.host.cpus, c.host.placement) == (20.0, frozenset({0, 1, 2, 3, 6}), "affinity")
    assert [(d.device, d.bandwidth) for d in c.host.io] == [("/dev/vda", 200e6), ("254:0", 1e8)]
    assert c.host.state_dir == "/run/elsewhere"
    assert c.policy.name == "priority"
    assert c.migrate is not None
    assert (c.migrate.after_s, c.migrate.deadline_s) == (1.0, 2.5)
    redis, other = c.vms
    assert (redis.name, redis.cgroup, redis.priority, redis.isolation) == (
        "redis",
        "demo/redis",
        -2,
        Isolation.SECURITY,
    )
    assert (redis.uuid, redis.zone) == ("6f1d0b5e-6c57-4b0b-9a55-5f0e5ba5e000", 1)
    assert redis.reservation == Amounts(cpu=0.5, cache=2, memory=2e9, io=20 * 2**20)
    assert redis.cap == Amounts(cpu=2.0)
    assert other.cap == Amounts(io=1500.0)
    assert c.vm_lines == (13, 22)


def test_ten_lines_of_the_docstring_are_enough() -> None:
    block = (config_module.__doc__ or "").split("::", 1)[1].split("\n\n")[1]
    lines = textwrap.dedent(block).strip().splitlines()
    assert len(lines) == 10
    c = parse_config("\n".join(lines), policies=NAMES, need_cgroups=True)
    assert [vm.name for vm in c.vms] == ["redis", "batch"]
    assert c.host == HostConfig(io=(IoDeviceConfig(device="/dev/vda", bandwidth=200e6),))
    assert c.policy.name == DEFAULT
    assert c.migrate is None
    spec = c.linux_spec()
    assert spec.vms == c.vms
    assert [(d.device, d.bandwidth_bytes) for d in spec.io] == [("/dev/vda", 200e6)]


def test_an_empty_file_is_all_defaults() -> None:
    c = parse_config("", policies=NAMES)
    assert c.vms == ()
    assert c.host.tick_ms == 10.0
    assert c.host.cpus is None


def test_a_byte_order_mark_and_windows_line_ends_are_read(tmp_path: Path) -> None:
    file = tmp_path / "f.toml"
    file.write_bytes(b"\xef\xbb\xbf" + FULL.replace("\n", "\r\n").encode())
    assert load_config(file).vms == parse_config(FULL).vms


def test_placeholders_are_filled_once_and_only_ours() -> None:
    m = parse_config(FULL).migrate
    assert m is not None
    assert m.argv(uuid="U", reason="x; {uuid} $(rm)") == ["/usr/local/bin/migrate", "--vm=U", "x; {uuid} $(rm)", "a{}b"]


VM = '[[vm]]\nname = "a"\n'


@pytest.mark.parametrize(
    ("text", "line", "why"),
    [
        # Unknown keys, with the nearest one that exists.
        ("[host]\ntick = 10\n", 2, "unknown key 'tick'; did you mean 'tick_ms'?"),
        ("[hosts]\n", 1, "did you mean 'host'?"),
        ("\n\nzzz = 1\n", 3, "known: host, migrate, policy, vm"),
        (VM + "reservation = { CPU = 1 }\n", 3, "did you mean 'cpu'?"),
        (VM + '[vm.cap]\n"a\\nb\\u001b" = 1\n', 4, r"unknown key 'a\nb\x1b'"),
        # Wrong types.
        ('[host]\ntick_ms = "10"\n', 2, "host.tick_ms must be a number from 5 to 1000 ms, not a string '10'"),
        ("[host]\ntick_ms = true\n", 2, "not a boolean"),
        ("host = 3\n", 1, "host must be a table of keys, not an integer"),
        ('[vm]\nname = "a"\n', 1, "each VM starts with [[vm]]"),
        (VM + "priority = 1.5\n", 3, "vm.priority must be an integer from -1000 to 1000, not a float 1.5"),
        (VM + "priority = true\n", 3, "not a boolean"),
        (VM + "priority = 1979-05-27\n", 3, "not a date or time"),
        (VM + "cap = 3\n", 3, "vm.cap must be a table"),
        ("[[vm]]\nname = 3\n", 2, "vm.name must be a string"),
        ("vm = [3]\n", 1, "vm must be a table of keys, not an integer"),
        ("[policy]\nname = []\n", 2, "not an array"),
        # Numbers that are none, or that nothing could hold.
        ("[host]\ntick_ms = nan\n", 2, "no infinities, no NaN"),
        (VM + "reservation = { cpu = inf }\n", 3, "no infinities, no NaN"),
        (VM + "reservation.cpu = -0.5\n", 3, "not negative (-0.5)"),
        (VM + "reservation = { memory = -inf }\n", 3, "no infinities"),
        (VM + "reservation = { memory = 1e30 }\n", 3, "is more than 1e+15 bytes per second"),
        (VM + f"reservation = {{ memory = 0x{'f' * 6000} }}\n", 3, "is more than 1e+15 bytes per second"),
        (VM + f"priority = 0x{'f' * 6000}\n", 3, "not a huge integer"),
        (VM + f"priority = {'9' * 6000}\n", 0, "too many digits"),
        (VM + "reservation = { cache = 65 }\n", 3, "an integer from 0 to 64, not 65"),
        ("[host]\ntick_ms = 4.9\n", 2, "not 4.9"),
        ("[host]\ntick_ms = 1001\n", 2, "not 1001"),
        # Sizes.
        (VM + 'reservation = { io = "20Mb/s" }\n', 3, "did you mean 'MB'? (bits are not understood: give bytes)"),
        (VM + 'reservation = { io = "20KB/s" }\n', 3, "did you mean 'kB'?"),
        (VM + 'reservation = { io = "20 parsecs" }\n', 3, "unknown unit 'parsecs'"),
        (VM + 'reservation = { io = "20" }\n', 3, "has no unit"),
        (VM + 'reservation = { io = "-20MB/s" }\n', 3, "must be bytes per second such as"),
        (VM + 'reservation = { io = "1e3MB" }\n', 3, "must be bytes per second such as"),
        (VM + f'reservation = {{ io = "{"9" * 5000}MB" }}\n', 3, "is more than 1e+15"),
        ('[host]\nio = [\n{ device = "sda", bandwidth = 1 }]\n', 3, "host.io.device must be a block device"),
        ('[host]\nio = [{ device = "/dev/sda", bandwidth = 0 }]\n', 2, "at least 1 byte per second"),
        ('[host]\nio = [{ device = "/dev/../etc/x", bandwidth = 1 }]\n', 2, "must be a block device"),
        ('[host]\nio = [{ device = "/dev/sda" }]\n', 2, "'bandwidth' is missing"),
        ('[host]\nio = [{device="8:0",bandwidth=9},\n{device="8:0",bandwidth=9}]\n', 3, "'8:0' is used twice"),
        # CPU lists.
        ('[host]\ncpus = "3-1"\n', 2, "runs backwards"),
        ('[host]\ncpus = ""\n', 2, "host.cpus must be CPU numbers"),
        ('[host]\ncpus = "0-99999999999"\n', 2, "beyond CPU"),
        ('[host]\ncpus = "0,,1"\n', 2, "host.cpus must be CPU numbers"),
        ("[host]\ncpus = [0, 1]\n", 2, "not an array"),
        # Choices.
        ('[host]\nplacement = "cpusets"\n', 2, "did you mean 'cpuset'?"),
        (VM + 'isolation = "ISOLATED"\n', 3, "did you mean 'isolated'?"),
        ('[policy]\nname = "forcast"\n', 2, "no such allocator; did you mean 'forecast'?"),
        # Paths.
        (VM + 'cgroup = "../x"\n', 3, "must stay below the cgroup root"),
        (VM + 'cgroup = "a/./b"\n', 3, "must stay below the cgroup root"),
        (VM + 'cgroup = "/a"\n', 3, "without a leading slash"),
        (VM + 'cgroup = ""\n', 3, "empty component"),
        (VM + 'cgroup = "a//b"\n', 3, "empty component"),
        (VM + 'cgroup = "a/"\n', 3, "empty component"),
        (VM + 'cgroup = "a\\nb"\n', 3, "control character U+000A"),
        (VM + 'cgroup = "a\\u0000b"\n', 3, "control character U+0000"),
        (VM + 'cgroup = "a/cgroup.procs"\n', 3, "the kernel keeps for itself"),
        (VM + f'cgroup = "{"x" * 256}"\n', 3, "longer than 255 bytes"),
        (VM + f'cgroup = "{"é" * 128}"\n', 3, "longer than 255 bytes"),
        (VM + f'cgroup = "{"x/" * 2048}x"\n', 3, "longer than 4095 bytes"),
        ('[host]\nstate_dir = "run"\n', 2, "host.state_dir must be an absolute path"),
        ('[host]\nstate_dir = "/run/../etc"\n', 2, "'..'"),
        # Names.
        ("[[vm]]\npriority = 1\n", 1, "'name' is missing"),
        ('[[vm]]\nname = "  "\n', 2, "vm.name must not be empty"),
        ('[[vm]]\nname = "a\\u001b[31m"\n', 2, "control character U+001B"),
        ('[[vm]]\nname = "a\\u202eb"\n', 2, "control character U+202E"),
        (f'[[vm]]\nname = "{"x" * 257}"\n', 2, "has 257 characters"),
        (VM + 'uuid = "123"\n', 3, "vm.uuid must be a UUID"),
        (VM + "zone = -1\n", 3, "an integer from 0 to 1023"),
        # Twice the same.
        (VM + VM, 4, "the VM name 'a' is used twice"),
        (VM + 'cgroup="x"\n[[vm]]\nname="b"\ncgroup = "x"\n', 6, "the VM cgroup 'x' is used twice"),
        (VM + 'cgroup="x"\n[[vm]]\nname="b"\ncgroup = "x/y/z"\n', 6, "is inside the cgroup of VM 'a'"),
        (VM + 'cgroup="x/y"\n[[vm]]\nname="b"\ncgroup = "x"\n', 3, "is inside the cgroup of VM 'b'"),
        (
            VM + 'uuid="6f1d0b5e-6c57-4b0b-9a55-5f0e5ba5e000"\n[[vm]]\nname="b"\n'
            'uuid="6F1D0B5E-6C57-4B0B-9A55-5F0E5BA5E000"\n',
            6,
            "the VM uuid '6f1d0b5e-6c57-4b0b-9a55-5f0e5ba5e000' is used twice",
        ),
        # Bounds against each other.
        (VM + "reservation = { cpu = 2 }\n\ncap = { cpu = 1 }\n", 5, "vm.cap.cpu is below reservation.cpu (1 < 2)"),
        (VM + "cap.io = 1000\nreservation.io = '1MB'\n", 3, "vm.cap.io is below"),
        # The hook.
        ("[migrate]\nafter_s = 1\n", 1, "'command' is missing"),
        ('[migrate]\ncommand = "/bin/x {uuid}"\n', 2, "must be a program and its arguments"),
        ("[migrate]\ncommand = []\n", 2, "must be a program and its arguments"),
        ('[migrate]\ncommand = ["migrate"]\n', 2, "must be an absolute path"),
        ('[migrate]\ncommand = [\n"/m",\n"{name}"]\n', 4, "only {uuid} and {reason} are filled in"),
        ('[migrate]\ncommand = ["/m/{uuid}"]\n', 2, "must not have a placeholder in the program's own path"),
        ('[migrate]\ncommand = ["/m"]\ndeadline_s = 0\n', 3, "migrate.deadline_s must be a number from 0.1"),
        # TOML itself.
        ("[host\n", 1, "not valid TOML"),
        ("a = 1\na = 2\n", 2, "not valid TOML: Cannot overwrite a value"),
        ('\n\nname = "x', 3, "not valid TOML"),
        ("\nx = " + "[" * 100_000, 2, "nested more than 64 deep"),
        ("\n" + "a." * 500_000 + "b = 1", 2, "nested more than 64 deep"),
        ("[" + "a." * 500_000 + "b]", 1, "nested more than 64 deep"),
        ("x = " + "{x = " * 100_000, 1, "nested more than 64 deep"),
    ],
)
def test_refuses_with_file_line_and_reason(text: str, line: int, why: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(text, path="/etc/f.toml", policies=NAMES)
    e = caught.value
    assert why in str(e)
    assert e.line == line
    assert str(e).startswith(f"/etc/f.toml:{line}: " if line else "/etc/f.toml: ")
    assert str(e).isprintable(), "one line, no control characters"
    assert len(str(e)) < 500
    assert str(pickle.loads(pickle.dumps(e))) == str(e)


def test_cgroups_are_needed_only_where_the_backend_says_so() -> None:
    assert parse_config(VM).vms[0].cgroup == ""
    with pytest.raises(ConfigError, match=r"^f:1: 'cgroup' is missing"):
        parse_config(VM, path="f", need_cgroups=True)
    by_uuid = parse_config(f'{VM}uuid = "6F1D0B5E-6c57-4b0b-9a55-5f0e5ba5e000"\n', need_cgroups=True)
    assert by_uuid.vms[0].cgroup == "" and by_uuid.vms[0].uuid


def test_discovery_is_a_table_of_its_own() -> None:
    c = parse_config('[host.discovery]\nlibvirt = "off"\nall_domains = true\nreservation = { cpu = 0.5 }\n')
    spec = c.linux_spec().discovery
    assert (spec.libvirt, spec.processes, spec.all_domains, spec.reservation.cpu) == ("", True, True, 0.5)
    assert parse_config("").linux_spec().discovery.libvirt == "qemu:///system"
    with pytest.raises(ConfigError, match="timeout_ms"):
        parse_config("[host.discovery]\ntimeout_ms = 1\n")


def test_too_many_vms_are_refused() -> None:
    text = "\n".join(f"[[vm]]\nname = 'v{i}'" for i in range(4097))
    with pytest.raises(ConfigError, match="4097 elements"):
        parse_config(text)


def test_files_that_cannot_be_read_say_why(tmp_path: Path) -> None:
    def refusal(path: Path) -> str:
        with pytest.raises(ConfigError) as caught:
            load_config(path)
        assert str(caught.value).isprintable()
        return str(caught.value)

    assert refusal(tmp_path / "none.toml") == f"{tmp_path}/none.toml: cannot be read: No such file or directory"
    assert "cannot be read" in refusal(tmp_path)
    assert "larger than 1 MiB" in refusal(Path("/dev/zero"))
    big = tmp_path / "big.toml"
    big.write_bytes(b"#" * (MAX_BYTES + 1))
    assert "larger than 1 MiB" in refusal(big)
    big.write_bytes(b"#" * MAX_BYTES)
    assert load_config(big).vms == ()
    latin = tmp_path / "latin.toml"
    latin.write_bytes(b"[host]\n# caf\xe9\n")
    assert refusal(latin) == f"{latin}:2: is not UTF-8: byte 0xe9"
    assert "cannot be read" in refusal(tmp_path / "new\nline.toml")
    assert "not a possible file name" in refusal(Path("a\0b"))


def test_the_configuration_is_frozen_and_keyword_only() -> None:
    c = parse_config(FULL)
    with pytest.raises(AttributeError):
        c.host.tick_ms = 5.0  # type: ignore[misc] # that is the test
    with pytest.raises(TypeError):
        AmountsConfig(1.0)  # type: ignore[misc] # that is the test
    assert isinstance(c, Config)


def test_the_reference_names_every_key_with_its_help_and_a_value_that_is_accepted() -> None:
    reference = describe_config()
    flat = re.sub(r"\s+", " ", reference)
    for section in (HostConfig, ResctrlConfig, IoDeviceConfig, MigrateConfig, AmountsConfig, VmConfig):
        sentences = field_help(section)
        for name, f in section.__dataclass_fields__.items():
            assert re.sub(r"\s+", " ", sentences[name]) in flat
            shows = f.metadata["shows"]
            assert f"{name} = {shows}" in reference
            f.metadata["reader"].read(tomllib.loads(f"x = {shows}")["x"])
    assert max(len(line) for line in reference.splitlines()) <= 100


def test_the_resctrl_table_is_read_and_refused_with_its_line() -> None:
    c = parse_config(
        '[host.resctrl]\nuse = "require"\nprefix = "fs-"\nmemory_bandwidth = "100GB/s"\nquarantine_ms = 20\n', path="f"
    )
    spec = c.linux_spec().resctrl
    assert (spec.use, spec.prefix, spec.memory_bandwidth, spec.quarantine_ms) == ("require", "fs-", 1e11, 20.0)
    assert parse_config("", path="f").linux_spec().resctrl.use == "auto"
    for line, why in (
        ('prefix = "../x"', "cannot start the names"), ('prefix = ""', "prefix"), ("shared_ways = 0", "shared_ways"),
        ("confine_host = 1", "true or false"), ('use = "maybe"', "use"), ("moves = 1", "unknown key"),
        ("quarantine_ms = nan", "quarantine_ms"), ("memory_bandwidth = 0", "memory_bandwidth"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=why) as caught:
            parse_config(f"[host.resctrl]\n{line}\n", path="f")
        assert caught.value.line == 2 and "\n" not in str(caught.value)


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
KEYS = sorted(
    {
        *ResctrlConfig.__dataclass_fields__,
        *VmConfig.__dataclass_fields__,
        *HostConfig.__dataclass_fields__,
        *AmountsConfig.__dataclass_fields__,
    }
)


def as_toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return "nan" if math.isnan(value) else repr(value)
    if isinstance(value, str):
        return '"' + "".join(f"\\U{ord(c):08x}" for c in value) + '"'
    if isinstance(value, list):
        return "[" + ", ".join(as_toml(v) for v in value if v is not None) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{as_toml(k)} = {as_toml(v)}" for k, v in value.items() if v is not None) + "}"
    return str(value)


@given(st.sampled_from(["host", "host.resctrl", "policy", "migrate", "vm.reservation"]), st.sampled_from(KEYS), JUNK)
def test_junk_is_refused_with_a_line_or_read_never_a_traceback(table: str, key: str, value: object) -> None:
    text = f"[[vm]]\nname = 'a'\n[{table}]\n{key} = {as_toml(value)}\n"
    try:
        c = parse_config(text, path="f")
    except ConfigError as e:
        assert 1 <= e.line <= 5
        assert str(e).isprintable()
    else:
        assert 5 <= c.host.tick_ms <= 1000
        for x in (c.vms[0].reservation.cpu, c.vms[0].reservation.memory, c.vms[0].reservation.io):
            assert x is None or (math.isfinite(x) and x >= 0)
