"""Programs held apart: for each group of VMs a network is fitted without them, and the group is judged with it.

What is pooled over all groups tells how forecasts do on programs that nothing was fitted to, in a span that nothing was
fitted to: the later part of each recording.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from foreshare.policies.errors import InputError
from foreshare.policies.forecast.fitted import Fitted
from foreshare.policies.forecast.network import QuantileNetwork

from .backtest import PLAIN, Backtest, BacktestOptions, run_backtest
from .dataset import Session
from .fit import FitOptions, collect, fit_network


def groups_of(sessions: Sequence[Session], count: int) -> list[tuple[str, ...]]:
    """Return the UUIDs of all VMs in ``count`` groups, dealt out in the order of the alphabet. Raises InputError."""
    uuids = sorted({u for s in sessions for u in s.uuid})
    if len(uuids) < count:
        raise InputError(f"--apart {count}: there are {len(uuids)} VMs; at most as many groups as VMs, each needs one")
    return [tuple(uuids[i::count]) for i in range(count)]


def run_apart(
    sessions: Sequence[Session], count: int, options: BacktestOptions, fit: FitOptions,
    also: Sequence[Session] = (), progress: Callable[[str], None] = lambda text: None,
) -> Backtest:  # fmt: skip
    """Fit and judge group by group; return everything scored. ``also``: recordings to fit to that are not judged.

    Raises InputError where there are fewer VMs than groups, or a group leaves nothing to fit to.
    """
    collected = {s: collect(s, options.split) for s in (*sessions, *also)}
    fitted = tuple(name for name in options.models if name not in PLAIN)
    alone = replace(options, models=tuple(name for name in options.models if name in PLAIN))
    plain = run_backtest(sessions, alone, Fitted(), progress)  # fitted to what they judge: groups are nothing to them
    known = {(s.session, s.uuid, s.resource): s for s in plain.series}
    out = Backtest(options, call_us={**plain.call_us, **{name: [] for name in fitted}})
    for group in groups_of(sessions, count):
        progress("without " + ", ".join(u[:8] for u in group))
        others = [s for s in (*sessions, *also) if not set(s.uuid) <= set(group)]
        arrays, _ = fit_network(others, replace(fit, split=options.split, without=group), progress, collected)
        judged = [s.only(group) for s in sessions if set(s.uuid) & set(group)]
        part = run_backtest(judged, replace(options, models=fitted), Fitted(network=QuantileNetwork(arrays)), progress)
        for s in part.series:
            beside = known[s.session, s.uuid, s.resource]
            out.series.append(replace(s, scores={**beside.scores, **s.scores}))
        out.fans += part.fans
        for name, took in part.call_us.items():
            out.call_us[name] += took
    return out
