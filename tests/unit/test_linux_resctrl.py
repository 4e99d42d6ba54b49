"""Cache ways and memory bandwidth of the linux backend, on a resctrl that refuses as the kernel does."""

from __future__ import annotations

import dataclasses
import errno
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from resctrl_host import TICK_NS, FakeHost, KilledError, apply, claim, plan, tick

from foreshare.envs.hal.linux.hal import LinuxHal
from foreshare.envs.hal.linux.resctrl.fake import AMD, INTEL, FakeResctrl, Hardware
from foreshare.envs.hal.linux.resctrl.masks import longest_run
from foreshare.envs.hal.linux.resctrl.names import GroupNames, vm_hex
from foreshare.envs.hal.linux.restore import restore
from foreshare.envs.hal.types import Control
from foreshare.policies.errors import HostError, InputError
from foreshare.policies.host import Host, Placement, Resource
from foreshare.policies.reading import Quality, Reading

WAYS, MEMORY = Control.WAYS, Control.MEMORY


def held(hal: LinuxHal) -> Placement:
    into = Placement.empty(len(hal.vms), hal.topology.cpus)
    hal.read_back(into)
    return into


def name_of(hal: LinuxHal, row: int) -> str:
    assert hal.partitions is not None
    return hal.partitions.named[int(hal.partitions.state.group[row])][0]


def test_topology_has_ways_classes_and_bandwidth(tmp_path: Path) -> None:
    hal = FakeHost(tmp_path, isolated=(1,)).open()
    t = hal.topology
    assert (t.ways, t.way_bits, t.shared_ways, t.min_ways, t.max_classes) == (10, 12, 1, 1, 7)
    for z in (0, 1):
        assert t.pool(Resource.CACHE, z).units == 10
        memory = t.pool(Resource.MEMORY, z)
        assert (memory.units, memory.unit, memory.unit_size) == (10, "10 % MBA", 10e9)
    Host(t, hal.vms)
    hal.close()


def test_amd_counts_eighths_of_gigabytes(tmp_path: Path) -> None:
    hal = FakeHost(tmp_path, AMD, isolated=(1,)).open(memory=20e9)
    memory = hal.topology.pool(Resource.MEMORY, 0)
    assert (memory.units, memory.unit, memory.unit_size) == (160, "1/8 GB/s", 1.25e8)
    assert (hal.topology.max_classes, hal.topology.min_ways) == (15, 1)
    hal.close()


def test_groups_are_made_filled_and_only_then_joined(tmp_path: Path) -> None:
    host = FakeHost(tmp_path)
    order: list[tuple[str, str]] = []
    host.fake.before = lambda operation, path: order.append((operation, path))
    hal = host.open()
    assert host.fake.writes == [] and host.groups() == set()
    claim(hal)
    names = {f"foreshare-{vm_hex(uuid)}" for uuid in hal.vms.uuid}
    assert host.groups() == names
    for name in names:
        mine = [(op, path.removeprefix(name)) for op, path in order if path.startswith(name)]
        assert mine[0] == ("mkdir", "")
        assert [p for _, p in mine].index("/tasks") > max(
            i for i, (_, p) in enumerate(mine) if p == "/schemata" or not p
        )
    for row in range(4):
        assert host.tasks(name_of(hal, row)) == set(host.tids[row])
    hal.close()
    assert host.groups() == set()
    assert host.fake.open_files == 0


def test_plans_are_written_donors_first_and_read_back(tmp_path: Path) -> None:
    host = FakeHost(tmp_path, isolated=(0, 1), zones=lambda i: 0)
    hal = host.open()
    claim(hal)
    a, b = name_of(hal, 0), name_of(hal, 1)
    receipt = apply(hal, (MEMORY, 0, 3), (WAYS, 0, 0b1110), (WAYS, 1, 0b110000))
    assert receipt.failures == [] and receipt.system_calls >= 2
    assert host.masks(a) == {0: 0b1110, 1: 1} and host.masks(b) == {0: 0b110000, 1: 1}
    assert host.bandwidth(a) == {0: 30, 1: 100}
    assert host.masks(name_of(hal, 2))[0] & 0b111110 == 0
    before = len(host.fake.writes)
    assert apply(hal, (WAYS, 0, 0b10), (WAYS, 1, 0b11100)).failures == []
    wrote = host.fake.writes[before:]
    assert wrote[0][0] == f"{a}/schemata" and wrote[-1][0] == f"{b}/schemata"
    assert b"MB" not in b"".join(data for _, data in wrote), "only lines that changed"
    now = held(hal)
    assert now.ways.tolist() == [0b10, 0b11100, 0, 0]
    assert now.units[:2, Resource.CACHE].tolist() == [1, 3]
    assert now.units[0, Resource.MEMORY] == 3
    quiet = len(host.fake.writes)
    assert apply(hal, (WAYS, 0, 0b10), (MEMORY, 0, 3)).failures == []
    assert len(host.fake.writes) == quiet, "what is held already is not written"
    hal.close()


@pytest.mark.parametrize("mask", [0b101, 1, 0x800, 0x1000, 0b11])
def test_masks_that_would_not_be_legal_never_reach_the_kernel(mask: int, tmp_path: Path) -> None:
    host = FakeHost(tmp_path)
    hal = host.open()
    claim(hal)
    before = len(host.fake.writes)
    (failure,) = apply(hal, (WAYS, 0, mask)).failures
    assert failure.errno == errno.EINVAL and "illegal" in failure.text
    assert len(host.fake.writes) == before
    hal.close()


