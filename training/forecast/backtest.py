"""Backtest by rolling origin: every tick of a session's later part is an origin, every model answers at each of them.

Models see the session from its first tick on, in order, and never what comes later; constants, orders and offsets of
the plain ones are fitted to the part before ``split``, and only what comes after it is scored.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from foreshare.policies.errors import InputError
from foreshare.policies.forecast.history import FLOOR, HORIZONS, LEVELS, Float32Array, K, Q
from foreshare.policies.forecast.models import PointModel, SeriesModel
from foreshare.policies.forecast.points import Autoregressive, Seasonal
from foreshare.policies.host import FloatArray, IntArray

from . import baselines
from .dataset import Session, Truth, truths
from .scores import SeriesScore, score
from .weights import Fitted

PLAIN: dict[str, Callable[[Session, int, Truth], PointModel]] = {
    "last": baselines.last_value,
    "ewma": baselines.ewma,
    "holt": baselines.holt,
    "seasonal": lambda session, cut, truth: Seasonal(session.demand.shape[1]),
    "ar": lambda session, cut, truth: Autoregressive(session.demand.shape[1]),
    "auto-arima": baselines.auto_arima,
    "auto-ets": baselines.auto_ets,
}
"""Point forecasts, each with the quantiles of its errors in the training part."""
FITTED = ("network", "lstm", "mixture")
MODELS = (*PLAIN, *FITTED)
REFERENCES = ("last", "ewma", "holt", "auto-arima", "auto-ets")
"""What the mixture is held against."""
WARM_TICKS = 250


@dataclass(frozen=True, kw_only=True, slots=True)
class BacktestOptions:
    """What is run."""

    models: tuple[str, ...] = MODELS
    split: float = 0.6
    """Share of each session that comes before the first origin that is scored."""
    only: tuple[str, ...] = ()
    """Beginnings of the UUIDs of the VMs that are scored; none: all."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Scored:
    """One series of one session: its scores by model and horizon."""

    session: str
    uuid: str
    resource: int
    scale: float
    scores: dict[tuple[str, int], SeriesScore]
    censored_share: float


@dataclass(slots=True, eq=False)
class Backtest:
    """Everything scored."""

    options: BacktestOptions
    series: list[Scored] = field(default_factory=list)
    call_us: dict[str, list[float]] = field(default_factory=dict)
    """Microseconds of a call, for each model and session the median."""
    fans: list[tuple[str, FloatArray, dict[str, Float32Array]]] = field(default_factory=list)
    """(title, truth (T,), by model the quantiles (T, Q)) of the liveliest CPU series of each session, 50 ms ahead."""

    def table(self, model: str, k: int) -> tuple[FloatArray, FloatArray, FloatArray, IntArray]:
        """Return MASE (S,), pinball (S, Q), coverage (S, Q) and uncensored ticks (S,) of a model at a horizon."""
        found = [s.scores[model, k] for s in self.series]
        return (
            np.array([x.mase for x in found]), np.array([x.pinball for x in found]).reshape(-1, Q),
            np.array([x.covered for x in found]).reshape(-1, Q), np.array([x.uncensored for x in found], np.int64),
        )  # fmt: skip

    @property
    def programs(self) -> IntArray:
        """(S,) a number for each VM, the same in every session."""
        names = {u: i for i, u in enumerate(dict.fromkeys(s.uuid for s in self.series))}
        return np.array([names[s.uuid] for s in self.series], np.int64)


def run_backtest(
    sessions: Sequence[Session],
    options: BacktestOptions,
    fitted: Fitted,
    progress: Callable[[str], None] = lambda text: None,
) -> Backtest:
    """Score all models on all sessions. Raises InputError for a model that does not exist or has no weights."""
    unknown = set(options.models) - set(MODELS)
    if unknown:
        raise InputError(f"no model named {sorted(unknown)[0]!r}; there are {', '.join(MODELS)}")
    out = Backtest(options, call_us={name: [] for name in options.models})
    for session in sessions:
        progress(session.name)
        _run_session(session, out, fitted)
    if not out.series:
        raise InputError("nothing moved in what was to be scored: no series to judge by")
    return out


