"""Fitting forecasters to recorded telemetry, and judging them by rolling origin."""
