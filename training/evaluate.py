"""Policies on a suite: every scenario, load and seed, in parallel processes, each run made once and kept.

The result does not depend on how many processes there are or on the order in which they finish: a run is a function of
its :class:`~.evaluate_run.Run`, and figures are put together by name. Times (``decision_us``) are this machine's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from pathlib import Path
from typing import Any

from foreshare.envs.simulator.suites import Suite, suite_hash
from foreshare.policies.errors import InputError

from .drive import ORACLE_PREFIX, can_run_together
from .evaluate_cache import ResultStore, code_version, policy_identity, run_key
from .evaluate_run import EMU, PLAIN, STEP, Measured, Run, measure
from .evaluate_summary import Results, summarise
from .processes import process_pool

Progress = Callable[[int, int, int], None]
"""Called with the runs done, those of them that were found in the cache, and all."""
MAX_JOBS = 256
MOST_TOGETHER = 8
"""Seeds that run side by side in one process: more would keep the others waiting for the last ones."""


def plan_runs(
    suite: Suite, policies: Sequence[str], seeds: int, *, plain_only: bool = False
) -> list[tuple[tuple[str, str, int], Run]]:
    """Return every run as ((scenario, load, seed), run); the dear ones first, so that no process is left with one.

    Oracles are references for V: neither EMU nor convergence is measured of them; with ``plain_only`` of nobody.
    """
    out: list[tuple[tuple[str, str, int], Run]] = []
    for scenario in suite.scenarios:
        for policy in policies:
            plain = plain_only or policy.startswith(ORACLE_PREFIX)
            for load, _ in suite.loads:
                at = suite.at(scenario, load)
                for seed in range(seeds):
                    run = Run(
                        kind=PLAIN, scenario=at, policy=policy, seed=seed, ticks=suite.ticks,
                        warm_ticks=suite.warm_ticks,
                    )  # fmt: skip
                    out.append(((scenario.name, load, seed), run))
                if suite.step_ticks and not plain:
                    step = Run(
                        kind=STEP, scenario=at, policy=policy, seed=0, ticks=suite.step_ticks,
                        warm_ticks=suite.warm_ticks,
                    )  # fmt: skip
                    out.append(((scenario.name, load, 0), step))
            if suite.emu_rounds and not plain:
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
    plain_only: bool = False,
) -> dict[str, Any]:
    """Return every figure as JSON values: the keys of ``foreshare evaluate --json``. See :func:`collect`."""
    results = collect(suite, policies, seeds, jobs=jobs, cache=cache, progress=progress, plain_only=plain_only)
    return {
        "suite": suite.name,
        "suite_hash": suite_hash(suite),
        "seeds": seeds,
        "code_version": code_version(),
        "policy_hash": {policy: policy_identity(policy) for policy in policies},
        **summarise(results),
    }


def collect(
    suite: Suite,
    policies: Sequence[str],
    seeds: int,
    *,
    jobs: int = 0,
    cache: Path | None = None,
    progress: Progress | None = None,
    plain_only: bool = False,
) -> Results:
    """Return the figures of every single run.

    ``plain_only``: without EMU and convergence, at half the cost. ``jobs`` processes; 0: in this one. ``cache``: where
    results are kept; None: nowhere. Raises InputError for a policy that does not exist, or nothing to run.
    """
    if not policies or len(set(policies)) != len(policies):
        raise InputError("name at least one policy, and each once")
    if seeds < 1 or not 0 <= jobs <= MAX_JOBS:
        raise InputError(f"{seeds} seeds in {jobs} processes cannot be run")
    for policy in policies:
        policy_identity(policy)
    planned = plan_runs(suite, policies, seeds, plain_only=plain_only)
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
    return results


def _together(runs: Sequence[Run]) -> list[list[int]]:
    """Return the indices of ``runs`` in the groups in which they are made: seeds that can run side by side are one."""
    groups: dict[tuple[object, ...], list[int]] = {}
    for i, run in enumerate(runs):
        together = run.kind == PLAIN and can_run_together(run.policy)
        key = (run.policy, run.scenario.name, run.scenario.load) if together else (i,)
        groups.setdefault(key, []).append(i)
    return [g[k : k + MOST_TOGETHER] for g in groups.values() for k in range(0, len(g), MOST_TOGETHER)]


def _measured(runs: Sequence[Run], jobs: int) -> Iterator[tuple[int, Measured]]:
    """Yield (index, result) as they come. On the way out, what has not begun is dropped."""
    groups = _together(runs)
    if jobs == 0 or not runs:
        for group in groups:
            yield from zip(group, measure([runs[i] for i in group]), strict=True)
        return
    with process_pool(min(jobs, len(groups))) as pool:
        waiting: dict[Future[list[Measured]], list[int]] = {
            pool.submit(measure, [runs[i] for i in group]): group for group in groups
        }
        while waiting:
            finished, _ = wait(waiting, return_when=FIRST_COMPLETED)
            for future in finished:
                yield from zip(waiting.pop(future), future.result(), strict=True)
