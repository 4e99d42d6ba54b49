"""Tuned knobs by policy, written by training/tune_baseline.py; a policy that is missing has its defaults."""

from __future__ import annotations

TUNED: dict[str, dict[str, float | int]] = {
    "backlog": {
        "rise": 0.9347,
        "fall": 0.6062,
        "error_gain": 0.0522,
        "margin": 0.0,
        "trend": 0.5833,
        "clear_ticks": 1.211,
        "clear_most": 0.647,
        "cache_gain": 0.0338,
        "cache_share": 0.0,
        "probe": 1.193,
        "revert": 0.008964,
        "usual_gain": 0.0194,
        "most_ticks": 192.8,
    },
    "triage": {
        "rise": 0.8363,
        "fall": 0.61,
        "error_gain": 0.03,
        "margin": 0.7841,
        "trend": 0.9626,
        "clear_ticks": 1.725,
        "clear_most": 1.28,
        "cache_gain": 0.07032,
        "cache_share": 0.0,
        "probe": 1.214,
        "revert": 0.1004,
        "usual_gain": 0.01398,
        "most_ticks": 104.0,
        "priority_power": 0.9333,
        "price_power": 1.027,
        "cost_power": 0.42,
        "stick": 8.664,
        "margin_share": 0.06238,
        "thrift": 1.007,
        "thrift_ticks": 28.67,
        "horizon_ticks": 29.65,
    },
}
COMMANDS: dict[str, str] = {
    "backlog": ("foreshare tune-baseline backlog --suite train --steps 12000000 --seed 0"),
    "triage": ("foreshare tune-baseline triage --suite train --steps 12000000 --seed 0"),
}
"""The command that made each."""
