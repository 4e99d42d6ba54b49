"""The result of ``foreshare forecast backtest`` as one HTML file: tables, and fans of quantiles over what came."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from foreshare.policies.errors import HostError

from .report import report_available
from .report.figures import ALLOC, DEMAND, FILL, GRID, INK, VARIABLES, drawing
from .report.page import esc, figure, keys, page, section, table

Fan = tuple[str, npt.NDArray[np.float64], Mapping[str, npt.NDArray[np.float32]]]
TICK_S = 0.01
_HEAD = ("model", "MASE", "pinball 0.5", "pinball 0.9", "pinball 0.99", "0.9 covers", "us a call")


def render(result: Mapping[str, Any], fans: Sequence[Fan]) -> str:
    """Return the report. Raises HostError without matplotlib."""
    if why := report_available():
        raise HostError(why)
    body = [
        "<h1>Forecast backtest</h1>",
        f"<p>{result['series']} series of {result['programs']} VMs in {result['sessions']} recordings. Losses are in"
        " mean steps from tick to tick of each series over its training part.</p>",
    ]
    for name in ("50", "100"):
        rows = [
            (esc(model), *(f"{rows[name][key]:.4f}" for key in _KEYS), f"{rows['call_us']:.0f}")
            for model, rows in result["models"].items()
        ]
        body.append(section(f"ms{name}", f"{name} ms ahead", table(_HEAD, rows, numeric=range(1, len(_HEAD)))))
    legend = keys([("var(--demand)", "rule", "what came"), ("var(--alloc)", "rule", "median"),
                   ("var(--alloc-fill)", "chip", "up to the 0.9 and the 0.99 quantile")])  # fmt: skip
    with drawing():
        drawn = [figure(_fan(truth, models[_shown(models)]), f"{esc(title)}: {_shown(models)}", wide=True)
                 for title, truth, models in fans]  # fmt: skip
    body.append(section("fans", "50 ms ahead, over what came", legend + "".join(drawn)))
    return page("foreshare forecast backtest", "".join(body))


_KEYS = ("mase", "pinball_q50", "pinball_q90", "pinball_q99", "coverage_q90")


def _shown(models: Mapping[str, object]) -> str:
    return "mixture" if "mixture" in models else list(models)[-1]


def _fan(truth: npt.NDArray[np.float64], quantiles: npt.NDArray[np.float32]) -> str:
    """Return an SVG of truth (T,) over quantiles (T, 3)."""
    from matplotlib.figure import Figure

    seconds = np.arange(len(truth)) * TICK_S
    canvas = Figure(figsize=(9.5, 2.2), layout="constrained")
    axes = canvas.add_subplot()
    axes.fill_between(seconds, quantiles[:, 0], quantiles[:, 2], color=FILL, alpha=0.35, linewidth=0)
    axes.fill_between(seconds, quantiles[:, 0], quantiles[:, 1], color=FILL, alpha=0.7, linewidth=0)
    axes.plot(seconds, quantiles[:, 0], color=ALLOC, linewidth=1.0)
    axes.plot(seconds, truth, color=DEMAND, linewidth=0.8)
    axes.set_xlabel("s", color=INK)
    axes.set_ylabel("units", color=INK)
    axes.grid(color=GRID)
    axes.set_xlim(0, seconds[-1] if len(seconds) > 1 else 1)
    out = io.StringIO()
    canvas.savefig(out, format="svg", metadata={"Date": None})
    svg = re.sub(r"^.*?(?=<svg)", "", out.getvalue(), flags=re.DOTALL)
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    return svg
