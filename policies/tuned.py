"""Tuned knobs by policy, written by training/tune_baseline.py; a policy that is missing has its defaults."""

from __future__ import annotations

TUNED: dict[str, dict[str, float | int]] = {
    "backlog": {
        "rise": 0.989,
        "fall": 0.6041,
        "error_gain": 0.1062,
        "margin": 0.4647,
        "trend": 0.0,
        "clear_ticks": 4.328,
        "clear_most": 2.796,
        "cache_gain": 0.02601,
        "cache_share": 0.0,
        "probe": 1.06,
        "revert": 0.03199,
        "usual_gain": 0.02868,
        "most_ticks": 58.77,
    },
    "triage": {
        "rise": 0.8636,
        "fall": 0.6622,
        "error_gain": 0.05277,
        "margin": 1.096,
        "trend": 0.5168,
        "clear_ticks": 1.755,
        "clear_most": 0.9854,
        "cache_gain": 0.04076,
        "cache_share": 0.0,
        "probe": 1.052,
        "revert": 0.01523,
        "usual_gain": 0.03683,
        "most_ticks": 182.9,
        "priority_power": 1.586,
        "price_power": 0.3212,
        "cost_power": 0.2671,
        "stick": 2.613,
        "margin_share": 0.08124,
        "horizon_ticks": 62.27,
    },
}
COMMANDS: dict[str, str] = {
    "backlog": ("foreshare tune-baseline backlog --suite train --steps 6000000 --seed 0"),
    "triage": ("foreshare tune-baseline triage --suite train --steps 6000000 --seed 0"),
}
"""The command that made each."""
