"""What published results stand on: the suites' hashes and the simulator's equations.

If a test here fails, results can no longer be compared with older ones. Where that is meant, raise SIMULATOR_VERSION
(equations) or the suite's version (scenarios), put the new values here, and say so in CHANGELOG.md.
"""

from __future__ import annotations

import numpy as np
import pytest

from foreshare.envs.simulator.host import Simulator
from foreshare.envs.simulator.scenario import load_scenario
from foreshare.envs.simulator.suites import SIMULATOR_VERSION, load_suite, suite_hash

HASHES = {
    "smoke": "64ccc5f7cb51ae69",
    "standard": "f7cf891c8d3894e2",
    "train": "ab6078a5c8b34818",
    "validate": "1d74f4b604139857",
}
USED = {
    "mixed": ([118941.564, 9484.061, 26855.414, 25352.766], 202008.254),
    "churn": ([105870.021, 7293.790, 17344.454, 21783.460], 184402.169),
    "channels": ([73892.903, 9039.524, 1555.145, 11840.724], 191137.439),
}


@pytest.mark.parametrize("name", sorted(HASHES))
def test_a_suite_is_what_it_was(name: str) -> None:
    assert suite_hash(load_suite(name)) == HASHES[name]


@pytest.mark.parametrize("name", sorted(USED))
def test_the_equations_are_those_of_this_version(name: str) -> None:
    """Two hosts, 300 ticks, nobody limited: units used by resource, and requests that arrived."""
    simulator = Simulator(load_scenario(name), hosts=2, seed=5)
    used = np.zeros(4)
    for _ in range(300):
        simulator.step()
        used += simulator.used.sum(axis=(0, 1))
    units, arrived = USED[name]
    assert SIMULATOR_VERSION == 1
    assert used == pytest.approx(units, rel=1e-6)
    assert simulator.lateness.arrived_total.sum() == pytest.approx(arrived, rel=1e-6)
