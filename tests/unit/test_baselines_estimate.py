"""Demand and backlog from readings: exact where the queue is seen, conserved where it is not, better than usage."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hosts import table, topology

from foreshare.envs.simulator.host import Simulator
from foreshare.envs.simulator.scenario import load_scenario
from foreshare.policies.estimate import STILL_TICKS, EstimateOptions, Estimator
from foreshare.policies.host import CACHE, CPU, IO, MEMORY, Host
from foreshare.policies.reading import Quality, Reading
from foreshare.training.drive import open_world, simulator_of

TICK_NS = 10_000_000


def one_vm(threads: int = 4) -> Host:
    return Host(topology(), table(1, cap=np.array([[10 * threads, 10, 80, 100]])))


def reading(
    usage: list[float], *, limit: list[float], waiting_cpu: float = 0.0, waiting_io: float = 0.0, n: int = 1
) -> Reading:
    out = Reading.empty(n)
    out.t_ns, out.dt_ns = TICK_NS, TICK_NS
    out.usage[:] = usage
    out.demand_low[:] = usage
    out.demand_low[:, CPU] += waiting_cpu
    out.demand_low[:, IO] += waiting_io
    out.limit[:] = limit
    out.wait_ns[:] = waiting_cpu / 10 * TICK_NS
    out.quality[:] = np.where(out.usage >= 0.98 * out.limit, np.uint8(Quality.CENSORED), np.uint8(Quality.OK))
    return out


def test_no_queue_no_backlog() -> None:
    e = Estimator(one_vm())
    e.update(reading([8, 2, 4, 5], limit=[20, 10, 10, 10]))
    assert e.backlog.tolist() == [[0, 0, 0, 0]]
    assert e.demand[0, [CPU, MEMORY, IO]] == pytest.approx([8, 4, 5])
    assert e.delay_ticks[0] == 0


def test_a_seen_queue_stands_for_all_resources() -> None:
    """Six units of work wait for a CPU behind ten: at the rates of this tick memory and IO wait in proportion."""
    e = Estimator(one_vm())
    e.update(reading([10, 2, 4, 5], limit=[20, 10, 10, 10]))
    e.update(reading([10, 2, 4, 5], limit=[10, 10, 10, 10], waiting_cpu=6))
    assert e.backlog[0] == pytest.approx([6, 0, 2.4, 3])
    assert e.delay_ticks[0] == pytest.approx(0.6)
    assert e.demand[0, [CPU, MEMORY, IO]] == pytest.approx([16, 6.4, 8])


def test_serving_a_backlog_is_not_demand() -> None:
    """A VM that works off what waited uses more than arrives."""
    e = Estimator(one_vm())
    e.update(reading([10, 2, 4, 5], limit=[20, 10, 10, 10]))
    e.update(reading([10, 2, 4, 5], limit=[10, 10, 10, 10], waiting_cpu=6))
    e.update(reading([15, 2, 6, 7.5], limit=[30, 10, 20, 20]))
    assert e.backlog.max() == 0
    assert e.demand[0, CPU] == pytest.approx(9)


def test_the_wait_counter_alone_tells() -> None:
    e = Estimator(one_vm())
    seen = reading([10, 2, 4, 5], limit=[10, 10, 10, 10], waiting_cpu=6)
    seen.demand_low[:] = seen.usage
    e.update(seen)
    assert e.backlog[0, CPU] == pytest.approx(6)


def test_a_hidden_queue_is_kept_in_a_ledger() -> None:
    """At the limit of memory bandwidth nothing is seen: what arrives beyond it piles up, and is gone once it is not."""
    e = Estimator(one_vm())
    for _ in range(30):
        e.update(reading([10, 2, 8, 5], limit=[20, 10, 20, 10]))
    for _ in range(10):
        e.update(reading([5, 2, 4, 2.5], limit=[20, 10, 4, 10]))
    assert e.backlog[0, MEMORY] == pytest.approx(10 * 4, rel=0.1)
    assert e.demand[0, MEMORY] == pytest.approx(8, rel=0.1)
    e.update(reading([10, 2, 8, 5], limit=[20, 10, 20, 10]))
    assert e.backlog.max() == 0


def test_a_limit_without_known_backlog_is_probed() -> None:
    e = Estimator(one_vm(), EstimateOptions(probe=1.2))
    e.update(reading([10, 2, 4, 5], limit=[20, 10, 20, 10]))
    e.update(reading([12.5, 2, 5, 6.25], limit=[20, 10, 5, 10]))
    assert e.demand[0, MEMORY] == pytest.approx(5 * 1.2)


def test_a_missing_value_is_no_zero() -> None:
    e = Estimator(one_vm())
    e.update(reading([10, 2, 4, 5], limit=[10, 10, 10, 10], waiting_cpu=6))
    before = e.demand.copy(), e.backlog.copy()
    gone = Reading.empty(1)
    gone.dt_ns = TICK_NS
    for _ in range(3):
        e.update(gone)
    assert np.isfinite(e.demand).all()
    assert e.demand[0, CPU] >= 0.5 * before[0][0, CPU]
    assert e.backlog[0, CPU] >= before[1][0, CPU] - 1e-9


def test_nothing_is_known_of_a_vm_never_heard_of() -> None:
    e = Estimator(one_vm())
    e.update(Reading.empty(1))
    assert np.isnan(e.demand[0, [CPU, MEMORY, IO]]).all()
    assert e.backlog.max() == 0


def test_a_starved_vm_still_has_its_queue() -> None:
    """Nothing shows as served in this tick, but threads wait: they need, and will get, what was got before."""
    e = Estimator(one_vm())
    e.update(reading([10, 2, 4, 5], limit=[20, 10, 10, 10]))
    e.update(reading([0, 2, 0, 0], limit=[20, 10, 10, 10], waiting_cpu=12))
    assert e.backlog[0] == pytest.approx([12, 0, 4.8, 6], rel=1e-3)
    assert e.demand[0, [CPU, MEMORY, IO]] == pytest.approx([12, 4.8, 6], rel=0.05)
    assert e.delay_ticks[0] == pytest.approx(1.2)


def test_the_ledger_is_bounded() -> None:
    """A queue that nothing is seen of for ever must not overflow."""
    e = Estimator(one_vm(), EstimateOptions(most_ticks=50))
    for _ in range(2000):
        e.update(reading([5, 2, 4, 2.5], limit=[20, 10, 4, 10]))
    assert e.delay_ticks[0] <= 80
    assert np.isfinite(e.backlog).all()


def test_a_vm_that_wakes_is_seen_as_it_is() -> None:
    """It has hardly asked for anything, and now all its threads wait: that much has arrived, whatever was usual."""
    e = Estimator(one_vm())
    for _ in range(50):
        e.update(reading([0.1, 0, 0.05, 0.02], limit=[1, 10, 1, 1]))
    e.update(reading([1, 0, 0.5, 0.2], limit=[1, 10, 1, 1], waiting_cpu=39))
    assert not e.sure[0]
    assert e.demand[0, [CPU, MEMORY, IO]] == pytest.approx([40, 20, 8], rel=0.01)
    assert e.backlog[0, CPU] == pytest.approx(39, rel=0.01)
    e.update(reading([1, 0, 0.5, 0.2], limit=[1, 10, 1, 1], waiting_cpu=39))
    assert e.backlog[0, CPU] >= 39  # what waits is there, however long it would take at the usual rate
    assert e.demand[0, CPU] < 5  # and nothing more is known to have arrived


def test_rebind_keeps_what_is_known() -> None:
    both = Host(topology(), table(2))
    e = Estimator(both)
    seen = reading([10, 2, 4, 5], limit=[10, 10, 10, 10], waiting_cpu=6, n=2)
    seen.usage[1], seen.demand_low[1], seen.wait_ns[1] = 1.0, 1.0, 0.0
    e.update(seen)
    kept = e.backlog[0].copy()
    e.rebind(Host(topology(), both.vms.take(np.array([1, 0]))), np.array([1, 0]))
    assert e.backlog[1].tolist() == kept.tolist()
    e.rebind(Host(topology(), table(1)), np.array([-1]))
    assert not e.known[0]
    assert e.backlog.max() == 0


def test_mixed_under_throttling_it_halves_the_error_of_usage() -> None:
    """Against the simulator's truth: work wanted (arrivals and backlog), for VM-ticks at a limit or with a queue."""
    errors: list[np.ndarray] = []
    exact: list[np.ndarray] = []

    def watch(sim: Simulator, e: Estimator, seen: Reading) -> None:
        columns = [CPU, MEMORY, IO]
        need = sim.need[0][:, columns] / sim.model.capacity[columns]
        throttled = (seen.quality[:, columns] & Quality.CENSORED).any(axis=1) | (sim.backlog[0] > 0)
        throttled &= ~np.isnan(seen.usage).any(axis=1)
        backlog = (sim.backlog[0][:, None] * need).sum(axis=1)
        wanted = backlog + (sim.arrivals[0][:, None] * need).sum(axis=1)
        guess = ((e.demand + e.backlog)[:, columns] / sim.model.capacity[columns]).sum(axis=1)
        used = (seen.usage[:, columns] / sim.model.capacity[columns]).sum(axis=1)
        errors.append(np.stack([np.abs(guess - wanted), np.abs(used - wanted), wanted], axis=1)[throttled])
        sure = throttled & e.sure
        exact.append(np.abs(guess - wanted)[sure] / wanted[sure])

    scenario = replace(load_scenario("mixed"), load=0.65)
    for seed in (21, 22):
        world = open_world(scenario, "backlog", [seed], behind_hal=True)
        for _ in range(350):
            world.sense()
            world.act()
            watch(simulator_of(world), world.mind.forecaster.estimator, world.reading)  # type: ignore[attr-defined]
    guess, used, wanted = np.concatenate(errors).T
    assert len(wanted) > 300, "the scenario throttles"
    assert np.median(guess / wanted) < 0.5 * np.median(used / wanted)
    assert np.median(guess) < 0.5 * np.median(used)
    assert np.median(np.concatenate(exact)) < 0.03, "where the queue is seen only the noise of the counters is left"


