"""Fitted forecasters as files: one npz for each model, arrays only, and beside it what it was fitted to."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from foreshare.policies.analyzer import shipped_network
from foreshare.policies.errors import HostError
from foreshare.policies.forecast.fitted import ARIMA, Fitted, load_fitted, read_arrays

from .baselines import fit_arima
from .dataset import Session
from .fit import Arrays, FitOptions, fit_lstm, fit_network

__all__ = ["Fitted", "fit_and_write", "load_fitted", "read_arrays", "shipped"]


def shipped() -> Fitted:
    """Return what ships with the package."""
    return Fitted(network=shipped_network())


def fit_and_write(
    sessions: Sequence[Session], model: str, options: FitOptions, out: Path, *, onnx: bool = False,
    progress: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:  # fmt: skip
    """Fit a model and write it with its record: recordings and their span, VMs, options, scores. Raises HostError."""
    used = [s for s in sessions if not options.without or any(not u.startswith(options.without) for u in s.uuid)]
    scores: dict[str, float] = {}
    arrays: dict[str, Arrays] = {}
    if model == "network":
        arrays["network"], scores = fit_network(used, options, progress)
    elif model == "lstm":
        arrays["lstm"], scores = fit_lstm(used, options, progress)
    else:
        for session in used:
            progress(session.name)
            arrays[f"{ARIMA}{session.name}"] = dict(fit_arima(session, int(session.ticks * options.split)))
        scores = {"series": float(sum(len(a["offset"]) for a in arrays.values()))}
    record = {
        "model": model, "options": asdict(options), "scores": scores,
        "sessions": [
            {"name": s.name, "tick_ms": s.tick_ms, "ticks": s.ticks, "fitted_to_ticks": int(s.ticks * options.split),
             "all_vms": list(s.uuid), "vms": [u for u in s.uuid if not u.startswith(options.without or ("-",))]}
            for s in used
        ],
    }  # fmt: skip
    files: list[str] = []
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, values in arrays.items():
            path = out / f"{name}.npz"
            np.savez(path, **values)  # type: ignore[arg-type] # no name of ours is allow_pickle
            files.append(str(path))
        if onnx and model in arrays:
            from .export import export_onnx

            path = out / f"{model}.onnx"
            export_onnx(model, arrays[model], path)
            files.append(str(path))
        path = out / f"{model}.json"
        path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        files.append(str(path))
    except OSError as e:
        raise HostError(f"{out}: cannot be written: {e.strerror or e}") from e
    return {**record, "files": files}
