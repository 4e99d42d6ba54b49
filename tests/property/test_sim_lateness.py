"""The lateness formula against a simulation that follows every request, and the queue against Little's law."""

from __future__ import annotations

from collections import deque

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foreshare.envs.simulator.lateness import LatenessMeter, violation_pct, weights_of


def follow_every_request(arrivals: list[int], capacity: list[int], target: int) -> tuple[list[int], list[int], int]:
    """FIFO with whole requests: return late ones by tick of discovery, latencies in ticks, and the last backlog."""
    queue: deque[int] = deque()
    late = [0] * len(arrivals)
    waits: list[int] = []
    for t, (a, c) in enumerate(zip(arrivals, capacity, strict=True)):
        queue.extend([t] * a)
        waits.extend(t - queue.popleft() for _ in range(min(c, len(queue))))
        # A request of tick t - S that is still here at the end of tick t has missed its target.
        late[t] = sum(1 for born in queue if born == t - target)
    return late, waits, len(queue)


ticks = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=40)


@given(traces=st.lists(ticks, min_size=1, max_size=4), targets=st.lists(st.integers(1, 6), min_size=4, max_size=4))
def test_late_requests_are_exactly_those_that_a_simulation_of_requests_finds(
    traces: list[list[tuple[int, int]]], targets: list[int]
) -> None:
    length = min(len(t) for t in traces)
    n = len(traces)
    target = np.array(targets[:n])[None]
    meter = LatenessMeter(target)
    backlog = np.zeros((1, n))
    expected = [
        follow_every_request([a for a, _ in tr[:length]], [c for _, c in tr[:length]], int(target[0, i]))
        for i, tr in enumerate(traces)
    ]
    for t in range(length):
        a = np.array([[tr[t][0] for tr in traces]], float)
        c = np.array([[tr[t][1] for tr in traces]], float)
        backlog = backlog + a - np.minimum(backlog + a, c)
        late = meter.update(a, backlog)
        assert late[0] == pytest.approx([e[0][t] for e in expected])
    assert meter.arrived_total[0] == pytest.approx([sum(a for a, _ in tr[:length]) for tr in traces])
    assert backlog[0] == pytest.approx([e[2] for e in expected])


@given(trace=ticks)
def test_littles_law(trace: list[tuple[int, int]]) -> None:
    """Requests in the queue summed over ticks are the ticks that requests spent in it (all served in the end)."""
    flush = [(0, 1000)]
    arrivals, capacity = zip(*(trace + flush), strict=True)
    _, waits, left = follow_every_request(list(arrivals), list(capacity), 3)
    assert left == 0
    q, total = 0.0, 0.0
    for a, c in zip(arrivals, capacity, strict=True):
        q = q + a - min(q + a, c)
        total += q
    assert total == sum(waits)


@given(
    st.lists(st.tuples(st.floats(0, 1e4), st.floats(0, 1e4)), min_size=1, max_size=60),
    st.integers(1, 12),
)
def test_late_is_never_negative_nor_more_than_arrived(trace: list[tuple[float, float]], target: int) -> None:
    meter = LatenessMeter(np.array([[target]]))
    q = np.zeros((1, 1))
    seen = []
    for a, c in trace:
        q = q + a - np.minimum(q + a, c)
        late = meter.update(np.array([[a]]), q)
        seen.append(a)
        assert late[0, 0] >= 0
        born = len(seen) - 1 - target
        assert late[0, 0] <= (seen[born] if born >= 0 else 0) + 1e-6
    assert 0 <= violation_pct(meter.late_total, meter.arrived_total, np.ones(1))[0] <= 100 + 1e-9


def test_v_is_the_weighted_mean_of_shares() -> None:
    late, arrived = np.array([[10.0, 0, 5, 0]]), np.array([[100.0, 50, 10, 0]])
    weight = np.array([4.0, 2, 1, 9])
    assert violation_pct(late, arrived, weight) == pytest.approx([100 * (4 * 0.1 + 0 + 0.5) / 7])
    assert violation_pct(np.zeros((2, 0)), np.zeros((2, 0)), np.zeros(0)) == pytest.approx([0, 0])
    assert (weights_of(np.array([-5, 0, 1, 3])) == [1, 1, 2, 4]).all()
