"""The tree in memory answers as the table says; tests/lab holds the kernel to the same table."""

from __future__ import annotations

import pytest
from resctrl_vectors import Player, Step, vectors

from foreshare.envs.hal.linux.resctrl.fake import AMD, INTEL, FakeResctrl

CASES = [(vendor, name) for vendor, amd in (("intel", False), ("amd", True)) for name in vectors(amd=amd)]


@pytest.mark.parametrize(("vendor", "name"), CASES)
def test_the_fake_agrees_with_the_table(vendor: str, name: str) -> None:
    fake = FakeResctrl(AMD if vendor == "amd" else INTEL, writer=77)
    player = Player(fake, fake.path, 77)
    assert player.differences(vectors(amd=vendor == "amd")[name]) == []
    player.close()
    assert fake.open_files == 0
    assert fake.kernel.groups == {}


def test_a_wrong_answer_is_noticed() -> None:
    fake = FakeResctrl()
    player = Player(fake, fake.path, 1)
    wrong = [
        Step("write", "a/schemata", "L3:0=f\n", "EINVAL"),
        Step("write", "a/schemata", "L3:0=f0\n", "ok", "no"),
        Step("read", "a/schemata", reads=("a/mode", "exclusive")),
    ]
    assert len(player.differences(wrong)) == 3
