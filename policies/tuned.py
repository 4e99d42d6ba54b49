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
        "rise": 0.6621,
        "fall": 0.7294,
        "error_gain": 0.04649,
        "margin": 0.0,
        "trend": 1.07,
        "clear_ticks": 2.23,
        "clear_most": 1.562,
        "cache_gain": 0.01042,
        "cache_share": 0.0,
        "probe": 1.427,
        "revert": 0.007104,
        "usual_gain": 0.01273,
        "most_ticks": 306.9,
        "priority_power": 0.6981,
        "price_power": 0.913,
        "cost_power": 0.2986,
        "stick": 2.149,
        "margin_share": 0.0664,
        "thrift": 1.06,
        "thrift_ticks": 786.6,
        "horizon_ticks": 2.109,
    },
}
COMMANDS: dict[str, str] = {
    "backlog": ("foreshare tune-baseline backlog --suite train --steps 12000000 --seed 0"),
    "triage": ("foreshare tune-baseline triage --suite train --steps 131000000 --seed 0 --rollouts 12"),
}
"""The command that made each."""