def test_ways_follow_usage() -> None:
    e = Estimator(one_vm())
    e.update(reading([10, 3, 4, 5], limit=[20, 10, 20, 10]))
    assert e.demand[0, CACHE] == pytest.approx(3)


def test_a_counter_that_stands_still_is_missing_for_a_while() -> None:
    """All zeros after it had counted: the demand goes on; where it stays zero, the VM is idle after all."""
    e = Estimator(one_vm())
    for _ in range(20):
        e.update(reading([10, 2, 4, 5], limit=[20, 10, 10, 10]))
    for _ in range(STILL_TICKS):
        e.update(reading([0, 2, 0, 0], limit=[20, 10, 10, 10]))
        assert e.demand[0, CPU] == pytest.approx(10, rel=0.1)
    for _ in range(3):
        e.update(reading([0, 2, 0, 0], limit=[20, 10, 10, 10]))
    assert e.demand[0, CPU] < 1


def test_what_a_counter_shows_at_once_when_it_goes_on_is_no_rate() -> None:
    e = Estimator(one_vm())
    for _ in range(20):
        e.update(reading([10, 2, 4, 5], limit=[20, 10, 10, 10]))
    e.update(reading([90, 2, 36, 45], limit=[20, 10, 10, 10]))
    assert e.demand[0, CPU] == pytest.approx(10, rel=0.2)
