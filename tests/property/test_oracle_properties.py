"""The oracles' solver against exact answers: brute force on tiny instances, HiGHS on small ones."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foreshare.training.oracles.solve import IMPOSSIBLE, Choices, solve

RESOURCES = 4


def random_choices(rng: np.random.Generator, n: int, options: int, zones: int = 1) -> Choices:
    """Values linear, concave or stepped in the service level; whole units; capacities for 35 to 80 % of all."""
    level = np.sort(rng.uniform(0.0, 1.0, (n, options)), axis=1)
    level[:, 0] = 0.0
    need = rng.uniform(0.2, 2.0, (n, 1, RESOURCES)) * rng.uniform(0.6, 1.4, (n, options, RESOURCES))
    kind, threshold = rng.integers(0, 3, (n, 1)), rng.uniform(0.3, 0.8, (n, 1))
    stepped = np.where(level >= threshold, level, 0.1 * level)
    value = np.where(kind == 0, level, np.where(kind == 1, np.sqrt(level), stepped)) * rng.uniform(10.0, 40.0, (n, 1))
    cost = np.ceil(level[..., None] * need * 20.0).transpose(2, 0, 1)
    zone = np.arange(n) % zones
    pool = zone * (RESOURCES - 1) + np.arange(RESOURCES)[:, None]
    pool[-1] = zones * (RESOURCES - 1)  # the last resource is the whole host's
    most = np.zeros(zones * (RESOURCES - 1) + 1)
    np.add.at(most, pool, cost.max(axis=2))
    return Choices(value, cost, pool, np.floor(most * rng.uniform(0.35, 0.8, len(most))))


def used(choices: Choices, option: np.ndarray) -> np.ndarray:
    out = np.zeros(len(choices.capacity))
    np.add.at(out, choices.pool, choices.cost[:, np.arange(len(option)), option])
    return out


def by_brute_force(choices: Choices) -> float:
    _, n, options = choices.cost.shape
    every = np.array(list(itertools.product(range(options), repeat=n)))
    take = np.zeros((len(every), len(choices.capacity)))
    for i in range(n):
        for c in range(len(choices.pool)):
            take[:, choices.pool[c, i]] += choices.cost[c, i, every[:, i]]
    value = choices.value[np.arange(n), every].sum(axis=1)
    return float(value[(take <= choices.capacity + 1e-9).all(axis=1)].max())


def by_highs(choices: Choices) -> float:
    scipy_optimize = pytest.importorskip("scipy.optimize")
    columns, n, options = choices.cost.shape
    take = np.zeros((len(choices.capacity), n, options))
    for i in range(n):
        for c in range(columns):
            take[choices.pool[c, i], i] += choices.cost[c, i]
    one_each = np.kron(np.eye(n), np.ones(options))
    found = scipy_optimize.milp(
        -choices.value.ravel(),
        constraints=[
            scipy_optimize.LinearConstraint(take.reshape(len(choices.capacity), -1), ub=choices.capacity),
            scipy_optimize.LinearConstraint(one_each, 1, 1),
        ],
        integrality=np.ones(n * options),
        bounds=scipy_optimize.Bounds(0, 1),
        options={"mip_rel_gap": 1e-3, "time_limit": 10},
    )
    assert found.x is not None, found.message
    return float(-found.fun)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(0, 20), options=st.integers(1, 40), zones=st.integers(1, 2))
def test_what_is_chosen_always_fits_and_is_what_it_says(seed: int, n: int, options: int, zones: int) -> None:
    rng = np.random.default_rng(seed)
    choices = random_choices(rng, n, options, zones)
    if n and options > 2:  # some options do not exist
        choices.value[:, 1:][rng.random((n, options - 1)) < 0.2] = IMPOSSIBLE
    prices = None if seed % 2 else rng.uniform(0.0, 50.0, len(choices.capacity))
    found = solve(choices, prices=prices)
    assert found.option.shape == (n,)
    assert (used(choices, found.option) <= choices.capacity + 1e-6).all()
    value = float(choices.value[np.arange(n), found.option].sum())
    assert value == pytest.approx(found.value) and found.value <= found.bound + 1e-6
    assert value >= float(choices.value[:, 0].sum()) - 1e-9
    assert (found.prices >= 0).all()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 4), options=st.integers(2, 6))
def test_the_bound_holds_and_is_met_where_everything_fits(seed: int, n: int, options: int) -> None:
    choices = random_choices(np.random.default_rng(seed), n, options)
    assert solve(choices).bound >= by_brute_force(choices) - 1e-6
    plenty = Choices(choices.value, choices.cost, choices.pool, np.full(len(choices.capacity), 1e6))
    assert solve(plenty).value == pytest.approx(choices.value.max(axis=1).sum())


@pytest.mark.parametrize(("n", "options"), [(3, 6), (4, 7), (5, 5)])
def test_it_finds_nearly_all_that_brute_force_finds(n: int, options: int) -> None:
    rng = np.random.default_rng(n)
    share = []
    for _ in range(60):
        choices = random_choices(rng, n, options)
        share.append(solve(choices).value / by_brute_force(choices))
    assert max(share) <= 1.0 + 1e-9
    assert np.mean(share) >= 0.97


@pytest.mark.parametrize(("n", "options", "zones", "count"), [(6, 20, 1, 12), (8, 24, 2, 5), (14, 24, 1, 2)])
def test_it_finds_nearly_all_that_highs_finds(n: int, options: int, zones: int, count: int) -> None:
    rng = np.random.default_rng(options)
    share = []
    for _ in range(count):
        choices = random_choices(rng, n, options, zones)
        share.append(solve(choices).value / by_highs(choices))
    assert max(share) <= 1.0 + 2e-3  # HiGHS stops at a gap of a thousandth
    assert np.mean(share) >= 0.97


def test_whole_options_are_seen_where_no_single_unit_helps() -> None:
    """Two VMs, each worth something only when served whole, on a host with room for one: the dearer one is served."""
    value = np.array([[0.0, 0.0, 0.0, 10.0], [0.0, 0.0, 0.0, 12.0]])
    cost = np.repeat(np.arange(4.0)[None, None], 2, axis=1)
    choices = Choices(value, cost, np.zeros((1, 2), np.int64), np.array([4.0]))
    found = solve(choices)
    assert found.option[1] == 3 and found.value == 12.0
