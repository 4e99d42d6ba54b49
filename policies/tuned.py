"""Tuned knobs by policy, written by training/tune_baseline.py; a policy that is missing has its defaults."""

from __future__ import annotations

TUNED: dict[str, dict[str, float | int]] = {
    "backlog": {
        "rise": 0.9523,
        "fall": 0.6021,
        "error_gain": 0.04837,
        "margin": 0.04284,
        "trend": 1.298,
        "clear_ticks": 4.531,
        "cache_gain": 0.01,
        "probe": 1.056,
    },
    "triage": {
        "rise": 0.9748,
        "fall": 0.6436,
        "error_gain": 0.04545,
        "margin": 0.9662,
        "trend": 0.9034,
        "clear_ticks": 2.239,
        "cache_gain": 0.05552,
        "probe": 1.032,
        "priority_power": 1.76,
        "price_power": 0.4925,
        "cost_power": 0.5597,
        "stick": 5.448,
        "margin_share": 0.1808,
        "horizon_ticks": 27.9,
        "passes": 2,
    },
}
COMMANDS: dict[str, str] = {
    "backlog": (
        "tune('backlog', [replace(load_scenario('mixed'), load=x) for x in (0.45, 0.65, 0.9)], Tune"
        "Options(steps=2500000, rollouts=2))"
    ),
    "triage": (
        "tune('triage', [replace(load_scenario('mixed'), load=x) for x in (0.45, 0.65, 0.9)], TuneO"
        "ptions(steps=1500000, rollouts=2))"
    ),
}
"""The command that made each."""
