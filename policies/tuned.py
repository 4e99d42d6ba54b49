"""Tuned knobs by policy, written by training/tune_baseline.py. Where a policy is missing its defaults hold."""

from __future__ import annotations

TUNED: dict[str, dict[str, float | int]] = {}