def test_two_vms_are_never_promised_the_same_way(tmp_path: Path) -> None:
    hal = FakeHost(tmp_path, zones=lambda i: 0).open()
    claim(hal)
    receipt = apply(hal, (WAYS, 0, 0b110), (WAYS, 1, 0b1100))
    assert [f.index for f in receipt.failures] == [1]
    hal.close()


def test_the_order_within_a_plan_does_not_matter_to_promises(tmp_path: Path) -> None:
    hal = FakeHost(tmp_path, zones=lambda i: 0).open()
    claim(hal)
    apply(hal, (WAYS, 1, 0b1110))
    assert apply(hal, (WAYS, 0, 0b110), (WAYS, 1, 0b1000)).failures == []
    assert held(hal).ways.tolist()[:2] == [0b110, 0b1000]
    hal.close()


def test_every_prefix_of_every_write_leaves_no_overlap(tmp_path: Path) -> None:
    """Fault 38: the process dies at any write; the next start goes on and ends with nothing left behind."""
    moves = [[(WAYS, 0, 0b1110), (WAYS, 1, 0b110000)], [(WAYS, 0, 0b10), (WAYS, 1, 0b1111100)],
             [(WAYS, 0, 0), (WAYS, 1, 0b110)], [(WAYS, 1, 0b11 << 8), (WAYS, 0, 0b111110)]]  # fmt: skip

    for at in range(40):
        folder = tmp_path / str(at)
        host = FakeHost(folder, isolated=(0, 1), zones=lambda i: 0)
        hal = host.open()
        doc = claim(hal)
        a, b = name_of(hal, 0), name_of(hal, 1)
        host.die_at(at)
        try:
            for move in moves:
                apply(hal, *move)
                assert host.masks(a)[0] & host.masks(b)[0] & ~1 == 0
        except KilledError:
            pass
        else:
            assert at > 5
            host.live()
            hal.close()
            break
        host.live()
        masks = {g: host.masks(g)[0] for g in (a, b)}
        assert masks[a] & masks[b] & ~1 == 0, (at, masks)
        others = [host.masks(g)[0] for g in host.groups() - {a, b}]
        assert not any(m & (masks[a] | masks[b]) & ~1 for m in others), (at, masks)
        hal._release()  # what the kernel does for a process that was killed: its files are closed
        again = host.open()
        again.claim(lambda doc: None, doc)
        assert {g: host.masks(g)[0] for g in (a, b)} == masks, "a restart starts from what is there"
        assert apply(again, (WAYS, 0, 0), (WAYS, 1, 0), *moves[1]).failures == []
        assert held(again).ways.tolist()[:2] == [2, 124]
        again.close()
        assert host.groups() == set() and host.fake.open_files == 0
    else:
        pytest.fail("the plans never came to their end")


def test_restore_removes_ours_and_nothing_else(tmp_path: Path) -> None:
    host = FakeHost(tmp_path)
    fd = host.fake.open(host.fake.path, 0)
    host.fake.mkdir("other", dir_fd=fd)
    host.fake.put("other/schemata", "L3:0=f0\n")
    hal = host.open()
    assert hal.topology.max_classes == 6
    doc = claim(hal)
    apply(hal, (WAYS, 0, 0b110))
    assert restore(doc, host.roots).failed == []
    assert host.groups() == {"other"} and host.masks("other")[0] == 0xF0
    assert restore(doc, host.roots).gone >= 1
    hal.close()
    host.fake.close(fd)


def test_an_unknown_error_comes_with_the_kernels_words(tmp_path: Path) -> None:
    """Faults 6 and 54: EINVAL on schemata; the value stays as it was, the receipt has the kernel's own words."""
    host = FakeHost(tmp_path, zones=lambda i: 0)
    hal = host.open()
    claim(hal)
    row1 = name_of(hal, 1)
    fd = host.fake.open(host.fake.path, 0)
    for s in {*host.groups(), ""} - {row1}:
        host.fake.put(f"{s}/schemata".strip("/"), "L3:0=1;1=1\n")
    host.fake.put(f"{row1}/schemata", "L3:0=ff0;1=6\n")
    host.fake.put(f"{row1}/schemata", "L3:0=700;1=6\n")
    host.fake.put(f"{row1}/mode", "exclusive\n")
    (failure,) = apply(hal, (WAYS, 0, 0b11100000000 & 0x700)).failures
    assert "Overlaps with exclusive group" in failure.text
    assert held(hal).ways[0] == 0
    host.fake.close(fd)
    hal.close()


def test_the_lock_of_other_tools_is_waited_for_and_then_given_up(tmp_path: Path) -> None:
    """Faults 13 and 14."""
    host = FakeHost(tmp_path)
    hal = host.open()
    claim(hal)
    host.fake.locked_by_other = True
    (failure,) = apply(hal, (WAYS, 0, 0b110)).failures
    assert failure.errno == errno.EWOULDBLOCK and failure.deferred and "another tool holds the lock" in failure.text
    assert held(hal).ways[0] == 0
    host.fake.locked_by_other = False
    assert apply(hal, (WAYS, 0, 0b110)).failures == []
    hal.close()


