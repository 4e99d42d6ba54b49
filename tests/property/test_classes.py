"""Grouping VMs into classes: owners alone, nothing moves without a gain, never more than the budget lets."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from foreshare.envs.classes import regroup, spread

Case = tuple[dict[str, np.ndarray], int]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    n, classes = draw(st.integers(0, 24)), draw(st.integers(1, 8))

    def ints(low: int, high: int) -> np.ndarray:
        return np.array([draw(st.integers(low, high)) for _ in range(n)], np.int64)

    owner = np.zeros(n, bool)
    owner[: draw(st.integers(0, max(min(n, classes - 1), 0)))] = True
    return {
        "need": ints(0, 400).astype(float), "zone": ints(0, 1), "owner": owner, "rank": np.arange(n)[::-1].copy(),
        "threads": ints(1, 9), "at": ints(0, classes - 1),
    }, classes  # fmt: skip


def alone(owner: np.ndarray, at: np.ndarray) -> bool:
    return all((at == at[i]).sum() == 1 for i in np.flatnonzero(owner))


@given(cases())
def test_with_enough_budget_owners_end_up_alone(case: Case) -> None:
    vms, classes = case
    at, _ = regroup(**vms, classes=classes, budget=10**6)
    assert ((at >= 0) & (at < classes)).all()
    assert alone(vms["owner"], at)


@given(cases(), st.integers(0, 40))
def test_no_more_threads_move_than_the_budget_lets(case: Case, budget: int) -> None:
    vms, classes = case
    at, moved = regroup(**vms, classes=classes, budget=budget)
    assert int(vms["threads"][at != vms["at"]].sum()) <= moved
    assert moved < budget + int(vms["threads"].max(initial=0)) or moved == 0
    if budget == 0:
        assert (at == vms["at"]).all()


@given(cases(), st.integers(0, 40))
def test_owners_who_are_alone_stay_and_small_steps_arrive(case: Case, budget: int) -> None:
    vms, classes = case
    at, _ = regroup(**vms, classes=classes, budget=10**6)
    again, moved = regroup(**(vms | {"at": at}), classes=classes, budget=10**6)
    assert (again[vms["owner"]] == at[vms["owner"]]).all()
    slow = vms["at"]
    for _ in range(200):
        slow, moved = regroup(**(vms | {"at": slow}), classes=classes, budget=1)
        if not moved:
            break
    assert moved == 0
    assert alone(vms["owner"], slow)


@given(cases())
def test_without_owners_the_spread_never_grows(case: Case) -> None:
    vms, classes = case
    vms = vms | {"owner": np.zeros(len(vms["at"]), bool)}
    at, _ = regroup(**vms, classes=classes, budget=10**6)
    before, after = (spread(vms["need"], vms["zone"], a, vms["owner"]) for a in (vms["at"], at))
    assert after <= before + 1e-9
    if (at != vms["at"]).any():
        assert after < before - 0.01


@given(cases(), st.randoms(use_true_random=False))
def test_the_order_of_the_rows_does_not_matter(case: Case, random: object) -> None:
    vms, classes = case
    order = np.arange(len(vms["at"]))
    random.shuffle(order)  # type: ignore[attr-defined]  # hypothesis' Random
    at, moved = regroup(**vms, classes=classes, budget=30)
    other, other_moved = regroup(**{k: v[order] for k, v in vms.items()}, classes=classes, budget=30)
    assert (other == at[order]).all() and moved == other_moved


def test_alike_ends_up_with_alike() -> None:
    need = np.array([1.0, 100, 1, 100, 1, 100])
    n = len(need)
    at, moved = regroup(need, np.zeros(n, np.int64), np.zeros(n, bool), np.arange(n), np.full(n, 2),
                        np.zeros(n, np.int64), 2, 100)  # fmt: skip
    assert len({*at[::2]}) == len({*at[1::2]}) == 1 and at[0] != at[1]
    assert moved == 6


def test_the_last_class_is_never_an_owners() -> None:
    one = np.zeros(3, np.int64)
    owner = np.array([True, False, False])
    at, moved = regroup(np.ones(3), one, owner, np.arange(3), one + 1, one, 1, 100)
    assert (at == 0).all() and moved == 0
