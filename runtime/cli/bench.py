"""``foreshare bench``: foreshare measured by itself, with the machine's own unrest beside it."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from foreshare.envs.hal.spec import MAX_VMS
from foreshare.policies.registry import DEFAULT, POLICIES
from foreshare.runtime.asking import WHERE, check_policy

from .main import Parser
from .values import number, whole


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what can be measured."""
    what = parser.add_subparsers(dest="what", metavar="WHAT", required=True, parser_class=Parser)
    tick = what.add_parser("tick", help="one tick, stage by stage, with the real gap between ticks")
    tick.add_argument("--hal", choices=("simulated", "linux"), default="simulated", help="linux makes its own cgroups")
    tick.add_argument("--vms", type=whole(1, MAX_VMS), default=64, metavar="N", help="number of VMs (default 64)")
    tick.add_argument(
        "--moving", type=whole(1, MAX_VMS), metavar="K",
        help="VMs whose demand jumps in each tick (default a quarter; as many as there are: everything moves)",
    )  # fmt: skip
    tick.add_argument("--ticks", type=whole(10, 10**7), default=1000, metavar="N", help="ticks counted (default 1000)")
    tick.add_argument("--tick-ms", type=number(5, 1000, "ms"), default=10.0, metavar="MS", help="gap (default 10)")
    tick.add_argument(
        "--policy", default=DEFAULT, metavar="NAME",
        help=f"who decides: {', '.join(POLICIES)}, or package.module:callable (default {DEFAULT})",
    )  # fmt: skip
    tick.add_argument(
        "--scheduling", choices=("fifo", "other"), default="fifo", help="of the loop; see foreshare run --help"
    )
    tick.add_argument("--policy-in", choices=WHERE, default="auto", help="where it runs; see foreshare run --help")
    tick.add_argument("--seed", type=whole(0, 2**63 - 1), default=0, metavar="K", help="seed of the demand")
    tick.add_argument("--json", action="store_true", help="print one JSON object, nothing else")
    policy = what.add_parser("policy", help="what it costs to ask a policy inline, under a timer and in a process")
    policy.add_argument("--vms", type=whole(1, MAX_VMS), default=64, metavar="N", help="number of VMs (default 64)")
    policy.add_argument("--ticks", type=whole(10, 10**6), default=500, metavar="N", help="for each way (default 500)")
    policy.add_argument("--json", action="store_true", help="print one JSON object, nothing else")
    simulator = what.add_parser("simulator", help="VM-ticks a second of one core, with and without a policy")
    simulator.add_argument("--hosts", type=whole(1, 4096), default=64, metavar="H", help="side by side (default 64)")
    simulator.add_argument("--vms", type=whole(1, MAX_VMS), default=16, metavar="N", help="on each (default 16)")
    simulator.add_argument("--json", action="store_true", help="print one JSON object, nothing else")
    forecast = what.add_parser("forecast", help="a call of each forecaster, with the real gap between calls")
    forecast.add_argument(
        "--ticks", type=whole(10, 10**6), default=300, metavar="N", help="calls of each (default 300)"
    )
    forecast.add_argument("--tick-ms", type=number(1, 1000, "ms"), default=10.0, metavar="MS", help="gap (default 10)")
    forecast.add_argument("--json", action="store_true", help="print one JSON object, nothing else")
    train = what.add_parser("train", help="environment steps a second of training through RLlib and in a plain loop")
    train.add_argument("--hosts", type=whole(1, 1024), default=32, metavar="H", help="side by side (default 32)")
    train.add_argument("--ticks", type=whole(2, 10**5), default=64, metavar="N", help="of an episode (default 64)")
    train.add_argument("--rounds", type=whole(1, 1000), default=5, metavar="N", help="iterations counted (default 5)")
    train.add_argument("--runner", choices=("fast", "default"), default="fast", help="who collects (default fast)")
    train.add_argument("--json", action="store_true", help="print one JSON object, nothing else")


def execute(args: argparse.Namespace) -> int:
    """Run the verb."""
    if args.what == "train":
        from .train import require

        require()
        from foreshare.training.learning.bench import TrainBench, bench_train

        result = bench_train(TrainBench(hosts=args.hosts, ticks=args.ticks, rounds=args.rounds, runner=args.runner))
        sys.stdout.write(json.dumps(result) + "\n" if args.json else _people_train(result))
        return 0
    if args.what == "forecast":
        from foreshare.runtime.bench_forecast import ForecastBench, bench_forecast

        result = bench_forecast(ForecastBench(ticks=args.ticks, tick_ms=args.tick_ms))
        sys.stdout.write(json.dumps(result) + "\n" if args.json else _people_forecast(result))
        return 0
    if args.what == "simulator":
        from foreshare.runtime.bench_simulator import SimulatorBench, bench_simulator

        result = bench_simulator(SimulatorBench(hosts=args.hosts, vms=args.vms))
        sys.stdout.write(json.dumps(result) + "\n" if args.json else _people_simulator(result))
        return 0
    if args.what == "policy":
        from foreshare.runtime.bench_policy import PolicyBench, bench_policy

        result = bench_policy(PolicyBench(vms=args.vms, ticks=args.ticks))
        sys.stdout.write(json.dumps(result) + "\n" if args.json else _people_policy(result))
        return 0
    from foreshare.runtime.bench import TickBench, bench_tick

    check_policy(args.policy)
    result = bench_tick(
        TickBench(
            hal=args.hal, vms=args.vms, ticks=args.ticks, tick_ms=args.tick_ms, policy=args.policy,
            policy_in=args.policy_in, seed=args.seed, moving=args.moving, first_in_turn=args.scheduling == "fifo",
        )
    )  # fmt: skip
    sys.stdout.write(json.dumps(result) + "\n" if args.json else _people(result))
    return 0


