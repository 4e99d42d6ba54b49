"""Bundles: whatever is wrong with one is said in one line before anything of it is parsed; keys that vouch for them."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from bundles import bundle_files, make_keys, write

from foreshare.envs.hal import Host
from foreshare.envs.hal.simulated import SimulatedHal
from foreshare.envs.simulator.scenario import load_scenario
from foreshare.policies.decide import UNHURRIED
from foreshare.policies.errors import InputError
from foreshare.policies.features import schema_hash
from foreshare.policies.learned import Network, SchemaError, Widths
from foreshare.policies.learned import bundle as bundle_module
from foreshare.policies.learned import champion as champion_module
from foreshare.policies.learned.bundle import FILES, MANIFEST, NPZ, ONNX, SIGNATURE, BundleError, read_bundle
from foreshare.policies.learned.champion import shipped
from foreshare.policies.learned.lay import lay
from foreshare.policies.learned.policy import Learned
from foreshare.policies.learned.source import is_learned
from foreshare.policies.registry import make_mind
from foreshare.runtime.asking import open_mind
from foreshare.runtime.cli import main
from foreshare.runtime.keys import Keys, read_public

Files = dict[str, bytes]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return make_keys(tmp_path_factory.mktemp("vouching") / "keys")


@pytest.fixture
def files(keys: Keys) -> Files:
    return bundle_files(Network.random(3, Widths(4, 4, 4)), keys, training={"seed": 1})


def test_a_bundle_brings_its_network(files: Files, keys: Keys, tmp_path: Path) -> None:
    found = read_bundle(write(files, tmp_path / "b"), keys.verify)
    assert found.network.packed() == files[NPZ]
    assert found.manifest["training"] == {"seed": 1}
    assert found.signer.endswith("tester")
    assert found.contents == files


# -- attacks


def resigned(change: Callable[[dict[str, object]], object]) -> Callable[[Files, Keys], Files]:
    """A manifest that somebody trusted signed, but that says something else."""

    def attack(files: Files, keys: Keys) -> Files:
        manifest = json.loads(files[MANIFEST])
        change(manifest)
        text = json.dumps(manifest).encode()
        return files | {MANIFEST: text, SIGNATURE: keys.sign(text)}

    return attack


def raw(text: bytes) -> Callable[[Files, Keys], Files]:
    return lambda files, keys: files | {MANIFEST: text, SIGNATURE: keys.sign(text)}


def without(name: str) -> Callable[[Files, Keys], Files]:
    return lambda files, keys: {k: v for k, v in files.items() if k != name}


def with_file(name: str, change: Callable[[bytes], bytes]) -> Callable[[Files, Keys], Files]:
    return lambda files, keys: files | {name: change(files[name])}


ATTACKS: dict[str, Callable[[Files, Keys], Files]] = {
    **{f"{name} is missing": without(name) for name in FILES},
    **{f"{name} is cut": with_file(name, lambda data: data[: len(data) // 2]) for name in FILES},
    **{f"{name} is empty": with_file(name, lambda data: b"") for name in FILES},
    **{f"{name} has a bit flipped": with_file(name, lambda d: d[:9] + bytes([d[9] ^ 1]) + d[10:]) for name in FILES},
    **{f"{name} is far too long": with_file(name, lambda data: data + b" " * (1 << 25)) for name in FILES},
    "one file more": lambda files, keys: files | {"extra.py": b"import os"},
    "a pickle": lambda files, keys: files | {"policy.pkl": b"\x80\x04."},
    "no JSON, signed": raw(b"{"),
    "deep JSON, signed": raw(b"[" * 100_000),
    "a list, signed": raw(b"[]"),
    "another format": resigned(lambda m: m.update(format=2)),
    "another kind": resigned(lambda m: m.update(kind="forecaster")),
    "names that lead elsewhere": resigned(lambda m: m.update(files={"../../etc/passwd": {"sha256": "0"}, ONNX: {}})),
    "one file more in the list": resigned(lambda m: m["files"].update({"run.py": {"sha256": "0"}})),  # type: ignore[attr-defined]
    "a list of files": resigned(lambda m: m.update(files=[NPZ, ONNX])),
    "hashes that are none": resigned(lambda m: m.update(files={NPZ: "x", ONNX: 3})),
    "other actions": resigned(lambda m: m.update(actions={"outputs": [], "limit": 99.0})),
}  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_what_is_wrong_is_said_in_one_line(
    attack: Callable[[Files, Keys], Files], files: Files, keys: Keys, tmp_path: Path
) -> None:
    folder = write(attack(files, keys), tmp_path / "b")
    with pytest.raises(BundleError) as refusal:
        read_bundle(folder, keys.verify)
    assert "\n" not in str(refusal.value)


def test_nothing_is_parsed_before_it_is_verified(
    files: Files, keys: Keys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def parsed(*_: object) -> None:
        raise AssertionError("parsed")

    monkeypatch.setattr(bundle_module.json, "loads", parsed)
    monkeypatch.setattr(Network, "load", parsed)
    stranger = make_keys(tmp_path / "stranger")
    with pytest.raises(BundleError, match="nobody trusts"):
        read_bundle(write(files, tmp_path / "b"), stranger.verify)


def test_other_features_are_told_apart(files: Files, keys: Keys, tmp_path: Path) -> None:
    old = resigned(lambda m: m.update(schema="0123456789abcdef"))(files, keys)
    with pytest.raises(SchemaError, match=schema_hash()):
        read_bundle(write(old, tmp_path / "b"), keys.verify)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", ["link", "folder", "pipe"])
def test_only_plain_files_are_opened(name: str, kind: str, files: Files, keys: Keys, tmp_path: Path) -> None:
    folder = write(files, tmp_path / "b")
    (folder / name).rename(tmp_path / "elsewhere")
    if kind == "link":
        (folder / name).symlink_to(tmp_path / "elsewhere")
    elif kind == "folder":
        (folder / name).mkdir()
    else:
        os.mkfifo(folder / name)
    with pytest.raises(BundleError, match="plain file"):
        read_bundle(folder, keys.verify)


def test_what_is_no_folder_is_no_bundle(keys: Keys, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    for name in ("file", "empty", "nowhere"):
        with pytest.raises(BundleError, match="no bundle"):
            read_bundle(tmp_path / name, keys.verify)


# -- keys


def test_a_key_vouches_only_where_it_is_trusted(files: Files, keys: Keys, tmp_path: Path) -> None:
    host = Keys(tmp_path / "host")
    folder = write(files, tmp_path / "b")
    with pytest.raises(BundleError, match="nobody trusts"):
        read_bundle(folder, host.verify)
    own = keys.public()
    assert own is not None
    host.trust(read_public(own.text()))
    assert read_bundle(folder, host.verify).signer == f"{own.id} tester"
    with pytest.raises(InputError, match="no key to sign with"):
        host.sign(b"x")


def test_a_signature_of_another_is_none(files: Files, keys: Keys, tmp_path: Path) -> None:
    other = make_keys(tmp_path / "other")
    folder = write(files | {SIGNATURE: other.sign(files[MANIFEST])}, tmp_path / "b")
    with pytest.raises(BundleError, match="nobody trusts"):
        read_bundle(folder, keys.verify)
    own = keys.public()
    assert own is not None
    forged = other.sign(files[MANIFEST]).split()
    (folder / SIGNATURE).write_bytes(b" ".join((forged[0], own.id.encode(), forged[2])))
    with pytest.raises(BundleError, match="was changed"):
        read_bundle(folder, keys.verify)


def test_the_private_key_is_its_owners(tmp_path: Path) -> None:
    keys = make_keys(tmp_path / "keys")
    private = tmp_path / "keys" / "private.pem"
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    with pytest.raises(InputError, match="never overwritten"):
        keys.new("again")
    private.chmod(0o644)
    with pytest.raises(InputError, match="read by others"):
        keys.sign(b"x")
    private.chmod(0o600)
    private.write_text("no key")
    with pytest.raises(InputError, match="no private key"):
        keys.sign(b"x")
    private.rename(tmp_path / "there")
    private.symlink_to(tmp_path / "there")
    with pytest.raises(InputError):
        keys.sign(b"x")


@pytest.mark.parametrize("line", ["", "ed25519", "ed25519 AAAA x", "rsa AAAA", "ed25519 " + "A" * 43 + "= a\nb"])
def test_what_is_no_key_is_not_trusted(line: str) -> None:
    with pytest.raises(InputError, match="no public key"):
        read_public(line)


def test_keys_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine, host = str(tmp_path / "mine"), str(tmp_path / "host")
    assert main(["keys", "new", "--keys", mine, "--name", "ci", "--json"]) == 0
    line = json.loads(capsys.readouterr().out)["public"]
    (tmp_path / "ci.pub").write_text(line + "\n")
    assert main(["keys", "trust", str(tmp_path / "ci.pub"), "--keys", host]) == 0
    assert main(["keys", "trust", line, "--keys", host, "--json"]) == 0
    told = capsys.readouterr().out.splitlines()[-1]
    assert [k["name"] for k in json.loads(told)["trusted"]] == ["ci"]
    for wrong in (["trust", "nowhere", "--keys", host], ["trust", "ed25519 x y", "--keys", host],
                  ["new", "--keys", mine]):  # fmt: skip
        assert main(["keys", *wrong]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


# -- as a policy


def test_a_host_runs_only_what_somebody_vouches_for(
    files: Files, keys: Keys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORESHARE_KEYS", str(keys.folder))
    folder = write(files, tmp_path / "b")
    assert main(["run", "--policy", str(folder), "--ticks", "30", "--vms", "5", "--json"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert done["decided_by"] == {"policy": 30, "fallback": 0}
    assert done["policy_faults"] == {}
    assert main(["run", "--policy", "champion", "--ticks", "30", "--vms", "5", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["decided_by"] == {"policy": 30, "fallback": 0}
    Network.random(0).save(tmp_path / "bare.npz")
    (folder / NPZ).write_bytes(b"x")
    for policy in (str(folder), str(tmp_path / "bare.npz"), str(tmp_path), "./nowhere"):
        assert main(["run", "--policy", policy, "--ticks", "5", "--json"]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert len(captured.err.splitlines()) == 1
    assert main(["evaluate", "--policies", f"triage,{folder}", "--cache", "none"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_bundle_decides_inline(files: Files, keys: Keys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORESHARE_KEYS", str(keys.folder))
    folder = str(write(files, tmp_path / "b"))
    hal = SimulatedHal(load_scenario("mixed"), seed=0)
    host = Host(hal.topology, hal.vms)
    assert isinstance(open_mind(folder, host, UNHURRIED).policy, Learned)
    with pytest.raises(InputError, match="process of its own"):
        open_mind(folder, host, UNHURRIED, "process")
    with pytest.raises(InputError, match="no knobs"):
        make_mind(folder, host, knobs=1)
    assert not is_learned("triage")


def test_evaluate_takes_networks_and_bundles(
    files: Files, keys: Keys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORESHARE_KEYS", str(keys.folder))
    folder, bare = write(files, tmp_path / "b"), tmp_path / "n.npz"
    bare.write_bytes(files[NPZ])
    suite = tmp_path / "s.toml"
    suite.write_text(
        'version = 1\nticks = 40\nwarm_ticks = 10\nloads = ["over"]\n[[scenario]]\nseed = 3\ncpus = 8\nvms = 4\n'
    )
    argv = ["evaluate", "--suite", str(suite), "--policies", f"triage,{folder},{bare}", "--seeds", "1", "--json",
            "--cache", str(tmp_path / "cache"), "--jobs", "1"]  # fmt: skip
    assert main(argv) == 0
    found = json.loads(capsys.readouterr().out)["policies"]
    assert found[str(folder)]["over"] == found[str(bare)]["over"]
    assert found[str(folder)]["over"]["moves_per_tick"] != found["triage"]["over"]["moves_per_tick"]


def test_the_champion_that_ships_is_held_by_its_hashes(
    files: Files, keys: Keys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from foreshare.training.delivery.ship import ship

    module = tmp_path / "champion.py"
    module.write_text(Path(champion_module.__file__).read_text())
    bundle = read_bundle(write(files, tmp_path / "b"), keys.verify)
    for _ in range(2):  # another champion takes its place
        ship(bundle, tmp_path / "champion", module)
    names: dict[str, object] = {"__file__": str(module), "__name__": "shipped_module"}
    exec(module.read_text().replace("from .", "from foreshare.policies.learned."), names)
    monkeypatch.setattr(champion_module, "SHA256", names["SHA256"])
    monkeypatch.setattr(champion_module, "FOLDER", tmp_path / "champion")
    assert shipped().network.packed() == files[NPZ]
    assert not (tmp_path / "champion" / SIGNATURE).exists()
    (tmp_path / "champion" / MANIFEST).write_bytes(files[MANIFEST] + b" ")
    with pytest.raises(BundleError, match="not the one that shipped"):
        shipped()
    (tmp_path / "champion" / NPZ).unlink()
    with pytest.raises(BundleError, match="install foreshare again"):
        shipped()


# -- laying


def test_a_bundle_takes_the_place_of_another(files: Files, keys: Keys, tmp_path: Path) -> None:
    at = tmp_path / "host" / "policy"
    at.parent.mkdir()
    lay(files, at)
    assert read_bundle(at, keys.verify).contents == files
    other = bundle_files(Network.random(9, Widths(0, 0, 0)), keys)
    (at.parent / ".policy.incoming-left").mkdir()  # of one that was killed
    lay(other, at)
    assert read_bundle(at, keys.verify).contents == other
    assert [p.name for p in at.parent.iterdir()] == ["policy"]


def test_what_is_no_bundle_is_left_alone(files: Files, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("three years")
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    (tmp_path / "empty").mkdir()
    for name in ("home", "file", "link", "no/where"):
        with pytest.raises(InputError):
            lay(files, tmp_path / name)
    assert (tmp_path / "home" / "thesis.txt").read_text() == "three years"
    lay(files, tmp_path / "empty")
    assert (tmp_path / "empty" / NPZ).exists()


LAY_FOR_EVER = """
import sys
from pathlib import Path
from foreshare.policies.learned.bundle import read_files
from foreshare.policies.learned.lay import lay
one, other = (read_files(p) for p in sys.argv[2:])
while True:
    lay(one, Path(sys.argv[1]))
    lay(other, Path(sys.argv[1]))
"""


def test_killed_at_any_moment_it_leaves_a_whole_bundle(files: Files, keys: Keys, tmp_path: Path) -> None:
    at = tmp_path / "there" / "policy"
    at.parent.mkdir()
    other = bundle_files(Network.random(9, Widths(0, 0, 0)), keys)
    lay(files, at)
    both = [str(write(files, tmp_path / "one")), str(write(other, tmp_path / "other"))]
    for attempt in range(3):
        child = subprocess.Popen([sys.executable, "-c", LAY_FOR_EVER, str(at), *both])
        first = at.stat().st_ino
        until = time.monotonic() + 60
        while at.stat().st_ino == first and time.monotonic() < until:  # until it is in full swing
            time.sleep(0.001)
        time.sleep(0.003 * attempt)
        child.kill()
        child.wait()
        assert read_bundle(at, keys.verify).contents in (files, other)
    lay(files, at)
    assert [p.name for p in at.parent.iterdir()] == ["policy"]
