"""Plans that random faults have found to be unsafe once."""

from __future__ import annotations

import numpy as np
from hosts import check_isolated, table, topology

from foreshare.envs.hal import Receipt
from foreshare.envs.hal.plan import advance, build_plan
from foreshare.policies.host import Host, Placement


def test_who_goes_straight_to_a_free_core_leaves_before_others_may_come() -> None:
    """An isolated VM leaves its only core for a free one, and a shared VM with the lower row gains the old one."""
    host = Host(topology(ways=0), table(3, isolation=[0, 1, 0]))
    state, target = Placement.empty(3, 8), Placement.empty(3, 8)
    state.cpus[0, 1] = state.cpus[1, 6] = state.cpus[2, 2] = True
    target.cpus[0, [1, 3, 6]] = target.cpus[1, 0] = target.cpus[2, 2] = True
    plan = build_plan(host, state, target)
    for k in range(len(plan) + 1):
        between = state.copy()
        plan.whole = False
        advance(between, plan, Receipt(done=k), target, host)
        check_isolated(host, between)
    assert (between.cpus == target.cpus).all()
    assert np.array_equal(plan.vm[plan.control == 0], [1, 0])
