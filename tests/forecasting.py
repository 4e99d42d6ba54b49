"""Networks with random weights: what they answer means nothing, that both forms answer the same does."""

from __future__ import annotations

import numpy as np

from foreshare.policies.forecast.features import F
from foreshare.policies.forecast.history import K, Q


def random_network(first: int = 12, second: int = 12, *, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = {"w1": (first, F), "b1": first, "w2": (second, first), "b2": second, "w3": (K * Q, second), "b3": K * Q}
    return {name: rng.normal(0.0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}
