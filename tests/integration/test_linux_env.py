"""``Partition-v0`` on this machine's cgroup v1: it steps, a reset gives reservations back, nothing is left behind."""

from __future__ import annotations

from pathlib import Path

import linux_env
import pytest
from real_host import needs_cgroups, processes, snapshot

from foreshare.envs.hal.linux.temporary import temporary_cgroups

pytestmark = needs_cgroups
TESTS = str(Path(__file__).parents[1])


def test_two_hundred_steps_and_a_reset() -> None:
    with temporary_cgroups(3) as cgroups, processes(cgroups) as running:
        pids = [p.pid for p in running]
        before = snapshot(cgroups, pids)
        linux_env.steps_and_resets(linux_env.spec_of(cgroups, cpu=0.4, resctrl=False), 10.0)
        assert snapshot(cgroups, pids) == before


@pytest.mark.timeout(180)
def test_a_killed_environment_leaves_nothing_behind() -> None:
    """Fault 38: nobody will run ``foreshare restore`` after a training script."""
    with temporary_cgroups(2) as cgroups, processes(cgroups) as running:
        pids = [p.pid for p in running]
        linux_env.killed(cgroups, 0.4, False, TESTS, lambda: snapshot(cgroups, pids))
