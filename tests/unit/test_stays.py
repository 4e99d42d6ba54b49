"""What a claim sets and no plan writes: weight, cpu.idle, period, memory nodes; set, watched, put back."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from resctrl_host import FakeHost, claim, tick

from foreshare.envs.hal.linux.claim import adopt
from foreshare.envs.hal.linux.hal import LinuxHal
from foreshare.envs.hal.linux.restore import restore
from foreshare.envs.hal.linux.spec import LinuxSpec
from foreshare.envs.hal.spec import VmSpec
from foreshare.envs.hal.types import Control, Plan, Receipt
from foreshare.policies.errors import InputError
from foreshare.policies.host import Isolation, Placement

ELSEWHERE = "anon N0=4096 N1=900000000\nfile N0=100 N1=0\n"
NEARLY = "anon N0=900000000 N1=4096\nfile N0=100 N1=0\n"


def open_hal(host: FakeHost, **fields: Any) -> LinuxHal:
    vms = (
        VmSpec(name="alone", cgroup="vm0", zone=0, isolation=Isolation.ISOLATED),
        VmSpec(name="idle", cgroup="vm1", zone=0, priority=-1),
        VmSpec(name="shared", cgroup="vm2", zone=1),
    )
    return LinuxHal(LinuxSpec(vms=vms, **fields), host.roots, host.clock)


def read(host: FakeHost, name: str) -> str:
    return (host.root / "cg" / name).read_text().strip()


def write(host: FakeHost, name: str, text: str) -> None:
    """Write as somebody else would, on the fake kernel's own terms."""
    with (host.root / "cg" / name).open("r+b", 0) as file:
        host.cgroups.pwrite(file.fileno(), text.encode(), 0)


def test_what_a_daemon_reload_resets_is_set_again(tmp_path: Path) -> None:
    """Fault 25: weights, cpu.idle and the period as well as what plans write."""
    host = FakeHost(tmp_path, n=3)
    hal = open_hal(host)
    claim(hal)
    receipt = Receipt()
    hal.apply(Plan(np.array([Control.CPU], np.int8), np.array([2]), np.array([5]), np.zeros((0, 8), bool)), 0, receipt)
    files = ("vm0/cpu.weight", "vm1/cpu.idle", "vm2/cpu.weight", "vm2/cpu.max")
    ours = [read(host, name) for name in files]
    assert ours[1] == "1" and ours[3] == "5000 10000"
    write(host, "vm1/cpu.idle", "0\n")
    write(host, "vm2/cpu.weight", "77\n")
    write(host, "vm2/cpu.max", "50000 100000\n")  # as much, but over ten ticks
    assert [read(host, name) for name in files] != ours
    tick(host, hal, 3)
    hal.read_back(Placement.empty(3, 8))
    tick(host, hal, 8)
    assert [read(host, name) for name in files] == ours
    write_count = len(host.cgroups.writes)
    tick(host, hal, 20)
    assert len(host.cgroups.writes) == write_count, "what is right is not written"
    hal.close()


@pytest.mark.parametrize(
    ("mode", "stat", "bound"),
    [("auto", NEARLY, True), ("auto", ELSEWHERE, False), ("bind", ELSEWHERE, True), ("off", NEARLY, False)],
)
def test_an_isolated_vms_memory_is_bound_once(tmp_path: Path, mode: str, stat: str, bound: bool) -> None:
    """Only where little has to be moved, unless it is asked for; whoever is not bound is told of."""
    host = FakeHost(tmp_path, n=3)
    host.cgroups.put("vm0", "memory.numa_stat", stat)
    host.cgroups.put("vm2", "memory.numa_stat", stat)
    hal = open_hal(host, memory_nodes=mode)
    doc = claim(hal)
    assert read(host, "vm0/cpuset.mems") == ("0" if bound else "")
    assert read(host, "vm1/cpuset.mems") == read(host, "vm2/cpuset.mems") == ""
    told = [line for line in hal.troubles() if "memory" in line]
    assert len(told) == (mode == "auto" and not bound), told
    if told:
        assert told[0].startswith("VM 'alone': 0.9 GB of its memory are on other nodes than 0")
    tick(host, hal, 20)
    hal.close()
    assert read(host, "vm0/cpuset.mems") in ("", "0-1"), "threads keep it from being empty: then as its parent"
    assert restore(doc, host.roots).failed == []


