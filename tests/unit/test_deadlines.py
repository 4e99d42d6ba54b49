"""What is due when, against a queue that is counted request by request."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

import numpy as np

from foreshare.policies.allocators import Request
from foreshare.policies.deadlines import MOST_TICKS, STEPS, Deadlines
from foreshare.policies.host import CPU, Host
from tests.hosts import table, topology

_TICK_MS = 10.0


def test_due_work_is_that_of_a_queue_counted_by_hand() -> None:
    host = _host([20.0, 50.0, 1e5])
    rng = np.random.default_rng(1)
    n, seen = len(host), Deadlines(_TICK_MS)
    queues: list[deque[list[float]]] = [deque() for _ in range(n)]
    for t in range(200):
        usage = np.zeros(n)
        for i, queue in enumerate(queues):
            queue.append([t, float(rng.exponential(3.0))])
            room = float(rng.exponential(3.0))
            while queue and room > 0.0:
                done = min(room, queue[0][1])
                queue[0][1] -= done
                room -= done
                usage[i] += done
                if queue[0][1] <= 0.0:
                    queue.popleft()
        request = Request.empty(n)
        request.usage[:, CPU], request.need[:, CPU] = usage, 3.0
        request.backlog[:, CPU] = [sum(w for _, w in q) for q in queues]
        seen.update(request, host)
        for i, s in enumerate((2, 5, MOST_TICKS)):
            due = [sum(w for came, w in queues[i] if came + s <= t + k) for k in (0, *STEPS)]
            rates = [d / min(k, s) / 3.0 for d, k in zip(due[1:], STEPS, strict=True)]
            rates.append(sum(w for _, w in queues[i]) / s / 3.0)
            assert np.isclose(seen.overdue[i], due[0] / 3.0)
            assert np.allclose(seen.rates[:, i], rates)


def test_what_is_known_stays_with_its_vm() -> None:
    host = _host([20.0, 50.0, 80.0])
    seen = Deadlines(_TICK_MS)
    request = Request.empty(3)
    request.need[:, CPU] = 2.0
    for t in range(10):
        request.backlog[:, CPU] = [t, 2.0 * t, 3.0 * t]
        seen.update(request, host)
    before = seen.rates.copy()
    rows = np.array([2, 0, 1])
    other = Host(host.topology, host.vms.take(rows))
    moved = Request.empty(3)
    moved.need[:], moved.backlog[:] = request.need[rows], request.backlog[rows]
    seen.update(moved, other)
    alone = Deadlines(_TICK_MS)
    for _ in range(11):
        alone.update(request, host)
    assert (seen.rates[-1] == before[-1, rows]).all()
    assert (seen.rates[0, 2] > 0.0) == (before[0, 1] > 0.0)


def _host(targets: list[float]) -> Host:
    return Host(topology(), replace(table(len(targets)), target_ms=np.array(targets)))
