"""From a policy's name to a mind that asks it: by calling it, or in a process of its own.

Our own allocators are called: they are numpy on arrays of bounded size, bounded in time, and tested with every reading
that there can be. So are learned policies: a bundle holds numbers, no code. Whatever else is named,
``package.module:callable``, is somebody's code, and has its own process.
"""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Literal

from foreshare.policies.allocators import Allocator, Request
from foreshare.policies.analyzer import Analyzer
from foreshare.policies.decide import DecideOptions, Mind
from foreshare.policies.errors import InputError
from foreshare.policies.forecast.fitted import load_fitted
from foreshare.policies.host import Host, IntArray
from foreshare.policies.learned.bundle import Bundle, read_bundle
from foreshare.policies.learned.champion import shipped
from foreshare.policies.learned.policy import learned_mind
from foreshare.policies.learned.source import CHAMPION, is_learned
from foreshare.policies.registry import LEARNED_BASE, POLICIES, is_plug_in, make_mind

from .keys import Keys
from .policy_process import PolicyProcess, ProcessOptions

Where = Literal["auto", "inline", "process"]
WHERE: tuple[Where, ...] = ("auto", "inline", "process")
PLUG_IN_FORECAST = "triage"
"""A plug-in sees the requests that this policy would see, and is assessed against it."""
PLUG_IN_RADIUS = 0.25
"""Whatever a plug-in says, every VM gets at least three quarters of what triage would give it (policies/guard.py)."""


class Elsewhere:
    """Stands for a policy that lives in another process."""

    batched = False

    def __init__(self, name: str) -> None:
        self.name = name

    def allocate(self, request: Request, host: Host, tick: int) -> IntArray:
        """Refuse: nobody may call it here."""
        raise InputError(f"policy {self.name} is asked in its own process")


def check_policy(policy: str) -> str:
    """Return ``policy`` if it is one of ours, a bundle that this host takes, or can be a plug-in. Raises InputError."""
    if policy in POLICIES or is_plug_in(policy):
        return policy
    if not is_learned(policy):
        others = "champion, a bundle's folder or package.module:callable"
        raise InputError(f"no policy named {policy!r}; there are {', '.join(POLICIES)}, {others}")
    open_bundle(policy)
    return policy


def open_bundle(policy: str, keys: Keys | None = None) -> Bundle:
    """Return the bundle that ``policy`` names, verified: the champion that ships, or one signed by whom ``keys`` trust.

    Raises BundleError (SchemaError for other features) where there is none that this host may run.
    """
    if policy == CHAMPION:
        return shipped()
    if policy.endswith(".npz"):
        raise InputError(f"{policy} is a network that nobody signed; make a bundle of it: foreshare export")
    return read_bundle(policy, (keys or Keys()).verify)


def open_mind(
    policy: str, host: Host, options: DecideOptions, where: Where = "auto", *, virtual_time: bool = False,
    forecast: str = "", radius: float = PLUG_IN_RADIUS,
) -> Mind:  # fmt: skip
    """Return a mind that decides by ``policy``; where it has a process, that is running and ready.

    ``forecast``: folder of what ``foreshare forecast fit`` wrote, to forecast with; empty: what ships. ``radius``: of
    the trust region to which plug-ins are held (policies/guard.py). Our own allocators are judged as they are, and
    what a learned policy says is a bounded correction of triage.
    Raises InputError for a policy or a folder that does not exist or cannot be loaded.
    """
    fitted = load_fitted(Path(forecast)) if forecast else None
    mind = _open_mind(policy, host, options, where, virtual_time, radius)
    if fitted is not None:
        if not isinstance(mind.forecaster, Analyzer):
            mind.close()
            raise InputError(f"policy {policy} does not forecast with fitted models; triage-mixture does")
        mind.forecaster = Analyzer(host, mind.forecaster.options, fitted)
    return mind


def _open_mind(
    policy: str, host: Host, options: DecideOptions, where: Where, virtual_time: bool, radius: float
) -> Mind:
    if policy not in POLICIES and is_learned(policy):
        if where == "process":
            raise InputError(f"policy {policy} sees what only the loop knows: it cannot live in a process of its own")
        mind = learned_mind(open_bundle(policy).network, make_mind(LEARNED_BASE, host, options), options, policy)
        mind.assess_against(make_mind(LEARNED_BASE, host, options).policy)
        return mind
    check_policy(policy)
    plug_in = is_plug_in(policy)
    if where == "inline" or (where == "auto" and not plug_in):
        if not plug_in:
            return make_mind(policy, host, options)
        return _plugged(_load(policy), host, options, radius)
    spec = {"factory": policy} if plug_in else {"registry": policy}
    process = PolicyProcess(spec, host, ProcessOptions(wait_for_start=virtual_time))
    try:
        process.start()
        mind = _plugged(Elsewhere(policy), host, options, radius) if plug_in else make_mind(policy, host, options)
    except BaseException:
        process.close()
        raise
    mind.asker = process
    return mind


def _plugged(policy: Allocator, host: Host, options: DecideOptions, radius: float) -> Mind:
    options = replace(options, guard=replace(options.guard, radius=radius))
    ours = make_mind(PLUG_IN_FORECAST, host, options)
    return Mind(host, ours.forecaster, policy, options, default=ours.policy)


def _load(policy: str) -> Allocator:
    module, _, name = policy.partition(":")
    try:
        made: Allocator = getattr(importlib.import_module(module), name)()
        made.allocate  # noqa: B018 - that it is there is all that is asked
    except (Exception, SystemExit) as error:
        raise InputError(f"policy {policy} could not be loaded: {type(error).__name__}: {error}") from error
    return made