def _run_session(session: Session, out: Backtest, fitted: Fitted) -> None:
    options, truth = out.options, truths(session)
    cut = max(int(session.ticks * options.split), WARM_TICKS)
    size = session.demand.shape[1]
    scale = _scales(session, cut)
    chosen = np.array([any(u.startswith(x) for x in options.only) or not options.only for u in session.uuid])
    columns = np.flatnonzero((scale > 0) & np.repeat(chosen, size // session.vms))
    if not len(columns):
        return
    plain = {name: PLAIN[name](session, cut, truth) for name in options.models if name in PLAIN}
    others = {name: fitted.model(name, size) for name in options.models if name not in PLAIN}
    answers = _answers(session, truth, cut, columns, plain, others, out.call_us)
    for j, s in enumerate(columns):
        scores = {
            (name, k): score(
                truth.value[cut:, k, s], truth.known[cut:, k, s], truth.bound[cut:, k, s], answers[name][:, k, :, j],
                float(scale[s]),
            )
            for name in options.models
            for k in range(K)
        }  # fmt: skip
        if all(x.ticks for x in scores.values()):
            vm, resource = divmod(int(s), size // session.vms)
            share = float(session.censored[cut:, s].mean())
            out.series.append(
                Scored(session=session.name, uuid=session.uuid[vm], resource=resource, scale=float(scale[s]),
                       scores=scores, censored_share=share)
            )  # fmt: skip
    _add_fan(out, session, truth, cut, columns, answers)


def _scales(session: Session, cut: int) -> FloatArray:
    """Return (S,) the mean absolute step over the training part; 0 where it is next to nothing or not known."""
    steps = np.abs(np.diff(session.demand[:cut].astype(np.float64), axis=0))
    known = np.isfinite(steps)
    mean = np.where(known, steps, 0.0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    return np.asarray(np.where(mean >= FLOOR / 2, mean, 0.0))


def _answers(
    session: Session, truth: Truth, cut: int, columns: IntArray, plain: dict[str, PointModel],
    others: dict[str, SeriesModel], call_us: dict[str, list[float]],
) -> dict[str, Float32Array]:  # fmt: skip
    """Return by model (T - cut, K, Q, columns) what it answered. All models go through the session together."""
    size, ticks = session.demand.shape[1], session.ticks
    point: Float32Array = np.zeros((K, size), np.float32)
    now: Float32Array = np.zeros((K, Q, size), np.float32)
    points = {name: np.zeros((ticks, K, len(columns)), np.float32) for name in plain}
    out = {name: np.zeros((ticks - cut, K, Q, len(columns)), np.float32) for name in others}
    took = {name: np.zeros(ticks, np.int64) for name in call_us}
    for t, history in enumerate(session.replay()):
        for name, model in plain.items():
            begun = time.perf_counter_ns()
            model.step(history, point)
            took[name][t] = time.perf_counter_ns() - begun
            points[name][t] = point[:, columns]
        for name, other in others.items():
            begun = time.perf_counter_ns()
            other.step(history, now)
            took[name][t] = time.perf_counter_ns() - begun
            if t >= cut:
                out[name][t - cut] = now[:, :, columns]
    for name, taken in took.items():
        call_us[name].append(float(np.median(taken[cut:]) / 1e3))
    for name, said in points.items():
        with_offsets = said[cut:, :, None] + _offsets(said, truth, cut, columns)
        out[name] = np.maximum(with_offsets, 0.0)
    return out


def _offsets(points: Float32Array, truth: Truth, cut: int, columns: IntArray) -> Float32Array:
    """Return (K, Q, columns) the quantiles of the errors of ``points`` (T, K, columns) in the training part."""
    offsets: Float32Array = np.zeros((K, Q, len(columns)), np.float32)
    for k, h in enumerate(HORIZONS):
        last = cut - h.ahead
        for j, s in enumerate(columns):
            known = truth.known[:last, k, s].copy()
            known[:WARM_TICKS] = False
            if known.any():
                error = truth.value[:last, k, s][known] - points[:last, k, j][known]
                offsets[k, :, j] = np.quantile(error, LEVELS)
    return offsets


def _add_fan(
    out: Backtest, session: Session, truth: Truth, cut: int, columns: IntArray, answers: dict[str, Float32Array]
) -> None:
    """Keep some seconds of the liveliest CPU series for the plot."""
    cpu = [j for j, s in enumerate(columns) if s % (session.demand.shape[1] // session.vms) == 0]
    if not cpu:
        return
    j = max(cpu, key=lambda j: float(np.nan_to_num(truth.value[cut:, 1, columns[j]]).std()))
    first = max((session.ticks - cut) // 2 - FAN_TICKS // 2, 0)
    window = slice(first, first + FAN_TICKS)
    title = f"{session.name}, VM {session.uuid[int(columns[j]) // (session.demand.shape[1] // session.vms)][:8]}"
    value = truth.value[cut:][window, 1, columns[j]].astype(np.float64)
    out.fans.append((title, value, {name: a[window, 1, :, j] for name, a in answers.items()}))


FAN_TICKS = 600
