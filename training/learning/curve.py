"""The learning curve as a picture: score over environment steps, the base policy's beside it."""

from __future__ import annotations

import io
from collections.abc import Sequence


def plotted(curve: Sequence[dict[str, float]]) -> bytes:
    """Return an SVG of the scores in ``curve``, the rows of :class:`~.state.Progress`."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 4.0))
    FigureCanvasSVG(figure)
    axes = figure.subplots()
    steps = [row["env_steps"] for row in curve]
    axes.plot(steps, [row["train_score"] for row in curve], color="#56b4e9", linewidth=0.8, label="while learning")
    looks = [row for row in curve if "validate_score" in row]
    axes.plot([r["env_steps"] for r in looks], [r["validate_score"] for r in looks], color="#d55e00", marker="o",
              markersize=3, label="validation")  # fmt: skip
    axes.axhline(1.0, color="black", linewidth=0.8, linestyle="--", label="base policy")
    axes.set_xlabel("environment steps (ticks of a host)")
    axes.set_ylabel("score (late requests, base = 1)")
    axes.legend(frameon=False)
    figure.tight_layout()
    out = io.BytesIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()