def test_only_one_foreshare_drives_a_mount(tmp_path: Path) -> None:
    """Fault 41."""
    host = FakeHost(tmp_path, n=2)
    other = FakeHost(tmp_path / "b", n=2)
    other.fake = host.fake
    mounts = (tmp_path / "b/proc/self/mountinfo").read_text()
    other.put({"proc/self/mountinfo": f"{mounts}25 17 0:22 / {host.fake.path} rw - resctrl none rw"})
    first = host.open()
    claim(first)
    second = other.open(prefix="second-")
    with pytest.raises(HostError, match="another foreshare drives"):
        claim(second)
    second.close()
    assert len(host.groups()) == 2
    first.close()


def test_orphans_of_a_lost_journal_are_ours_to_remove(tmp_path: Path) -> None:
    host = FakeHost(tmp_path)
    fd = host.fake.open(host.fake.path, 0)
    for name in ("foreshare-" + "ab" * 16, "foreshare-class12", "foreshare-mine", "foreign"):
        host.fake.mkdir(name, dir_fd=fd)
    host.fake.close(fd)
    hal = host.open()
    assert hal.topology.max_classes == 5, "two of the seven are somebody else's"
    claim(hal)
    assert {"foreshare-mine", "foreign"} <= host.groups()
    assert "foreshare-class12" not in host.groups() and len(host.groups()) == 6
    hal.close()
    assert host.groups() == {"foreshare-mine", "foreign"}


def test_threads_in_another_tools_group_are_left_alone(tmp_path: Path) -> None:
    """Fault 13: libvirt's cachetune owns those threads."""
    host = FakeHost(tmp_path)
    fd = host.fake.open(host.fake.path, 0)
    host.fake.mkdir("qemu-1-guest", dir_fd=fd)
    host.fake.put("qemu-1-guest/tasks", f"{host.tids[2][0]}\n")
    host.fake.close(fd)
    hal = host.open()
    with pytest.raises(HostError, match="'qemu-1-guest' of another tool"):
        claim(hal)
    hal.close()
    assert host.groups() == {"qemu-1-guest"}


def test_a_vm_that_returns_in_another_tools_group_is_left_to_it(tmp_path: Path) -> None:
    """Fault 13: libvirt had given it a cachetune meanwhile. Once that is gone, it is ours again."""
    host = FakeHost(tmp_path)
    hal = host.open()
    claim(hal)
    host.vanish(2)
    tick(host, hal, 4)
    fd = host.fake.open(host.fake.path, 0)
    host.fake.mkdir("qemu-1-guest", dir_fd=fd)
    host.cgroups.mkdir("vm2")
    host.cgroups.put("vm2", "cpu.stat", "usage_usec 1000\nthrottled_usec 0\n")
    host.born(2, 7001)
    host.fake.put("qemu-1-guest/tasks", "7001\n")
    reading = tick(host, hal, 20)
    assert not reading.present[2] and host.tasks("qemu-1-guest") == {7001}
    assert any("'qemu-1-guest' of another tool" in line for line in hal.troubles())
    host.fake.rmdir("qemu-1-guest", dir_fd=fd)
    host.fake.close(fd)
    reading = tick(host, hal, 20)
    assert reading.present[2] and 7001 in host.tasks(name_of(hal, 2))
    assert hal.troubles() == ()
    hal.close()


def test_new_threads_follow_and_reused_numbers_do_not(tmp_path: Path) -> None:
    """Faults 2, 3 and 5."""
    host = FakeHost(tmp_path)
    hal = host.open()
    claim(hal)
    host.born(1, 7001)
    tick(host, hal, 25)
    assert 7001 in host.tasks(name_of(hal, 1))
    reused = host.tids[2][0]
    host.put({f"proc/{reused}/stat": f"{reused} (y) S " + " ".join(["0"] * 18 + ["99"] + ["0"] * 5)})
    host.fake.put("tasks", f"{reused}\n")
    host.die(2, reused)
    tick(host, hal, 250)
    assert reused not in host.tasks(name_of(hal, 2))
    host.fake.put("tasks", f"{host.tids[3][1]}\n")
    tick(host, hal, 900)
    assert host.tids[3][1] in host.tasks(name_of(hal, 3)), "a thread that somebody took away is put back"
    hal.close()


def test_a_group_that_is_removed_is_made_again(tmp_path: Path) -> None:
    """Faults 13 and 21, rmdir by another tool: its threads fall to the default group, without an error."""
    host = FakeHost(tmp_path, isolated=(0,), zones=lambda i: 0)
    hal = host.open()
    claim(hal)
    apply(hal, (WAYS, 0, 0b110), (MEMORY, 0, 4))
    name = name_of(hal, 0)
    fd = host.fake.open(host.fake.path, 0)
    tick(host, hal, 3)
    for _ in range(5):  # whosever turn it is to be read back
        host.fake.rmdir(name, dir_fd=fd)
        tick(host, hal)
        assert host.masks(name)[0] == 0b110 and host.bandwidth(name)[0] == 40
        assert host.tasks(name) == set(host.tids[0])
    host.fake.close(fd)
    hal.close()


