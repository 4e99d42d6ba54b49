"""Tuned knobs by policy, written by training/tune_baseline.py; a policy that is missing has its defaults."""

from __future__ import annotations

TUNED: dict[str, dict[str, float | int]] = {}
COMMANDS: dict[str, str] = {}
"""The command that made each."""
