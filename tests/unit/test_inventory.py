"""The hardware inventory over made-up kernel trees: right numbers where the host tells, a reason where it does not."""

from __future__ import annotations

import json
import os
import random
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foreshare.envs.hal.linux import inventory as inventory_module
from foreshare.envs.hal.linux.inventory import inventory, link_bytes_per_s, pcie, power, qos
from foreshare.envs.hal.linux.memory_channels import memory_channels
from foreshare.envs.hal.linux.roots import Roots
from foreshare.envs.hal.linux.smbios import read_tables


def write(root: Path, files: dict[str, str | bytes]) -> Roots:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return Roots(cgroup=f"{root}/sys/fs/cgroup", sys=f"{root}/sys", proc=f"{root}/proc")


def node_files(nodes: dict[int, str], packages: dict[int, int]) -> dict[str, str | bytes]:
    """Return sysfs files for NUMA nodes (node: CPU list) and the package of each CPU."""
    out: dict[str, str | bytes] = {}
    for node, cpus in nodes.items():
        out[f"sys/devices/system/node/node{node}/cpulist"] = cpus + "\n"
        out[f"sys/devices/system/node/node{node}/meminfo"] = f"Node {node} MemTotal:       1048576 kB\n"
    for cpu, package in packages.items():
        out[f"sys/devices/system/cpu/cpu{cpu}/topology/physical_package_id"] = f"{package}\n"
    return out


def structure(kind: int, handle: int, body: bytes, *texts: str) -> bytes:
    strings = b"\0".join(t.encode() for t in texts) + b"\0" if texts else b"\0"
    return struct.pack("<BBH", kind, 4 + len(body), handle) + body + strings + b"\0"


def module(handle: int, bank: str, locator: str, *, array: int = 0x1000, speed: int = 4800, mib: int = 16384,
           kind: int = 0x22) -> bytes:  # fmt: skip
    """Return one type 17 structure, laid out field by field as DSP0134 7.18 has it."""
    body = struct.pack(
        "<HHHHHBBBBBHHBBBBBIHHHH",
        array, 0xFFFE, 72, 64, mib, 9, 0, 1, 2 if bank else 0, kind, 0, 5600, 0, 0, 0, 0, 2, 0, speed, 0, 0, 0,
    )  # fmt: skip
    return structure(17, handle, body, *filter(None, (locator, bank)))  # string 0 is no string


def array_range(handle: int, array: int, first_kib: int, last_kib: int) -> bytes:
    return structure(19, handle, struct.pack("<IIHB", first_kib, last_kib, array, 1))


END = structure(127, 0xFEFF, b"")


@pytest.mark.parametrize(
    ("speed", "lanes", "expected"),
    [
        (2.5, 1, 250e6),  # gen 1 and 2: the well-known 250 and 500 MB/s of a lane
        (5.0, 4, 2e9),
        (8.0, 16, 15.753846e9),  # gen 3: 985 MB/s of a lane
        (16.0, 16, 31.507692e9),
        (32.0, 16, 63.015385e9),
        (64.0, 16, 121e9),  # gen 6: 128 GB/s of raw bits, 242 of 256 bytes for packets
    ],
)
def test_the_bandwidth_behind_a_link(speed: float, lanes: int, expected: float) -> None:
    assert link_bytes_per_s(speed, lanes) == pytest.approx(expected, rel=1e-6)


def test_unknown_links_have_no_bandwidth() -> None:
    assert link_bytes_per_s(3.0, 16) is None
    assert link_bytes_per_s(16.0, 0) is None


def pci_tree(root: Path) -> Roots:
    """A root port at 8 GT/s x4 above a NIC that could do 16 GT/s x16 and has virtual functions."""
    port = "sys/devices/pci0000:00/0000:00:01.0"
    nic = f"{port}/0000:01:00.0"
    link = {"current_link_speed": "8.0 GT/s PCIe", "current_link_width": "4", "max_link_speed": "16.0 GT/s PCIe"}
    files: dict[str, str | bytes] = {f"{port}/{k}": v + "\n" for k, v in {**link, "max_link_width": "16"}.items()}
    files |= {f"{port}/class": "0x060400\n", f"{port}/numa_node": "-1\n"}
    files |= {
        f"{nic}/{k}": v + "\n"
        for k, v in {
            "current_link_speed": "16.0 GT/s PCIe", "current_link_width": "8", "max_link_speed": "16.0 GT/s PCIe",
            "max_link_width": "16", "class": "0x020000", "numa_node": "1", "sriov_totalvfs": "64", "sriov_numvfs": "8",
        }.items()
    }  # fmt: skip
    files["sys/devices/pci0000:00/0000:00:1f.0/class"] = "0x060100\n"
    files["sys/bus/pci/drivers/ice/module"] = ""
    roots = write(root, files)
    (root / "sys/bus/pci/devices").mkdir(parents=True)
    for name in (port, nic, "sys/devices/pci0000:00/0000:00:1f.0"):
        (root / "sys/bus/pci/devices" / os.path.basename(name)).symlink_to(root / name)
    (root / nic / "driver").symlink_to(root / "sys/bus/pci/drivers/ice")
    return roots


