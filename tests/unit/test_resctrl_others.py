"""Other tools' resctrl groups that come and go while we run: planned around within a second, and back again."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from resctrl_host import TICK_NS, FakeHost, KilledError, apply, claim, tick

from foreshare.envs.hal.linux.hal import LinuxHal
from foreshare.envs.hal.linux.resctrl.masks import is_run
from foreshare.envs.hal.spec import Amounts
from foreshare.envs.hal.types import Control
from foreshare.policies.host import CACHE, Host
from foreshare.policies.registry import make_mind
from foreshare.runtime.loop import ControlLoop, Tick

OWNERS = 0, 1
WITHIN_TICKS = 100
"""A second."""
PLACES = pytest.mark.parametrize("theirs", [0b111, 0xF00, 0b110000, 0b11])


def make_group(host: FakeHost, name: str) -> None:
    top = host.fake.open(host.fake.path, 0)
    host.fake.mkdir(name, dir_fd=top)
    host.fake.close(top)


def remove_group(host: FakeHost, name: str) -> None:
    top = host.fake.open(host.fake.path, 0)
    host.fake.rmdir(name, dir_fd=top)
    host.fake.close(top)


def host_of(tmp_path: Path, ways: tuple[int, ...] = (2, 2, 0, 0)) -> FakeHost:
    """Return a host of VMs in one zone that reserve so many ways; the first two are isolated."""
    host = FakeHost(tmp_path, isolated=OWNERS, zones=lambda i: 0)
    host.specs = tuple(
        dataclasses.replace(vm, reservation=Amounts(cache=n)) for vm, n in zip(host.specs, ways, strict=True)
    )
    return host


def name_of(hal: LinuxHal, row: int) -> str:
    assert hal.partitions is not None
    return hal.partitions.named[int(hal.partitions.state.group[row])][0]


def wrong(host: FakeHost, hal: LinuxHal, theirs: int = 0, shared: int = 0) -> list[str]:
    """Return masks of ours that the kernel has and that are illegal, among ``theirs``, or an owner's and another's.

    Those of ``shared`` may be everybody's.
    """
    parts = hal.partitions
    assert parts is not None
    masks = [host.masks(name_of(hal, row))[0] for row in range(len(hal.vms))]
    shared |= parts.offer.kernel_mask(parts.state.base)
    out = [f"{row}: {mask:x}" for row, mask in enumerate(masks) if not is_run(mask) or mask & theirs]
    out += [f"{a} and {b}: {masks[a]:x} {masks[b]:x}" for a in OWNERS for b in range(len(masks))
            if a != b and masks[a] & masks[b] & ~shared]  # fmt: skip
    return out


class Life:
    """What happens to a host by tick, and what its files say after each."""

    def __init__(self, host: FakeHost, hal: LinuxHal, happens: dict[int, tuple[str, str]]) -> None:
        self.host, self.hal, self.happens = host, hal, happens
        self.ways: list[int] = []
        self.wrong: dict[int, list[str]] = {}
        self.events: list[str] = []

    def on_tick(self, tick: Tick) -> None:
        what, argument = self.happens.get(tick.number, ("", ""))
        self.ways.append(self.hal.topology.ways)
        self.wrong[tick.number] = wrong(self.host, self.hal)
        if what == "make":
            make_group(self.host, argument)
        elif what == "remove":
            remove_group(self.host, argument)
        elif what:
            self.host.fake.put(what, argument)

    def on_event(self, kind: str, vm: int, text: str) -> None:
        self.events.append(f"{kind} {text}")


@PLACES
def test_ways_of_a_group_that_comes_and_goes_are_given_up_and_taken_back(theirs: int, tmp_path: Path) -> None:
    """Fault 13: the kernel gives a new group the whole mask, and its tool cuts that down some time later."""
    host = host_of(tmp_path)
    hal = host.open()
    claim(hal)
    whole = hal.topology.ways
    came, left = 20, 20 + WITHIN_TICKS
    happens = {10: ("make", "pod"), came: ("pod/schemata", f"L3:0={theirs:x};1={theirs:x}\n"), left: ("remove", "pod")}
    life = Life(host, hal, happens)
    loop = ControlLoop(hal, make_mind("triage", Host(hal.topology, hal.vms)), observers=[life])
    loop.run(left)
    free = hal.topology.ways
    assert life.ways[came] == whole > free > 0 and life.ways[came + 10] == free, "as soon as its turn to be read comes"
    assert wrong(host, hal, theirs) == []
    assert hal.troubles() == (f"resctrl groups of other tools keep the ways {theirs:x}: VMs have {free}",)
    assert (loop.host.reservation[:2, CACHE] == 2).all() and loop.host.topology is hal.topology
    assert all(host.masks(name_of(hal, row))[0].bit_count() >= 2 for row in OWNERS)
    assert host.masks("pod") == {0: theirs, 1: theirs}
    loop.run(WITHIN_TICKS)
    assert hal.topology.ways == whole and hal.troubles() == ()
    assert {number: found for number, found in life.wrong.items() if found} == {}
    assert loop.counts.failed == loop.counts.drift == loop.counts.disobedient == 0, life.events
    hal.close()
    assert host.groups() == set() and host.fake.open_files == 0


def test_reservations_of_ways_are_cut_to_what_is_left(tmp_path: Path) -> None:
    """Shared VMs' first; isolated VMs keep a way; what leaves not even that is told of and not planned around."""
    host = host_of(tmp_path, (3, 3, 2, 0))
    hal = host.open()
    claim(hal)
    make_group(host, "pod")
    host.fake.put("pod/schemata", "L3:0=fc0;1=fff\n")
    tick(host, hal, 10)
    assert hal.topology.ways == 5 and sorted(hal.vms.reservation[:, CACHE].tolist()) == [0, 0, 2, 3]
    assert Host(hal.topology, hal.vms).reservation[2, CACHE] == 0
    assert hal.troubles() == ("resctrl groups of other tools keep the ways fc0: VMs have 5, less than VMs reserve",)
    host.fake.put("pod/schemata", "L3:0=ffc;1=fff\n")
    tick(host, hal, 10)
    assert hal.topology.ways == 5
    assert any("'pod' of another tool keeps ways 3c that are VMs' here" in line for line in hal.troubles())
    remove_group(host, "pod")
    make_group(host, "pod")  # the same name and as many groups as before, but another one
    host.fake.put("pod/schemata", "L3:0=800;1=fff\n")
    tick(host, hal, WITHIN_TICKS)
    assert hal.topology.ways == 10 and hal.troubles() == ()
    assert hal.vms.reservation[:, CACHE].tolist() == [3, 3, 2, 0]
    hal.close()


