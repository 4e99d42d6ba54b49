"""Fitted forecasters as files: one npz for each model, arrays only, and beside it what it was fitted to."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from foreshare.policies.analyzer import shipped_network
from foreshare.policies.errors import HostError, InputError
from foreshare.policies.forecast.lstm import Lstm, LstmModel
from foreshare.policies.forecast.mixture import Mixture
from foreshare.policies.forecast.models import SeriesModel
from foreshare.policies.forecast.network import NetworkModel, QuantileNetwork

from .baselines import fit_arima
from .dataset import Session
from .fit import Arrays, FitOptions, fit_lstm, fit_network


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Fitted:
    """The networks that there are."""

    network: QuantileNetwork | None = None
    lstm: Lstm | None = None

    def model(self, name: str, size: int) -> SeriesModel:
        """Return a fresh model of ``size`` series. Raises InputError where its weights are missing."""
        if name == "mixture":
            return Mixture(size, self.network)
        if name == "network" and self.network is not None:
            return NetworkModel(self.network, size)
        if name == "lstm" and self.lstm is not None:
            return LstmModel(self.lstm, size)
        raise InputError(f"model {name!r} has no weights: fit some with foreshare forecast fit --model {name}")


def shipped() -> Fitted:
    """Return what ships with the package."""
    return Fitted(network=shipped_network())


def load_fitted(folder: Path) -> Fitted:
    """Return what ``forecast fit`` wrote into a folder. Raises InputError where there is nothing, or it is broken."""
    found = {name: folder / f"{name}.npz" for name in ("network", "lstm")}
    there = {name: read_arrays(path) for name, path in found.items() if path.exists()}
    if not there:
        raise InputError(f"{folder}: holds neither network.npz nor lstm.npz")
    return Fitted(
        network=QuantileNetwork(there["network"]) if "network" in there else None,
        lstm=Lstm(there["lstm"]) if "lstm" in there else None,
    )


def read_arrays(path: Path) -> Arrays:
    """Return the arrays in an npz file. Raises InputError; nothing in it is ever executed."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, AttributeError) as e:
        raise InputError(f"{path}: is no file of weights: {e}") from e


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
            arrays[f"arima-{session.name}"] = dict(fit_arima(session, int(session.ticks * options.split)))
        scores = {"series": float(sum(len(a["offset"]) for a in arrays.values()))}
    record = {
        "model": model, "options": asdict(options), "scores": scores,
        "sessions": [
            {"name": s.name, "tick_ms": s.tick_ms, "ticks": s.ticks, "fitted_to_ticks": int(s.ticks * options.split),
             "vms": [u for u in s.uuid if not u.startswith(options.without or ("-",))]}
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
