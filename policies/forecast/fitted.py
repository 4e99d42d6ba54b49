"""What ``foreshare forecast fit`` wrote into a folder, for hosts: arrays only, checked, never executed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from foreshare.policies.errors import InputError
from foreshare.policies.host import FloatArray, R

from .lstm import Lstm, LstmModel
from .margins import WithMargins
from .mixture import Mixture
from .models import SeriesModel
from .network import NetworkModel, QuantileNetwork
from .statespace import STATE_SPACE, LinearStateSpace, state_space_of

Arrays = dict[str, npt.NDArray[np.generic]]
ARIMA = "arima-"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Fitted:
    """The models that there are."""

    network: QuantileNetwork | None = None
    lstm: Lstm | None = None
    arima: Mapping[str, Mapping[str, FloatArray]] = field(default_factory=dict)
    """By VM's UUID its R series' matrices (:data:`~.statespace.STATE_SPACE`)."""

    def model(self, name: str, size: int) -> SeriesModel:
        """Return a fresh model of ``size`` series. Raises InputError where its weights are missing."""
        if name == "mixture":
            return Mixture(size, self.network)
        if name == "network" and self.network is not None:
            return NetworkModel(self.network, size)
        if name == "lstm" and self.lstm is not None:
            return LstmModel(self.lstm, size)
        raise InputError(f"model {name!r} has no weights: fit some with foreshare forecast fit --model {name}")

    def of_host(self, uuid: tuple[str, ...]) -> SeriesModel:
        """Return what forecasts these VMs' series: the mixture with the network that is here, else LSTM, else ARIMA.

        A VM that no ARIMA was fitted to is forecast at its last value.
        """
        size = len(uuid) * R
        if self.network is not None:
            return Mixture(size, self.network)
        if self.lstm is not None:
            return LstmModel(self.lstm, size)
        return WithMargins(self._state_space(uuid), size)

    def _state_space(self, uuid: tuple[str, ...]) -> LinearStateSpace:
        depth = max((m["state"].shape[1] for m in self.arima.values()), default=1)
        out = last_value_matrices(len(uuid) * R, depth)
        for i, u in enumerate(uuid):
            for name, values in self.arima.get(u, {}).items():
                rows = out[name][i * R : (i + 1) * R]
                rows[:] = 0.0
                rows[tuple(slice(0, n) for n in values.shape)] = values
        return state_space_of(out)


def last_value_matrices(size: int, depth: int) -> dict[str, FloatArray]:
    """Return the matrices (:data:`~.statespace.STATE_SPACE`) of ``size`` models that repeat the last value."""
    out: dict[str, FloatArray] = {name: np.zeros((size, depth)) for name in ("design", "state")}
    out |= {name: np.zeros((size, depth, depth)) for name in ("transition", "covariance", "noise")}
    out |= {name: np.zeros(size) for name in ("offset", "slope")}
    out["design"][:, 0] = out["transition"][:, 0, 0] = out["noise"][:, 0, 0] = out["covariance"][:, 0, 0] = 1.0
    return out


def load_fitted(folder: Path) -> Fitted:
    """Return what ``forecast fit`` wrote into a folder. Raises InputError where there is nothing, or it is broken."""
    there = {name: folder / f"{name}.npz" for name in ("network", "lstm")}
    read = {name: read_arrays(path) for name, path in there.items() if path.exists()}
    arima = _arima(folder)
    if not read and not arima:
        raise InputError(f"{folder}: holds neither network.npz, lstm.npz nor arima.json")
    return Fitted(
        network=QuantileNetwork(read["network"]) if "network" in read else None,
        lstm=Lstm(read["lstm"]) if "lstm" in read else None, arima=arima,
    )  # fmt: skip


def read_arrays(path: Path) -> Arrays:
    """Return the arrays in an npz file. Raises InputError; nothing in it is ever executed."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, AttributeError) as e:
        raise InputError(f"{path}: is no file of weights: {e}") from e


def _arima(folder: Path) -> dict[str, dict[str, FloatArray]]:
    """Return by UUID what arima.json lists; of a VM in several recordings the last."""
    record = folder / "arima.json"
    if not record.exists():
        return {}
    out: dict[str, dict[str, FloatArray]] = {}
    try:
        document = json.loads(record.read_text(encoding="utf-8"))
        sessions = [(str(s["name"]), [str(u) for u in s["all_vms"]]) for s in document["sessions"]]
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise InputError(f"{record}: is no record of fitted ARIMA models: {e}") from e
    for name, uuid in sessions:
        arrays = read_arrays(folder / f"{ARIMA}{Path(name).name}.npz")
        state_space_of(arrays)  # raises for what does not fit together
        if len(arrays["offset"]) != len(uuid) * R:
            raise InputError(f"{folder}: the models of {name} are not those of its VMs")
        for i, u in enumerate(uuid):
            out[u] = {k: np.asarray(arrays[k], np.float64)[i * R : (i + 1) * R] for k in STATE_SPACE}
    return out
