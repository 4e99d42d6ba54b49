from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from foreshare.envs.simulator.model import RATES, build_model
from foreshare.envs.simulator.scenario import load_scenario, scenario_names
from foreshare.envs.simulator.scenario_draw import CPU_COUNTS, DRAWN_KINDS, MAX_VMS, MIN_VMS, TELEMETRY, draw, to_toml
from foreshare.envs.simulator.suites import LOADS, load_suite, suite_hash, suite_names
from foreshare.policies.errors import CapacityError, ConfigError, InputError
from foreshare.policies.host import Host, Isolation

SEEDS = range(60)


@pytest.mark.parametrize("seed", SEEDS)
def test_every_draw_is_a_host_that_exists_and_reads_back(seed: int, tmp_path: Path) -> None:
    scenario = draw(seed)
    model = build_model(scenario, tick_ms=10.0)
    host = Host(model.topology, model.vms)
    assert MIN_VMS <= len(host) <= MAX_VMS and host.topology.cpus in CPU_COUNTS
    reserved = (host.reservation.sum(axis=0) / model.capacity)[list(RATES)]
    assert reserved.min() >= 0.25 and 0.38 <= reserved.max() <= 0.78
    assert scenario == draw(seed)
    path = tmp_path / "drawn.toml"
    path.write_text(to_toml(scenario), encoding="utf-8")
    assert load_scenario(path) == scenario


def test_draws_differ_and_span_what_they_promise() -> None:
    drawn = [draw(seed) for seed in SEEDS]
    assert len({to_toml(replace(s, name="", about="")) for s in drawn}) == len(drawn)
    vms = [v for s in drawn for v in s.vm]
    assert {v.workload.kind for v in vms} == set(DRAWN_KINDS)
    assert {v.priority for v in vms} == {0, 1, 2, 3} and {v.isolation for v in vms} == set(Isolation)
    assert {s.host.threads_per_core for s in drawn} == {1, 2}
    assert {"channel"} < {s.host.memory_unit for s in drawn}
    assert min(len(s.vm) for s in drawn) <= 6 and max(len(s.vm) for s in drawn) >= 100
    assert len({(s.telemetry.noise, s.telemetry.gap_share) for s in drawn}) >= 3


def test_what_is_asked_for_is_drawn() -> None:
    s = draw(5, load=0.9, cpus=24, vms=10, kinds=["batch", "steady"], telemetry="gaps", units="fine", name="mine")
    assert (s.load, s.host.cores * s.host.threads_per_core, len(s.vm), s.name) == (0.9, 24, 10, "mine")
    assert {v.workload.kind for v in s.vm} == {"batch", "steady"}
    assert s.telemetry.gap_share == TELEMETRY["gaps"]["gap_share"]


def test_memory_and_io_are_about_as_scarce_as_cpu() -> None:
    for seed in (1, 2, 3):
        s = replace(draw(seed, units="fine"), load=0.5)
        model = build_model(s, tick_ms=10.0)
        n = len(s.vm)
        from foreshare.envs.simulator.cache import miss_ratio

        misses = miss_ratio(np.full(n, s.host.ways / n), *model.miss)
        mean = (model.rate[:, None] * model.need_at(misses)).sum(axis=0) / model.capacity
        assert 0.2 < mean[RATES[1]] / mean[RATES[0]] < 1.4
        assert mean[list(RATES)].max() == pytest.approx(0.5, rel=0.5)


@pytest.mark.parametrize(
    "wrong",
    [{"telemetry": "none"}, {"units": "pounds"}, {"kinds": ["replay"]}, {"kinds": ["nonsense"]}, {"seed": -1}],
)
def test_what_cannot_be_drawn_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(InputError):
        draw(**{"seed": 1, **wrong})  # type: ignore[arg-type] # wrong on purpose


def test_too_many_vms_for_the_cpus_are_refused() -> None:
    with pytest.raises(CapacityError):
        draw(1, cpus=8, vms=200)


@pytest.mark.parametrize("name", scenario_names())
def test_shipped_scenarios_survive_being_written(name: str, tmp_path: Path) -> None:
    path = tmp_path / "again.toml"
    path.write_text(to_toml(load_scenario(name)), encoding="utf-8")
    assert load_scenario(path) == load_scenario(name)


