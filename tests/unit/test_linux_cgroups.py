"""Finding and opening cgroups, over made-up trees of plain files: parsing and paths, not the kernel's rules."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foreshare.envs.hal.linux.cgroups import Cgroup, Mount, find_hierarchies, parse_tids, settled, split_path
from foreshare.envs.hal.linux.roots import Roots
from foreshare.policies.errors import HostError, InputError

HYBRID = """\
23 27 0:22 / /sys rw,relatime - sysfs sysfs rw
32 31 0:29 / {0}/cpu,cpuacct rw,nosuid - cgroup cgroup rw,cpu,cpuacct
34 31 0:31 / {0}/cpu\\040set rw,relatime shared:7 - cgroup cgroup rw,cpuset
40 31 0:37 / {0}/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
41 31 0:38 / {0}/unified rw,relatime - cgroup2 cgroup2 rw,nsdelegate
42 31 0:39 / /elsewhere/blkio rw - cgroup cgroup rw,blkio
"""


def tree(tmp_path: Path, mountinfo: str) -> Roots:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "cg/unified").mkdir(parents=True)
    (tmp_path / "proc/self/mountinfo").write_text(mountinfo.format(tmp_path / "cg"))
    return Roots(cgroup=str(tmp_path / "cg"), sys=str(tmp_path / "sys"), proc=str(tmp_path / "proc"))


def test_hybrid_mounts_are_told_apart(tmp_path: Path) -> None:
    """Fault 26."""
    roots = tree(tmp_path, HYBRID)
    (tmp_path / "cg/unified/cgroup.controllers").write_text("io memory\n")
    found = find_hierarchies(roots)
    assert found.of("cpu") == found.of("cpuacct") == Mount(1, f"{roots.cgroup}/cpu,cpuacct")
    assert found.of("cpuset").path == f"{roots.cgroup}/cpu set"
    assert found.of("io") == found.unified == Mount(2, f"{roots.cgroup}/unified")
    assert set(found.controllers) == {"cpu", "cpuacct", "cpuset", "io", "memory"}
    with pytest.raises(HostError, match="blkio"):
        found.of("blkio")


@pytest.mark.parametrize("text", ["", "nonsense\n", "1 2 3\n", " - cgroup\n"])
def test_no_mounts_is_an_answer(tmp_path: Path, text: str) -> None:
    assert dict(find_hierarchies(tree(tmp_path, text)).controllers) == {}


HOSTILE = [
    "", "/", "/a", "a/", "a//b", ".", "..", "a/../b", "../a", "a/..", "a\nb", "a\0b", "cgroup.procs", "a/cgroup.kill",
    "x" * 256, "\x7f", "a/\t",
]  # fmt: skip


@pytest.mark.parametrize("path", HOSTILE)
def test_hostile_paths_are_refused(path: str, tmp_path: Path) -> None:
    """Fault 29."""
    with pytest.raises(InputError):
        split_path(path)
    with pytest.raises(InputError):
        Cgroup.open(Mount(1, str(tmp_path)), path)


@given(st.text(max_size=40))
def test_whatever_is_accepted_stays_below(path: str) -> None:
    try:
        parts = split_path(path)
    except InputError:
        return
    assert os.path.normpath(path) == "/".join(parts) == path
    assert not path.startswith(("/", "../"))


@pytest.mark.parametrize("name", ["a b", "machine-qemu\\x2d1\\x2dvm.scope", "ü", "x" * 255, "tasks"])
def test_odd_but_honest_names_are_taken(name: str) -> None:
    assert split_path(f"machine.slice/{name}") == ("machine.slice", name)


def test_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "outside/vm").mkdir(parents=True)
    (tmp_path / "cg/real").mkdir(parents=True)
    (tmp_path / "cg/link").symlink_to(tmp_path / "outside")
    (tmp_path / "cg/real/file").symlink_to(tmp_path / "outside")
    (tmp_path / "cg/plain").write_text("")
    mount = Mount(2, str(tmp_path / "cg"))
    for path in ("link", "link/vm", "real/file", "plain"):
        with pytest.raises(HostError, match="links are not followed"):
            Cgroup.open(mount, path)
    group = Cgroup.open(mount, "real")
    assert group.read("file") is None
    with pytest.raises(OSError, match="symbolic"):
        group.write("file", b"1")
    group.close()
    group.close()


def test_a_walk_gives_parents_before_children(tmp_path: Path) -> None:
    for path in ("vm/b/c", "vm/a"):
        (tmp_path / path).mkdir(parents=True)
    top = Cgroup.open(Mount(1, str(tmp_path)), "vm")
    found = top.walk()
    assert [g.path for g in found] == ["vm", "vm/a", "vm/b", "vm/b/c"]
    for group in found:
        group.close()


def test_only_positive_thread_ids_leave_the_parser() -> None:
    """Fault 4."""
    assert parse_tids(b"12\n0\n0\n-3\n7\n") == [12, 7]
    with pytest.raises(ValueError, match="invalid"):
        parse_tids(b"12\ngarbage\n")


def test_threads_born_during_a_scan_are_found() -> None:
    """Fault 5."""
    answers = iter([[1], [1, 2], [1, 2, 3], [1, 2, 3]])
    assert settled(lambda: next(answers)) == {1, 2, 3}
    forever = iter(range(100))
    assert settled(lambda: [next(forever)]) == {0, 1, 2, 3, 4}, "a fork bomb does not hold the scan for ever"
