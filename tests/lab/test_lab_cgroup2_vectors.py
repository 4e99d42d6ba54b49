"""The kernel's own cgroup v2 answers as the table that the tree of files is held to."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cgroup_vectors import TABLE, Player

from foreshare.envs.hal.linux.cgroups import find_hierarchies
from foreshare.envs.hal.linux.roots import Roots

pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(os.environ.get("FORESHARE_IN_LAB") != "1", reason="runs inside the lab guest"),
]
DISKS = [path.read_text().strip() for path in sorted(Path("/sys/block").glob("vd*/dev"))]


class Kernel:
    """The real thing."""

    pwrite = staticmethod(os.pwrite)

    def __init__(self) -> None:
        self.root = find_hierarchies(Roots()).of("cpu").path

    def mkdir(self, path: str) -> None:
        os.mkdir(f"{self.root}/{path}")

    def rmdir(self, path: str) -> None:
        os.rmdir(f"{self.root}/{path}")

    def hotplug(self, cpu: int, online: bool) -> None:
        Path(f"/sys/devices/system/cpu/cpu{cpu}/online").write_text(f"{int(online)}\n")


@pytest.fixture
def player() -> Iterator[Player]:
    kernel = Kernel()
    Path(kernel.root, "cgroup.subtree_control").write_text("+cpuset +cpu +io")
    sleeper = subprocess.Popen(["sleep", "9999"])
    yield Player(kernel, sleeper.pid, DISKS[0] if DISKS else "")
    sleeper.kill()
    sleeper.wait()


@pytest.mark.parametrize("name", TABLE)
def test_the_kernel_agrees_with_the_table(name: str, player: Player) -> None:
    if name == "io.max" and not player.disk:
        pytest.skip("this guest has no disk")
    found = player.differences(TABLE[name])
    assert not found, "\n".join(found)
