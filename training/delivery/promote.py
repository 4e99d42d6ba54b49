"""Promotion and its undoing: who stands for ``champion``, and what was seen before that changed.

A promotion changes the registry only once everything has been decided, in three steps, each of which is whole or not
at all: the candidate becomes a version, ``previous`` gets to be the champion that was, ``champion`` the candidate.
Killed between any two of them, the old champion is still the champion.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foreshare.envs.simulator.suites import Suite, load_suite, suite_hash
from foreshare.policies.learned.bundle import ONNX, Bundle, Verify, read_bundle
from foreshare.policies.learned.lay import lay
from foreshare.policies.registry import LEARNED_BASE
from foreshare.training.evaluate import Progress, collect
from foreshare.training.evaluate_summary import Results, summarise

from .export import forms
from .gate import DECISIVE, SUITE, Contest, evidence, refusals, unfit
from .parity import ParityError, cases, check_parity
from .registry import CHAMPION, PREVIOUS, Registry, RegistryError, Version
from .timing import decide_us, too_slow


@dataclass(frozen=True, kw_only=True, slots=True)
class PromoteOptions:
    """How a candidate is judged."""

    suite: str = SUITE
    seeds: int = 5
    jobs: int = 0
    cache: Path | None = None
    rehearsal: bool = False
    """Everything is done and said, but what the suite says does not decide; the registry is one that no host uses."""


Collect = Callable[[Suite, list[str]], Results]


def promote(
    candidate: str, registry: Registry, verify: Verify, options: PromoteOptions, progress: Progress | None = None,
    *, evaluated: Collect | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Judge ``candidate``, a bundle's folder or a version of the registry; promote it if nothing speaks against it.

    Returns ``promoted``, ``reasons`` (why not, or what a rehearsal passes over), ``version`` and the evidence.
    ``evaluated`` replaces the evaluation. Raises BundleError, SchemaError, RegistryError: nothing was changed then.
    """
    suite = load_suite(options.suite)
    if not options.rehearsal:
        early = unfit(suite_hash(suite), suite_hash(load_suite(SUITE)), suite.name, options.seeds)
        if early:
            return {"promoted": False, "reasons": early, "version": None, "evidence": {}}
    version, bundle = _candidate(candidate, registry, verify)
    champion = registry.aliases().get(CHAMPION)
    holder = registry.fetch(registry.version(champion), verify) if champion else None
    if holder is not None and holder.sha256 == bundle.sha256:
        return {"promoted": False, "reasons": ["it is the champion already"], "version": champion, "evidence": {}}
    found, firm = _mechanics(bundle)
    soft: list[str] = []
    table: dict[str, Any] = {}
    if not firm:  # who cannot run anywhere need not be compared
        run = evaluated or _evaluation(options, progress)
        with tempfile.TemporaryDirectory(prefix="foreshare-") as scratch:
            results, contest = _contest(bundle, holder, Path(scratch), suite, run)
        soft = refusals(results, contest)
        found |= evidence(results, contest)
        table = _renamed(summarise(results), contest)
    if firm or (soft and not options.rehearsal):
        return {"promoted": False, "reasons": firm + soft, "version": version and version.number, "evidence": found}
    about = {"suite": suite.name, "suite_hash": suite_hash(suite), "seeds": options.seeds, "passed_over": soft}
    if version is None:
        notes = {"gate": found | about, "evaluation": table}
        version = registry.register(bundle, notes, _tags(bundle, about))
    if registry.aliases().get(CHAMPION) != champion:
        raise RegistryError(f"{CHAMPION} of {registry.model} changed while the candidate was judged: judge it again")
    if champion:
        registry.point(PREVIOUS, champion)
    registry.point(CHAMPION, version.number)
    return {"promoted": True, "reasons": soft, "version": version.number, "evidence": found}


def _candidate(candidate: str, registry: Registry, verify: Verify) -> tuple[Version | None, Bundle]:
    if Path(candidate).is_dir() or "/" in candidate:
        return None, read_bundle(candidate, verify)
    version = registry.version(candidate)
    return version, registry.fetch(version, verify)