@pytest.mark.parametrize("lost", ["old", "new"])
def test_a_vm_whose_class_is_removed_while_it_moves_is_not_lost(lost: str, tmp_path: Path) -> None:
    """Fault 13: the kernel puts its threads into the default group, where nothing bounds them."""
    host = FakeHost(tmp_path, n=12, zones=lambda i: 0)
    hal = host.open()
    claim(hal)
    tick(host, hal, 3)
    fd = host.fake.open(host.fake.path, 0)
    gone: list[str] = []

    def meanwhile(operation: str, path: str) -> None:
        if operation == "rename" and not gone:
            old = path.split("/", maxsplit=1)[0]
            gone.extend([old] if lost == "old" else sorted(host.groups() - {old}))
            for name in gone:
                host.fake.kernel.remove(host.fake.kernel.groups[name])

    host.fake.before = meanwhile
    apply(hal, (WAYS, 2, 0b110))
    tick(host, hal, 40)
    assert gone
    for row in range(12):
        assert set(host.tids[row]) <= host.tasks(name_of(hal, row))
    assert host.masks(name_of(hal, 2))[0] == 0b110 and host.tasks(name_of(hal, 2)) == set(host.tids[2])
    host.fake.close(fd)
    hal.close()


def test_no_write_is_longer_than_the_kernel_takes(tmp_path: Path) -> None:
    """Fault 55: a host of 900 L3 domains, all of which change."""
    domains = {d: frozenset({d % 8} if d < 8 else ()) for d in range(900)}
    hardware = Hardware(domains=domains, cbm_bits=20, shareable=0, mb_closids=16, amd=True, sparse=True, mb_min=0,
                        mb_max=2048, mb_gran=1, linear=False)  # fmt: skip
    host = FakeHost(tmp_path, hardware, n=1, isolated=(0,), zones=lambda i: 0)
    hal = host.open(memory=20e9)
    claim(hal)
    lengths = [len(data) for path, data in host.fake.writes if path.endswith("schemata")]
    assert max(lengths) <= 4096 and sum(lengths) > 4096, "more than one was needed"
    name = name_of(hal, 0)
    assert len(host.masks(name)) == 900 and set(host.masks(name).values()) == {1}
    hal.close()


def test_promises_that_cannot_be_kept_are_taken_back_together(tmp_path: Path) -> None:
    """Fault 14: in whatever order a plan names them, nobody loses ways because a lock was held."""
    for moves in ([(WAYS, 0, 0b110), (WAYS, 1, 0b111000)], [(WAYS, 1, 0b111000), (WAYS, 0, 0b110)]):
        host = FakeHost(tmp_path / f"first{moves[0][1]}", isolated=(0, 1), zones=lambda i: 0)
        hal = host.open()
        claim(hal)
        assert apply(hal, (WAYS, 0, 0b11110), (WAYS, 1, 0b100000)).failures == []
        host.fake.locked_by_other = True
        failures = apply(hal, *moves).failures
        assert [f.deferred for f in failures] == [True, True]
        host.fake.locked_by_other = False
        assert held(hal).ways.tolist()[:2] == [0b11110, 0b100000]
        assert hal.partitions is not None
        assert hal.partitions.state.ways.tolist()[:2] == [0b11110, 0b100000]
        hal.close()


def test_a_domain_that_comes_back_gets_its_masks_in_the_same_tick(tmp_path: Path) -> None:
    """Faults 20 and 21: full masks return with the domain; and before that, EINVAL without a word (fault 7)."""
    host = FakeHost(tmp_path, isolated=(0, 1), zones=lambda i: 1)
    hal = host.open()
    claim(hal)
    apply(hal, (WAYS, 0, 0b110), (WAYS, 1, 0b11000))
    for cpu in range(4, 8):
        host.fake.offline(cpu)
    assert apply(hal, (WAYS, 1, 0b1000)).failures == []
    host.set_online("0-3")
    tick(host, hal)
    assert host.masks(name_of(hal, 0)) == {0: 1}
    host.fake.online(5)
    assert host.masks(name_of(hal, 0))[1] == 0xFFF
    host.set_online("0-3,5")
    tick(host, hal)
    assert host.masks(name_of(hal, 0))[1] == 0b110
    assert host.masks(name_of(hal, 1))[1] == 0b1000
    hal.close()


def test_foreign_resets_are_mended(tmp_path: Path) -> None:
    """Faults 8 and 13: a mask that somebody else wrote."""
    host = FakeHost(tmp_path, isolated=(0, 1), zones=lambda i: 0)
    hal = host.open()
    claim(hal)
    apply(hal, (WAYS, 0, 0b110), (WAYS, 1, 0b11000))
    for row in range(4):
        host.fake.put(f"{name_of(hal, row)}/schemata", "L3:0=fff;1=fff\nMB:0=10\n")
    assert held(hal).ways[0] == 0b11111111110, "what is there is reported, not what was written"
    tick(host, hal, 5)
    assert host.masks(name_of(hal, 0))[0] == 0b110 and host.masks(name_of(hal, 1))[0] == 0b11000
    assert not host.masks(name_of(hal, 2))[0] & 0b11110
    assert held(hal).ways.tolist() == [0b110, 0b11000, 0, 0]
    hal.close()


def foreign_group(host: FakeHost, name: str, schemata: str, *, exclusive: bool = False) -> None:
    fd = host.fake.open(host.fake.path, 0)
    host.fake.mkdir(name, dir_fd=fd)
    host.fake.put(f"{name}/schemata", schemata)
    if exclusive:
        host.fake.put(f"{name}/mode", "exclusive\n")
    host.fake.close(fd)


