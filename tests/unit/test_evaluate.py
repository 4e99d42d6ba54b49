from __future__ import annotations

import copy
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from foreshare.envs.simulator.host import Simulator
from foreshare.envs.simulator.scenario import Scenario
from foreshare.envs.simulator.scenario_draw import draw, to_toml
from foreshare.envs.simulator.suites import Suite, load_suite, suite_hash
from foreshare.policies.errors import InputError
from foreshare.runtime import evaluation_report
from foreshare.runtime.session import HalChoice, Session
from foreshare.training import evaluate_cache
from foreshare.training.drive import Recording, open_world, record, simulator_of, violations
from foreshare.training.evaluate import evaluate, plan_runs
from foreshare.training.evaluate_run import EMU, PLAIN, STEP, Run, measure, served_alone, summarise
from foreshare.training.evaluate_summary import Results
from foreshare.training.evaluate_summary import summarise as sum_up

FIGURES = {
    "slo_violation_pct", "slo_violation_std", "closure_paying", "closure_paying_low", "closure_free", "late_vms_pct",
    "starved_vms_pct", "reservations_broken", "p99_alone_median", "p99_alone_worst_decile", "converge_ticks",
    "moves_per_tick", "fairness", "decision_us",
}  # fmt: skip


@pytest.fixture
def suite() -> Suite:
    return Suite(
        name="tiny", scenarios=(draw(1, cpus=8, vms=4, name="a"), draw(2, cpus=12, vms=5, name="b")),
        ticks=40, warm_ticks=10, step_ticks=40, emu_ticks=20, emu_rounds=2,
    )  # fmt: skip


def plain(scenario: Scenario, policy: str = "forecast", ticks: int = 150, warm_ticks: int = 0, seed: int = 3) -> Run:
    return Run(kind=PLAIN, scenario=scenario, policy=policy, seed=seed, ticks=ticks, warm_ticks=warm_ticks)


def without_times(result: dict[str, Any]) -> dict[str, Any]:
    """Return a result without what a clock measured."""
    out = copy.deepcopy(result)
    for of in (out["policies"], *out["scenarios"].values()):
        for loads in of.values():
            for figures in loads.values():
                del figures["decision_us"]
    return out


@pytest.mark.parametrize("policy", ["static", "forecast", "priority", "triage"])
@pytest.mark.parametrize("life", ["steady", "eventful"])
def test_a_run_gives_the_host_loops_own_figure(policy: str, life: str, tmp_path: Path) -> None:
    scenario = replace(draw(11, cpus=16, vms=8), load=0.85)
    vms = [replace(v, arrive_ms=0.0, leave_ms=0.0) for v in scenario.vm]
    if life == "eventful":
        vms[1], vms[2] = replace(vms[1], leave_ms=720.0), replace(vms[2], leave_ms=600.0)
        vms[3] = replace(vms[3], arrive_ms=500.0, leave_ms=1100.0)
    scenario = replace(scenario, vm=tuple(vms))
    path = tmp_path / "s.toml"
    path.write_text(to_toml(scenario))
    session = Session(choice=HalChoice(scenario=str(path), seed=3), policy=policy, ticks=150)
    said, loop = measure([plain(scenario, policy)])[0], session.run().log.summary
    assert said["slo_violation_pct"] == pytest.approx(loop["slo_violation_pct"], abs=1e-4)
    assert said["utilisation_pct"] == pytest.approx(loop["utilisation_pct"], abs=1e-3)
    assert said["slo_violation_pct"] > 0


def test_a_run_depends_on_its_seed_and_on_nothing_else() -> None:
    scenario = draw(1, cpus=8, vms=4)
    once, again = (measure([plain(scenario)])[0] for _ in range(2))
    together, other = measure([plain(scenario), plain(scenario, seed=4)])
    for result in (once, again, other, together):
        del result["decision_us"]
    assert once == again == together != other


def test_policies_meet_the_same_arrivals() -> None:
    scenario = draw(1, cpus=8, vms=4)
    seen = [record(scenario, policy, [5, 6], 60).arrivals for policy in ("static", "forecast")]
    assert (seen[0] == seen[1]).all() and seen[0].sum() > 0