def _people_train(result: dict[str, Any]) -> str:
    return (
        f"{result['hosts']} hosts, episodes of {result['ticks']} ticks, runner {result['runner']}; environment steps a"
        f" second of CPU time:\n  PPO through RLlib {result['rllib_steps_per_s']:10.1f}\n"
        f"  plain torch loop  {result['torch_loop_steps_per_s']:10.1f}\nratio {result['ratio']:.2f}\n"
    )


def _people_simulator(result: dict[str, Any]) -> str:
    lines = [f"{result['hosts']} hosts of {result['vms']} VMs on one core, million VM-ticks a second:"]
    about = {
        "step": "the step alone", "step_and_workload": "with its workload",
        "all": "with estimation, features and triage", "environment": "a whole step of the environment",
    }  # fmt: skip
    lines += [f"  {about[name]:<40}{value / 1e6:6.2f}" for name, value in result["vm_ticks_per_s"].items()]
    lines.append(f"a VM-tick on a host of 256 VMs costs {result['cost_ratio_256_to_16']:.2f} of one on a host of 16")
    return "".join(f"{line}\n" for line in lines)


def _people_policy(result: dict[str, Any]) -> str:
    about = {
        "inline": "called", "timer": "called under an interval timer",
        "process": "in its process, the fallback in its shadow", "process_alone": "in its process, nothing meanwhile",
    }  # fmt: skip
    lines = [
        f"asking a 64 x 64 network about {result['vms']} VMs, {result['ticks']} ticks each:",
        f"{'us':<48}{'p50':>9}{'p99':>9}{'p99.9':>9}{'late':>7}",
    ]
    lines += [
        f"{about[way]:<48}{row['p50']:>9.1f}{row['p99']:>9.1f}{row['p999']:>9.1f}{row['late']:>7}"
        for way, row in result["ways"].items()
    ]
    row = result["jitter_us"]
    lines.append(f"{'jitter':<48}{row['p50']:>9.1f}{row['p99']:>9.1f}{row['p999']:>9.1f}")
    return "".join(f"{line}\n" for line in lines)


def _people_forecast(result: dict[str, Any]) -> str:
    lines = [
        f"{result['resources']} resources, {result['horizons']} horizons, {result['levels']} levels; us a call",
        f"{'':<14}{'64 VMs p50':>12}{'p99':>9}{'slept':>9}{'no gap':>9}"
        f"{'512 VMs p50':>13}{'p99':>9}{'slept':>9}{'no gap':>9}",
    ]
    for name, rows in result["models"].items():
        few, many = rows["64"], rows["512"]
        lines.append(
            f"{name:<14}{few['p50']:>12.1f}{few['p99']:>9.1f}{few['slept_p50']:>9.1f}{few['warm_p50']:>9.1f}"
            f"{many['p50']:>13.1f}{many['p99']:>9.1f}{many['slept_p50']:>9.1f}{many['warm_p50']:>9.1f}"
        )
    return "".join(f"{line}\n" for line in lines)


def _people(result: dict[str, Any]) -> str:
    lines = [
        f"{result['vms']} VMs on {result['hal']}, {', '.join(result['resources'])}; {result['ticks']} ticks, in each of"
        f" which demand of {result['moving']} VMs jumps, {result['changed_vms_per_tick']} VMs change and"
        f" {result['writes_per_tick']} writes are made",
        f"{'us':<12}{'p50':>9}{'p99':>9}{'p99.9':>9}",
    ]
    rows = {**result["stages"], "decision": result["decision_us"], "whole tick": result["tick_us"]}
    rows |= {"reaction": result["reaction_us"], "jitter": result["jitter_us"]}
    lines += [f"{name:<12}{row['p50']:>9.1f}{row['p99']:>9.1f}{row['p999']:>9.1f}" for name, row in rows.items()]
    if result["floor_ratio_p50"] is not None:
        lines.append(
            f"floor of apply: {result['floor_us']['p50']:.1f} us at p50, the stage takes {result['floor_ratio_p50']} x;"
            f" the same writes alone in a C program {result['floor_alone_us']['p50']:.1f} us"
        )
    lines.append(
        f"decided by policy {result['decided_by_policy_pct']} %; deferred writes {result['deferred_writes_pct']} %,"
        f" longest {result['deferred_longest_ticks']} ticks; missed ticks {result['missed_ticks']}"
    )
    if result["policy_faults"]:
        faults = ", ".join(f"{kind} {count}" for kind, count in sorted(result["policy_faults"].items()))
        lines.append(f"ticks without an answer in time: {faults}; {result['decided_late']} decided by an earlier one")
    return "".join(f"{line}\n" for line in lines)