def test_pcie_devices_with_link_driver_node_and_virtual_functions(tmp_path: Path) -> None:
    """Fault 51."""
    found = pcie(pci_tree(tmp_path))
    port, nic = found["devices"]
    assert found["without_link"] == 1
    assert (port["class"], port["numa_node"], port["driver"], port["sriov"]) == ("PCI bridge", None, None, None)
    assert (nic["class"], nic["numa_node"], nic["driver"]) == ("Ethernet", 1, "ice")
    assert nic["link"]["current"] == {
        "gt_per_s": 16.0, "generation": 4, "lanes": 8, "bytes_per_s": pytest.approx(16e9 * 128 / 130),
    }  # fmt: skip
    assert nic["link"]["max"]["lanes"] == 16
    # The port above is slower than the device itself.
    assert nic["path"] == {"bytes_per_s": pytest.approx(4e9 * 128 / 130), "limited_by": "0000:00:01.0"}
    assert nic["sriov"] == {"enabled": 8, "most": 64}
    assert "lanes" in found["why_not_per_vm"]


@pytest.mark.parametrize(
    ("speed", "width"), [("Unknown", "255"), ("Unknown speed", "63"), ("", ""), ("8", "-1"), ("\0", "x4")]
)
def test_a_link_that_says_nonsense_is_unknown(tmp_path: Path, speed: str, width: str) -> None:
    """Fault 50."""
    folder = "sys/bus/pci/devices/0000:02:00.0"
    roots = write(tmp_path, {f"{folder}/current_link_speed": speed, f"{folder}/current_link_width": width})
    (device,) = pcie(roots)["devices"]
    assert device["link"]["current"] == {"gt_per_s": None, "generation": None, "lanes": None, "bytes_per_s": None}
    assert device["path"] == {"bytes_per_s": None, "limited_by": None}


def edac(mc: int, dimm: int, location: str, **more: str) -> dict[str, str | bytes]:
    base = f"sys/devices/system/edac/mc/mc{mc}/dimm{dimm}"
    files = {"dimm_location": location, "size": "16384", "dimm_mem_type": "Registered-DDR5", "dimm_label": "", **more}
    return {f"{base}/{k}": v + "\n" for k, v in files.items()}