def test_the_standard_suite_covers_what_claims_are_made_about() -> None:
    suite = load_suite("standard")
    assert len(suite.scenarios) >= 12 and dict(suite.loads) == LOADS
    cpus = {s.host.cores * s.host.threads_per_core for s in suite.scenarios}
    vms = {len(s.vm) for s in suite.scenarios}
    assert min(cpus) == 8 and max(cpus) == 256 and min(vms) == 4 and max(vms) == 256
    assert {v.workload.kind for s in suite.scenarios for v in s.vm} == set(DRAWN_KINDS)
    for fault in TELEMETRY.values():
        assert any(all(getattr(s.telemetry, k) == v for k, v in fault.items()) for s in suite.scenarios)
    for s in suite.scenarios:
        model = build_model(s, tick_ms=10.0)
        reserved = (model.vms.reservation.sum(axis=0) / model.capacity)[list(RATES)]
        assert (reserved > 0.3).all()


def test_suites_have_no_scenario_in_common() -> None:
    seen: set[str] = set()
    for name in (*suite_names(), "draw:1", "draw:2"):
        mine = {to_toml(replace(s, name="", about="")) for s in load_suite(name).scenarios}
        assert not mine & seen, name
        seen |= mine


def test_a_fresh_draw_has_the_shape_of_the_standard_suite() -> None:
    standard, fresh = load_suite("standard"), load_suite("draw:7")

    def sizes(suite: object) -> list[tuple[int, int]]:
        return [(s.host.cores * s.host.threads_per_core, len(s.vm)) for s in suite.scenarios]  # type: ignore[attr-defined]

    assert sizes(fresh) == sizes(standard) and suite_hash(fresh) != suite_hash(standard)
    assert suite_hash(fresh) == suite_hash(load_suite("draw:7"))


def test_the_hash_covers_what_changes_results_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    suite = load_suite("smoke")
    first = suite.scenarios[0]
    before = suite_hash(suite)
    other = replace(first, vm=(replace(first.vm[0], target_ms=first.vm[0].target_ms + 10), *first.vm[1:]))
    for changed in (
        replace(suite, scenarios=(other, *suite.scenarios[1:])),
        replace(suite, scenarios=suite.scenarios[1:]),
        replace(suite, ticks=suite.ticks + 1),
        replace(suite, loads=(("mild", 0.46), *suite.loads[1:])),
        replace(suite, emu_rounds=1),
    ):
        assert suite_hash(changed) != before
    assert suite_hash(replace(suite, name="other", about="other")) == before
    assert suite_hash(replace(suite, scenarios=(replace(first, about="x"), *suite.scenarios[1:]))) == before
    monkeypatch.setattr("foreshare.envs.simulator.suites.SIMULATOR_VERSION", 999)
    assert suite_hash(suite) != before


def test_a_suite_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        'version = 1\nticks = 50\nloads = ["over"]\n[[scenario]]\nscenario = "mixed"\nvms = 4\n'
        '[[scenario]]\nname = "two"\nseed = 3\ncpus = 8\nvms = 5\n'
    )
    suite = load_suite(str(path))
    assert [s.name for s in suite.scenarios] == ["mixed", "two"] and suite.loads == (("over", 0.90),)
    assert suite.at(suite.scenarios[1], "over").load == 0.90 and (suite.name, suite.warm_ticks) == ("mine", 0)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("version = 2", "version"),
        ("version = 1\nticks = 50", "scenario"),
        ("version = 1\n[[scenario]]\nseed = 1", "ticks"),
        ("version = 1\nticks = 50\nwarm = 1\n[[scenario]]\nseed = 1", "warm"),
        ("version = 1\nticks = 50\n[[scenario]]\nseed = 1\ncolour = 1", "scenario[0]"),
        ("version = 1\nticks = 50\n[[scenario]]\nvms = 4", "scenario[0]"),
        ("version = 1\nticks = 50\n[[scenario]]\nseed = 1.5", "scenario[0].seed"),
        ("version = 1\nticks = 50\n[[scenario]]\nseed = 1\ntelemetry = 'x'", "scenario[0]"),
        ("version = 1\nticks = 50\nloads = ['heavy']\n[[scenario]]\nseed = 1", "loads"),
        ("version = 1\nticks = 50\n[[scenario]]\nseed = 1\n[[scenario]]\nseed = 1", "one name"),
        ("version = 1\nticks = 50\n[[scenario]]\nscenario = 'nosuch'", "nosuch"),
        ("ticks = ", "TOML"),
    ],
)
def test_a_wrong_suite_is_refused_with_file_and_key(tmp_path: Path, text: str, key: str) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as e:
        load_suite(str(path))
    assert key in str(e.value) and str(path) in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize("name", ["nosuch", "", "draw:", "draw:x", "draw:-1", "../smoke", "none.toml"])
def test_what_is_no_suite_is_refused(name: str) -> None:
    with pytest.raises(InputError):
        load_suite(name)
