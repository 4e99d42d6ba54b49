"""Whatever a decision contains, what the guard lets out is feasible, and does not depend on the order of the VMs."""

from __future__ import annotations

import numpy as np
import pytest
from hosts import check_feasible, hosts
from hypothesis import given
from hypothesis import strategies as st

from foreshare.policies.allocators import Request, Triage
from foreshare.policies.errors import InputError
from foreshare.policies.guard import Guard, GuardOptions
from foreshare.policies.host import Host, Resource

ANYTHING = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True), st.sampled_from([1e30, -1e30, 0.0, -1.0, 2.0**63, np.nan, np.inf])
)


def draw_matrix(data: st.DataObject, host: Host, elements: st.SearchStrategy[float]) -> np.ndarray:
    n = len(host)
    return np.array([[data.draw(elements) for _ in range(4)] for _ in range(n)], float).reshape(n, 4)


@given(host=hosts(), data=st.data())
def test_any_numbers_become_a_feasible_allocation(host: Host, data: st.DataObject) -> None:
    """Fault 31."""
    guard = Guard(host)
    held = host.reservation.copy()
    for _ in range(3):
        proposal = draw_matrix(data, host, ANYTHING)
        ask = draw_matrix(data, host, st.one_of(st.floats(0, 200), st.just(np.nan)))
        units = guard.admit(proposal, ask, held)
        check_feasible(host, units)
        entitled = np.minimum(np.where(np.isnan(ask), np.inf, ask), host.reservation)
        assert (units >= entitled).all(), "somebody did not get his reservation back"
        assert guard.broken == bool(np.isnan(proposal).any())
        held = units


@given(host=hosts(), data=st.data(), radius=st.sampled_from([0.0, 0.25, 0.5, 0.9, 1.0]))
def test_within_the_trust_region_everybody_has_his_share_of_the_anchor(
    host: Host, data: st.DataObject, radius: float
) -> None:
    guard, triage = Guard(host, GuardOptions(radius=radius, hysteresis=False)), Triage()
    for tick in range(3):
        ask = np.clip(draw_matrix(data, host, st.floats(0, 200)), host.floor, host.cap)
        anchor = triage.allocate(Request(ask, ask), host, tick)
        proposal = draw_matrix(data, host, ANYTHING)
        units = guard.admit(proposal, ask, host.reservation, anchor=anchor)
        check_feasible(host, units)
        anchor[:, Resource.CACHE] = 0
        assert (units >= np.floor((1.0 - radius) * anchor)).all()
        assert radius or (units >= anchor).all()


def test_a_radius_is_between_nothing_and_everything() -> None:
    with pytest.raises(InputError, match="radius"):
        GuardOptions(radius=1.5)


@given(
    host=hosts(),
    proposal=st.sampled_from(
        [None, "all", [], [[1]], np.zeros((3, 3)), np.zeros((0, 4, 1)), np.array("x"), 7, [[1, 2, 3, [4]]], {"a": 1}]
    ),
)
def test_any_shape_becomes_the_reservations(host: Host, proposal: object) -> None:
    """Fault 30."""
    guard = Guard(host)
    units = guard.admit(proposal, host.reservation.astype(float), host.reservation)  # type: ignore[arg-type] # the point
    check_feasible(host, units)
    assert guard.broken
    assert (units == host.reservation).all()


@given(host=hosts(), data=st.data())
def test_reordering_the_vms_reorders_the_answer(host: Host, data: st.DataObject) -> None:
    proposal = draw_matrix(data, host, st.floats(0, 300))
    ask = draw_matrix(data, host, st.floats(0, 200))
    held = Guard(host).admit(proposal[::-1], ask, host.reservation)
    order = np.array(data.draw(st.permutations(range(len(host)))), np.int64)
    other = Host(host.topology, host.vms.take(order))
    straight = Guard(host).admit(proposal, ask, held)
    turned = Guard(other).admit(proposal[order], ask[order], held[order])
    assert (turned == straight[order]).all()


@given(host=hosts(), data=st.data())
def test_nothing_moves_while_nobody_wants_more(host: Host, data: st.DataObject) -> None:
    guard = Guard(host)
    ask = draw_matrix(data, host, st.floats(0, 200))
    held = guard.admit(ask, ask, host.reservation)
    less = np.minimum(ask * 0.7, held)
    again = guard.admit(less, less, held)
    keeps_class = (np.ceil(less[:, Resource.CACHE]) > 0) | (held[:, Resource.CACHE] == 0)
    assert (again[keeps_class] == held[keeps_class]).all()


def test_a_throttled_vm_keeps_nothing(  # the priority sort's refusal is enforced, not advice
) -> None:
    from hosts import table, topology

    host = Host(topology(), table(2))
    guard = Guard(host)
    held = np.array([[40, 2, 20, 20], [20, 2, 20, 20]])
    units = guard.admit(host.reservation, held.astype(float) * 0, held, frozen=np.array([True, False]))
    assert (units[0] == host.reservation[0]).all()
    assert (units[1, [0, 2, 3]] == held[1, [0, 2, 3]]).all()