def test_the_warm_up_does_not_count() -> None:
    scenario = replace(draw(11, cpus=16, vms=8), load=0.95)
    recording = record(scenario, "static", [1], 200)
    assert recording.simulator is not None
    whole, part = summarise(recording, 0), summarise(recording, 120)
    assert whole["slo_violation_pct"] == pytest.approx(float(recording.simulator.violation_pct()[0]))
    assert part["slo_violation_pct"] != pytest.approx(whole["slo_violation_pct"], abs=0.01)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_alone_is_what_the_simulator_serves_when_a_vm_has_the_host_to_itself(seed: int) -> None:
    drawn = draw(seed, cpus=16, vms=6, zones=1)
    for i in range(3):
        # Queues, so that its speed shows.
        one = replace(drawn, vm=(replace(drawn.vm[i], arrivals="fluid", arrive_ms=0.0, leave_ms=0.0),), load=1.3)
        sim = Simulator(one, seed=7)
        served, arrivals, threads, mix = (
            np.zeros((200, 1)),
            np.zeros((200, 1)),
            np.zeros((200, 1)),
            np.zeros((200, 1, 4)),
        )
        for t in range(200):
            sim.step()
            arrivals[t], mix[t], threads[t], served[t] = (
                sim.arrivals[0],
                sim.workloads.mix[0],
                sim.threads,
                sim.served[0],
            )
        assert served_alone(sim, arrivals, mix, threads) == pytest.approx(served, rel=1e-9)


def test_the_step_run_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = draw(1, cpus=8, vms=4, kinds=["steady"])
    scenario = replace(drawn, vm=tuple(replace(v, arrivals="fluid", arrive_ms=0.0, leave_ms=0.0) for v in drawn.vm))
    seen: list[Recording] = []

    def kept(*args: Any, **more: Any) -> Recording:
        seen.append(record(*args, **more))
        return seen[-1]

    monkeypatch.setattr("foreshare.training.evaluate_run.record", kept)
    (result,) = measure([Run(kind=STEP, scenario=scenario, policy="forecast", seed=0, ticks=60, warm_ticks=20)])
    undisturbed = record(scenario, "forecast", [0], 140)
    row = max(range(4), key=lambda i: scenario.vm[i].priority)
    ratio = seen[0].arrivals[:, 0] / undisturbed.arrivals[:, 0]
    assert ratio[80:, row] == pytest.approx(1.5) and (ratio[:80] == 1.0).all()
    assert (np.delete(ratio, row, axis=1) == 1.0).all() and 0 <= result["converge_ticks"] <= 60


def test_a_host_in_which_nobody_waits_has_nothing_late() -> None:
    result = measure([plain(replace(draw(2, cpus=16, vms=4), load=0.05))])[0]
    assert result["slo_violation_pct"] == 0 and result["late_vms_pct"] == 0 == result["starved_vms_pct"]
    assert result["p99_alone_median"] == pytest.approx(1.0, abs=0.2)


def test_evaluate_gives_every_figure_for_every_load(suite: Suite) -> None:
    result = evaluate(suite, ["static", "forecast"], 2)
    assert result["suite_hash"] == suite_hash(suite) and json.loads(json.dumps(result, allow_nan=False)) == result
    assert result["policies"].keys() == {"static", "forecast"} == result["emu"].keys()
    assert result["scenarios"].keys() == {"a", "b"} and result["scenarios"]["a"].keys() == {"static", "forecast"}
    for loads in (*result["policies"].values(), *result["scenarios"]["a"].values()):
        assert loads.keys() == {"mild", "tight", "over", "all"}
        for figures in loads.values():
            assert figures.keys() >= FIGURES
            assert figures["closure_paying"] is None is figures["closure_free"]
            assert figures["slo_violation_low"] <= figures["slo_violation_pct"] <= figures["slo_violation_high"]
    static = result["policies"]["static"]
    assert static["over"]["slo_violation_pct"] >= static["mild"]["slo_violation_pct"]
    mean = np.mean([static[load]["slo_violation_pct"] for load in ("mild", "tight", "over")])
    assert static["all"]["slo_violation_pct"] == pytest.approx(mean, abs=1e-3)
    best = result["base"]["over"]
    assert result["policies"][best]["over"]["above_base"] == 0.0


def test_the_number_of_processes_changes_nothing(suite: Suite) -> None:
    alone, many = evaluate(suite, ["static", "forecast"], 1), evaluate(suite, ["static", "forecast"], 1, jobs=3)
    assert without_times(alone) == without_times(many)
    swapped = evaluate(suite, ["forecast", "static"], 1)
    assert without_times(swapped) == without_times(alone)


