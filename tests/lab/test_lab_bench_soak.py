"""``bench tick`` where ways and memory bandwidth move too: the floor counts resctrl's calls."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from resctrl_guest import IN_LAB, ids_come_back

pytestmark = [*IN_LAB, pytest.mark.usefixtures("clean_groups")]


@pytest.mark.timeout(900)
def test_the_floor_has_resctrl_in_it() -> None:
    if not ids_come_back():
        pytest.skip("this guest's monitoring ids never come back: the groups cannot be made a second time")
    program = [str(Path(sys.executable).parent / "foreshare"), "bench", "tick", "--hal", "linux", "--vms", "24"]
    done = subprocess.run(
        [*program, "--ticks", "40", "--tick-ms", "400", "--json"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    figures = {
        k: said[k] for k in ("floor_us", "floor_ratio_p50", "changed_vms_per_tick", "failed_writes", "resources")
    }
    print(figures | {"apply": said["stages"]["apply"]})
    assert {"cpu", "cache", "memory"} <= set(said["resources"])
    assert said["changed_vms_per_tick"] >= 6
    assert said["failed_writes"] == 0
    assert said["floor_us"]["p50"] > 0 and said["floor_ratio_p50"] > 0  # how much: a guest without KVM cannot tell
