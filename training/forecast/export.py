"""The fitted networks as ONNX, for everybody who does not run ours in numpy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from foreshare.policies.errors import InputError
from foreshare.policies.forecast.features import F
from foreshare.policies.forecast.lstm import INPUTS

from .fit import Arrays, quantiles
from .sequences import LstmModule

if TYPE_CHECKING:
    import torch


def torch_network(arrays: Arrays) -> torch.nn.Module:
    """Return the quantile network as a torch module: features (M, F) to (M, K, Q) in multiples of the scale."""
    import torch
    from torch import nn

    layers = []
    for i in (1, 2, 3):
        linear = nn.Linear(*reversed(arrays[f"w{i}"].shape))
        linear.load_state_dict({name: torch.from_numpy(arrays[f"{name[0]}{i}"]) for name in ("weight", "bias")})
        layers.append(linear)

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return quantiles(self.layers(x), x)

    return Network()


def torch_lstm(arrays: Arrays) -> torch.nn.Module:
    """Return the LSTM as a torch module: inputs (M, steps, INPUTS) to (M, steps, K, Q) in multiples of the scale."""
    import torch

    module: torch.nn.Module = LstmModule(arrays["u"].shape[1])
    state = {"cell.weight_ih_l0": "w", "cell.weight_hh_l0": "u", "cell.bias_ih_l0": "b", "head.weight": "v",
             "head.bias": "d"}  # fmt: skip
    values = {name: torch.from_numpy(arrays[key]) for name, key in state.items()}
    values["cell.bias_hh_l0"] = torch.zeros_like(values["cell.bias_ih_l0"])
    module.load_state_dict(values)
    return module


def export_onnx(model: str, arrays: Arrays, path: Path) -> None:
    """Write a network (``network`` or ``lstm``) as one ONNX file. Raises InputError for other models."""
    import torch

    many, steps = torch.export.Dim("many"), torch.export.Dim("steps")
    if model == "network":
        module, example, shapes = torch_network(arrays), torch.zeros(4, F), ({0: many},)
    elif model == "lstm":
        module, example, shapes = torch_lstm(arrays), torch.zeros(4, 8, INPUTS), ({0: many, 1: steps},)
    else:
        raise InputError(f"model {model!r} is no network: it has no ONNX form")
    torch.onnx.export(
        module.eval(), (example,), str(path), dynamo=True, dynamic_shapes=shapes, input_names=["x"],
        output_names=["quantiles"], external_data=False, verbose=False,
    )  # fmt: skip