def test_an_interrupted_evaluation_goes_on_where_it_stopped(suite: Suite, tmp_path: Path) -> None:
    def stop(done: int, cached: int, total: int) -> None:
        if done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(suite, ["static"], 2, cache=tmp_path, progress=stop)
    seen: list[tuple[int, int, int]] = []
    result = evaluate(suite, ["static"], 2, cache=tmp_path, progress=lambda *x: seen.append(x))
    total = len(plan_runs(suite, ["static"], 2))
    assert seen[0] == (7, 7, total) and seen[-1] == (total, 7, total)
    assert without_times(result) == without_times(evaluate(suite, ["static"], 2))
    evaluate(suite, ["static"], 2, cache=tmp_path, progress=lambda *x: seen.append(x))
    assert seen[-1] == (total, total, total)


def test_a_damaged_result_is_made_again(suite: Suite, tmp_path: Path) -> None:
    first = evaluate(suite, ["static"], 1, cache=tmp_path)
    files = sorted(tmp_path.rglob("*.json"))
    for path, text in zip(files, ("", "{", "[]", "{}"), strict=False):
        path.write_text(text)
    seen: list[int] = []
    again = evaluate(suite, ["static"], 1, cache=tmp_path, progress=lambda done, cached, total: seen.append(cached))
    assert seen[0] == len(files) - 4 and without_times(again) == without_times(first)


