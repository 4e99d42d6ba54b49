"""``bench train``: environment steps a second of PPO through RLlib, and of a plain torch loop on the very same.

Same environment, network, loss, batch, epochs and seed, in turns, one torch thread each: what else the machine does
meets both alike. A figure is the median over rounds.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, replace
from typing import Any

from foreshare.policies.learned import Network
from foreshare.training.cluster import ray_session

from .config import PpoConfig, Runner, ScenesConfig, TrainConfig
from .ppo import Ppo
from .torch_loop import TorchLoop


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainBench:
    """What to measure."""

    hosts: int = 32
    ticks: int = 64
    rounds: int = 5
    runner: str = "fast"


def bench_train(bench: TrainBench) -> dict[str, Any]:
    """Measure; return the keys of ``foreshare bench train --json``."""
    import torch

    set_threads: Any = torch.set_num_threads

    config = TrainConfig(
        scenes=ScenesConfig(suite="train", most_vms=16, drawn_share=0.0, ticks=bench.ticks, warm_ticks=8),
        ppo=PpoConfig(hosts=bench.hosts, scenarios=min(8, bench.hosts), minibatch=512,
                      runner=Runner[bench.runner.upper()]),
    )  # fmt: skip
    network = Network.random(0, config.network.widths, gain=0.0)
    threads = torch.get_num_threads()
    set_threads(1)
    try:
        with ray_session():
            ours, plain = Ppo(config, network, 0), TorchLoop(replace(config), network, 0)

            def ours_once() -> int:
                return int(ours.iterate()["env_steps"])

            rates: dict[str, list[float]] = {"rllib": [], "torch": []}
            for i in range(bench.rounds + 1):
                for name, iterate in (("rllib", ours_once), ("torch", plain.iterate)):
                    start = time.process_time()
                    steps = iterate()
                    if i:  # the first one warms up
                        rates[name].append(steps / (time.process_time() - start))
            ours.close()
    finally:
        set_threads(threads)
    rllib, loop = (statistics.median(rates[name]) for name in ("rllib", "torch"))
    ratios = [a / b for a, b in zip(rates["rllib"], rates["torch"], strict=True)]
    return {
        "hosts": bench.hosts, "ticks": bench.ticks, "rounds": bench.rounds, "runner": bench.runner,
        "rllib_steps_per_s": round(rllib, 1), "torch_loop_steps_per_s": round(loop, 1),
        "ratio": round(statistics.median(ratios), 3),
    }  # fmt: skip