def test_channels_from_edac_and_speed_from_the_firmware(tmp_path: Path) -> None:
    files = node_files({0: "0-3", 1: "4-7"}, {c: c // 4 for c in range(8)})
    for mc in range(4):
        socket = mc // 2
        for channel in range(2):
            for slot in range(2):
                label = f"CPU_SrcID#{socket}_MC#{mc % 2}_Chan#{channel}_DIMM#{slot}"
                # The second slot of every channel is empty: it adds no channel.
                size = {"size": "0"} if slot else {}
                files |= edac(mc, 2 * channel + slot, f"channel {channel} slot {slot} ", dimm_label=label, **size)
    files["sys/firmware/dmi/tables/DMI"] = module(1, "", "A1") + module(2, "", "A2") + END
    memory = memory_channels(write(tmp_path, files))
    for node in memory["nodes"]:
        assert node["channels"] == 4, node
        assert node["memory_bytes"] == 1 << 30
        assert node["speed_mt_s"] == 4800
        assert node["bandwidth_bytes_per_s"] == 4 * 4800 * 10**6 * 8
        assert "edac" in node["source"]
        assert "DMI" in node["source"]
    assert memory["host"]["channels"] == 8
    assert memory["nodes"][0]["channel_names"] == ["mc0 channel 0", "mc0 channel 1", "mc1 channel 0", "mc1 channel 1"]


def test_amd_controllers_are_numbered_by_node(tmp_path: Path) -> None:
    files = node_files({0: "0-1", 1: "2-3"}, dict.fromkeys(range(4), 0))  # two nodes in one package: NPS2
    for mc in range(2):
        files[f"sys/devices/system/edac/mc/mc{mc}/mc_name"] = "F19h_M10h\n"
        files |= (
            edac(mc, 0, "csrow 0 channel 3 ") | edac(mc, 1, "csrow 1 channel 3 ") | edac(mc, 2, "csrow 0 channel 5 ")
        )
    memory = memory_channels(write(tmp_path, files))
    assert [n["channels"] for n in memory["nodes"]] == [2, 2]
    assert memory["host"]["bandwidth_bytes_per_s"] is None
    assert "how fast" in memory["host"]["why_unknown"]


def test_sub_numa_clustering_is_not_guessed(tmp_path: Path) -> None:
    files = node_files({0: "0-1", 1: "2-3"}, dict.fromkeys(range(4), 0))
    files |= edac(0, 0, "channel 0 slot 0", dimm_label="CPU_SrcID#0_MC#0_Chan#0_DIMM#0")
    memory = memory_channels(write(tmp_path, files))
    assert memory["host"]["channels"] == 1
    assert [n["channels"] for n in memory["nodes"]] == [None, None]
    assert "cannot be told" in memory["nodes"][0]["why_unknown"]


def test_edac_without_channels_falls_back_to_the_firmware(tmp_path: Path) -> None:
    files = node_files({0: "0"}, {0: 0}) | edac(0, 0, "memory 0 ")  # as ghes_edac says it
    table = (
        module(1, "P0 CHANNEL A", "DIMM 0") + module(2, "P0 CHANNEL A", "DIMM 1") + module(3, "P0 CHANNEL B", "DIMM 0")
    )
    files["sys/firmware/dmi/tables/DMI"] = table + END
    (node,) = memory_channels(write(tmp_path, files))["nodes"]
    assert node["channels"] == 2
    assert node["channel_names"] == ["socket 0 channel A", "socket 0 channel B"]
    assert node["bandwidth_bytes_per_s"] == 2 * 4800 * 10**6 * 8


@pytest.mark.parametrize(
    ("names", "channels"),
    [
        ([("", "DIMM_A1"), ("", "DIMM_A2"), ("", "DIMM_B1")], [2]),
        ([("P0_Node0_Channel0_Dimm0", "P1-DIMMA1"), ("P0_Node0_Channel1_Dimm0", "P1-DIMMB1")], [2]),
        ([("BANK 0", "Controller0-ChannelA-DIMM0"), ("BANK 0", "Controller0-ChannelB-DIMM0")], [2]),
        ([("", "PROC 1 DIMM 1")], [None]),
        ([("", "A1"), ("", "B1")], [None]),  # there, the letter is the socket
    ],
)
def test_habits_of_naming_slots(tmp_path: Path, names: list[tuple[str, str]], channels: list[int | None]) -> None:
    table = b"".join(module(i, *name) for i, name in enumerate(names)) + END
    memory = memory_channels(write(tmp_path, node_files({0: "0"}, {0: 0}) | {"sys/firmware/dmi/tables/DMI": table}))
    assert [n["channels"] for n in memory["nodes"]] == channels
    assert (memory["host"]["why_unknown"] == "") == (channels[0] is not None)


def test_the_firmwares_ranges_tell_the_node(tmp_path: Path) -> None:
    files = node_files({0: "0", 1: "1"}, {0: 0, 1: 0})
    files["sys/devices/system/memory/block_size_bytes"] = "8000000\n"  # 128 MiB
    for node, blocks in ((0, range(8)), (1, range(8, 16))):
        for b in blocks:
            files[f"sys/devices/system/node/node{node}/memory{b}/state"] = "online\n"
    gib = 1 << 20
    files["sys/firmware/dmi/tables/DMI"] = (
        module(1, "CHANNEL A", "x", array=0x10) + module(2, "CHANNEL B", "x", array=0x20)
        + array_range(3, 0x10, 0, gib - 1) + array_range(4, 0x20, gib, 2 * gib - 1) + END
    )  # fmt: skip
    memory = memory_channels(write(tmp_path, files))
    assert [n["channel_names"] for n in memory["nodes"]] == [["array 16 channel A"], ["array 32 channel B"]]


def test_sockets_counted_from_one_still_find_their_node(tmp_path: Path) -> None:
    files = node_files({0: "0", 1: "1"}, {0: 0, 1: 1})
    files["sys/firmware/dmi/tables/DMI"] = module(1, "", "CPU1_DIMM_A1") + module(2, "", "CPU2_DIMM_A1") + END
    memory = memory_channels(write(tmp_path, files))
    assert [n["channel_names"] for n in memory["nodes"]] == [["socket 1 channel A"], ["socket 2 channel A"]]


def test_low_power_memory_has_no_assumed_width(tmp_path: Path) -> None:
    table = module(1, "CHANNEL A", "x", kind=0x23) + END
    host = memory_channels(write(tmp_path, {"sys/firmware/dmi/tables/DMI": table}))["host"]
    assert (host["channels"], host["bandwidth_bytes_per_s"]) == (1, None)
    assert "DDR3 to DDR5" in host["why_unknown"]


@pytest.mark.parametrize("speed", [0, 1, 65535])
def test_a_speed_that_cannot_be_is_unknown(tmp_path: Path, speed: int) -> None:
    table = module(1, "CHANNEL A", "x", speed=speed) + END
    host = memory_channels(write(tmp_path, {"sys/firmware/dmi/tables/DMI": table}))["host"]
    assert (host["channels"], host["speed_mt_s"], host["bandwidth_bytes_per_s"]) == (1, None, None)


def test_single_entries_serve_where_the_whole_table_does_not(tmp_path: Path) -> None:
    entries = "sys/firmware/dmi/entries"
    files: dict[str, str | bytes] = {f"{entries}/17-{i}/raw": module(i, "CHANNEL A", f"{i}") for i in range(3)}
    files[f"{entries}/4-0/raw"] = b"junk"
    tables = read_tables(write(tmp_path, files))
    assert len(tables.modules) == 3
    assert tables.modules[0].size_bytes == 16 << 30
    assert tables.source.endswith("entries")


def test_empty_slots_and_extended_sizes(tmp_path: Path) -> None:
    big = bytearray(module(1, "CHANNEL A", "x", mib=0x7FFF))
    struct.pack_into("<I", big, 0x1C, 128 << 10)
    table = bytes(big) + module(2, "CHANNEL B", "y", mib=0) + END
    tables = read_tables(write(tmp_path, {"sys/firmware/dmi/tables/DMI": table}))
    assert [m.size_bytes for m in tables.modules] == [128 << 30]


def test_a_table_that_is_not_for_us_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: Any, **_kwargs: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    roots = write(tmp_path, {"sys/firmware/dmi/tables/DMI": END})
    monkeypatch.setattr("builtins.open", refuse)
    assert "only root" in read_tables(roots).why_not


@settings(deadline=None, max_examples=60)
@given(st.binary(max_size=300))
def test_any_firmware_table_is_survived(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    root = tmp_path_factory.mktemp("dmi")
    for table in (data, module(1, "CHANNEL A", "x") + data, bytes([17, 0x22 + len(data) % 64]) + data + b"\0\0"):
        memory_channels(write(root, {"sys/firmware/dmi/tables/DMI": table}))


def test_disks(tmp_path: Path) -> None:
    files: dict[str, str | bytes] = {
        "sys/block/nvme0n1/size": "2000409264\n", "sys/block/nvme0n1/dev": "259:0\n",
        "sys/block/nvme0n1/queue/rotational": "0\n", "sys/block/nvme0n1/queue/scheduler": "[none] mq-deadline\n",
        "sys/block/loop0/size": "0\n", "sys/block/sdx/size": "many\n", "sys/block/sdx/dev": "8:0; rm\n",
    }  # fmt: skip
    found = {d["name"]: d for d in inventory(write(tmp_path, files))["block"]["devices"]}
    assert found == {
        "nvme0n1": {"name": "nvme0n1", "number": "259:0", "size_bytes": 2000409264 * 512, "rotational": False,
                    "scheduler": "none", "virtual": False},
        "sdx": {"name": "sdx", "number": None, "size_bytes": None, "rotational": None, "scheduler": None,
                "virtual": False},
    }  # fmt: skip


def test_power_controls_are_shown_with_why_they_are_not_per_vm(tmp_path: Path) -> None:
    roots = write(tmp_path, {
        "sys/firmware/acpi/platform_profile": "balanced\n",
        "sys/firmware/acpi/platform_profile_choices": "low-power balanced performance\n",
        "sys/devices/platform/AMDI0102:00/cnqf_enable": "off\n",
        "sys/class/misc/hsmp/dev": "10:123\n", "sys/class/hwmon/hwmon3/name": "hsmp_hwmon\n",
    })  # fmt: skip
    found = power(roots)
    assert found["platform_profile"]["value"] == "balanced"
    assert found["platform_profile"]["choices"] == ["low-power", "balanced", "performance"]
    assert found["amd_pmf"]["cnqf_enable"] == "off"
    assert found["hsmp"]["hwmon"] == ["hwmon3"]
    assert all(entry["present"] and entry["source"] and entry["why_not_per_vm"] for entry in found.values())
    nothing = power(Roots(cgroup="/nowhere", sys="/nowhere", proc="/nowhere"))
    assert not any(entry["present"] or entry["source"] for entry in nothing.values())


CPUINFO = "processor\t: 0\nmodel name\t: A CPU\nflags\t\t: fpu {}\n\nprocessor\t: 1\nflags\t\t: other\n"


def test_qos_features_and_where_resctrl_is(tmp_path: Path) -> None:
    # More than one page of text: the kernel hands out /proc files a page at a time.
    padding = "".join(f"{i} 1 0:{i} / /mnt/{i} rw - tmpfs tmpfs rw\n" for i in range(400))
    roots = write(tmp_path, {
        "proc/cpuinfo": CPUINFO.format("cat_l3 cqm_mbm_total mba rdt_a"),
        "proc/filesystems": "nodev\tresctrl\n\text4\n",
        "proc/self/mountinfo": padding + "99 1 0:99 / /sys/fs/resctrl rw - resctrl resctrl rw\n",
    })  # fmt: skip
    found = qos(roots)
    assert found["flags"] == ["cat_l3", "mba", "rdt_a", "cqm_mbm_total"]
    assert found["why_none"] == ""
    assert found["resctrl"] | {"source": ""} == {
        "in_kernel": True, "mounted": True, "mount_point": "/sys/fs/resctrl", "source": "",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ({"proc/cpuinfo": CPUINFO.format("hypervisor")}, "hypervisor"),
        ({"proc/cpuinfo": CPUINFO.format("sse2")}, "switched off at boot"),
        ({"proc/cpuinfo": "processor\t: 0\nFeatures\t: fp asimd\n"}, "arm64"),
        ({}, "cannot be read"),
    ],
)
def test_no_qos_features_comes_with_the_reason(tmp_path: Path, files: dict[str, str | bytes], why: str) -> None:
    found = qos(write(tmp_path, files))
    assert found["flags"] == []
    assert why in found["why_none"]


def test_a_host_that_tells_nothing_is_all_unknown(tmp_path: Path) -> None:
    found = inventory(write(tmp_path, {}))
    json.dumps(found, allow_nan=False)
    assert found["pcie"]["why_unknown"]
    assert found["block"]["why_unknown"]
    (node,) = found["memory"]["nodes"]
    assert (node["channels"], node["memory_bytes"]) == (None, None)
    assert node["why_unknown"]


def test_this_host_can_be_read_whatever_it_is() -> None:
    json.dumps(inventory(Roots()), allow_nan=False)


NONSENSE = [b"", b"\0", b"-1\n", b"\xff\xfe", b"9" * 5000, b"x" * 70_000, b"0x\n", b"1 2 3\n", "٣\n".encode(), b"nan\n"]


@pytest.mark.parametrize("seed", range(12))
def test_malformed_content_never_raises(tmp_path: Path, seed: int) -> None:
    """Every file of a full tree in turn says nonsense."""
    roots = pci_tree(tmp_path)
    write(tmp_path, node_files({0: "0", 1: "1"}, {0: 0, 1: 1}))
    write(tmp_path, edac(0, 0, "channel 0 slot 0", dimm_label="CPU_SrcID#0_MC#0_Chan#0_DIMM#0"))
    write(tmp_path, {"sys/block/sda/size": "8", "sys/block/sda/dev": "8:0", "proc/cpuinfo": CPUINFO.format("mba")})
    write(tmp_path, {"sys/devices/system/memory/block_size_bytes": "8", "proc/self/mountinfo": "1 - resctrl x\n"})
    write(tmp_path, {"sys/firmware/dmi/tables/DMI": module(1, "CHANNEL A", "x") + END, "proc/filesystems": "x\n\n"})
    choose = random.Random(seed)
    for path in sorted(p for p in tmp_path.rglob("*") if p.is_file() and not p.is_symlink()):
        if choose.random() < 0.5:
            path.write_bytes(choose.choice(NONSENSE))
    json.dumps(inventory(roots), allow_nan=False)


def test_every_interface_that_looks_like_a_control_says_why_it_is_none() -> None:
    assert all(len(why) > 40 for why in inventory_module.WHY_NOT_PER_VM.values())