@pytest.mark.parametrize("theirs", [0b111, 0xF00, 0b110000])
@pytest.mark.parametrize("exclusive", [True, False])
def test_ways_of_another_tool_are_planned_around(theirs: int, exclusive: bool, tmp_path: Path) -> None:
    """Fault 13: what libvirt's cachetune or pqos keeps is nobody's here, wherever on the line it lies."""
    hardware = dataclasses.replace(INTEL, shareable=0)
    host = FakeHost(tmp_path, hardware, isolated=(0, 1), zones=lambda i: 0)
    if exclusive:  # the kernel allows that only where the default group has none of these ways
        for domain in (0, 1):
            host.fake.put("schemata", f"L3:{domain}={longest_run(0xFFF & ~theirs):x}\n")
    foreign_group(host, "qemu-1-guest", f"L3:0={theirs:x};1={theirs:x}\n", exclusive=exclusive)
    hal = host.open()
    free = longest_run(0xFFF & ~theirs)
    first = (free & -free).bit_length() - 1
    assert (hal.topology.way_bits, hal.topology.ways) == (free.bit_count(), free.bit_count() - 1)
    claim(hal)
    assert apply(hal, (WAYS, 0, 0b110), (WAYS, 1, 0b11000)).failures == []
    assert held(hal).ways.tolist() == [0b110, 0b11000, 0, 0]
    assert host.masks(name_of(hal, 0))[0] == 0b110 << first and host.masks(name_of(hal, 1))[0] == 0b11000 << first
    assert any(f"L3:0={0b110 << first:x}" in line for line in hal.describe(plan((WAYS, 0, 0b110))))
    tick(host, hal, 20)
    assert all(mask & theirs == 0 for name in host.groups() - {"qemu-1-guest"} for mask in host.masks(name).values())
    assert host.masks("qemu-1-guest") == {0: theirs, 1: theirs} and hal.troubles() == ()
    doc = hal._doc
    hal._release()
    again = host.open()
    again.claim(lambda doc: None, doc)
    assert held(again).ways.tolist()[:2] == [0b110, 0b11000], "a restart finds what the kernel holds"
    again.close()
    assert host.groups() == {"qemu-1-guest"}


def test_where_others_keep_all_ways_there_are_none_to_hand_out(tmp_path: Path) -> None:
    """Fault 13."""
    host = FakeHost(tmp_path, isolated=(0,), zones=lambda i: 0)
    foreign_group(host, "pod", "L3:0=7fe;1=fff\n")
    hal = host.open()
    assert hal.topology.ways == 0
    assert "groups of other tools keep the ways 7fe" in hal.partitions.offer.why_no_ways  # type: ignore[union-attr]
    hal.close()


@pytest.mark.parametrize("how", ["write", "rmdir"])
def test_a_tool_that_insists_is_left_the_group_for_a_while(how: str, tmp_path: Path) -> None:
    """Fault 13: mended eight times within ten seconds, then left alone, twice as long the second time."""
    host = FakeHost(tmp_path, isolated=(0, 1), zones=lambda i: 0)
    hal = host.open()
    claim(hal)
    apply(hal, (WAYS, 0, 0b110), (WAYS, 1, 0b11000))
    name, other = name_of(hal, 0), name_of(hal, 1)
    fd = host.fake.open(host.fake.path, 0)

    def insist(times: int) -> int:
        """Change the group whenever it is ours again; return how often."""
        done = 0
        for _ in range(times):
            if how == "write" and host.masks(name)[0] != 0b111110:
                host.fake.put(f"{name}/schemata", "L3:0=3e\n")
                done += 1
            elif how == "rmdir" and name in host.groups():
                host.fake.rmdir(name, dir_fd=fd)
                done += 1
            tick(host, hal)
        return done

    assert 8 <= insist(150) <= 9
    assert any(f"keeps changing the resctrl group {name}" in line for line in hal.troubles())
    failures = apply(hal, (WAYS, 0, 0b10), (WAYS, 1, 0b1100)).failures
    assert {f.index for f in failures} >= {0}, "its VM has not got what it was given"
    assert how == "rmdir" or host.masks(other)[0] == 0b1000, "nobody grows into what it may hold"
    assert 1 <= insist(200) <= 17, "two seconds later it is tried again"
    assert insist(250) == 0, "and then left alone for four"
    host.fake.close(fd)
    tick(host, hal, 800)
    assert hal.troubles() == () and name in host.groups()
    assert apply(hal, (WAYS, 0, 0b110), (WAYS, 1, 0b11000)).failures == []
    assert host.masks(name)[0] == 0b110 and host.masks(other)[0] == 0b11000
    hal.close()


def test_an_umount_is_given_up_and_a_mount_taken_again(tmp_path: Path) -> None:
    """Fault 11."""
    host = FakeHost(tmp_path, isolated=(0,), zones=lambda i: 0)
    hal = host.open()
    claim(hal)
    apply(hal, (WAYS, 0, 0b110))
    name = name_of(hal, 0)
    host.fake.umount()
    tick(host, hal, 12)
    assert host.fake.open_files == 0, "descriptors that stay open keep the old file system alive"
    assert apply(hal, (Control.CPU, 1, 3)).failures == [], "the other resources go on"
    assert held(hal).ways[0] == 0
    host.fake.mount()
    assert host.groups() == set()
    tick(host, hal, 320)
    assert host.masks(name)[0] == 0b110
    assert host.tasks(name) == set(host.tids[0])
    hal.close()
    assert host.groups() == set()