def test_nodes_that_somebody_else_chose_come_back(tmp_path: Path) -> None:
    host = FakeHost(tmp_path, n=3)
    write(host, "vm0/cpuset.mems", "1\n")
    host.cgroups.put("vm0", "memory.numa_stat", NEARLY)
    hal = open_hal(host)
    doc = claim(hal)
    assert read(host, "vm0/cpuset.mems") == "0"
    (tree,) = [item["tree"] for item in doc["items"] if item["what"] == "cpuset" and item["cgroup"] == "vm0"]
    assert tree[0][3] == "1"
    found = {**doc, "items": [dict(i, tree=[[*i["tree"][0][:3], "0"]]) if "tree" in i else i for i in doc["items"]]}
    again, _ = adopt(found, doc, {"vm0", "vm1", "vm2"})
    assert [i["tree"][0][3] for i in again["items"] if i.get("tree")] == ["1", "", ""], "the older record counts"
    hal.close()
    assert read(host, "vm0/cpuset.mems") == "1"


def test_a_record_of_an_earlier_version_is_understood(tmp_path: Path) -> None:
    host = FakeHost(tmp_path, n=3)
    hal = open_hal(host, memory_nodes="off")
    doc = claim(hal)
    for item in doc["items"]:
        if item["what"] == "cpuset":
            item["tree"] = [[path, inode, cpus, mems == ""] for path, inode, cpus, mems in item["tree"]]
    hal.close()
    write(host, "vm0/cpuset.mems", "1\n")
    assert restore(doc, host.roots).failed == []
    assert read(host, "vm0/cpuset.mems") in ("", "0-1")


def test_a_node_that_cannot_be_had_is_told_of(tmp_path: Path) -> None:
    host = FakeHost(tmp_path, n=3)
    host.cgroups.put("vm0", "memory.numa_stat", NEARLY)
    host.cgroups.refusals["vm0", "cpuset.mems"] = errno.EINVAL
    hal = open_hal(host)
    claim(hal)
    assert any("cannot be bound to node 0: Invalid argument" in line for line in hal.troubles())
    hal.close()
    with pytest.raises(InputError, match="memory_nodes"):
        LinuxSpec(vms=(), memory_nodes="maybe")  # type: ignore[arg-type]  # that is the point


def test_no_quota_is_refused_for_what_was_saved_up(tmp_path: Path) -> None:
    """A burst (cpu.max.burst) above a quota makes the kernel refuse it; it is put aside, and comes back."""
    host = FakeHost(tmp_path, n=3)
    write(host, "vm2/cpu.max", "50000 100000\n")
    write(host, "vm2/cpu.max.burst", "40000\n")
    hal = open_hal(host)
    doc = claim(hal)
    receipt = Receipt()
    hal.apply(Plan(np.array([Control.CPU], np.int8), np.array([2]), np.array([1]), np.zeros((0, 8), bool)), 0, receipt)
    assert receipt.failures == [] and read(host, "vm2/cpu.max") == "1000 10000"
    hal._release()  # as good as killed
    again = open_hal(host)
    docs: list[str] = []
    again.claim(lambda d: docs.append(json.dumps(d)), doc)
    assert read(host, "vm2/cpu.max.burst") == "0" and '"burst": 40000' in docs[0]
    again.close()
    assert read(host, "vm2/cpu.max") == "50000 100000" and read(host, "vm2/cpu.max.burst") == "40000"
