"""Tuned knobs by policy, written by training/tune_baseline.py; a policy that is missing has its defaults."""

from __future__ import annotations

TUNED: dict[str, dict[str, float | int]] = {
    "triage": {
        "rise": 0.8631,
        "fall": 0.455,
        "error_gain": 0.04738,
        "margin": 1.099,
        "trend": 0.5952,
        "clear_ticks": 1.429,
        "clear_most": 2.288,
        "cache_gain": 0.09228,
        "cache_share": 0.0,
        "probe": 1.052,
        "revert": 0.02403,
        "usual_gain": 0.02135,
        "most_ticks": 218.4,
        "priority_power": 1.711,
        "price_power": 0.6825,
        "cost_power": 0.62,
        "stick": 2.851,
        "margin_share": 0.03855,
        "horizon_ticks": 45.37,
    },
}
COMMANDS: dict[str, str] = {
    "triage": ("foreshare tune-baseline triage --suite train --steps 6000000 --seed 0"),
}
"""The command that made each."""
