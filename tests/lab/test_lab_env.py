"""``Partition-v0`` over the guest's cgroup v2 and resctrl."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import linux_env
import pytest
from resctrl_guest import clean_mount, sleepers, tree

from foreshare.envs.hal.linux.temporary import temporary_cgroups

pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(os.environ.get("FORESHARE_IN_LAB") != "1", reason="runs inside the lab guest"),
]
TESTS = str(Path(__file__).parents[1])
FILES = ("cpu.max", "cpu.weight", "cpu.idle", "cpuset.mems")


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    with clean_mount():
        yield


def state(cgroups: list[str]) -> dict[str, str]:
    """Return every control of ours; a cpuset that was empty may hold its parent's CPUs, which mean the same."""
    root = Path("/sys/fs/cgroup")
    every = (root / "cpuset.cpus.effective").read_text().strip()
    out = {f"{c}/{name}": (root / c / name).read_text().strip() for c in cgroups for name in FILES}
    out |= {f"{c}/cpuset.cpus": (root / c / "cpuset.cpus").read_text().strip() or every for c in cgroups}
    return out | {f"resctrl {name}": text for name, text in tree().items()}


@pytest.mark.timeout(900)
def test_two_hundred_steps_and_a_reset() -> None:
    with temporary_cgroups(4) as cgroups, sleepers(cgroups):
        before = state(cgroups)
        linux_env.steps_and_resets(linux_env.spec_of(cgroups, cpu=1.5, resctrl=True), 50.0)
        assert state(cgroups) == before


@pytest.mark.timeout(900)
def test_a_killed_environment_leaves_nothing_behind() -> None:
    """Fault 38."""
    with temporary_cgroups(2) as cgroups, sleepers(cgroups):
        linux_env.killed(cgroups, 1.5, True, TESTS, lambda: state(cgroups))