def test_a_way_that_leaves_an_isolated_vm_rests(tmp_path: Path) -> None:
    host = FakeHost(tmp_path, isolated=(0, 1), zones=lambda i: 0)
    hal = host.open(quarantine_ms=30.0)
    claim(hal)
    apply(hal, (WAYS, 0, 0b11110), (WAYS, 1, 0b100000))
    assert apply(hal, (WAYS, 0, 0b110), (WAYS, 1, 0b111000)).failures == []
    a, b = name_of(hal, 0), name_of(hal, 1)
    assert (host.masks(a)[0], host.masks(b)[0]) == (0b110, 0b100000)
    assert held(hal).ways.tolist()[:2] == [0b110, 0b111000], "promised, and on its way"
    tick(host, hal, 2)
    assert host.masks(b)[0] == 0b100000
    assert all(host.masks(name_of(hal, r))[0] & 0b11000 == 0 for r in range(4))
    tick(host, hal, 2)
    assert host.masks(b)[0] == 0b111000
    hal.close()


def test_more_vms_than_classes_share_them(tmp_path: Path) -> None:
    """Fault 9: CLOSIDs are few. 12 VMs on 7 groups: 2 isolated have their own, 10 share 5."""
    host = FakeHost(tmp_path, n=12, isolated=(0, 1), zones=lambda i: i % 2)
    hal = host.open(moves_per_s=6)
    claim(hal)
    assert host.groups() == {*(name_of(hal, r) for r in (0, 1)), *(f"foreshare-class{k}" for k in range(2, 7))}
    for row in range(12):
        assert set(host.tids[row]) <= host.tasks(name_of(hal, row))
        if row > 1:
            assert set(host.tids[row]) == host.tasks(f"{name_of(hal, row)}/mon_groups/{vm_hex(hal.vms.uuid[row])}")
    assert hal.topology.pool(Resource.MEMORY, 0).unit == "5 % MBA"
    receipt = apply(hal, *((MEMORY, r, 1 + 2 * (r % 3)) for r in range(12)))
    assert receipt.failures == []
    for row in range(2, 12):
        zone = int(hal.vms.zone[row])
        mates = [r for r in range(12) if name_of(hal, r) == name_of(hal, row) and hal.vms.zone[r] == zone]
        total = sum(1 + 2 * (r % 3) for r in mates)
        assert host.bandwidth(name_of(hal, row))[zone] == min(-(-total * 5 // 10) * 10, 100)
    assert held(hal).units[:, Resource.MEMORY].tolist() == [1 + 2 * (r % 3) for r in range(12)]
    apply(hal, (WAYS, 0, 0b110), (WAYS, 1, 0b110))
    moves = hal.partitions.members.moves  # type: ignore[union-attr]
    assert apply(hal, (WAYS, 5, 0b111000)).failures == [], "promised at once, given when it has a class of its own"
    tick(host, hal, 100)
    assert hal.partitions.members.moves - moves <= 2 * 6 + 2  # type: ignore[union-attr]
    tick(host, hal, 400)
    assert host.masks(name_of(hal, 5))[1] == 0b111000
    assert host.tasks(name_of(hal, 5)) == set(host.tids[5])
    assert all(set(host.tids[r]) <= host.tasks(name_of(hal, r)) for r in range(12))
    hal.close()
    assert host.groups() == set()


def test_old_kernels_without_rename_move_thread_by_thread(tmp_path: Path) -> None:
    host = FakeHost(tmp_path, n=9, zones=lambda i: 0)
    hal = host.open()
    claim(hal)

    def refuse(operation: str, path: str) -> None:
        if operation == "rename":
            raise PermissionError(errno.EPERM, "rename")

    host.fake.before = refuse
    apply(hal, (WAYS, 3, 0b110))
    tick(host, hal, 40)
    assert host.masks(name_of(hal, 3))[0] == 0b110 and host.tasks(name_of(hal, 3)) == set(host.tids[3])
    hal.close()


def test_without_monitoring_ids_it_runs_unmonitored(tmp_path: Path) -> None:
    """Fault 10: RMIDs rest in limbo; the VM runs without monitoring and asks again a second later."""
    host = FakeHost(tmp_path, Hardware(rmids=10), n=9, zones=lambda i: 0)
    hal = host.open()
    claim(hal)
    members = hal.partitions.members  # type: ignore[union-attr]
    assert sum(members.monitored(r) for r in range(9)) == 2
    assert all(set(host.tids[r]) <= host.tasks(name_of(hal, r)) for r in range(9))
    tried: list[str] = []
    host.fake.before = lambda operation, path: tried.append(path) if operation == "mkdir" else None
    tick(host, hal, 90)
    assert tried == []
    host.fake.kernel.free_rmids += list(range(50, 60))
    tick(host, hal, 30)
    assert sum(members.monitored(r) for r in range(9)) == 9
    hal.close()


def test_counters_become_rates_and_whatever_is_no_number_is_missing(tmp_path: Path) -> None:
    """Faults 17, 18 and 19."""
    host = FakeHost(tmp_path, n=3, zones=lambda i: 0)
    hal = host.open(monitor_ms=10_000)
    claim(hal)
    monitor = hal._monitor
    assert monitor is not None

    def count(row: int, text: str, event: str = "mbm_total_bytes") -> None:
        host.fake.counters[name_of(hal, row), 0, event] = text

    def one(*texts: str, ahead_ns: int = 100_000_000) -> Reading:
        for row, text in enumerate(texts):
            count(row, text)
        host.clock.t_ns += ahead_ns - TICK_NS
        monitor.once(host.clock.now_ns)
        return tick(host, hal)

    count(1, str(2 << 20), "llc_occupancy")
    tick(host, hal)
    one("1000", "1000", "1000")
    r = one(str(1000 + 2 * 10**9), "Unavailable", "Error")
    assert r.usage[0, Resource.MEMORY] == pytest.approx(2.0)
    assert not r.quality[0, Resource.MEMORY] & Quality.MISSING
    assert np.isnan(r.usage[1:, Resource.MEMORY]).all() and (r.quality[1:, Resource.MEMORY] & Quality.MISSING).all()
    assert r.usage[1, Resource.CACHE] == pytest.approx(1.5)
    r = one("5", "Unassigned", "7")
    assert np.isnan(r.usage[:, Resource.MEMORY]).all() and r.quality[0, Resource.MEMORY] & Quality.RESET
    assert np.isnan(one("9000", "1", "1", ahead_ns=2_100_000_000).usage[0, Resource.MEMORY]), "a gap of two seconds"
    r = one(str(9000 + 10**9), "2", "2")
    assert r.usage[0, Resource.MEMORY] == pytest.approx(1.0)
    assert not r.quality[0, Resource.MEMORY] & Quality.STALE
    for _ in range(3):
        r = tick(host, hal)
        assert r.usage[0, Resource.MEMORY] == pytest.approx(1.0)
        assert r.quality[0, Resource.MEMORY] == Quality.STALE
    apply(hal, (MEMORY, 0, 1))
    r = tick(host, hal)
    assert r.quality[0, Resource.MEMORY] == Quality.STALE and r.limit[0, Resource.MEMORY] == 10, "seen under 10 units"
    r = one(str(9000 + 3 * 10**9), "2", "2")
    assert r.quality[0, Resource.MEMORY] == Quality.CENSORED and r.limit[0, Resource.MEMORY] == 1
    assert tick(host, hal).quality[0, Resource.MEMORY] == Quality.CENSORED | Quality.STALE
    r = tick(host, hal, 210)
    assert r.quality[0, Resource.MEMORY] & Quality.MISSING
    hal.close()


def test_a_vm_that_is_gone_gives_its_ways_back(tmp_path: Path) -> None:
    """Fault 1."""
    host = FakeHost(tmp_path, isolated=(0, 1), zones=lambda i: 0)
    hal = host.open()
    claim(hal)
    apply(hal, (WAYS, 0, 0b110), (WAYS, 1, 0b1000))
    hal._sampler.present[0] = False  # plain files do not vanish as a cgroup does
    tick(host, hal)
    assert host.masks(name_of(hal, 0))[0] == 1
    assert [f.gone for f in apply(hal, (WAYS, 0, 0b110)).failures] == [True]
    assert apply(hal, (WAYS, 1, 0b1110)).failures == []
    assert host.masks(name_of(hal, 1))[0] == 0b1110 and not host.masks(name_of(hal, 0))[0] & 0b1110
    hal.close()


def test_pqos_names_and_what_it_may_not_take(tmp_path: Path) -> None:
    host = FakeHost(tmp_path)
    hal = host.open(prefix="COS")
    claim(hal)
    assert host.groups() == {"COS1", "COS2", "COS3", "COS4"}
    hal.close()
    fd = host.fake.open(host.fake.path, 0)
    host.fake.mkdir("COS2", dir_fd=fd)
    hal = host.open(prefix="COS")
    with pytest.raises(HostError, match="pqos, or somebody else"):
        claim(hal)
    hal.close()
    host.fake.close(fd)


@pytest.mark.parametrize("prefix", ["", "../x", "a/b", "info", "mon_groups", "x\n", "a" * 40, "1a", ".x"])
def test_hostile_prefixes_are_refused(prefix: str) -> None:
    with pytest.raises(InputError):
        GroupNames(prefix)


def test_names_hold_nothing_of_what_a_user_wrote() -> None:
    """Fault 29."""
    names = GroupNames("foreshare-")
    for evil in ("../x", "a\nb", "x" * 300, "tasks", "info", "mon_groups", ""):
        assert names.ours(names.vm(evil, 0)) and len(names.vm(evil, 0)) == 42
    assert names.ours("foreshare-class7") and not names.ours("foreshare-x") and not names.ours("other")


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    """Fault 12: a mount that is there is taken, none is ever made."""
    host = FakeHost(tmp_path)
    hal = host.open(memory=None)
    assert hal.topology.pool(Resource.MEMORY, 0).units == 0 and hal.topology.ways == 10
    hal.close()
    host.fake.umount()
    (tmp_path / "sys/fs/resctrl").mkdir(parents=True)
    hal = host.open()
    assert hal.topology.ways == 0 and "not mounted: mount -t resctrl" in hal.why_no_resctrl
    hal.close()
    with pytest.raises(HostError, match="cannot be handed out: resctrl is not mounted"):
        host.open(use="require")
    crowded = FakeHost(tmp_path / "b", Hardware(mb_closids=1))
    with pytest.raises(HostError, match="resctrl groups of this host are taken"):
        crowded.open(use="require")
    many = FakeHost(tmp_path / "c", Hardware(mb_closids=3), n=5, isolated=(0, 1), zones=lambda i: i % 2)
    with pytest.raises(HostError, match="2 isolated VMs need a resctrl group each"):
        many.open()


def test_the_host_is_confined_only_where_that_was_asked_for(tmp_path: Path) -> None:
    host = FakeHost(tmp_path)
    before = host.fake.text("schemata")
    hal = host.open()
    claim(hal)
    assert host.fake.text("schemata") == before
    hal.close()
    hal = host.open(confine_host=True)
    doc = claim(hal)
    assert host.masks("")[0] == 1
    hal.close()
    assert host.fake.text("schemata") == before
    hal = host.open(confine_host=True)
    claim(hal)
    assert restore(doc, host.roots).failed == []
    assert host.fake.text("schemata") == before
    hal.close()


def test_dry_runs_and_descriptions_write_nothing(tmp_path: Path) -> None:
    host = FakeHost(tmp_path)
    hal = host.open(read_only=True)

    lines = hal.describe(plan((WAYS, 0, 0b110), (MEMORY, 0, 3), (WAYS, 1, 0)))
    assert "L3:0=6" in lines[0] and "MB:0=30" in lines[1] and "shared" in lines[2]
    assert "etc" not in lines[0]
    assert held(hal).ways.tolist() == [0] * 4
    hal.close()
    assert host.fake.writes == [] and host.groups() == set() and host.fake.open_files == 0


def test_intel_constants_are_the_labs() -> None:
    assert (INTEL.closids, AMD.closids) == (8, 16)


def test_a_vm_that_fills_ways_which_it_does_not_have_is_told(tmp_path: Path) -> None:
    """Fault 16: a tool that writes the registers past resctrl shows in nothing but its effect."""
    host = FakeHost(tmp_path, n=2, zones=lambda i: 0)
    hal = host.open(monitor_ms=10_000)
    claim(hal)
    monitor = hal._monitor
    assert monitor is not None and hal.partitions is not None
    way = hal.partitions.offer.way_bytes

    def fills(ways: float) -> bool:
        host.fake.counters[name_of(hal, 0), 0, "llc_occupancy"] = str(round(ways * way))
        host.clock.t_ns += 90_000_000
        monitor.once(host.clock.now_ns)
        tick(host, hal)
        return bool(monitor.overfull[0])

    assert not fills(9)
    assert apply(hal, (Control.WAYS, 0, 0b1110)).failures == []
    assert not any([fills(9), fills(8), fills(5), fills(3)]), "what was there before may stay until it is evicted"
    assert not any([fills(2), fills(5)]), "two that may be left over and three of its own"
    assert fills(7) and not monitor.overfull[1]
    (line,) = hal.troubles()
    assert "registers past resctrl" in line
    assert apply(hal, (Control.WAYS, 0, 0b11110)).failures == []
    assert not fills(7) and hal.troubles() == ()
    hal.close()


class CodeAndData(FakeResctrl):
    """The tree as it looks when mounted with ``cdp``: a mask for data and one for code, both the L3's here."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.code_is_off = False
        self.wrote: list[str] = []

    def open(self, path: str, flags: int, *, dir_fd: int | None = None) -> int:
        if path.startswith("info/L3/"):
            raise FileNotFoundError(errno.ENOENT, "no such file")
        return super().open(path.replace("info/L3DATA/", "info/L3/"), flags, dir_fd=dir_fd)

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        lines = super().pread(fd, length, offset).decode().splitlines(keepends=True)
        code = "1" if self.code_is_off else ""
        return "".join(
            f"L3DATA:{x[3:]}L3CODE:{x[3:].replace('=', '=' + code)}" if x.startswith("L3:") else x for x in lines
        ).encode()

    def pwrite(self, fd: int, data: bytes, offset: int) -> int:
        text = data.decode()
        if "L3DATA:" in text:
            self.wrote.append(text)
            self.code_is_off = False
            kept = [x for x in text.splitlines(keepends=True) if not x.startswith("L3CODE:")]
            assert [x[7:] for x in text.splitlines() if x.startswith("L3CODE:")] == [
                x[7:] for x in text.splitlines() if x.startswith("L3DATA:")
            ]
            text = "".join(kept).replace("L3DATA:", "L3:")
        super().pwrite(fd, text.encode(), offset)
        return len(data)


def test_a_mount_that_keeps_code_and_data_apart_gets_one_mask_for_both(tmp_path: Path) -> None:
    host = FakeHost(tmp_path, n=3)
    host.fake = CodeAndData(INTEL, path=f"{tmp_path}/sys/fs/resctrl", writer=1)
    host.fake.alive |= {tid for tids in host.tids for tid in tids}
    hal = host.open()
    assert hal.partitions is not None and hal.partitions.offer.info.cache is not None
    assert hal.partitions.offer.info.cache.names == ("L3DATA", "L3CODE")
    claim(hal)
    assert apply(hal, (Control.WAYS, 0, 0b1110)).failures == []
    assert host.fake.wrote, "both are written"
    into = Placement.empty(3, hal.topology.cpus)
    hal.read_back(into)
    assert into.ways[0] == 0b1110
    host.fake.code_is_off = True
    host.fake.wrote.clear()
    tick(host, hal, 20)
    assert host.fake.wrote and not host.fake.code_is_off, "somebody changed one of the two: it is mended"
    hal.close()
