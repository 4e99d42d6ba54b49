"""``bench forecast``: what a call costs, with the real gap between two of them.

A call takes in one tick of every series and answers all horizons and levels; the history that the models share is
counted with each of them, and ``floor`` is that history and one addition. Demand moves in every tick, nothing is
missing, all models see the same. A gap is that of the loop: sleep, and before the next tick a rehearsal with a double
(:mod:`~.rehearsal`), then a look at what the mixture will read (``kernel.touch()``). ``slept_p50`` is without the
rehearsal, when caches are cold and the CPU has just woken up; ``warm_p50`` without any gap.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from foreshare.envs.hal.clock import MonotonicClock
from foreshare.policies.analyzer import shipped_network
from foreshare.policies.forecast.history import Float32Array, History, K, Q
from foreshare.policies.forecast.lstm import INPUTS, WEIGHTS, Lstm, LstmModel
from foreshare.policies.forecast.mixture import Mixture
from foreshare.policies.forecast.models import PointModel, SeriesModel
from foreshare.policies.forecast.network import NetworkModel
from foreshare.policies.forecast.points import Autoregressive, Seasonal
from foreshare.policies.forecast.statespace import exponential_smoothing
from foreshare.policies.host import FloatArray, R

from .bench import machine_facts
from .latency import percentiles
from .rehearsal import Rehearsal

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
        for name, (took, slept, warm) in _measure(bench, vms).items():
            row = {**percentiles(took), "slept_p50": percentiles(slept)["p50"], "warm_p50": percentiles(warm)["p50"]}
            models.setdefault(name, {})[str(vms)] = row
    return {
        "models": models, "resources": R, "horizons": K, "levels": Q, "ticks": bench.ticks, "tick_ms": bench.tick_ms,
        "growth": {name: round(rows["512"]["p50"] / rows["64"]["p50"], 2) for name, rows in models.items()},
        "machine": machine_facts(),
    }  # fmt: skip


Times = np.ndarray[tuple[int], np.dtype[np.float64]]


Call = Callable[[History], object]
Touch = Callable[[History], object]
Made = tuple[Call, Touch]


def _measure(bench: ForecastBench, vms: int) -> dict[str, tuple[Times, Times, Times]]:
    """Return by model the microseconds of each call: as the loop makes it, after sleep alone, and without a gap."""
    size = vms * R
    out_of: dict[str, tuple[Times, Times, Times]] = {}
    for name, make in _makers(size, bench.seed).items():
        pair = [(History(size), *make()) for _ in range(2)]
        _run(bench, pair, WARM_TICKS, gap=False)
        slept = _run(bench, pair[:1], bench.ticks)
        out_of[name] = _run(bench, pair, bench.ticks), slept, _run(bench, pair[:1], bench.ticks, gap=False)
    return out_of


def _run(bench: ForecastBench, pair: list[tuple[History, Call, Touch]], ticks: int, *, gap: bool = True) -> Times:
    """Return the microseconds of each call of the first of ``pair``; the second, where there is one, rehearses."""
    size, rng = pair[0][0].size, np.random.default_rng(bench.seed)
    level, nothing, took = rng.exponential(2.0, size), np.zeros(size, bool), np.zeros(ticks)
    tick_ns, clock = round(bench.tick_ms * 1e6), MonotonicClock()
    rehearsal, next_ns = Rehearsal(clock, tick_ns), time.monotonic_ns()
    for t in range(ticks):
        y = level * rng.gamma(2.0, 0.5, size)
        waiting = y * 0.1

        def double(y: FloatArray = y, waiting: FloatArray = waiting) -> None:
            history, call, _ = pair[1]
            history.push(y, waiting, nothing)
            call(history)
            pair[0][2](pair[0][0])

        next_ns += tick_ns
        if not gap and len(pair) > 1:
            double()
        elif gap and len(pair) > 1:
            rehearsal.until(next_ns, double)
        elif gap:
            time.sleep(max(next_ns - time.monotonic_ns(), 0) * 1e-9)
        history, call, _ = pair[0]
        begun = time.perf_counter_ns()
        history.push(y, waiting, nothing)
        call(history)
        took[t] = (time.perf_counter_ns() - begun) * 1e-3
    return took


def _makers(size: int, seed: int) -> dict[str, Callable[[], Made]]:
    """Return what makes the call of each model, and what reads ahead for it."""
    network, lstm = shipped_network(), random_lstm(LSTM_HIDDEN, seed)
    ones = np.ones(size)

    def series(model: SeriesModel) -> Made:
        out: Float32Array = np.zeros((K, Q, size), np.float32)
        return lambda h: model.step(h, out), _nothing

    def points(model: PointModel) -> Made:
        out: Float32Array = np.zeros((K, size), np.float32)
        return lambda h: model.step(h, out), _nothing

    def mixture() -> Made:
        model = Mixture(size, network)
        return series(model)[0], model.touch

    return {
        "floor": lambda: (lambda h: ones + ones, _nothing),
        "mixture": mixture,
        "network": lambda: series(NetworkModel(network, size)),
        "lstm-refresh": lambda: (LstmModel(lstm, size).refresh, _nothing),
        "ewma": lambda: points(exponential_smoothing(np.zeros(size), np.full(size, 0.3))),
        "ar": lambda: points(Autoregressive(size)),
        "seasonal": lambda: points(Seasonal(size)),
    }


def _nothing(history: History) -> None:
    """Nothing is read ahead."""


def random_lstm(hidden: int, seed: int = 0) -> Lstm:
    """Return an LSTM with random weights: what it answers means nothing, what it costs does not depend on them."""
    rng = np.random.default_rng(seed)
    shapes = ((4 * hidden, INPUTS), (4 * hidden, hidden), (4 * hidden,), (K * Q, hidden), (K * Q,))
    return Lstm({name: rng.normal(0.0, 0.2, shape) for name, shape in zip(WEIGHTS, shapes, strict=True)})
