"""AMD's limits are amounts in each L3 domain: a VM gets what it was given, wherever its threads run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from resctrl_host import TICK_NS, FakeHost, apply
from test_linux_resctrl import claim, held, name_of, tick

from foreshare.envs.hal.linux.hal import LinuxHal
from foreshare.envs.hal.linux.resctrl.bandwidth import Bandwidth
from foreshare.envs.hal.linux.resctrl.fake import AMD
from foreshare.envs.hal.linux.resctrl.offer import Offer
from foreshare.envs.hal.types import Control, Plan, Receipt
from foreshare.policies.host import Resource


@pytest.fixture(scope="module")
def offer(tmp_path_factory: pytest.TempPathFactory) -> Offer:
    hal = FakeHost(tmp_path_factory.mktemp("amd"), AMD, n=2).open(memory=20e9)
    assert hal.partitions is not None
    offer: Offer = hal.partitions.offer
    hal.close()
    return offer


def move(host: FakeHost, row: int, cpus: tuple[int, ...], hal: LinuxHal) -> Receipt:
    sets = np.zeros((1, 8), bool)
    sets[0, list(cpus)] = True
    receipt = Receipt()
    plan = Plan(np.array([Control.CPUS], np.int8), np.array([row]), np.array([0]), sets)
    hal.apply(plan, 0, receipt)
    return receipt


def test_a_limit_is_divided_over_domains_and_follows_the_cpus_in_the_same_tick(tmp_path: Path) -> None:
    host = FakeHost(tmp_path, AMD, n=4, zones=lambda i: i % 2)
    hal = host.open(memory=20e9)
    claim(hal)
    assert apply(hal, (Control.MEMORY, 0, 16), (Control.MEMORY, 1, 3)).failures == []
    assert [host.bandwidth(name_of(hal, 0))[d] for d in range(8)] == [4, 4, 4, 4, 2048, 2048, 2048, 2048]
    assert [host.bandwidth(name_of(hal, 1))[d] for d in range(4, 8)] == [1, 1, 1, 1], "nobody stands still"
    assert held(hal).units[:2, Resource.MEMORY].tolist() == [16, 3]
    assert move(host, 0, (1,), hal).failures == []
    assert [host.bandwidth(name_of(hal, 0))[d] for d in range(4)] == [1, 13, 1, 1]
    move(host, 0, (1, 2), hal)
    assert [host.bandwidth(name_of(hal, 0))[d] for d in range(4)] == [1, 7, 7, 1]
    assert held(hal).units[0, Resource.MEMORY] == 16
    lines = hal.describe(
        Plan(np.array([Control.MEMORY], np.int8), np.array([0]), np.array([8]), np.zeros((0, 8), bool))
    )
    assert lines == [f"write MB:0=1;1=3;2=3;3=1 to resctrl {name_of(hal, 0)}/schemata"]
    hal.close()


def test_a_domain_that_goes_offline_leaves_its_share_to_the_others(tmp_path: Path) -> None:
    """Fault 20."""
    host = FakeHost(tmp_path, AMD, n=2, zones=lambda i: 0)
    hal = host.open(memory=20e9)
    claim(hal)
    apply(hal, (Control.MEMORY, 0, 16))
    host.fake.offline(3)
    host.set_online("0-2,4-7")
    tick(host, hal)
    values = host.bandwidth(name_of(hal, 0))
    assert sorted(values[d] for d in range(3)) == [5, 5, 6] and 3 not in values
    host.fake.online(3)
    host.set_online("0-7")
    host.clock.t_ns += TICK_NS
    tick(host, hal)
    assert [host.bandwidth(name_of(hal, 0))[d] for d in range(4)] == [4, 4, 4, 4]
    hal.close()


@given(st.integers(0, 160), st.lists(st.booleans(), min_size=8, max_size=8), st.integers(1, 15))
def test_parts_add_up(offer: Offer, units: int, cpus: list[bool], online: int) -> None:
    bandwidth = Bandwidth(offer, np.array([0, 1]))
    bandwidth.follow(np.array([cpus, cpus]))
    live = np.array([bool(online >> k & 1) for k in range(4)] * 2)
    parts = bandwidth.divide(np.array([units, units]), live)
    for row in range(2):
        here = live & (offer.domain_zone == row)
        assert (parts[row][~here] == 0).all() and (parts[row][here] >= 1).all()
        assert parts[row].sum() == max(units, here.sum())