def test_every_part_of_a_run_is_in_its_key(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    run = plain(suite.scenarios[0])
    keys = {
        evaluate_cache.run_key(r)
        for r in (
            run, replace(run, kind=STEP), replace(run, seed=4), replace(run, ticks=151), replace(run, warm_ticks=1),
            replace(run, policy="static"), replace(run, scenario=suite.scenarios[1]), replace(run, rounds=1),
            replace(run, scenario=replace(run.scenario, load=0.123)),
        )
    }  # fmt: skip
    assert len(keys) == 9
    before = evaluate_cache.run_key(run)
    monkeypatch.setattr(evaluate_cache, "code_version", lambda: "edited")
    evaluate_cache._named_identity.cache_clear()
    assert evaluate_cache.run_key(run) != before
    evaluate_cache._named_identity.cache_clear()


def test_knobs_are_part_of_a_policys_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    tunable = next(iter(evaluate_cache.KNOBS))
    knobs = evaluate_cache.tuned_knobs(tunable)
    before = evaluate_cache.policy_identity(tunable)
    name, value = next((k, v) for k, v in evaluate_cache.asdict(knobs).items() if isinstance(v, float))
    monkeypatch.setattr(evaluate_cache, "tuned_knobs", lambda _: replace(knobs, **{name: value * 1.01 + 0.001}))
    evaluate_cache._named_identity.cache_clear()
    after = evaluate_cache.policy_identity(tunable)
    evaluate_cache._named_identity.cache_clear()
    assert after != before


def test_closure_is_measured_against_the_oracles_among_the_policies() -> None:
    suite = load_suite("smoke")
    policies = ("static", "forecast", "champion", "oracle-paying")
    results = Results(suite, policies, 2)
    for policy, v in zip(policies, (30.0, 12.0, 7.0, 2.0), strict=True):
        for scenario in results.scenarios:
            for load in results.loads:
                for seed in range(2):
                    results.plain[policy, scenario, load, seed] = measured(v if load == "over" else 0.5, seed)
    said = sum_up(results)
    assert said["base"]["over"] == "forecast"  # never an oracle, nor what was learnt
    over = {p: said["policies"][p]["over"]["closure_paying"] for p in policies}
    assert over == {"static": -180.0, "forecast": 0.0, "champion": 50.0, "oracle-paying": 100.0}
    assert said["policies"]["static"]["mild"]["closure_paying"] is None  # nothing to close
    assert said["policies"]["static"]["all"]["closure_paying"] is None  # loads are never mixed
    assert said["policies"]["static"]["over"]["closure_free"] is None
    assert said["policies"]["static"]["over"]["above_base"] == 18.0
    assert said["emu"] == dict.fromkeys(policies)


def measured(v: float, seed: int) -> dict[str, Any]:
    names = (
        "late_vms_pct", "starved_vms_pct", "p99_alone_median", "p99_alone_worst_decile", "moves_per_tick", "fairness",
        "utilisation_pct", "decision_us", "reservations_broken", "fallbacks",
    )  # fmt: skip
    return dict.fromkeys(names, 1) | {"slo_violation_pct": v + seed, "violation_by_priority": {"0": v, "10": v}}


def test_oracles_are_run_for_v_only(suite: Suite) -> None:
    kinds = {run.kind for _, run in plan_runs(suite, ["oracle-paying"], 1)}
    assert kinds == {PLAIN} and {r.kind for _, r in plan_runs(suite, ["static"], 1)} == {PLAIN, STEP, EMU}


def test_an_oracle_is_evaluated_like_any_policy(suite: Suite) -> None:
    result = evaluate(replace(suite, emu_rounds=0, step_ticks=0), ["static", "oracle-paying"], 1)
    over = {policy: loads["over"] for policy, loads in result["policies"].items()}
    assert over["oracle-paying"]["slo_violation_pct"] < over["static"]["slo_violation_pct"]
    assert result["base"]["over"] == "static" and over["oracle-paying"]["closure_paying"] == 100.0
    assert over["static"]["closure_paying"] == 0.0 and over["static"]["closure_free"] is None


def test_what_a_policy_is_worth_that_knows(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = {"triage": "oracle-triage", "champion": "oracle-champion"}
    result = evaluate(replace(suite, emu_rounds=0, step_ticks=0), [*pairs, *pairs.values()], 2)
    over = {policy: loads["over"]["slo_violation_pct"] for policy, loads in result["policies"].items()}
    assert all(over[knows] < over[sees] for sees, knows in pairs.items())
    assert len(set(over.values())) == 4, "each is a policy of its own"
    assert re.search(r"^triage .* the base ", evaluation_report.text(result), re.M) and set(
        result["base"].values()
    ) == {"triage"}
    assert "<b>champion</b><span>fewest late requests" in evaluation_report.render(result), (
        "who knows does not count as best"
    )
    before = [evaluate_cache.policy_identity(name) for name in pairs.values()]
    monkeypatch.setattr(evaluate_cache, "network_identity", lambda name: "another network")
    evaluate_cache._named_identity.cache_clear()
    after = [evaluate_cache.policy_identity(name) for name in pairs.values()]
    evaluate_cache._named_identity.cache_clear()
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, False], "its weights are part of what it is"


def test_what_cannot_be_evaluated_is_refused(suite: Suite, tmp_path: Path) -> None:
    for policies, seeds, jobs in (([], 1, 0), (["static", "static"], 1, 0), (["static"], 0, 0), (["static"], 1, -1)):
        with pytest.raises(InputError):
            evaluate(suite, policies, seeds, jobs=jobs)
    for unknown in ("nosuch", "oracle-nosuch"):
        with pytest.raises(InputError, match=unknown):
            evaluate(suite, [unknown], 1)
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(InputError, match="--cache"):
        evaluate(suite, ["static"], 1, cache=file)


def test_a_recording_holds_what_was_commanded_before_the_tick() -> None:
    world = open_world(draw(1, cpus=8, vms=4), "forecast", [0])
    recording, seen = Recording(30, 1, 4), []
    for _ in range(30):
        world.sense()
        recording.take(simulator_of(world))
        decision = world.act()
        recording.decided(world.mind, decision)
        seen.append(decision.placement.units.copy())
    assert (recording.granted[1:, :, :, 2:] == np.array(seen)[:-1, :, :, 2:]).all()


@pytest.mark.parametrize("policy", ["triage", "forecast", "priority"])
def test_seeds_side_by_side_are_seeds_one_by_one_behind_a_hal(policy: str) -> None:
    scenario = draw(31, cpus=24, vms=10, zones=2, telemetry="all-faults", load=0.8)
    together = record(scenario, policy, [4, 9, 2], 120)
    for h, seed in enumerate((4, 9, 2)):
        alone = record(scenario, policy, [seed], 120, behind_hal=True)
        for name in ("arrivals", "backlog", "granted", "demand"):
            assert (getattr(together, name)[:, h] == getattr(alone, name)[:, 0]).all(), name


def test_v_alone_is_v_of_the_whole_evaluation() -> None:
    scenario = draw(1, cpus=8, vms=4, load=0.9)
    for policy in ("triage", "parties"):
        whole = [measure([plain(scenario, policy, seed=k, warm_ticks=20)])[0]["slo_violation_pct"] for k in (1, 2)]
        assert violations(scenario, policy, [1, 2], 150, warm_ticks=20) == pytest.approx(whole)
