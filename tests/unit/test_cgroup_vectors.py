"""The tree of files answers as the table says; tests/lab holds the kernel to the same table."""

from __future__ import annotations

from pathlib import Path

import pytest
from cgroup_vectors import TABLE, Player, Step, w

from foreshare.envs.hal.linux.cgroup_fake import FakeCgroups


@pytest.mark.parametrize("name", TABLE)
def test_the_fake_agrees_with_the_table(name: str, tmp_path: Path) -> None:
    fake = FakeCgroups(str(tmp_path / "cg"), disks=("253:0",))
    fake.spawn("", 4711)
    found = Player(fake, 4711, "253:0").differences(TABLE[name])
    assert not found, "\n".join(found)
    assert not fake.top.children
    assert fake.online == fake.possible


def test_a_wrong_answer_is_noticed(tmp_path: Path) -> None:
    fake = FakeCgroups(str(tmp_path / "cg"))
    wrong = [w("t/a/cpu.max", "5000 10000\n", "EINVAL"), w("t/a/cpu.weight", "7\n", now="8"), Step("mkdir", "t/a")]
    assert len(Player(fake, 1, "8:0").differences(wrong)) == 3
