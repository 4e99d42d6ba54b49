"""CPUs that go offline and come back: what is left is planned anew, and nobody ends on an isolated VM's cores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from resctrl_host import FakeHost

from foreshare.envs.hal.linux import cpulist
from foreshare.envs.hal.linux.hal import LinuxHal
from foreshare.envs.hal.linux.hotplug import without_offline
from foreshare.policies.host import CPU, Host, Isolation, Pool, Resource, Topology, VmTable
from foreshare.policies.registry import make_mind
from foreshare.runtime.loop import ControlLoop


def host_of(reservation: list[int], isolated: tuple[int, ...] = (), zones: int = 1) -> tuple[Topology, VmTable]:
    """Two cores of two threads in each zone, ten units a CPU."""
    cpu = np.arange(4 * zones)
    pools = [Pool(resource=Resource.CPU, zone=z, units=40, unit="1/10 CPU", unit_size=0.1, measure="cpu")
             for z in range(zones)]  # fmt: skip
    pools += [Pool(resource=r, zone=z, units=0, unit="", unit_size=0.0, measure="B")
              for z in range(zones) for r in (Resource.CACHE, Resource.MEMORY)]  # fmt: skip
    pools.append(Pool(resource=Resource.IO, zone=-1, units=0, unit="", unit_size=0.0, measure="B/s"))
    n = len(reservation)
    promised = np.zeros((n, 4), np.int64)
    promised[:, CPU] = reservation
    cap = np.full((n, 4), 40)
    apart = np.array([Isolation.ISOLATED if i in isolated else Isolation.SHARED for i in range(n)], np.int64)
    names = tuple(f"vm{i}" for i in range(n))
    table = VmTable(uuid=names, name=names, priority=np.zeros(n, np.int64), isolation=apart,
                    zone=np.arange(n) % zones, reservation=promised, cap=cap)  # fmt: skip
    return Topology(cpu_id=cpu, core=cpu // 2, zone=cpu // 4, units_per_cpu=10, pools=tuple(pools)), table


def online(*cpus: int, of: int = 4) -> np.ndarray:
    return np.isin(np.arange(of), cpus)


def test_a_cpu_less_is_a_smaller_pool_and_a_core_that_is_not_whole() -> None:
    """Fault 20."""
    whole, vms = host_of([20, 5, 5], isolated=(0,))
    topology, table, said = without_offline(whole, vms, online(0, 1, 2))
    assert table is vms and said == ["CPUs 3 of zone 0 are offline"]
    assert topology.cpus == 4 and topology.pool(Resource.CPU, 0).units == 30
    assert topology.threads_per_core == 2 and topology.zone.tolist() == [0, 0, 0, 1]
    host = Host(topology, table)
    mind = make_mind("static", host)
    mind.placer.place(host.reservation.copy(), mind.decision.placement)
    assert mind.decision.placement.cpus.tolist() == [[1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 0]]
    assert without_offline(whole, vms, online(0, 1, 2, 3)) == (whole, vms, [])


def test_without_siblings_a_core_is_one_cpu() -> None:
    whole, vms = host_of([10, 5], isolated=(0,))
    topology, table, _ = without_offline(whole, vms, online(0, 2))
    assert topology.threads_per_core == 1
    assert Host(topology, table).reservation[:, CPU].tolist() == [10, 5]


def test_reservations_are_cut_in_proportion() -> None:
    """Fault 52: of those that share; a core that an isolated VM owns is whole or none."""
    whole, vms = host_of([20, 11, 6, 0], isolated=(0,))
    topology, table, said = without_offline(whole, vms, online(0, 1, 2))
    assert table.reservation[:, CPU].tolist() == [20, 5, 3, 1]
    assert "reservations of CPU are cut" in said[0]
    assert Host(topology, table).reservation[:, CPU].sum() <= topology.pool(Resource.CPU, 0).units


def test_a_zone_that_has_no_room_left_stays_as_it_was() -> None:
    whole, vms = host_of([20, 20, 5, 5], isolated=(1,), zones=2)
    topology, table, said = without_offline(whole, vms, online(0, 1, 2, 6, of=8))
    assert topology.zone.tolist() == [0, 0, 0, 2, 1, 1, 1, 1]
    assert said == [
        "CPUs 3 of zone 0 are offline",
        "CPUs 4-5,7 of zone 1 are offline, and its VMs do not fit into what is left",
    ]
    assert (table.reservation == vms.reservation).all()


class Live:
    """A control loop on a host of fakes."""

    def __init__(self, tmp_path: Path, **fields: object) -> None:
        self.host = FakeHost(tmp_path, **fields)  # type: ignore[arg-type]  # by name
        self.hal: LinuxHal = self.host.open()
        self.hal.claim(lambda doc: None)
        self.loop = ControlLoop(self.hal, make_mind("static", Host(self.hal.topology, self.hal.vms)))
        self.loop.run(5)

    def set_online(self, *cpus: int) -> None:
        for cpu in range(8):
            self.host.cgroups.hotplug(cpu, cpu in cpus)
        self.host.set_online(cpulist.form(cpus))

    def where(self) -> list[frozenset[int]]:
        """Return where the kernel lets each VM run."""
        text = [(self.host.root / f"cg/vm{i}/cpuset.cpus.effective").read_text() for i in range(self.host.n)]
        return [cpulist.parse(t) for t in text]


def alone(where: list[frozenset[int]], row: int) -> bool:
    others = frozenset().union(*(w for i, w in enumerate(where) if i != row))
    return bool(where[row]) and not where[row] & others


def test_an_isolated_vm_that_loses_its_core_gets_another(tmp_path: Path) -> None:
    """Faults 20 and 21: nobody is left on a CPU that is not there, and what comes back is used again."""
    live = Live(tmp_path, n=4, isolated=(0,), zones=lambda i: 0)
    before = live.where()
    assert alone(before, 0)
    gone = min(before[0])
    left = [cpu for cpu in range(8) if cpu != gone]
    live.set_online(*left)
    live.loop.run(3)
    assert alone(live.where(), 0)
    held = live.loop.controls.held
    assert not held.cpus[:, gone].any() and (held.units[:, CPU] >= live.loop.host.reservation[:, CPU]).all()
    assert live.hal.troubles() == (f"CPUs {gone} of zone 0 are offline",)
    assert live.loop.counts.failed == 0
    live.set_online(*range(8))
    live.loop.run(3)
    assert alone(live.where(), 0) and live.hal.troubles() == ()
    assert live.loop.controls.held.cpus[:, gone].any() and live.loop.host.topology is live.hal.topology
    live.hal.close()


def test_vms_without_a_cpu_stay_off_isolated_cores(tmp_path: Path) -> None:
    """Fault 20, a whole zone: a cpuset without a CPU online falls back to its parent's; ours does not get so far."""
    live = Live(tmp_path, n=6, isolated=(0, 1), zones=lambda i: i % 2)
    before = [(live.host.root / f"cg/vm{i}/cpuset.cpus").read_text() for i in range(6)]
    live.set_online(0, 1, 2, 3)
    if live.where()[3] != frozenset(range(4)):
        pytest.fail("the fake does not fall back as the kernel does")
    live.loop.run(1)
    assert alone(live.where(), 0)
    live.loop.run(30)  # some were read back meanwhile
    assert alone(live.where(), 0) and live.loop.counts.failed == 0 and live.loop.counts.drift == 0
    assert any("VM 'vm3' has no CPU left" in line for line in live.hal.troubles())
    live.set_online(*range(8))
    live.loop.run(30)
    where = live.where()
    assert alone(where, 0) and alone(where, 1)
    assert [(live.host.root / f"cg/vm{i}/cpuset.cpus").read_text() for i in range(6)] == before
    live.hal.close()