def _mechanics(bundle: Bundle) -> tuple[dict[str, Any], list[str]]:
    """Return what holds whatever the suite says, parity and time, and why the bundle cannot run anywhere."""
    try:
        parity = check_parity(bundle.network, forms(bundle.network, bundle.contents[ONNX]), cases(bundle.network))
    except ParityError as e:
        return {}, [str(e)]
    except Exception as e:  # noqa: BLE001 - whatever onnxruntime and onnx make of a file that is none
        return {}, [f"its ONNX form cannot be run: {' '.join(str(e).split())[:160]}"]
    took = decide_us(bundle.network)
    return {"parity": parity, "decide_us": took}, too_slow(took)


def _evaluation(options: PromoteOptions, progress: Progress | None) -> Collect:
    def run(suite: Suite, policies: list[str]) -> Results:
        return collect(suite, policies, options.seeds, jobs=options.jobs, cache=options.cache, progress=progress,
                       plain_only=True)  # fmt: skip

    return run


def _contest(
    bundle: Bundle, holder: Bundle | None, scratch: Path, suite: Suite, run: Collect
) -> tuple[Results, Contest]:
    """Evaluate copies of the bundles: what was verified is what is judged."""
    named: dict[str, str] = {}
    for role, one in (("candidate", bundle), ("champion", holder)):
        if one is not None:
            lay(one.contents, scratch / role)
            named[role] = str(scratch / role)
    contest = Contest(candidate=named["candidate"], champion=named.get("champion"), base=LEARNED_BASE)
    return run(suite, [*named.values(), LEARNED_BASE]), contest


def _renamed(table: dict[str, Any], contest: Contest) -> dict[str, Any]:
    names = {contest.candidate: "candidate", contest.champion: "champion"}
    return {
        "base": {k: names.get(v, v) for k, v in table["base"].items()},
        "policies": {names.get(k, k): v for k, v in table["policies"].items()},
        "scenarios": {s: {names.get(k, k): v for k, v in rows.items()} for s, rows in table["scenarios"].items()},
    }


def _tags(bundle: Bundle, about: dict[str, Any]) -> dict[str, str]:
    closure = closure_paying(bundle.manifest)
    return {k: str(about[k]) for k in ("suite", "suite_hash", "seeds")} | {
        "closure_paying": "" if closure is None else f"{closure:.4f}"
    }


def closure_paying(manifest: dict[str, Any]) -> float | None:
    """Return the lesser closure at tight and at over that a manifest's evaluation states of its policy; else None."""
    evaluation = manifest.get("evaluation")
    rows = evaluation.get("policy") if isinstance(evaluation, dict) else None
    found = [
        rows[x].get("closure_paying") for x in DECISIVE if isinstance(rows, dict) and isinstance(rows.get(x), dict)
    ]
    numbers = [float(x) for x in found if isinstance(x, int | float)]
    return min(numbers) if len(numbers) == len(DECISIVE) else None


def rollback(registry: Registry) -> dict[str, Any]:
    """Let ``champion`` be ``previous`` again, and the other way round. Raises RegistryError where there is none."""
    now = registry.aliases()
    former, current = now.get(PREVIOUS), now.get(CHAMPION)
    if former is None or current is None or former == current:
        raise RegistryError(f"{registry.model} has no previous champion to go back to")
    registry.point(CHAMPION, former)
    registry.point(PREVIOUS, current)
    return {"champion": former, "previous": current}


def listed(registry: Registry) -> dict[str, Any]:
    """Return ``champion``, ``previous`` and ``versions``: the keys of ``foreshare models --json``."""
    aliases = registry.aliases()
    rows = [
        {
            "version": v.number, "created": v.created, "schema": v.tag("schema"),
            "closure_paying": float(v.tag("closure_paying")) if v.tag("closure_paying") else None,
            "sha256": v.tag("sha256"), "signer": v.tag("signer"), "suite": v.tag("suite"),
        }
        for v in registry.versions()
    ]  # fmt: skip
    return {
        "champion": aliases.get(CHAMPION), "previous": aliases.get(PREVIOUS), "versions": rows,
        "model": registry.model, "registry": registry.uri,
    }  # fmt: skip
