"""Finding VMs without a libvirt: what a process or an XML can say, and what an agent that misbehaves costs."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest

from foreshare.envs.hal.linux.discovery import agent
from foreshare.envs.hal.linux.discovery import watch as watch_module
from foreshare.envs.hal.linux.discovery.domains import bare_domain, described, from_json, to_json
from foreshare.envs.hal.linux.discovery.homes import Homes
from foreshare.envs.hal.linux.discovery.spec import DiscoverySpec, Domain
from foreshare.envs.hal.linux.discovery.watch import Watch
from foreshare.envs.hal.linux.roots import Roots
from foreshare.policies.errors import InputError

UUID = "6f1d0b5e-6c57-4b0b-9a55-5f0e5ba5e000"
XML = """<domain type='kvm' id='3'><name>a</name><vcpu current='2'>4</vcpu><devices>
<disk><source file='/var/a.img'/></disk><disk><source dev='/dev/vg/a'/></disk><disk/>
<interface><target dev='vnet3'/></interface></devices></domain>"""


def bare(number: int = 3) -> Domain:
    found = bare_domain(UUID, "a", number)
    assert found is not None
    return found


def test_what_a_domain_tells() -> None:
    found = described(bare(), XML)
    assert (found.vcpus, found.disks, found.nics) == (2, ("/var/a.img", "/dev/vg/a"), ("vnet3",))
    assert from_json(json.loads(json.dumps(to_json(found)))) == found
    assert bare_domain("../etc", "x", 1) is None


@pytest.mark.parametrize("text", ["", "<domain", "<!DOCTYPE d [<!ENTITY a 'b'>]><domain>&a;</domain>", "x" * (5 << 20)])
def test_what_is_no_domain_tells_nothing(text: str) -> None:
    assert described(bare(), text) == bare()


def tree(root: Path, scope: str, processes: dict[int, tuple[str, str]]) -> Roots:
    """Make files: a scope below the cgroup root with processes (name, UUID) in it."""
    folder = root / "cg" / scope / "libvirt/emulator"
    folder.mkdir(parents=True)
    (root / "cg/cgroup.controllers").write_text("cpu cpuset\n")
    (folder / "cgroup.procs").write_text("".join(f"{pid}\n" for pid in processes))
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/mountinfo").write_text(f"24 17 0:21 / {root}/cg rw - cgroup2 cg rw\n")
    for pid, (name, uuid) in processes.items():
        (root / f"proc/{pid}").mkdir()
        (root / f"proc/{pid}/comm").write_text(name + "\n")
        (root / f"proc/{pid}/cmdline").write_text(f"{name}\0-uuid\0{uuid}\0")
        (root / f"proc/{pid}/cgroup").write_text(f"0::/{scope}/libvirt/emulator\n")
        (root / f"proc/{pid}/stat").write_text(f"{pid} (x) S " + " ".join(["0"] * 18 + ["5"] + ["0"] * 5) + "\n")
    return Roots(cgroup=f"{root}/cg", sys=f"{root}/sys", proc=f"{root}/proc")


SYSTEMD = "machine.slice/machine-qemu\\x2d3\\x2da.scope"


@pytest.mark.parametrize("scope", [SYSTEMD, "machine/qemu-3-a.libvirt-qemu"])
def test_a_domain_lives_in_the_scope_of_its_run(scope: str, tmp_path: Path) -> None:
    """Fault 29: by the run's number and a process with its UUID, never by its name."""
    roots = tree(tmp_path, scope, {71: ("qemu-system-x86", UUID)})
    assert Homes(roots).of_domains((bare(),)) == ({UUID: scope}, False)
    assert Homes(roots).of_domains((bare(number=4),)) == ({}, True), "another run of it"
    assert Homes(roots).of_domains((bare(number=-1),)) == ({}, False)


def test_a_scope_of_that_number_without_the_domain_is_none(tmp_path: Path) -> None:
    other = UUID.replace("6f", "7f")
    assert Homes(tree(tmp_path, SYSTEMD, {71: ("qemu-system-x86", other)})).of_domains((bare(),)) == ({}, True)


def test_a_process_has_its_cgroup_to_itself_or_none(tmp_path: Path) -> None:
    roots = tree(tmp_path / "a", "vms/one", {71: ("qemu-system-x86", UUID)})
    assert Homes(roots).of_processes() == {UUID: "vms/one"}
    shared = tree(tmp_path / "b", "vms/one", {71: ("qemu-system-x86", UUID), 72: ("sh", "-")})
    assert Homes(shared).of_processes() == {}


def test_a_reused_process_number_is_another_process(tmp_path: Path) -> None:
    """Fault 3."""
    homes = Homes(roots := tree(tmp_path, "vms/one", {71: ("qemu-system-x86", UUID)}))
    assert homes.of_processes()
    Path(f"{roots.proc}/71/stat").write_text("71 (x) S " + " ".join(["0"] * 18 + ["99"] + ["0"] * 5))
    Path(f"{roots.proc}/71/comm").write_text("bash")
    assert homes.of_processes() == {}


@pytest.mark.parametrize(
    ("code", "words"),
    [("print('no json', flush=True)", "JSONDecodeError"), ("import time; time.sleep(99)", "did not answer within"),
     ("raise SystemExit", "ended"), ("print('{\"error\": \"refused\"}', flush=True)", "refused")],
)  # fmt: skip
def test_an_agent_that_misbehaves_is_tried_again_later_and_later(
    code: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fault 27."""
    (tmp_path / "python").write_text(f"#!{sys.executable}\n{code}\n")
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(watch_module, "START_S", 0.2 if "sleep" in code else 20.0)
    monkeypatch.setattr(watch_module, "FIRST_WAIT_S", 0.05)
    watch = Watch(DiscoverySpec(libvirt="test:///", processes=False, timeout_ms=50), Roots())
    try:
        until = time.monotonic() + 30
        while watch.failures < 2:
            assert time.monotonic() < until
            time.sleep(0.01)
        assert words in watch.found.trouble and watch.found.asked
    finally:
        watch.close()


def test_a_timeout_that_cannot_be_is_refused() -> None:
    with pytest.raises(InputError, match="timeout"):
        DiscoverySpec(timeout_ms=float("nan"))


def test_a_domain_that_libvirt_is_still_starting_does_not_run_yet(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its cgroups are there before libvirt has written what it wants in them: that would be put back later."""

    class OneDomain:
        uuid, name, number = UUID, "one", 4
        busy = True

        def starting(self) -> bool:
            return self.busy

        def moving(self) -> bool:
            return False

        def xml(self) -> str | None:
            return None

        def free(self) -> None:
            pass

    one = OneDomain()

    class Libvirt:
        def __init__(self, uri: str, poke: object, wake_ms: int) -> None:
            pass

        def domains(self) -> list[OneDomain]:
            return [one]

    monkeypatch.setattr(agent, "Connection", Libvirt)
    asks = agent.Agent("", frozenset())
    numbers = []
    for one.busy in (True, False, True):
        asks._look()
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        numbers += [d["number"] for line in lines if "domains" in line for d in line["domains"]]
    assert numbers == [-1, 4], "once it runs, it is not asked again"
