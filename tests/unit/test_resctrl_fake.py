"""What the table of vectors cannot show: kernel profiles, scarce RMIDs, hot-plug, umount, dead descriptors."""

from __future__ import annotations

import errno
import fcntl
import os

import pytest

from foreshare.envs.hal.linux.resctrl.fake import AMD, HASWELL, INTEL, FakeResctrl, Hardware, Profile
from foreshare.envs.hal.linux.resctrl.files import DIRECTORY


def refused(code: int, call: object, *args: object, **kwargs: object) -> None:
    with pytest.raises(OSError) as caught:
        call(*args, **kwargs)  # type: ignore[operator]  # any callable
    assert caught.value.errno == code


def root(fake: FakeResctrl) -> int:
    return fake.open(fake.path, DIRECTORY)


def test_profiles_differ_in_padding() -> None:
    assert FakeResctrl(INTEL).text("schemata") == "MB:0=100;1=100\nL3:0=fff;1=fff\n"
    new = FakeResctrl(Hardware(profile=Profile.FS))
    new.put("schemata", "MB:0=10\nL3:0=f\n")
    assert new.text("schemata") == "MB:0=10;1=100\nL3:0=f;1=fff\n"
    old = FakeResctrl(INTEL)
    old.put("schemata", "MB:0=10\nL3:0=f\n")
    assert old.text("schemata") == "MB:0= 10;1=100\nL3:0=00f;1=fff\n"
    assert FakeResctrl(AMD).text("schemata").startswith("MB:0=2048;")


def test_haswell_wants_two_bits_and_has_four_classes() -> None:
    fake = FakeResctrl(HASWELL)
    fd = root(fake)
    fake.mkdir("a", dir_fd=fd)
    refused(errno.EINVAL, fake.put, "a/schemata", "L3:0=1\n")
    assert fake.text("info/last_cmd_status") == "Need at least 2 bits in the mask\n"
    fake.mkdir("b", dir_fd=fd)
    fake.mkdir("c", dir_fd=fd)
    refused(errno.ENOSPC, fake.mkdir, "d", dir_fd=fd)


def test_intel_mba_that_is_not_linear_is_refused() -> None:
    fake = FakeResctrl(Hardware(linear=False))
    refused(errno.EINVAL, fake.put, "schemata", "MB:0=50\n")
    assert fake.text("info/last_cmd_status") == "No support for non-linear MB domains\n"


def test_rmids_run_out_and_rest_in_limbo() -> None:
    fake = FakeResctrl(Hardware(rmids=3))
    fd = root(fake)
    fake.mkdir("a", dir_fd=fd)
    fake.mkdir("a/mon_groups/m", dir_fd=fd)
    refused(errno.ENOSPC, fake.mkdir, "b", dir_fd=fd)
    fake.rmdir("a/mon_groups/m", dir_fd=fd)
    refused(errno.EBUSY, fake.mkdir, "b", dir_fd=fd)
    assert "Out of RMIDs" in fake.text("info/last_cmd_status")
    fake.kernel.settle_rmids()
    fake.mkdir("b", dir_fd=fd)


def test_a_group_needs_room_beside_exclusive_ones() -> None:
    fake = FakeResctrl(Hardware(shareable=0))
    fd = root(fake)
    fake.mkdir("a", dir_fd=fd)
    fake.put("schemata", "L3:0=1;1=1\n")
    fake.put("a/schemata", "L3:0=ffe;1=ffe\n")
    fake.put("a/mode", "exclusive\n")
    fake.put("schemata", "L3:0=1;1=1\n")
    fake.put("a/mode", "shareable\n")
    fake.put("a/mode", "exclusive\n")
    fake.kernel.root.mode = "exclusive"
    refused(errno.ENOSPC, fake.mkdir, "b", dir_fd=fd)
    assert "No space on L3:0" in fake.text("info/last_cmd_status")


def test_a_domain_that_returns_has_full_masks_and_the_group_no_cpus() -> None:
    fake = FakeResctrl()
    fd = root(fake)
    fake.mkdir("a", dir_fd=fd)
    fake.put("a/schemata", "L3:0=3;1=3\n")
    fake.put("a/cpus_list", "4-7\n")
    for cpu in range(4, 8):
        fake.offline(cpu)
    assert fake.text("a/schemata") == "MB:0=100\nL3:0=003\n"
    refused(errno.EINVAL, fake.put, "a/schemata", "L3:1=3\n")
    assert fake.text("info/last_cmd_status") == "ok\n"
    fake.online(4)
    assert fake.text("a/schemata") == "MB:0=100;1=100\nL3:0=003;1=fff\n"
    assert fake.text("a/cpus_list") == "\n"
    refused(errno.EINVAL, fake.put, "a/cpus_list", "5\n")
    assert "Can only assign online CPUs" in fake.text("info/last_cmd_status")


def test_descriptors_of_a_removed_group_and_of_an_old_mount_are_dead() -> None:
    fake = FakeResctrl()
    fd = root(fake)
    fake.mkdir("a", dir_fd=fd)
    file = fake.open("a/schemata", os.O_RDWR, dir_fd=fd)
    fake.rmdir("a", dir_fd=fd)
    refused(errno.ENODEV, fake.pwrite, file, b"L3:0=1\n", 0)
    refused(errno.ENOENT, fake.open, "a/schemata", os.O_RDWR, dir_fd=fd)
    first = fake.mount_id(fake.path)
    fake.umount()
    assert fake.mount_id(fake.path) is None
    refused(errno.ENODEV, fake.pread, fd, 10, 0)
    fake.mount()
    assert fake.mount_id(fake.path) not in (None, first)
    refused(errno.ENODEV, fake.listdir, fd)


def test_locks_exclude_each_other() -> None:
    fake = FakeResctrl()
    a, b = root(fake), root(fake)
    fake.flock(a, fcntl.LOCK_EX | fcntl.LOCK_NB)
    refused(errno.EWOULDBLOCK, fake.flock, b, fcntl.LOCK_EX | fcntl.LOCK_NB)
    fake.close(a)
    fake.flock(b, fcntl.LOCK_EX | fcntl.LOCK_NB)
    fake.flock(b, fcntl.LOCK_UN)
    fake.locked_by_other = True
    refused(errno.EWOULDBLOCK, fake.flock, b, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_what_cannot_be_opened_or_written() -> None:
    fake = FakeResctrl()
    fd = root(fake)
    refused(errno.EACCES, fake.put, "size", "1")
    refused(errno.EACCES, fake.put, "info/last_cmd_status", "x")
    refused(errno.ENOENT, fake.open, "nothing", os.O_RDONLY, dir_fd=fd)
    refused(errno.ENOTDIR, fake.open, "schemata", DIRECTORY, dir_fd=fd)
    refused(errno.EISDIR, fake.open, "info", os.O_RDWR, dir_fd=fd)
    refused(errno.E2BIG, fake.put, "schemata", "L3:0=1\n" * 600)
    reader = fake.open("schemata", os.O_RDONLY, dir_fd=fd)
    refused(errno.EBADF, fake.pwrite, reader, b"L3:0=1\n", 0)
    assert set(fake.listdir(fd)) >= {"info", "schemata", "mon_data", "mon_groups"}
    info = fake.open("info", DIRECTORY, dir_fd=fd)
    assert set(fake.listdir(info)) == {"last_cmd_status", "L3", "MB", "L3_MON"}
    assert fake.text("mon_data/mon_L3_00/llc_occupancy") == "0\n"