@PLACES
def test_a_kill_while_ways_are_given_up_leaves_nothing_shared(theirs: int, tmp_path: Path) -> None:
    """Fault 38, at every write of that; the default group is kept out of VMs' ways all along."""
    for at in range(30):
        host = host_of(tmp_path / f"{theirs}-{at}")
        hal = host.open(confine_host=True)
        doc = claim(hal)
        assert apply(hal, (Control.WAYS, 0, 0b110), (Control.WAYS, 1, 0b111000)).failures == []
        before = hal.partitions.offer.kernel_mask(hal.partitions.state.base)  # type: ignore[union-attr]
        make_group(host, "pod")
        host.fake.put("pod/schemata", f"L3:0={theirs:x}\n")
        host.die_at(at)
        try:
            tick(host, hal, 10)
        except KilledError:
            assert wrong(host, hal, shared=before) == [], at
        else:
            assert at > 1
            break
        host.live()
        hal._release()
        again = host.open(confine_host=True)
        again.claim(lambda doc: None, doc)
        assert wrong(host, again, theirs) == []
        again.close()
    else:
        pytest.fail("it never came to its end")
    parts = hal.partitions
    assert parts is not None and wrong(host, hal, theirs) == []
    assert host.masks("")[0] == parts.offer.kernel_mask(parts.state.base)
    host.live()
    hal.close()


def test_an_unmounted_resctrl_has_nobodys_groups(tmp_path: Path) -> None:
    """Fault 11: other tools' groups go with the mount, and ways are taken back when there is one again."""
    host = host_of(tmp_path)
    hal = host.open()
    claim(hal)
    whole = hal.topology.ways
    make_group(host, "pod")
    host.fake.put("pod/schemata", "L3:0=f;1=f\n")
    tick(host, hal, 10)
    assert hal.topology.ways < whole
    host.fake.umount()
    tick(host, hal, 20)
    host.fake.mount()
    host.clock.t_ns += 100 * TICK_NS
    tick(host, hal, WITHIN_TICKS)
    assert hal.topology.ways == whole and hal.troubles() == () and wrong(host, hal) == []
    hal.close()
    assert host.fake.open_files == 0
