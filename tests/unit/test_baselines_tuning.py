"""Rollouts repeat exactly; the tuner stays in its budget, keeps the best, and writes what it found."""

from __future__ import annotations

import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from foreshare.envs.simulator.scenario import Scenario, load_scenario
from foreshare.policies.backlog_forecast import BacklogKnobs
from foreshare.policies.errors import InputError
from foreshare.training.rollout import rollout
from foreshare.training.tune_baseline import TuneOptions, tune, write_tuned


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    return replace(load_scenario("mixed", vms=6), load=0.9)


def test_the_same_seed_gives_the_same_figures(scenario: Scenario) -> None:
    one, two = (rollout(scenario, "triage", 3, 60, warm_ticks=10) for _ in range(2))
    assert one.slo_violation_pct == two.slo_violation_pct
    assert (one.late_share == two.late_share).all()
    assert one.moves_per_tick == two.moves_per_tick
    other = rollout(scenario, "triage", 4, 60, warm_ticks=10)
    assert (other.late_share != one.late_share).any()


def test_figures_are_about_the_ticks_after_the_warm_up(scenario: Scenario) -> None:
    calls: list[int] = []
    figures = rollout(
        scenario, "backlog", 3, 40, warm_ticks=20, watch=lambda hal, mind, seen, decision: calls.append(1)
    )
    assert len(calls) == 60
    assert figures.ticks == 40
    assert figures.fallbacks == 0
    assert figures.reservations_broken == 0
    assert 0 < figures.utilisation_pct <= 100
    assert (figures.late_share >= 0).all()


def test_a_rollout_needs_a_tick(scenario: Scenario) -> None:
    with pytest.raises(InputError):
        rollout(scenario, "backlog", 0, 0)
    with pytest.raises(InputError):
        rollout(scenario, "no-such", 0, 10)


def test_tuning_keeps_the_best_within_its_budget(scenario: Scenario) -> None:
    spent: list[int] = []
    options = TuneOptions(steps=6 * 60 * 8, seed=1, ticks=50, warm_ticks=10)
    found = tune("backlog", [scenario], options, lambda steps, trial: spent.append(steps))
    assert len(found.trials) == 8
    assert found.steps == spent[-1] <= options.steps
    assert found.trials[0].knobs == BacklogKnobs()
    assert found.trials[0].score == 1.0
    best = min(found.trials, key=lambda t: t.score)
    assert found.best == best.knobs
    again = tune("backlog", [scenario], options)
    assert again.best == found.best
    assert again.trials == found.trials
    seen = rollout(scenario, "backlog", found.seeds[0], 50, knobs=found.best, warm_ticks=10).slo_violation_pct
    assert seen == pytest.approx(best.slo_violation_pct[0])


def test_a_policy_without_knobs_is_not_tuned(scenario: Scenario) -> None:
    with pytest.raises(InputError, match="no knobs"):
        tune("static", [scenario])
    with pytest.raises(InputError, match="at least one scenario"):
        tune("backlog", [])


def test_written_values_are_read_back(tmp_path: Path) -> None:
    path = tmp_path / "tuned.py"
    write_tuned(path, "backlog", BacklogKnobs(margin=0.25), 'tune "backlog"')
    write_tuned(path, "forecast", BacklogKnobs(), "tune forecast")
    module = runpy.run_path(str(path))
    assert list(module["TUNED"]) == ["backlog", "forecast"]
    assert BacklogKnobs(**module["TUNED"]["backlog"]) == BacklogKnobs(margin=0.25)
    assert module["COMMANDS"]["backlog"] == 'tune "backlog"'
    path.write_text("TUNED = {")
    with pytest.raises(InputError, match="not a file of tuned values"):
        write_tuned(path, "backlog", BacklogKnobs(), "x")


def test_common_random_numbers(scenario: Scenario) -> None:
    """What arrives does not depend on who decides."""
    arrived: list[np.ndarray] = []
    for name in ("static", "triage"):
        rollout(
            scenario, name, 9, 30, warm_ticks=0,
            watch=lambda hal, mind, seen, decision: arrived.append(hal.simulator.arrivals[0].copy()),
        )  # fmt: skip
    assert (np.array(arrived[:30]) == np.array(arrived[30:])).all()
