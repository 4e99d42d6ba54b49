"""A bound from below on V: what no allocation, however clever, can avoid on a small host over a whole window.

A linear program in fluid requests. With ``x[i, s, t]`` the requests of VM ``i`` that arrive in tick ``s`` and are
served in tick ``t``, ``s <= t <= s + target_i``:

maximise ``sum_i w_i sum x[i]`` subject to ``sum_t x[i, s, t] <= a[i, s]`` and, in every tick and for every pool,
``sum need[i, r, t] x[i, ., t] <= capacity``; CPU of each VM also within its vCPUs.

It is a relaxation: units are not whole, every VM has the whole cache at once, nothing is ever cold, nobody has a
reservation, late requests need not be served, and the order in a queue is free. So V of any policy in the same window
on a host that starts empty is at least what this leaves late.
"""

from __future__ import annotations

import numpy as np

from foreshare.envs.simulator.cache import miss_ratio
from foreshare.envs.simulator.host import Simulator
from foreshare.envs.simulator.scenario import Scenario
from foreshare.policies.errors import InputError
from foreshare.policies.host import CPU, IO, MEMORY, WHOLE_HOST, Resource

MAX_VARIABLES = 2_000_000


def least_violation_pct(scenario: Scenario, seed: int, ticks: int, *, tick_ms: float = 10.0) -> float:
    """Return a V in percent that no policy can get below in the first ``ticks`` ticks.

    Requests whose target is after the window count as in time, as simulator/lateness.py has not found them late yet.
    Needs scipy, which is in the extra ``dev``. Raises InputError where the window is too large, for hosts with two
    threads per core (what a request costs them depends on the allocation), and for VMs that leave (what they had
    queued is never late).
    """
    from scipy.optimize import linprog
    from scipy.sparse import coo_matrix

    if scenario.host.threads_per_core != 1:
        raise InputError("the horizon oracle takes hosts with one thread per core")
    if any(v.leave_ms for v in scenario.vm):
        raise InputError("the horizon oracle takes VMs that stay")
    twin = Simulator(scenario, seed=seed, tick_ms=tick_ms)
    m, n = twin.model, twin.vms
    target = m.target_ticks
    if int(((target + 1) * ticks).sum()) > MAX_VARIABLES:
        raise InputError(f"{n} VMs over {ticks} ticks are too much for the horizon oracle")
    arrivals, need = np.zeros((ticks, n)), np.zeros((ticks, n, len(Resource)))
    threads = np.zeros((ticks, n))
    best = miss_ratio(np.full(n, float(scenario.host.ways)), *m.miss)
    for k in range(ticks):
        twin.step()
        arrivals[k], need[k], threads[k] = twin.arrivals[0], m.need_at(best, twin.workloads.mix[0]), twin.threads

    waits = np.arange(int(target.max(initial=1)) + 1)
    vm, s, t = (a.ravel() for a in np.meshgrid(np.arange(n), np.arange(ticks), waits, indexing="ij"))
    t = t + s
    inside = (t <= s + target[vm]) & (s + target[vm] < ticks) & (arrivals[s, vm] > 0.0)
    vm, s, t = vm[inside], s[inside], t[inside]
    total = arrivals.sum(axis=0)
    if not (total > 0.0).any():
        return 0.0
    weight = twin.weight * (total > 0.0) / twin.weight[total > 0.0].sum()
    gain = weight[vm] / total[vm]

    pools: dict[tuple[int, int], int] = {}
    limits: list[float] = []
    row_of = np.zeros((n, len(Resource)), np.int64)
    for i in range(n):
        for r in (CPU, MEMORY, IO):
            pool = m.topology.pool(Resource(r), int(m.vms.zone[i]))
            key = (r, WHOLE_HOST if pool.zone == WHOLE_HOST else int(m.vms.zone[i]))
            if key not in pools:
                pools[key] = len(limits)
                limits.append(float(pool.units))
            row_of[i, r] = pools[key]
    column = np.arange(len(vm))
    rows = [s * n + vm]
    values = [np.ones(len(vm))]
    limit = [arrivals.ravel()]
    start = ticks * n
    for r in (CPU, MEMORY, IO):
        rows.append(start + t * len(limits) + row_of[vm, r])
        values.append(need[t, vm, r])
    limit.append(np.tile(limits, ticks))
    start += ticks * len(limits)
    rows.append(start + t * n + vm)
    values.append(need[t, vm, CPU])
    limit.append(threads.ravel())
    matrix = coo_matrix(
        (np.concatenate(values), (np.concatenate(rows), np.tile(column, len(rows)))), shape=(start + ticks * n, len(vm))
    )
    found = linprog(-gain, A_ub=matrix.tocsr(), b_ub=np.concatenate(limit), bounds=(0, None), method="highs")
    if found.status != 0:
        raise InputError(f"the horizon oracle found no answer: {found.message}")
    settled = np.arange(ticks)[:, None] + target < ticks
    undecided = float((np.where(settled, 0.0, arrivals) * weight / np.maximum(total, 1e-300)).sum())
    return 100.0 * max(1.0 + float(found.fun) - undecided, 0.0)
