from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np
import pytest

from foreshare.envs.simulator.cache import miss_ratio
from foreshare.envs.simulator.host import Simulator
from foreshare.envs.simulator.miss_curve import LEAST_RATIO, curve_error, fit_miss_curve
from foreshare.envs.simulator.scenario import (
    HostShape,
    MissCurve,
    Scenario,
    TelemetryShape,
    VmShape,
    WorkloadShape,
)
from foreshare.policies.errors import InputError
from foreshare.policies.host import Resource


def traces() -> Path:
    root = Path(os.environ.get("FORESHARE_TRACES", str(Path(__file__).resolve().parents[3] / "shared" / "traces")))
    if not root.is_dir():
        pytest.skip(f"no public traces in {root}: set FORESHARE_TRACES")
    return root


@pytest.mark.parametrize("curve", [(0.6, 0.05, 2.0, 1.7), (0.9, 0.7, 5.0, 4.0), (0.3, 0.0, 0.4, 1.0)])
def test_a_curve_of_the_family_is_found_again(curve: tuple[float, float, float, float]) -> None:
    ways = np.arange(1.0, 17.0)
    measured = miss_ratio(ways, *(np.array(c) for c in curve))
    fitted = fit_miss_curve(ways, measured)
    assert curve_error(fitted, ways, measured).max() < 0.03


def test_an_odd_point_does_not_drag_the_curve_along() -> None:
    ways = np.arange(1.0, 13.0)
    true = miss_ratio(ways, np.array(0.6), np.array(0.1), np.array(3.0), np.array(2.0))
    measured = true.copy()
    measured[5] *= 2
    assert np.delete(curve_error(fit_miss_curve(ways, measured), ways, true), 5).max() < 0.03


@pytest.mark.parametrize("level", [0.0, 0.3, 1.0])
def test_a_level_stays_a_level(level: float) -> None:
    ways = np.arange(1.0, 9.0)
    assert curve_error(fit_miss_curve(ways, np.full(8, level)), ways, np.full(8, level)).max() < 1e-2


def test_what_is_no_measurement_is_refused() -> None:
    ways = np.arange(1.0, 5.0)
    for w, m in (
        (ways[:2], ways[:2] / 9), (ways, ways[:3] / 9), (ways, ways), (ways - 1, ways / 9), (ways, ways * np.nan)
    ):  # fmt: skip
        with pytest.raises(InputError):
            fit_miss_curve(w, m)


def test_the_curve_reads_back_from_a_running_host() -> None:
    """What the simulator's own memory traffic tells about misses, with 1, 2, ... ways, is the curve that went in."""
    truth = MissCurve(none=0.7, all=0.1, half_ways=3.0, steepness=2.0)
    vm = VmShape(name="a", access_kb=1000.0, miss=truth, workload=WorkloadShape(kind="steady", noise=0.0))
    host = HostShape(cores=8, ways=14, shared_ways=2, memory_units=100, io_units=100)
    ways, ratio = np.arange(1.0, 13.0), []
    for w in ways:
        sim = Simulator(Scenario(name="t", host=host, vm=(vm,), load=0.2, telemetry=TelemetryShape(noise=0.0)))
        sim.command(np.array([[[80.0, w, 100.0, 100.0]]]))
        for _ in range(20):
            sim.step()
        ratio.append(sim.used[0, 0, Resource.MEMORY] / (sim.served[0, 0] * sim.model.base[0, Resource.MEMORY]))
    assert curve_error(truth, ways, np.array(ratio)).max() < 1e-9
    assert curve_error(fit_miss_curve(ways, np.array(ratio)), ways, np.array(ratio)).max() < 0.03


def test_the_family_fits_55_real_programs() -> None:
    programs: dict[str, list[tuple[float, float]]] = {}
    with (traces() / "pbbcache_spec_by_ways.csv").open() as file:
        for row in csv.DictReader(file):
            point = (float(row["NR_WAYS"]), float(row["llcmpki"]) / float(row["llcrpki"]))
            programs.setdefault(row["BENCH"], []).append(point)
    assert len(programs) == 55
    errors = {}
    for name, points in programs.items():
        ways, ratio = np.array(sorted(points)).T
        errors[name] = curve_error(fit_miss_curve(ways, ratio), ways, ratio)
    median = float(np.median(np.concatenate(list(errors.values()))))
    by_program = sorted(((float(np.median(e)), name) for name, e in errors.items()), reverse=True)
    print(f"\nmiss-ratio curves of {len(errors)} programs: median error {median:.1%};"
          f" below {LEAST_RATIO:g} relative to {LEAST_RATIO:g}")  # fmt: skip
    print("worst medians:", ", ".join(f"{n} {e:.1%}" for e, n in by_program[:5]))
    print(f"worst point: {max(float(e.max()) for e in errors.values()):.0%}")
    assert median <= 0.10
    assert np.median([e for e, _ in by_program]) <= 0.10
    assert sum(e > 0.10 for e, _ in by_program) <= 8 and by_program[0][0] < 0.25
