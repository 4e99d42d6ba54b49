"""What every backend must do (``tests/contract``), done by the linux backend on the guest's cgroup v2 and resctrl."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from resctrl_guest import clean_mount

sys.path.insert(0, str(Path(__file__).parents[1] / "contract"))
pytest.register_assert_rewrite("test_hal_contract")
import test_hal_contract as contract  # noqa: E402 - found by the line above

pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(os.environ.get("FORESHARE_IN_LAB") != "1", reason="runs inside the lab guest"),
]
globals().update({name: test for name, test in vars(contract).items() if name.startswith("test_")})


@pytest.fixture
def backend(tmp_path: Path) -> Iterator[contract.Backend]:
    with clean_mount():
        made = contract.linux(tmp_path)
        assert made.hal.topology.movable().sum() >= 3, "CPU, cache and memory at least"
        try:
            yield made
        finally:
            made.hal.close()
            made.clean_up()
