"""Topology, capabilities and spec over made-up sysfs trees."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from resctrl_host import FakeHost

from foreshare.envs.hal.linux.capabilities import clock_facts, probe, resctrl_facts
from foreshare.envs.hal.linux.resctrl.fake import Hardware
from foreshare.envs.hal.linux.resctrl.spec import ResctrlSpec
from foreshare.envs.hal.linux.roots import Roots
from foreshare.envs.hal.linux.spec import IoDevice, LinuxSpec
from foreshare.envs.hal.linux.topology import discover
from foreshare.policies.errors import HostError, InputError
from foreshare.policies.host import Resource


def put(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")


def two_sockets(root: Path) -> Roots:
    """2 sockets x 2 cores x 2 threads, siblings 4 apart, NUMA nodes 0 and 2."""
    files = {"sys/devices/system/cpu/online": "0-7", "sys/devices/system/node/node0/cpulist": "0-1,4-5",
             "sys/devices/system/node/node2/cpulist": "2-3,6-7", "sys/devices/system/node/possible": "0-3"}  # fmt: skip
    for cpu in range(8):
        base = f"sys/devices/system/cpu/cpu{cpu}/topology"
        files[f"{base}/core_cpus_list"] = f"{cpu % 4},{cpu % 4 + 4}"
        files[f"{base}/physical_package_id"] = str(cpu % 4 // 2)
    put(root, files)
    return Roots(cgroup=str(root / "cg"), sys=str(root / "sys"), proc=str(root / "proc"))


def test_sockets_nodes_cores_and_siblings(tmp_path: Path) -> None:
    layout = discover(two_sockets(tmp_path))
    assert layout.cpu_id.tolist() == list(range(8))
    assert layout.core.tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
    assert layout.zone.tolist() == [0, 0, 1, 1, 0, 0, 1, 1]
    assert layout.socket.tolist() == [0, 0, 1, 1, 0, 0, 1, 1]
    assert layout.node_id == (0, 2)
    topology = layout.topology(2e9)
    assert topology.threads_per_core == 2
    assert [topology.pool(Resource.CPU, z).units for z in (0, 1)] == [40, 40]
    assert topology.pool(Resource.IO, 1).unit_size == 2e7
    assert topology.movable().tolist() == [True, False, False, True]
    assert layout.topology().movable().tolist() == [True, False, False, False]


def test_only_some_cpus_are_managed(tmp_path: Path) -> None:
    roots = two_sockets(tmp_path)
    layout = discover(roots, cpus=frozenset({3, 6, 7, 99}), units_per_cpu=4)
    assert (layout.cpu_id.tolist(), layout.core.tolist(), layout.zone.tolist()) == ([3, 6, 7], [0, 1, 0], [0, 0, 0])
    assert layout.topology().pool(Resource.CPU, 0).units == 12
    with pytest.raises(HostError, match="none of the CPUs 98-99 is online on this host; online are 0-7"):
        discover(roots, cpus=frozenset({98, 99}))


def test_a_kernel_without_numa_or_topology_has_one_zone(tmp_path: Path) -> None:
    put(tmp_path, {"devices/system/cpu/online": "0,2"})
    layout = discover(Roots(sys=str(tmp_path)))
    assert (layout.core.tolist(), layout.zone.tolist()) == ([0, 1], [0, 0])
    with pytest.raises(HostError, match="is sysfs mounted"):
        discover(Roots(sys=str(tmp_path / "nowhere")))


def test_a_bare_host_says_what_is_missing(tmp_path: Path) -> None:
    caps = probe(two_sockets(tmp_path))
    assert list(caps) == ["cpu", "cache", "memory", "io"]
    assert not any(c.move or c.measure for c in caps.values())
    assert all(c.why_not and "\n" not in c.why_not for c in caps.values())
    assert "mount one" in caps["cpu"].why_not
    assert caps["cpu"].units == 80
    assert clock_facts(two_sockets(tmp_path))["source"] == "unknown"


def test_why_not_follows_what_the_kernel_knows(tmp_path: Path) -> None:
    roots = two_sockets(tmp_path)
    rows = "#subsys_name\thierarchy\tnum_cgroups\tenabled\ncpu\t0\t1\t1\nblkio\t0\t1\t0"
    put(tmp_path, {"proc/cgroups": rows, "proc/cpuinfo": "flags\t\t: fpu cat_l3 mba"})
    caps = probe(roots)
    assert "not mounted" in caps["cpu"].why_not
    assert "switched off" in caps["io"].why_not
    assert "resctrl is not mounted" in caps["cache"].why_not
    assert "resctrl is not mounted" in caps["memory"].why_not
    (tmp_path / "sys/fs/resctrl").mkdir(parents=True)
    assert "mount -t resctrl" in probe(roots)["cache"].why_not


def test_what_resctrl_offers(tmp_path: Path) -> None:
    host = FakeHost(tmp_path)
    caps = probe(host.roots)
    assert (caps["cache"].measure, caps["cache"].move, caps["cache"].units, caps["cache"].unit) == (
        True,
        True,
        10,
        "way",
    )
    assert (caps["memory"].measure, caps["memory"].move) == (True, False)
    assert "memory_bandwidth" in caps["memory"].why_not
    assert probe(host.roots, resctrl=ResctrlSpec(memory_bandwidth=1e11))["memory"].unit == "10 % MBA"
    facts = resctrl_facts(host.roots)
    assert (facts["classes"], facts["classes_free"], facts["domains"]) == (8, 7, [0, 1])
    assert facts["cache"]["shareable_bits"] == "800" and facts["bandwidth"]["unit"] == "10 %"
    json.dumps(facts, allow_nan=False)
    host.fake.umount()
    assert "no resctrl" in resctrl_facts(host.roots)["why_none"]
    clustered = FakeHost(tmp_path / "snc", Hardware(domains={0: frozenset(range(8))}))
    assert "sub-NUMA clustering" in probe(clustered.roots)["cache"].why_not
    odd = FakeHost(tmp_path / "odd", Hardware(linear=False))
    assert "not linear" in probe(odd.roots, resctrl=ResctrlSpec(memory_bandwidth=1e11))["memory"].why_not


def test_a_v2_host_with_a_disk_can_move_cpu_and_io(tmp_path: Path) -> None:
    roots = two_sockets(tmp_path)
    put(tmp_path, {
        "proc/self/mountinfo": f"24 17 0:21 / {tmp_path}/cg rw - cgroup2 cg rw",
        "cg/cgroup.controllers": "cpuset cpu io", "cg/cgroup.procs": "", "sys/dev/block/254:0/size": "9",
        "cg/vm/cpu.max": "max 100000", "cg/vm/cpuset.cpus": "", "cg/bare/cpu.max": "max 100000",
    })  # fmt: skip
    disk = IoDevice(device="254:0", bandwidth_bytes=1e9)
    caps = probe(roots, io=[disk])
    assert (caps["cpu"].move, caps["cpu"].interface) == (True, "cgroup v2 cpu + v2 cpuset")
    assert (caps["io"].move, caps["io"].interface, caps["io"].units) == (True, "cgroup v2 io.max", 100)
    assert "no IO device is configured" in probe(roots)["io"].why_not
    assert probe(roots, cgroups=["vm"])["cpu"].move
    assert "enable the cpuset controller" in probe(roots, cgroups=["bare"])["cpu"].why_not
    assert "does not exist" in probe(roots, cgroups=["none"])["cpu"].why_not
    gone = IoDevice(device="9:9", bandwidth_bytes=1e9)
    assert "no block device 9:9" in probe(roots, io=[gone])["io"].why_not


def test_devices_are_whole_disks(tmp_path: Path) -> None:
    roots = two_sockets(tmp_path)
    put(tmp_path, {"sys/dev/block/8:0/size": "9", "sys/dev/block/8:1/partition": "1"})
    assert IoDevice(device="8:0", bandwidth_bytes=1).number(roots) == "8:0"
    for device, why in (("8:1", "partition"), ("7:7", "no block device"), ("/dev/no-such-disk", "No such file")):
        with pytest.raises(HostError, match=why):
            IoDevice(device=device, bandwidth_bytes=1).number(roots)
    for bandwidth in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match="bandwidth"):
            IoDevice(device="8:0", bandwidth_bytes=bandwidth).number(roots)
    with pytest.raises(InputError, match="neither"):
        IoDevice(device="vda", bandwidth_bytes=1).number(roots)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"period_us": 500}, "period_us"),
        ({"period_us": 2_000_000}, "period_us"),
        ({"units_per_cpu": 3}, "must divide"),
        ({"units_per_cpu": 0}, "must divide"),
        ({"units_per_cpu": 20}, "least is 1000"),
        ({"placement": "pinned"}, "placement"),
    ],
)
def test_a_spec_that_the_kernel_would_refuse_is_refused(fields: dict[str, object], why: str) -> None:
    with pytest.raises(InputError, match=why):
        LinuxSpec(vms=(), **fields)  # type: ignore[arg-type]  # wrong on purpose


def test_this_machine_has_cpus() -> None:
    layout = discover(Roots())
    assert set(layout.cpu_id.tolist()) == set(layout.online)
    assert os.sched_getaffinity(0) <= layout.online
