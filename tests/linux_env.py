"""``Partition-v0`` over real cgroups, for this machine's v1 and for the lab's v2 and resctrl alike."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np

from foreshare.envs.hal.linux.hal import LinuxHal
from foreshare.envs.hal.linux.resctrl.spec import ResctrlSpec
from foreshare.envs.hal.linux.spec import LinuxSpec
from foreshare.envs.hal.spec import Amounts, VmSpec
from foreshare.envs.hal.types import Control, Plan, Receipt
from foreshare.envs.partition import PartitionEnv
from foreshare.policies.host import Placement

STEPS = 200


def spec_of(cgroups: list[str], *, cpu: float, resctrl: bool) -> LinuxSpec:
    """Return a host of shared VMs that reserve ``cpu`` CPUs each."""
    vms = tuple(VmSpec(name=f"vm{i}", cgroup=c, reservation=Amounts(cpu=cpu)) for i, c in enumerate(cgroups))
    return LinuxSpec(
        vms=vms, resctrl=ResctrlSpec(use="require", memory_bandwidth=40e9) if resctrl else ResctrlSpec(use="off")
    )


def steps_and_resets(spec: LinuxSpec, tick_ms: float) -> None:
    """Two hundred steps of random corrections, a reset that gives reservations back, and an end."""
    env = PartitionEnv(hal=lambda: LinuxHal(spec), ticks=STEPS, tick_ms=tick_ms)
    rng = np.random.default_rng(5)
    try:
        env.reset(seed=1)
        world = env._world
        assert world is not None
        host = world.mind.host
        moved = 0.0
        for step in range(STEPS):
            obs, reward, terminated, truncated, info = env.step(rng.uniform(-1, 1, env.action_space.shape).astype("f4"))
            assert env.observation_space.contains(obs) and np.isfinite(reward) and not terminated
            assert truncated == (step == STEPS - 1)
            moved += info["moves"]
        assert moved > 0
        # Below their reservations, as VMs that ask for nothing may be: a reset starts from what is owed.
        n, receipt = len(host), Receipt()
        one = Plan(
            np.full(n, Control.CPU, np.int8), np.arange(n), np.ones(n, int), np.zeros((0, host.topology.cpus), bool)
        )
        world.hal.apply(one, 0, receipt)
        assert receipt.failures == []
        held = Placement.empty(n, host.topology.cpus)
        world.restart()
        world.hal.read_back(held)
        assert (held.units >= host.reservation).all(), (held.units.tolist(), host.reservation.tolist())
        env.reset()
    finally:
        env.close()


def killed(cgroups: list[str], cpu: float, resctrl: bool, tests: str, state: Callable[[], object]) -> None:
    """Kill -9 an environment in the middle of its steps; return once the host is as it was."""
    before = state()
    code = (
        f"import sys; sys.path.insert(0, {tests!r})\n"
        "from linux_env import spec_of, LinuxHal, PartitionEnv\nimport numpy as np\n"
        f"env = PartitionEnv(hal=lambda: LinuxHal(spec_of({cgroups!r}, cpu={cpu}, resctrl={resctrl})), ticks=100000)\n"
        "env.reset(seed=0)\nprint('up', flush=True)\n"
        "while True: env.step(env.action_space.sample())\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout is not None and process.stdout.readline() == "up\n"
    assert state() != before
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    until = time.monotonic() + 60
    while state() != before:
        assert time.monotonic() < until, (before, state())
        time.sleep(0.02)
