"""The kernel's own resctrl answers as the table that the tree in memory is held to."""

from __future__ import annotations

import os
import threading

import pytest
from resctrl_vectors import Player, vectors

from foreshare.envs.hal.linux.inventory import cpu_fields
from foreshare.envs.hal.linux.resctrl.files import OsFiles
from foreshare.envs.hal.linux.roots import Roots

pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(os.environ.get("FORESHARE_IN_LAB") != "1", reason="runs inside the lab guest"),
]
ROOT = "/sys/fs/resctrl"
HERE = os.environ.get("FORESHARE_IN_LAB") == "1" and cpu_fields(Roots()).get("vendor_id") == "AuthenticAMD"


@pytest.mark.parametrize("name", vectors(amd=HERE))
def test_the_kernel_agrees_with_the_table(name: str) -> None:
    files = OsFiles()
    if files.mount_id(ROOT) is None:
        pytest.skip("no resctrl here")
    player = Player(files, ROOT, threading.get_native_id())
    assert player.differences(vectors(amd=HERE)[name]) == []
    player.close()
