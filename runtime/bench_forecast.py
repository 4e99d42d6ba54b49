"""``bench forecast``: what a call costs, with the real gap between two of them, when caches are cold.

A call takes in one tick of every series and answers all horizons and levels; the history that the models share is
counted with each of them, and ``floor`` is that history and one addition. Demand moves in every tick, nothing is
missing, all models see the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from foreshare.policies.analyzer import shipped_network
from foreshare.policies.forecast.history import Float32Array, History, K, Q
from foreshare.policies.forecast.lstm import INPUTS, WEIGHTS, Lstm, LstmModel
from foreshare.policies.forecast.mixture import Mixture
from foreshare.policies.forecast.network import NetworkModel
from foreshare.policies.forecast.points import Autoregressive, Seasonal
from foreshare.policies.forecast.statespace import exponential_smoothing
from foreshare.policies.host import R

from .bench import machine_facts
from .latency import percentiles

SIZES = (64, 512)
LSTM_HIDDEN = 16
WARM_TICKS = 520
"""Without a gap, until every series has its history."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ForecastBench:
    """What to measure."""

    ticks: int = 300
    tick_ms: float = 10.0
    seed: int = 0


def bench_forecast(bench: ForecastBench) -> dict[str, Any]:
    """Measure; return the keys of ``foreshare bench forecast --json``."""
    models: dict[str, dict[str, dict[str, float]]] = {}
    for vms in SIZES:
        for name, (took, warm) in _measure(bench, vms).items():
            row = {**percentiles(took), "warm_p50": percentiles(warm)["p50"]}
            models.setdefault(name, {})[str(vms)] = row
    return {
        "models": models, "resources": R, "horizons": K, "levels": Q, "ticks": bench.ticks, "tick_ms": bench.tick_ms,
        "growth": {name: round(rows["512"]["p50"] / rows["64"]["p50"], 2) for name, rows in models.items()},
        "machine": machine_facts(),
    }  # fmt: skip


Times = np.ndarray[tuple[int], np.dtype[np.float64]]


def _measure(bench: ForecastBench, vms: int) -> dict[str, tuple[Times, Times]]:
    """Return by model the microseconds of each call with the gap before it, and of as many without one."""
    size, rng = vms * R, np.random.default_rng(bench.seed)
    network = shipped_network()
    lstm = LstmModel(random_lstm(LSTM_HIDDEN, bench.seed), size)
    plain: Float32Array = np.zeros((K, size), np.float32)
    out: Float32Array = np.zeros((K, Q, size), np.float32)
    smooth = exponential_smoothing(np.zeros(size), np.full(size, 0.3))
    ar, seasonal, alone, mixture = (
        Autoregressive(size),
        Seasonal(size),
        NetworkModel(network, size),
        Mixture(size, network),
    )
    ones = np.ones(size)
    calls: dict[str, Callable[[History], object]] = {
        "floor": lambda h: ones + ones,
        "mixture": lambda h: mixture.step(h, out),
        "network": lambda h: alone.step(h, out),
        "lstm-refresh": lstm.refresh,
        "ewma": lambda h: smooth.step(h, plain),
        "ar": lambda h: ar.step(h, plain),
        "seasonal": lambda h: seasonal.step(h, plain),
    }
    level = rng.exponential(2.0, size)
    nothing = np.zeros(size, bool)
    out_of: dict[str, tuple[Times, Times]] = {}
    for name, call in calls.items():
        history = History(size)

        def run(ticks: int, gap_ns: int, call: Callable[[History], object] = call, history: History = history) -> Times:
            took = np.zeros(ticks)
            next_ns = time.monotonic_ns()
            for t in range(ticks):
                y = level * rng.gamma(2.0, 0.5, size)
                waiting = y * 0.1
                next_ns += gap_ns
                time.sleep(max(next_ns - time.monotonic_ns(), 0) * 1e-9)
                begun = time.perf_counter_ns()
                history.push(y, waiting, nothing)
                call(history)
                took[t] = (time.perf_counter_ns() - begun) * 1e-3
            return took

        run(WARM_TICKS, 0)
        out_of[name] = run(bench.ticks, round(bench.tick_ms * 1e6)), run(bench.ticks, 0)
    return out_of


def random_lstm(hidden: int, seed: int = 0) -> Lstm:
    """Return an LSTM with random weights: what it answers means nothing, what it costs does not depend on them."""
    rng = np.random.default_rng(seed)
    shapes = ((4 * hidden, INPUTS), (4 * hidden, hidden), (4 * hidden,), (K * Q, hidden), (K * Q,))
    return Lstm({name: rng.normal(0.0, 0.2, shape) for name, shape in zip(WEIGHTS, shapes, strict=True)})
