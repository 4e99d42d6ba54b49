from __future__ import annotations

import math

import numpy as np
import pytest

from foreshare.envs.simulator.lateness import LatenessMeter
from foreshare.policies.errors import InputError
from foreshare.training import metrics as m


def queue(seed: int, ticks: int = 120, vms: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Return whole requests that arrive and are served, first in first out, with queues now and then."""
    rng = np.random.default_rng(seed)
    arrivals = rng.poisson(3.0, (ticks, vms)).astype(float)
    served = np.zeros_like(arrivals)
    backlog = np.zeros(vms)
    for t in range(ticks):
        backlog += arrivals[t]
        served[t] = np.minimum(backlog, rng.integers(0, 8, vms))
        backlog -= served[t]
    return arrivals, served


def requests(arrivals: np.ndarray, served: np.ndarray) -> list[tuple[int, float]]:
    """Return (arrival tick, ticks until served or inf) of every request of one VM, one by one."""
    out: list[tuple[int, float]] = []
    waiting = [t for t, k in enumerate(arrivals) for _ in range(int(k))]
    done = [t for t, k in enumerate(served) for _ in range(int(k))]
    for i, came in enumerate(waiting):
        out.append((came, done[i] - came if i < len(done) else math.inf))
    return out


@pytest.mark.parametrize("seed", range(4))
def test_lateness_is_that_of_every_single_request(seed: int) -> None:
    arrivals, served = queue(seed)
    target = np.array([1, 2, 3, 7, 200])
    late = m.late_requests(arrivals, served, target)
    for i, limit in enumerate(target):
        expected = np.zeros(len(arrivals))
        for came, took in requests(arrivals[:, i], served[:, i]):
            if took > limit and came + limit < len(arrivals):
                expected[came + limit] += 1
        assert late[:, i] == pytest.approx(expected, abs=1e-9)


def test_lateness_is_what_the_simulator_counts() -> None:
    arrivals, served = queue(9)
    target = np.array([1, 2, 3, 7, 20])
    meter, backlog = LatenessMeter(target[None]), np.zeros(5)
    for a, s in zip(arrivals, served, strict=True):
        backlog += a - s
        meter.update(a[None], backlog[None])
    assert m.late_requests(arrivals, served, target).sum(axis=0) == pytest.approx(meter.late_total[0])


def test_v_weighs_vms_by_priority_and_leaves_out_who_asked_for_nothing() -> None:
    late, arrived = np.array([5.0, 0.0, 0.0]), np.array([10.0, 20.0, 0.0])
    weight = m.weights_of(np.array([2, 0, 3]))
    assert weight.tolist() == [3.0, 1.0, 4.0]
    assert float(m.violation_pct(late, arrived, weight)) == pytest.approx(100 * (3 * 0.5 + 0) / 4)


def test_late_and_starved_vms_by_hand() -> None:
    share = m.late_share(np.array([0.0, 1.0, 2.0, 60.0, 0.0]), np.array([100.0, 100.0, 100.0, 100.0, 0.0]))
    assert np.isnan(share[4])
    assert m.late_vm_pct(share) == 50.0  # exactly 1 % is not more than 1 %
    assert m.late_vm_pct(share, m.STARVED_SHARE) == 25.0
    assert m.violation_by_priority(share, np.array([0, 0, 2, 2, 3])) == {0: pytest.approx(0.5), 2: pytest.approx(31.0)}
    assert m.late_vm_pct(np.array([np.nan])) == 0.0


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("first", [0, 30])
def test_latency_quantile_is_that_of_every_single_request(seed: int, first: int) -> None:
    arrivals, served = queue(seed)
    for quantile in (0.5, 0.9, 0.99):
        said = m.latency_quantile(arrivals, served, quantile, first=first)
        for i in range(arrivals.shape[1]):
            took = sorted(x for came, x in requests(arrivals[:, i], served[:, i]) if came >= first)
            exact = took[math.ceil(quantile * len(took) - 1e-9) - 1]
            if math.isinf(exact):
                assert said[i] == len(arrivals) - first
            else:
                assert exact <= said[i] <= exact + 1 and math.ceil(said[i] - 1e-9) == exact + 1


def test_latency_of_who_asks_for_nothing_is_unknown_and_an_idle_host_serves_within_the_tick() -> None:
    arrivals = np.zeros((10, 2))
    arrivals[:, 1] = 2.0
    latency = m.latency_quantile(arrivals, arrivals)
    assert np.isnan(latency[0]) and latency[1] == pytest.approx(0.99)
    assert m.p99_against_alone(latency, latency) == (1.0, 1.0)
    assert m.p99_against_alone(np.array([2.0, 30.0]), np.array([1.0, 3.0])) == (pytest.approx(6.0), pytest.approx(9.2))
    assert m.p99_against_alone(np.array([np.nan]), np.array([np.nan])) == (1.0, 1.0)


def test_broken_reservations_one_tick_after_the_other() -> None:
    rng = np.random.default_rng(3)
    granted, demand = rng.integers(0, 6, (200, 3, 4)).astype(float), rng.integers(0, 9, (200, 3, 4)).astype(float)
    reservation = rng.integers(0, 5, (3, 4))
    count = 0
    for i in range(3):
        for r in range(4):
            streak = 0
            for t in range(200):
                below = granted[t, i, r] < min(reservation[i, r], demand[t, i, r])
                streak = streak + 1 if below else 0
                count += streak == 3
    assert count > 0
    assert m.broken_reservations(granted, reservation, demand) == count


def test_two_ticks_below_the_reservation_are_forgiven_three_are_not() -> None:
    granted = np.full((10, 1, 1), 5.0)
    granted[2:4] = 1.0
    demand, reservation = np.full((10, 1, 1), 8.0), np.array([[5]])
    assert m.broken_reservations(granted, reservation, demand) == 0
    granted[4:9] = 1.0
    assert m.broken_reservations(granted, reservation, demand) == 1
    assert m.broken_reservations(granted, reservation, np.ones_like(demand)) == 0  # nobody wanted more


def test_emu_finds_the_threshold() -> None:
    for truth in (0.31, 0.66, 1.02):
        assert m.emu_load_pct(lambda load, truth=truth: load <= truth, rounds=8) == pytest.approx(100 * truth, abs=0.5)
    assert m.emu_load_pct(lambda load: False, rounds=6) == 0.0
    assert m.emu_holds(1.0, np.array([0.1, 0.5])) and not m.emu_holds(0.5, np.array([0.51]))
    assert not m.emu_holds(1.01, np.zeros(3))


def test_convergence_by_hand() -> None:
    share = np.zeros(300)
    share[110:140] = 0.8  # late from the 10th to the 40th tick after the step
    said = m.converge_ticks(share, 100)
    assert 38 <= said <= 40  # a mean over 20 ticks forgives a quarter of a late tick
    assert m.converge_ticks(np.zeros(300), 100) == 0
    assert m.converge_ticks(np.full(300, 0.4), 100) == 0  # steady, though bad
    assert m.converge_ticks(np.where(np.arange(300) < 100, 0.0, np.arange(300) / 300), 100) == 200  # never settles
    with pytest.raises(InputError):
        m.converge_ticks(np.zeros(120), 100)


def test_moves_and_fairness_by_hand() -> None:
    units = np.zeros((4, 2, 4))
    units[1:, 0, 0] = 3
    units[2, 1, 3] = 1
    assert m.moves_per_tick(units) == pytest.approx(3 / 3)
    assert m.moves_per_tick(units[:1]) == 0.0
    granted = np.tile(np.array([[2.0, 0, 4, 4], [2.0, 7, 4, 4]]), (5, 1, 1))
    assert m.jain_fairness(granted, np.array([[1, 0, 2, 2], [1, 0, 2, 2]])) == pytest.approx(1.0)
    # x = 1 and 3: (1 + 3)^2 / (2 (1 + 9))
    assert m.jain_fairness(granted, np.array([[2, 0, 4, 4], [1, 0, 1, 1]])) == pytest.approx(
        (1 + (2 + 4 + 4) / 3) ** 2 / (2 * (1 + (10 / 3) ** 2))
    )
    assert m.jain_fairness(granted, np.zeros((2, 4))) == 1.0


def test_closure_by_hand_and_only_where_there_is_a_gap() -> None:
    base, policy, oracle = np.array([[10.0, 14.0]]), np.array([[7.0, 11.0]]), np.array([[6.0, 10.0]])
    said = m.closure_pct(base, policy, oracle)
    assert said is not None
    assert said == m.Estimate(
        pytest.approx(75.0), pytest.approx(75.0), pytest.approx(75.0)
    )  # pairs differ by constants
    assert m.closure_pct(base, policy, base - 0.99) is None
    beyond = m.closure_pct(base, oracle - 1.0, oracle)
    assert beyond is not None and beyond.value == pytest.approx(125.0)


def test_intervals_are_paired_repeatable_and_hold_what_they_promise() -> None:
    rng = np.random.default_rng(0)
    a = rng.normal(10.0, 3.0, (12, 5))
    alone, pair = m.mean_interval(a), m.difference_interval(a + 0.5, a)
    assert alone.low < a.mean() < alone.high and alone == m.mean_interval(a)
    assert pair == m.Estimate(pytest.approx(0.5), pytest.approx(0.5), pytest.approx(0.5))
    hits = 0
    for k in range(100):
        values = np.random.default_rng(100 + k).normal(0.0, 1.0, (30, 1))
        e = m.mean_interval(values, draws=400)
        hits += e.low <= 0.0 <= e.high
    assert 85 <= hits <= 100


def test_scenarios_are_the_unit_of_resampling() -> None:
    """Many seeds of two scenarios that differ say no more about scenarios than two do."""
    values = np.concatenate([np.full((1, 50), 0.0), np.full((1, 50), 10.0)])
    said = m.mean_interval(values)
    assert (said.low, said.value, said.high) == (0.0, 5.0, 10.0)
