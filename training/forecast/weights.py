"""Fitted forecasters as files: one npz for each model, arrays only, with what they were fitted to beside them."""

from __future__ import annotations

from dataclasses import dataclass

from foreshare.policies.errors import InputError
from foreshare.policies.forecast.lstm import Lstm, LstmModel
from foreshare.policies.forecast.mixture import Mixture
from foreshare.policies.forecast.models import SeriesModel
from foreshare.policies.forecast.network import NetworkModel, QuantileNetwork


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Fitted:
    """The networks that there are."""

    network: QuantileNetwork | None = None
    lstm: Lstm | None = None

    def model(self, name: str, size: int) -> SeriesModel:
        """Return a fresh model of a host. Raises InputError where its weights are missing."""
        if name == "mixture":
            return Mixture(size, self.network)
        if name == "network" and self.network is not None:
            return NetworkModel(self.network, size)
        if name == "lstm" and self.lstm is not None:
            return LstmModel(self.lstm, size)
        raise InputError(f"model {name!r} has no weights: fit some with foreshare forecast fit --model {name}")