def test_cpus_of_another_programs_partition_are_planned_around(tmp_path: Path) -> None:
    """Fault 13: a cpuset that lists such a CPU would end the partition; ours are given what is left, and more later."""
    host = FakeHost(tmp_path, n=3, isolated=(0,), zones=lambda i: 0)
    host.cgroups.mkdir("pods")

    def partition(cpus: str, state: str) -> None:
        for name, text in (("cpuset.cpus", cpus), ("cpuset.cpus.partition", state)):
            with (host.root / f"cg/pods/{name}").open("r+b") as file:
                host.cgroups.pwrite(file.fileno(), text.encode(), 0)

    def state() -> str:
        return (host.root / "cg/pods/cpuset.cpus.partition").read_text().strip()

    partition("1,6-7", "root")
    hal = host.open()
    assert hal.topology.cpu_id.tolist() == [0, 2, 3, 4, 5] and state() == "root"
    hal.claim(lambda doc: None)
    loop = ControlLoop(hal, make_mind("static", Host(hal.topology, hal.vms)))
    loop.run(20)
    partition("1,3,6-7", "root")  # it wants one more: the kernel ends it as long as it is in a VM's cpuset
    loop.run(3)
    first = state()
    with (host.root / "cg/pods/cpuset.cpus").open("r+b") as file:
        host.cgroups.pwrite(file.fileno(), b"1,6-7", 0)
    partition("1,6-7", "member")
    partition("1,6-7", "root")
    loop.run(5)
    assert state() == "root" and loop.counts.failed == 0
    assert first in ("root", "root invalid (Cpu list in cpuset.cpus not exclusive)", "root invalid")
    listed = frozenset().union(*(cpulist.parse((host.root / f"cg/vm{i}/cpuset.cpus").read_text()) for i in range(3)))
    assert not listed & {1, 6, 7}
    hal.close()


def test_a_partition_that_comes_above_the_vms_takes_cpus_like_a_hot_unplug(tmp_path: Path) -> None:
    """Faults 13 and 20: and gives them back."""
    host = FakeHost(tmp_path, n=3, isolated=(0,), zones=lambda i: 0)
    hal = host.open()
    hal.claim(lambda doc: None)
    loop = ControlLoop(hal, make_mind("static", Host(hal.topology, hal.vms)))
    loop.run(5)
    effective = host.root / "cg/cpuset.cpus.effective"
    whole = effective.read_text()
    taken = min(cpulist.parse((host.root / "cg/vm0/cpuset.cpus").read_text()))
    effective.write_text(cpulist.form(set(range(8)) - {taken}) + "\n")  # a remote partition: its cgroup is elsewhere
    loop.run(3)
    assert not loop.controls.held.cpus[:, taken].any()
    assert any(f"CPUs {taken} are kept by a cpuset of another program" in line for line in hal.troubles())
    effective.write_text(whole)
    loop.run(3)
    assert loop.controls.held.cpus[:, taken].any() and hal.troubles() == ()
    hal.close()
