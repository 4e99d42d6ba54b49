"""``doctor``: the fixed keys, a page that people can read, and usefulness on hosts that have next to nothing."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import pytest

from foreshare.envs.hal.linux.candidates import vm_candidates
from foreshare.envs.hal.linux.roots import Roots
from foreshare.envs.hal.types import Capability
from foreshare.policies.errors import HostError
from foreshare.runtime import doctor
from foreshare.runtime.doctor import advice, examine, render, run_doctor

RESOURCES = ("cpu", "cache", "memory", "io")
UUID = "6f1d0b5e-6c57-4b0b-9a55-5f0e5ba5e000"


def tree(root: Path, files: dict[str, str]) -> Roots:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    for folder in ("sys", "proc"):
        (root / folder).mkdir(exist_ok=True)
    return Roots(cgroup=f"{root}/sys/fs/cgroup", sys=f"{root}/sys", proc=f"{root}/proc")


def check_keys(report: dict[str, Any]) -> None:
    """The keys that cli.md fixes, and ours."""
    assert tuple(report["resources"]) == RESOURCES
    for resource in report["resources"].values():
        assert set(resource) == {"measure", "move", "interface", "unit", "units", "why_not"}
        assert isinstance(resource["measure"], bool)
        assert isinstance(resource["units"], int)
        assert resource["why_not"] or (resource["measure"] and resource["move"])
    assert set(report["clock"]) == {"source", "resolution_ns", "sleep_overshoot_us"}
    assert 0 <= report["clock"]["sleep_overshoot_us"]["p50"] <= report["clock"]["sleep_overshoot_us"]["p99"]
    assert {"kernel", "cpu_model", "zones", "cores", "threads"} <= set(report["host"])
    assert {"memory", "pcie", "block", "power", "qos"} <= set(report["inventory"])
    assert report["root"] is (os.geteuid() == 0)
    assert isinstance(report["vms"], list)
    assert {"cpu", "cpuset", "io"} <= set(report["cgroup"]["versions"])
    json.dumps(report, allow_nan=False)


def test_json_of_this_host_has_the_fixed_keys() -> None:
    out = io.StringIO()
    assert run_doctor(True, out) == 0
    report = json.loads(out.getvalue())
    check_keys(report)
    assert report["host"]["threads"] >= 1


def test_a_page_for_people_starts_with_what_can_be_moved() -> None:
    out = io.StringIO()
    assert run_doctor(False, out) == 0
    page = out.getvalue()
    assert page.startswith("What this host can measure and move\n")
    assert page.index("Memory channels") < page.index("PCIe links") < page.index("What would help")
    assert max(map(len, page.splitlines())) <= 110
    assert "\x1b" not in page


def test_a_container_with_nothing_still_gets_a_report(tmp_path: Path) -> None:
    report = examine(tree(tmp_path, {}))
    check_keys(report)
    assert not any(r["measure"] or r["move"] for r in report["resources"].values())
    assert report["host"]["threads"] is None
    assert report["cgroup"]["why_none"]
    page = render(report)
    assert "unknown" in page
    assert any("Mount the cgroup file system" in line for line in report["advice"])


def test_a_host_that_cannot_be_read_at_all_is_an_error() -> None:
    with pytest.raises(HostError, match="neither /nowhere/proc nor /nowhere/sys"):
        examine(Roots(cgroup="/nowhere", sys="/nowhere/sys", proc="/nowhere/proc"))


def cgroup2(root: Path, controllers: str) -> dict[str, str]:
    mount = f"{root}/sys/fs/cgroup"
    return {
        "proc/self/mountinfo": f"30 1 0:30 / {mount} rw - cgroup2 cgroup2 rw\n",
        "sys/fs/cgroup/cgroup.controllers": controllers + "\n",
    }


def test_cgroup_versions_are_told_per_controller(tmp_path: Path) -> None:
    files = cgroup2(tmp_path, "cpu memory io")
    files["sys/devices/system/cpu/online"] = "0-1\n"
    report = examine(tree(tmp_path, files))
    versions = report["cgroup"]["versions"]
    assert (versions["cpu"], versions["io"], versions["cpuset"]) == (2, 2, None)
    assert report["host"]["threads"] == 2
    assert any("Enable the cpuset controller" in line for line in report["advice"])


def process(pid: int, argv: list[str], cgroup: str, comm: str = "qemu-system-x86") -> dict[str, str]:
    return {
        f"proc/{pid}/comm": comm + "\n",
        f"proc/{pid}/cmdline": "\0".join(argv) + "\0",
        f"proc/{pid}/cgroup": cgroup,
    }


def test_vms_are_found_among_processes_and_scopes(tmp_path: Path) -> None:
    scope = r"machine.slice/machine-qemu\x2d1\x2dweb.scope"
    hidden = r"machine.slice/machine-qemu\x2d2\x2ddb\x2d1.scope"
    files = cgroup2(tmp_path, "cpu cpuset io")
    libvirt = ["/usr/bin/qemu-system-x86_64", "-name", "guest=we,,b,debug-threads=on", "-uuid", UUID.upper()]
    files |= process(100, libvirt, f"0::/{scope}/libvirt/emulator\n")
    files |= process(200, ["qemu-kvm", "-name", "bare"], "5:memory:/other\n4:cpu,cpuacct:/vms/bare\n0::/\n", "qemu-kvm")
    files |= process(300, ["qemu-system-arm"], "0::/\n")
    files |= process(400, ["qemu-system-arm", "-name", "x", "-uuid", "$(rm)"], "0::/../../escaped\n")
    files |= process(500, ["python3", "-name", "no"], "0::/python\n", "python3")
    files |= {f"sys/fs/cgroup/{g}/cgroup.procs": "" for g in (f"{scope}/libvirt", hidden, "machine/old.libvirt-qemu")}
    files |= {"sys/fs/cgroup/system.slice/ssh.service/cgroup.procs": ""}
    found = {vm["pid"] or vm["cgroup"]: vm for vm in vm_candidates(tree(tmp_path, files))}
    assert found[100] == {"name": "we,b", "cgroup": scope, "uuid": UUID, "pid": 100}
    assert found[200] == {"name": "bare", "cgroup": "vms/bare", "uuid": None, "pid": 200}
    assert (found[300]["cgroup"], found[300]["name"]) == (None, "qemu-system-x86")
    assert (found[400]["cgroup"], found[400]["uuid"]) == (None, None)
    assert found[hidden] == {"name": "db-1", "cgroup": hidden, "uuid": None, "pid": None}
    assert found["machine/old.libvirt-qemu"]["name"] == "old"
    assert len(found) == 6


def test_the_search_for_vms_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = cgroup2(tmp_path, "cpu")
    files |= {f"sys/fs/cgroup/{'/'.join('d' * n)}/qemu-{n}/cgroup.procs": "" for n in range(1, 9)}
    roots = tree(tmp_path, files)
    assert len(vm_candidates(roots)) == 4, "deeper cgroups are left alone"
    monkeypatch.setattr("foreshare.envs.hal.linux.candidates.MAX_DIRECTORIES", 2)
    assert len(vm_candidates(roots)) == 1


@pytest.mark.parametrize("junk", ["", "\n", ":::", "0::", "no colons", "0::/a\x07b", "4:cpu:" + "/x" * 3000])
def test_processes_that_vanish_or_say_nonsense_are_survived(tmp_path: Path, junk: str) -> None:
    files = process(7, [], junk) | {"proc/8/comm": "qemu-system-x86"}
    for vm in vm_candidates(tree(tmp_path, files)):
        assert vm["cgroup"] is None or vm["cgroup"].startswith("x/")


def report_with(monkeypatch: pytest.MonkeyPatch, **capabilities: Capability) -> dict[str, Any]:
    """A report of this host, in which the probe answers ``capabilities``."""
    none = Capability(measure=False, move=False, interface="", unit="", units=0, why_not="not there")
    monkeypatch.setattr(doctor.capabilities, "probe", lambda _roots: dict.fromkeys(RESOURCES, none) | capabilities)
    return examine()


def test_advice_on_resctrl_follows_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    report = report_with(monkeypatch)

    def said(flags: list[str], in_kernel: bool, mounted: bool) -> str:
        report["inventory"]["qos"] |= {"flags": flags, "why_none": "" if flags else "the CPU has none"}
        report["inventory"]["qos"]["resctrl"] |= {"in_kernel": in_kernel, "mounted": mounted}
        return " ".join(advice(report, psi=True))

    assert "the CPU has none" in said([], False, False)
    assert "CONFIG_X86_CPU_RESCTRL" in said(["cat_l3"], False, False)
    assert "mount -t resctrl" in said(["cat_l3"], True, False)
    assert "resctrl" not in said(["cat_l3"], True, True)


def test_advice_names_root_psi_disks_and_late_timers(monkeypatch: pytest.MonkeyPatch) -> None:
    io_capability = Capability(measure=True, move=False, interface="io.max", unit="", units=0, why_not="no device")
    report = report_with(monkeypatch, io=io_capability)
    report["root"] = False
    report["cgroup"]["versions"]["io"] = 2
    report["clock"]["sleep_overshoot_us"]["p99"] = 900.0
    disk = {"name": "nvme0n1", "number": "259:0", "virtual": False}
    report["inventory"]["block"]["devices"] = [disk]
    said = " ".join(advice(report, psi=False))
    assert "Run as root" in said
    assert "psi=1" in said
    assert 'device = "/dev/nvme0n1"' in said
    assert "900 us late" in said
    report["root"] = True
    report["clock"]["sleep_overshoot_us"]["p99"] = 60.0
    report["resources"]["io"]["move"] = True
    said = " ".join(advice(report, psi=True))
    assert not any(word in said for word in ("Run as root", "psi=1", "/dev/nvme0n1", "late"))


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


@pytest.fixture
def hostile(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A report in which every list has entries, and names try to write on the terminal."""
    moved = Capability(measure=True, move=True, interface="cgroup v2 cpu", unit="1/10 CPU", units=20, why_not="")
    report = report_with(monkeypatch, cpu=moved)
    evil = "a\x1b[2J\n\u202e[red]b[/red]"
    report["vms"] = [{"name": evil, "cgroup": "x/y", "uuid": UUID, "pid": 5}] * 50
    link = {"gt_per_s": 16.0, "generation": 4, "lanes": 8, "bytes_per_s": 15.75e9}
    report["inventory"]["pcie"]["devices"] = [
        {"address": "0000:01:00.0", "class": "Ethernet", "driver": evil, "numa_node": None,
         "link": {"current": link, "max": None}, "path": {"bytes_per_s": 3.9e9, "limited_by": "0000:00:01.0"},
         "sriov": {"enabled": 8, "most": 64}, "virtual_function_of": None},
    ]  # fmt: skip
    node = {"node": 0, "memory_bytes": 1 << 36, "channels": 8, "channel_names": [], "speed_mt_s": 4800,
            "bandwidth_bytes_per_s": 307.2e9, "source": "EDAC", "why_unknown": ""}  # fmt: skip
    report["inventory"]["memory"]["nodes"] = [node, {**node, "node": 1}]
    report["inventory"]["power"]["platform_profile"] |= {"present": True, "value": "balanced"}
    return report


def test_names_cannot_write_on_the_terminal(hostile: dict[str, Any]) -> None:
    page = render(hostile)
    assert "\x1b" not in page
    assert "\u202e" not in page
    assert "[red]b[/red]" in page, "shown as it is, not taken as markup"
    assert "And 10 more" in page
    assert "x8 16 GT/s" in page
    assert "3.9 GB/s (by 0000:00:01.0)" in page
    assert "8 of 64" in page
    assert "307.2 GB/s" in page
    assert "there (balanced)" in page
    assert max(map(len, page.splitlines())) <= 110


def test_a_terminal_gets_colours_and_the_same_facts(hostile: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    monkeypatch.setenv("TERM", "xterm-256color")
    page = render(hostile, Terminal())
    assert "\x1b[1m" in page
    assert "\x1b[2J" not in page
    assert "[red]b" in page
    for section in ("What this host can measure and move", "Memory channels", "PCIe links", "What would help"):
        assert section in page


def test_an_ascii_terminal_is_not_a_crash(hostile: dict[str, Any]) -> None:
    hostile["vms"][0]["name"] = "naïve"
    page = render(hostile, io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert page.isascii()
