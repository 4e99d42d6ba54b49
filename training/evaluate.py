"""Policies on a suite: every scenario, load and seed, in parallel processes, each run made once and kept.

The result does not depend on how many processes there are or on the order in which they finish: a run is a function of
its :class:`~.evaluate_run.Run`, and figures are put together by name. Times (``decision_us``) are this machine's.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from foreshare.envs.simulator.suites import Suite, suite_hash
from foreshare.policies.errors import InputError

from .evaluate_cache import ResultStore, code_version, policy_identity, run_key
from .evaluate_run import EMU, ORACLE_PREFIX, PLAIN, STEP, Measured, Run, measure
from .evaluate_summary import Results, summarise

Progress = Callable[[int, int, int], None]
"""Called with the runs done, those of them that were found in the cache, and all."""
MAX_JOBS = 256
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def plan_runs(suite: Suite, policies: Sequence[str], seeds: int) -> list[tuple[tuple[str, str, int], Run]]:
    """Return every run as ((scenario, load, seed), run); the dear ones first, so that no process is left with one.

    Oracles are references for V: neither EMU nor convergence is measured of them.
    """
    out: list[tuple[tuple[str, str, int], Run]] = []
    for scenario in suite.scenarios:
        for policy in policies:
            oracle = policy.startswith(ORACLE_PREFIX)
            for load, _ in suite.loads:
                at = suite.at(scenario, load)
                for seed in range(seeds):
                    run = Run(
                        kind=PLAIN, scenario=at, policy=policy, seed=seed, ticks=suite.ticks,
                        warm_ticks=suite.warm_ticks,
                    )  # fmt: skip
                    out.append(((scenario.name, load, seed), run))
                if suite.step_ticks and not oracle:
                    step = Run(
                        kind=STEP, scenario=at, policy=policy, seed=0, ticks=suite.step_ticks,
                        warm_ticks=suite.warm_ticks,
                    )  # fmt: skip
                    out.append(((scenario.name, load, 0), step))
            if suite.emu_rounds and not oracle:
                emu = Run(
                    kind=EMU, scenario=scenario, policy=policy, seed=0, ticks=suite.emu_ticks,
                    warm_ticks=suite.warm_ticks, rounds=suite.emu_rounds,
                )  # fmt: skip
                out.append(((scenario.name, "", 0), emu))
    return sorted(out, key=lambda item: -_cost(item[1]))


def _cost(run: Run) -> float:
    ticks = (run.warm_ticks + run.ticks * (2 if run.kind == STEP else 1)) * max(run.rounds, 1)
    return ticks * (50.0 + len(run.scenario.vm))


def evaluate(
    suite: Suite,
    policies: Sequence[str],
    seeds: int,
    *,
    jobs: int = 0,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Return every figure as JSON values: the keys of ``foreshare evaluate --json``.

    ``jobs`` processes; 0: in this one. ``cache``: where results are kept; None: nowhere. Raises InputError for a policy
    that does not exist, or nothing to run.
    """
    if not policies or len(set(policies)) != len(policies):
        raise InputError("name at least one policy, and each once")
    if seeds < 1 or not 0 <= jobs <= MAX_JOBS:
        raise InputError(f"{seeds} seeds in {jobs} processes cannot be run")
    identities = {policy: policy_identity(policy) for policy in policies}
    planned = plan_runs(suite, policies, seeds)
    store, results = ResultStore(cache), Results(suite, tuple(policies), seeds)
    missing: list[tuple[tuple[str, str, int], Run, str]] = []
    for at, run in planned:
        key = run_key(run)
        found = store.get(key)
        if found is None:
            missing.append((at, run, key))
        else:
            results.add(at, run, found)
    cached = len(planned) - len(missing)
    tell = progress or (lambda done, cached, total: None)
    tell(cached, cached, len(planned))
    done = cached
    for i, result in _measured([run for _, run, _ in missing], jobs):
        at, run, key = missing[i]
        store.put(key, result)
        results.add(at, run, result)
        done += 1
        tell(done, cached, len(planned))
    return {
        "suite": suite.name,
        "suite_hash": suite_hash(suite),
        "seeds": seeds,
        "code_version": code_version(),
        "policy_hash": identities,
        **summarise(results),
    }


def _measured(runs: Sequence[Run], jobs: int) -> Iterator[tuple[int, Measured]]:
    """Yield (index, result) as they come. On the way out, what has not begun is dropped."""
    if jobs == 0 or not runs:
        for i, run in enumerate(runs):
            yield i, measure(run)
        return
    # forkserver: a fork of a process with threads (a progress bar's, BLAS's) may hang.
    context = multiprocessing.get_context("forkserver")
    with _single_threaded():
        pool = ProcessPoolExecutor(min(jobs, len(runs)), mp_context=context, initializer=_ignore_interrupt)
        try:
            waiting: dict[Future[Measured], int] = {pool.submit(measure, run): i for i, run in enumerate(runs)}
            while waiting:
                finished, _ = wait(waiting, return_when=FIRST_COMPLETED)
                for future in finished:
                    yield waiting.pop(future), future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _ignore_interrupt() -> None:
    """Leave Ctrl-C to the parent, which lets the runs in progress end and keeps what is done."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def _single_threaded() -> Iterator[None]:
    """Start processes whose BLAS has one thread: they share the CPUs, and sums come out the same for any number."""
    before = {name: os.environ.get(name) for name in _THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
