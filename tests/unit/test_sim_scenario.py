from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from foreshare.envs.simulator.host import Simulator
from foreshare.envs.simulator.model import build_model
from foreshare.envs.simulator.scenario import load_scenario, resized, scenario_names
from foreshare.policies.errors import CapacityError, ConfigError, InputError
from foreshare.policies.host import Host, Isolation, Resource

MINIMAL = """
version = 1
[host]
cores = 4
ways = 8
memory_units = 10
io_units = 10
[[vm]]
name = "a"
[[vm]]
name = "b"
isolation = "isolated"
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "s.toml"
    path.write_text(text)
    return path


def test_the_shipped_scenarios_are_what_the_readme_says() -> None:
    assert set(scenario_names()) == {"mixed", "churn", "channels"}
    mixed = load_scenario("mixed")
    assert len(mixed.vm) == 16 and mixed.host.cores == 32 and mixed.host.ways == 16 and mixed.load == 0.65
    assert 4 <= sum(v.isolation != Isolation.SHARED for v in mixed.vm) <= 6
    assert {v.priority for v in mixed.vm} == {0, 1, 2, 3}
    assert all(20 <= v.target_ms <= 100 for v in mixed.vm)
    churn = load_scenario("churn", vms=64)
    assert len(churn.vm) == 64 and churn.host.cores == 128 and churn.host.ways == 20


@pytest.mark.parametrize("name", ["mixed", "churn"])
@pytest.mark.parametrize("vms", [0, 1, 2, 3, 4, 7, 16, 17, 33, 64, 100, 256])
def test_any_number_of_vms_makes_a_feasible_host(name: str, vms: int) -> None:
    s = load_scenario(name, vms=vms)
    model = build_model(s, tick_ms=10)
    host = Host(model.topology, model.vms)
    assert len(host) == vms
    if vms >= 4:
        mean = (model.rate[:, None] * model.need_at(np.full(vms, 0.2))).sum(axis=0)
        assert 0.2 < (mean / model.capacity)[Resource.CPU] < 0.8
        per_vm = model.capacity[Resource.CPU] / vms
        assert per_vm == pytest.approx(20, rel=0.15)


def test_reservations_do_not_follow_the_load() -> None:
    from dataclasses import replace

    s = load_scenario("mixed")
    a = build_model(s, tick_ms=10)
    b = build_model(replace(s, load=0.9), tick_ms=10)
    assert (a.vms.reservation == b.vms.reservation).all()
    assert b.rate == pytest.approx(a.rate * 0.9 / 0.65)
    reserved = a.vms.reservation.sum(axis=0) / a.capacity
    assert (reserved[[Resource.CPU, Resource.MEMORY, Resource.IO]] > 0.45).all()
    assert (reserved[[Resource.CPU, Resource.MEMORY, Resource.IO]] < 0.6).all()


def test_the_mean_demand_is_the_load() -> None:
    from dataclasses import replace

    s = load_scenario("mixed")
    for load in (0.3, 0.6):
        sim = Simulator(replace(s, load=load, vm=tuple(v for v in s.vm)), hosts=8)
        total = np.zeros(4)
        for _ in range(1500):
            sim.step()
            total += sim.arrivals.sum(axis=0) @ (sim.model.need_at(_equal_share_misses(sim)) * 1.0) / 1500 / 8
        assert (total / sim.model.capacity)[Resource.CPU] == pytest.approx(load, rel=0.06)


def _equal_share_misses(sim: Simulator) -> np.ndarray:
    from foreshare.envs.simulator.cache import miss_ratio

    n = sim.vms
    return miss_ratio(np.full(n, sim.scenario.host.ways / n), *sim.model.miss)


def test_the_tick_length_changes_rates_and_targets_not_the_machine() -> None:
    s = load_scenario("mixed")
    a, b = build_model(s, tick_ms=10), build_model(s, tick_ms=5)
    assert b.rate * 2 == pytest.approx(a.rate)
    assert (b.target_ticks == a.target_ticks * 2).all()
    assert (a.capacity == b.capacity).all()


def test_a_minimal_file_loads(tmp_path: Path) -> None:
    s = load_scenario(write(tmp_path, MINIMAL))
    assert [v.name for v in s.vm] == ["a", "b"] and s.vm[1].isolation == Isolation.ISOLATED
    assert s.name == "s"


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (("cores = 4", "cores = 4\ncolour = 1"), "host.colour"),
        (('name = "a"', 'name = "a"\nprio = 1'), "vm[0].prio"),
        (('name = "a"', 'name = "a"\nworkload = { kind = "bursty", hz = 1 }'), "vm[0].workload.hz"),
        (('name = "a"', 'name = "a"\nworkload = { kind = "nonsense" }'), "nonsense"),
        (('name = "a"', 'name = "a"\nworkload = { kind = "bursty", peak = 90 }'), "peak"),
        (('name = "a"', 'name = "a"\nmiss = 3'), "vm[0].miss"),
        (('name = "a"', 'name = "a"\nvcpus = 1.5'), "vm[0].vcpus"),
        (('name = "a"', 'name = "a"\nvcpus = true'), "vm[0].vcpus"),
        (('name = "a"', 'name = "a"\ncpus = nan'), "vm[0].cpus"),
        (('name = "a"', 'name = "a"\ntarget_ms = inf'), "vm[0].target_ms"),
        (('name = "a"', 'name = "a"\nisolation = "total"'), "vm[0].isolation"),
        (('name = "a"', 'name = "b"'), "'b'"),
        (("cores = 4", ""), "host.cores"),
        (("cores = 4", "cores = -1"), "host.cores"),
        (("ways = 8", "ways = 8\nshared_ways = 8"), "host.shared_ways"),
        (("version = 1", "version = 2"), "version"),
        (("version = 1", ""), "version"),
        (("[host]", "[[host]]"), "host"),
        (("[host]", "[host"), "not TOML"),
    ],
)
def test_a_wrong_file_is_refused_with_file_and_key(tmp_path: Path, change: tuple[str, str], key: str) -> None:
    path = write(tmp_path, MINIMAL.replace(change[0], change[1], 1))
    with pytest.raises(InputError) as e:
        build_model(load_scenario(path), tick_ms=10)
    assert key in str(e.value) and "\n" not in str(e.value)
    if key != "peak":
        assert isinstance(e.value, ConfigError) and str(path) in str(e.value)


def test_what_is_no_scenario_is_refused(tmp_path: Path) -> None:
    for bad in ("nosuch", "../mixed", "mixed\n", "", str(tmp_path / "none.toml"), str(tmp_path) + "/"):
        with pytest.raises(InputError):
            load_scenario(bad)
    binary = tmp_path / "b.toml"
    binary.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError):
        load_scenario(binary)
    binary.write_bytes(b"#" * (1 << 20) + b"##")
    with pytest.raises(ConfigError, match="1 MiB"):
        load_scenario(binary)


def test_a_wrong_number_of_vms_is_refused() -> None:
    for bad in (-1, 5000):
        with pytest.raises(InputError):
            load_scenario("mixed", vms=bad)
    with pytest.raises(InputError):
        resized(load_scenario("mixed", vms=0), 3)


def test_reservations_beyond_the_ways_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL.replace('name = "a"', 'name = "a"\nown_ways = 60'))
    with pytest.raises(CapacityError, match="cache"):
        build_model(load_scenario(path), tick_ms=10)


def test_the_seed_picks_other_templates_where_some_are_left_out() -> None:
    a, b = load_scenario("mixed", vms=4, seed=0), load_scenario("mixed", vms=4, seed=5)
    assert {v.name for v in a.vm} != {v.name for v in b.vm}
    assert load_scenario("mixed", seed=5) == load_scenario("mixed")
