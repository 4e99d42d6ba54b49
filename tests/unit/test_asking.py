"""What a policy that is not one of ours is held against, wherever it runs: triage, all the time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hosts import table, topology

from foreshare.policies.allocators import Triage
from foreshare.policies.allocators.corrected import ACTIONS, Corrected
from foreshare.policies.assess import LEAST_TICKS
from foreshare.policies.decide import UNHURRIED, Mind, decide_tick
from foreshare.policies.host import Host
from foreshare.policies.reading import Quality, Reading
from foreshare.policies.registry import make_mind, tuned_knobs
from foreshare.runtime.asking import Where, open_mind


@pytest.fixture
def host() -> Host:
    reservation = np.tile([5, 0, 4, 5], (4, 1))
    return Host(topology(), table(4, reservation=reservation))


def reading(host: Host, tick: int) -> Reading:
    r = Reading.empty(len(host))
    r.t_ns, r.dt_ns = tick * 10_000_000, 10_000_000 + tick % 3
    r.usage[:] = np.random.default_rng(tick).uniform(10, 18, (len(host), 1)) * [1.0, 0.05, 0.8, 0.9]
    r.demand_low[:], r.limit[:], r.wait_ns[:], r.quality[:] = r.usage, np.inf, 0.0, Quality.OK
    return r


@pytest.mark.parametrize("where", ["inline", "process"])
def test_a_plug_in_is_assessed_against_triage(where: Where, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent.parent))
    mind = open_mind("misbehaving:good", host, UNHURRIED, where)
    try:
        assert isinstance(mind.default, Triage) and mind.assessor is not None
        decision = decide_tick(mind, reading(host, 1))
        assert decision.default is not None and decision.default.shape == host.shape
    finally:
        mind.close()


def tuned_triage() -> Triage:
    return Triage(tuned_knobs("triage"))


def corrected(host: Host, action: float) -> Mind:
    """A mind as that of a learned policy: called, its base shared with nobody, assessed against triage of its own."""
    inner = make_mind("triage", host, UNHURRIED)
    policy = Corrected(tuned_triage())
    policy.action = np.zeros((len(host), ACTIONS))
    policy.action[:, 1:] = action
    mind = Mind(host, inner.forecaster, policy, UNHURRIED)
    mind.assess_against(tuned_triage())
    return mind


def test_a_correction_that_starves_everybody_is_benched_and_triage_decides(host: Host) -> None:
    mind, plain = corrected(host, -2.5), make_mind("triage", host, UNHURRIED)
    mind.policy.allocate = lambda request, host, tick: host.floor.copy()  # type: ignore[method-assign] # as bad as can be
    for tick in range(1, 2 * LEAST_TICKS):
        decision, wanted = (decide_tick(m, reading(host, tick)) for m in (mind, plain))
        if decision.fault_kind == "benched":
            assert not decision.by_policy
            assert decision.default is not None and (decision.default >= host.floor).all()
            assert (decision.placement.units >= np.minimum(wanted.placement.units, host.reservation)).all()
    assert mind.standing.faults.get("worse") == 1 and decision.fault_kind == "benched"


def test_no_correction_is_triage_and_never_benched(host: Host) -> None:
    mind, plain = corrected(host, 0.0), make_mind("triage", host, UNHURRIED)
    for tick in range(1, 2 * LEAST_TICKS):
        decision, wanted = (decide_tick(m, reading(host, tick)) for m in (mind, plain))
        np.testing.assert_array_equal(decision.placement.units, wanted.placement.units)
        assert decision.by_policy and not decision.fault_kind
