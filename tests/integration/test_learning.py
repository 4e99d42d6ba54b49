"""Learning: what stands in a ratio, what runners yield, that a killed training goes on exactly, the run in MLflow."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from foreshare.policies.allocators.corrected import ACTIONS, LIMIT
from foreshare.policies.errors import InputError
from foreshare.policies.features import VM_FEATURES, F
from foreshare.policies.host import CACHE, CPU, IO, MEMORY
from foreshare.policies.learned import Network
from foreshare.runtime.cli import main
from foreshare.training.learning.config import (
    GROUPS,
    EsConfig,
    Layers,
    Learner,
    NetworkConfig,
    PpoConfig,
    Runner,
    ScenesConfig,
    Shaping,
    Surrogate,
    TrainConfig,
    ValidateConfig,
    as_table,
    from_values,
    load_config,
)
from foreshare.training.learning.directions import direct_basis, whitening
from foreshare.training.learning.judge import Judge, play_here
from foreshare.training.learning.members import Match, Members, late_of_members
from foreshare.training.learning.scenes import HURRY, READY, blinded, hurrying, normalised, scenes
from foreshare.training.learning.state import load
from foreshare.training.learning.train import TrainOptions, train

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(900)]  # Ray's and MLflow's
SCENES = ScenesConfig(suite="smoke", most_vms=12, ticks=12, warm_ticks=4, drawn_share=0.25)
TINY = TrainConfig(
    steps=4000, scenes=SCENES, network=NetworkConfig(encoder=5, context=4, head=6),
    ppo=PpoConfig(hosts=4, scenarios=2, minibatch=24, epochs=2),
    es=EsConfig(pairs=2, scenarios=2, sigma=0.02, rate=0.01),
    validate=ValidateConfig(suite="smoke", every=2, ticks=12),
)  # fmt: skip
ES = replace(TINY, learner=Learner.ES)


def network(seed: int = 1, gain: float = 0.3) -> Network:
    return Network.random(seed, TINY.network.widths, gain=gain)


def same(a: Network, b: Network) -> bool:
    return all((a.arrays[k] == b.arrays[k]).all() for k in a.arrays)


# What PPO's ratio is of


@pytest.mark.parametrize("joint", [False, True])
def test_padded_vms_are_in_no_ratio(joint: bool) -> None:
    """Whatever a padded VM's mean, actions and advantage are: loss and gradients are the same, theirs are 0."""
    import torch

    from foreshare.training.learning.learner import ppo_loss
    from foreshare.training.learning.module import VmGaussian

    rng = torch.Generator().manual_seed(0)
    mask = torch.tensor([[1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0]])
    mean = torch.randn(2, 4, ACTIONS, generator=rng)
    old = VmGaussian(VmGaussian.logits(mean + 0.01, torch.full((ACTIONS,), -1.0), mask))
    actions, advantage = torch.randn(2, 4, ACTIONS, generator=rng), torch.randn(2, 4, generator=rng)
    found = []
    for spoil in (0.0, 50.0):
        there = (mask > 0)[..., None]
        spoilt = torch.where(there, mean, mean + spoil).requires_grad_()
        log_std = torch.full((ACTIONS,), -1.2, requires_grad=True)
        new = VmGaussian(VmGaussian.logits(spoilt, log_std, mask))
        acts = torch.where(there, actions, actions - spoil)
        loss, divergence = ppo_loss(new, old, acts, torch.where(mask > 0, advantage, 9.0 * spoil), 0.2, joint,
                                    torch.ones(2, dtype=torch.bool))  # fmt: skip
        (loss + new.entropy().sum()).backward()
        assert spoilt.grad is not None and log_std.grad is not None
        assert not spoilt.grad[mask == 0].any()
        assert new.logp(acts).detach().numpy() == pytest.approx(new.vm_logp(acts).sum(dim=-1).detach().numpy())
        found.append([loss.item(), divergence.item(), new.entropy().sum().item(), *log_std.grad.tolist()])
        assert not new.sample()[mask == 0].any()
    assert found[0] == found[1]


def test_a_vms_distribution_is_torchs() -> None:
    import torch
    from torch.distributions import Independent, Normal, kl_divergence

    from foreshare.training.learning.module import VmGaussian

    rng = torch.Generator().manual_seed(3)
    mean, other = torch.randn(3, 2, ACTIONS, generator=rng), torch.randn(3, 2, ACTIONS, generator=rng)
    value, mask = torch.randn(3, 2, ACTIONS, generator=rng), torch.ones(3, 2)
    one, two = torch.linspace(-1, 0.5, ACTIONS), torch.linspace(-0.5, 0.1, ACTIONS)
    ours, theirs = [], []
    for m, s in ((mean, one), (other, two)):
        ours.append(VmGaussian(VmGaussian.logits(m, s, mask)))
        theirs.append(Independent(Normal(m, s.exp()), 1))
    assert torch.allclose(ours[0].vm_logp(value), theirs[0].log_prob(value), atol=1e-5)
    assert torch.allclose(ours[0].vm_entropy(), theirs[0].entropy(), atol=1e-5)
    assert torch.allclose(ours[0].vm_kl(ours[1]), kl_divergence(theirs[0], theirs[1]), atol=1e-5)


def test_vms_advantages_add_up_to_the_hosts() -> None:
    from foreshare.training.learning.learner import advantages, mixed

    rng = np.random.default_rng(5)
    t, gamma, lam = 7, 0.9, 0.8
    paid, values = (rng.standard_normal((t + k, 2, 3)).astype(np.float32) for k in (0, 1))
    own, target = advantages(paid, values, gamma, lam)
    delta = paid + gamma * values[1:] - values[:-1]
    for at in range(t):
        wanted = sum((gamma * lam) ** (k - at) * delta[k] for k in range(at, t))
        assert own[at] == pytest.approx(wanted, abs=1e-5)
    assert target == pytest.approx(own + values[:-1])
    host, _ = advantages(paid.sum(-1), values.sum(-1), gamma, lam)
    assert own.sum(-1) == pytest.approx(host, abs=1e-5)
    mask = np.array([1.0, 1.0, 0.0], np.float32)
    alone, together = (mixed(own, mask, share) for share in (1.0, 0.0))
    assert not alone[..., 2].any() and not together[..., 2].any()
    assert together[..., 0] == pytest.approx(together[..., 1])
    assert alone[..., :2].std() == pytest.approx(1.0, abs=1e-5)


# The environment


def test_uncorrected_hosts_are_paid_nothing_and_others_their_difference() -> None:
    from foreshare.training.learning.episodes import EpisodesEnv

    env = EpisodesEnv(num_envs=4, config=replace(SCENES, load_low=0.9, load_high=1.2), blocks=2)
    seen, _ = env.reset(seed=3)
    assert env.observation_space.contains(seen)
    shape = (4, env.max_vms, ACTIONS)
    for _ in range(SCENES.ticks):
        seen, reward, _, truncated, _ = env.step(np.zeros(shape))
        assert not reward.any() and not seen["paid"].any()
    assert truncated.all()
    total = 0.0
    env.step(np.zeros(shape))
    for _ in range(SCENES.ticks):
        seen, reward, *_ = env.step(np.full(shape, -0.8))
        assert reward == pytest.approx(seen["paid"].sum(axis=-1), abs=1e-5)
        assert not (seen["paid"] * (1 - seen["mask"])).any()
        total += reward.sum()
    assert total != 0.0
    steps = env.simulator_steps
    vms = sum((at.stop - at.start) * len(s.vm) for s, at in env._blocks)
    assert steps > 2 * vms * (SCENES.ticks + SCENES.warm_ticks)


def test_scenes_follow_from_the_seed_alone() -> None:
    a, b, c = scenes(SCENES, 8, 1), scenes(SCENES, 8, 1), scenes(SCENES, 8, 2)
    assert a == b != c
    assert sum(s.name.startswith("draw-") for s in a) == 2
    assert all(len(s.vm) <= 12 for s in a)
    with pytest.raises(InputError, match="no scenario of at most 2"):
        scenes(replace(SCENES, most_vms=2), 4, 0)


# RLlib


def ppo_config(**keys: Any) -> TrainConfig:
    return replace(TINY, ppo=replace(TINY.ppo, **keys))


@pytest.mark.usefixtures("ray_here")
def test_both_runners_yield_the_same_batches() -> None:
    """Over three rounds: observations, actions, rewards, log-probabilities, ends; and what was learnt from them."""
    from foreshare.training.learning.ppo import Ppo

    found = []
    for runner in (Runner.FAST, Runner.DEFAULT):
        learner = Ppo(ppo_config(runner=runner), network(), 3)
        batches = []
        for k in range(3):
            collector = learner._algorithm.env_runner
            collector.begin_round(3, k)
            episodes = collector.sample()
            assert all(len(e) == SCENES.ticks and e.is_truncated and not e.is_terminated for e in episodes)
            batches.append([
                (e.get_observations(), e.get_actions(), e.get_rewards(), e.get_extra_model_outputs("action_logp"),
                 e.get_extra_model_outputs("action_dist_inputs")) for e in episodes
            ])  # fmt: skip
        metrics = collector.get_metrics()
        assert float(metrics["episode_len_mean"].peek()) == SCENES.ticks
        rows = [learner.iterate() for _ in range(2)]
        found.append((batches, rows, learner.network))
        learner.close()
    for one, two in zip(found[0][0], found[1][0], strict=True):
        assert len(one) == len(two) == TINY.ppo.hosts
        for a, b in zip(one, two, strict=True):
            assert all((a[0][k] == b[0][k]).all() for k in b[0])
            assert len(a[0]["mask"]) == SCENES.ticks + 1
            for x, y in zip(a[1:], b[1:], strict=True):
                assert np.asarray(x) == pytest.approx(np.asarray(y), abs=1e-6)
            assert a[0]["paid"][1:].sum(axis=-1) == pytest.approx(a[2], abs=1e-5)
    assert found[0][1] == found[1][1]
    assert same(found[0][2], found[1][2])


@pytest.mark.usefixtures("ray_here")
@pytest.mark.parametrize("surrogate", list(Surrogate))
def test_ppo_goes_on_exactly_from_its_state(surrogate: Surrogate) -> None:
    from foreshare.training.learning.ppo import Ppo

    config = ppo_config(surrogate=surrogate)
    learner = Ppo(config, network(gain=0.0), 9)
    learner.iterate()
    state, after_one = learner.state(), learner.network
    learner.iterate()
    whole = learner.network
    learner.close()
    assert not same(whole, after_one)
    other = Ppo(config, network(seed=2), 9)
    other.restore(state)
    assert same(other.network, after_one)
    other.iterate()
    assert same(other.network, whole)
    other.close()


def test_the_module_answers_about_any_number_of_vms() -> None:
    import torch
    from ray.rllib.core.columns import Columns

    from foreshare.training.learning.episodes import EpisodesEnv
    from foreshare.training.learning.module import PartitionModule, VmGaussian

    env = EpisodesEnv(num_envs=2, config=SCENES)
    net = network()
    module = PartitionModule(
        observation_space=env.single_observation_space, action_space=env.single_action_space,
        model_config={"network": net.packed(), "noise": 0.1, "value": 8}, inference_only=False,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    f, g = len(net.arrays["vm_mean"]), len(net.arrays["host_mean"])
    for n in (1, 12, 40):
        seen = {"vms": rng.random((3, n, f), np.float32), "mask": np.ones((3, n), np.float32),
                "host": rng.random((3, g), np.float32)}  # fmt: skip
        batch = {Columns.OBS: {k: torch.from_numpy(v) for k, v in seen.items()}}
        mean = VmGaussian(module.forward_inference(batch)[Columns.ACTION_DIST_INPUTS]).mean
        assert mean.numpy() == pytest.approx(net.forward(**seen), abs=1e-5)
        assert module.compute_values(batch).shape == (3,)


# The evolution strategy


def test_members_are_networks_side_by_side() -> None:
    rng = np.random.default_rng(0)
    nets = [network(seed) for seed in range(3)]
    members = Members(nets[0], {k: np.stack([n.arrays[k] for n in nets]) for k in nets[0].arrays})
    f, g = len(nets[0].arrays["vm_mean"]), len(nets[0].arrays["host_mean"])
    seen = {"vms": rng.random((3, 7, f), np.float32), "mask": (rng.random((3, 7)) > 0.3).astype(np.float32),
            "host": rng.random((3, g), np.float32)}  # fmt: skip
    seen["mask"][2] = 0.0
    got = members.forward(**seen)
    for k, net in enumerate(nets):
        assert got[k] == pytest.approx(net.forward(**{name: v[k] for name, v in seen.items()}), abs=1e-5)


def test_members_meet_the_same_arrivals() -> None:
    """A member that corrects nothing is the base policy, exactly; two of the same weights are the same."""
    (scenario,) = scenes(replace(SCENES, load_low=1.0, load_high=1.2), 1, 4)
    net = network(gain=0.0)
    linear = np.zeros((3, *net.arrays["lin_w"].shape), np.float32)
    linear[1:] = np.random.default_rng(1).normal(0.0, 0.3, linear.shape[1:])
    match = Match(scenario=scenario, seed=5, ticks=60, warm_ticks=10, base="triage")
    late = late_of_members(match, Members(net, {"lin_w": linear}))
    assert late[0] == late[1] != late[2]
    assert late[2] == late[3]


@pytest.mark.parametrize(("shaping", "layers"), [(Shaping.RANK, Layers.ALL), (Shaping.NORMAL, Layers.LINEAR)])
def test_the_strategy_climbs(shaping: Shaping, layers: Layers) -> None:
    """On scores that are a function of the weights: the squared distance to some point."""
    from foreshare.training.learning.es import LAYERS, EvolutionStrategy

    how = replace(ES.es, pairs=24, sigma=0.05, rate=0.05, shaping=shaping, layers=layers, scenarios=1)
    config = replace(ES, es=how)
    point = 0.3

    def play(matches: Any, members: Members) -> Any:
        apart = sum(
            np.square(members._arrays[k].reshape(members.count, -1) - point).sum(axis=1) for k in LAYERS[layers]
        )
        return [np.concatenate([[10.0], 10.0 + np.asarray(apart)])]

    learner = EvolutionStrategy(config, network(gain=0.0), 0, play)
    first = [learner.iterate() for _ in range(60)]
    assert first[-1]["train_score"] < 1.0 + 0.6 * (first[0]["train_score"] - 1.0)
    moved = [k for k, v in learner.network.arrays.items() if (v != network(gain=0.0).arrays[k]).any()]
    assert set(moved) == set(LAYERS[layers])


def test_steps_along_whitened_directions_change_corrections_alike() -> None:
    rng = np.random.default_rng(3)
    mixing = rng.normal(size=(F, F)) * np.geomspace(10.0, 1.0, F)[:, None]
    white = whitening(mixing @ mixing.T, 0.25)
    basis = direct_basis(network(gain=0.0), tied=True, white=white)
    assert basis.shape == (2 * (F + 1), (F + 1) * ACTIONS)
    weights = basis[:, : F * ACTIONS].reshape(-1, F, ACTIONS)
    assert not weights[..., 1 + CACHE].any() and (weights[..., 1 + CPU] == weights[..., 1 + IO]).all()
    spread = np.linalg.norm(mixing.T @ weights[:F, :, 0].T, axis=0)  # of the standing's correction, a step along each
    plain = np.linalg.norm(mixing.T, axis=0)
    assert spread.max() <= 1.0 + 1e-9 and spread.max() / spread.min() < 0.2 * plain.max() / plain.min()
    np.testing.assert_allclose(white @ (mixing @ mixing.T + 0.25 * np.eye(F)) @ white, np.eye(F), atol=1e-8)


def test_what_is_learnt_is_the_running_mean() -> None:
    from foreshare.training.learning.es import EvolutionStrategy

    def play(matches: Any, members: Members) -> Any:
        return [np.concatenate([[10.0], 10.0 + members._arrays["out_b"][:, 0]])]

    how = replace(ES.es, layers=Layers.TIED, scenarios=1, whiten=0.5)
    learner = EvolutionStrategy(replace(ES, es=replace(how, average=0.25)), network(gain=0.0), 0, play)
    newest = EvolutionStrategy(replace(ES, es=how), network(gain=0.0), 0, play)
    expected = 0.0
    for _ in range(3):
        learner.iterate(), newest.iterate()
        expected += 0.25 * (float(newest.network.arrays["out_b"][0]) - expected)
    assert learner.network.arrays["out_b"][0] == pytest.approx(expected, abs=1e-7) != 0.0
    with pytest.raises(InputError, match=r"es\.whiten is for layers linear and tied, not all"):
        replace(how, layers=Layers.ALL)


# A whole training


def run_info(uri: str, run_id: str) -> Any:
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=uri)
    return client, client.get_run(run_id)


@pytest.mark.usefixtures("ray_here")
def test_a_training_leaves_a_network_and_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_registry: str
) -> None:
    """An honest one: PPO through RLlib on Ray, validated, early weights kept, everything in MLflow."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", empty_registry)
    config = replace(TINY, validate=replace(TINY.validate, every=1))
    lines: list[str] = []
    folder = tmp_path / "run"
    result = train(TrainOptions(name="tiny", config=config, seed=4, folder=folder), lines.append, play_here)
    assert result["finished"] == "steps" and result["simulator_steps"] >= config.steps
    assert result == json.loads((folder / "result.json").read_text())
    learnt = Network.load(folder / "policy.npz")
    judged = Judge(config, 4).judge(learnt)
    assert judged["score"] == pytest.approx(result["best_score"], abs=1e-5)
    assert judged["loads"] == result["evaluation"]["loads"]
    assert all("min left; score" in line for line in lines) and "validation" in lines[0]
    client, run = run_info(empty_registry, result["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.params["ppo.rate"] == "0.001" and run.data.params["seed"] == "4"
    tags = run.data.tags
    assert {"git_commit", "schema_hash", "train_suite_hash", "validate_suite_hash", "config_hash"} <= set(tags)
    history = client.get_metric_history(result["run_id"], "validate_score")
    assert [m.step for m in history] == [SCENES.ticks * TINY.ppo.hosts * (k + 1) for k in range(result["iterations"])]
    names = {f.path for f in client.list_artifacts(result["run_id"])}
    assert names == {"policy.npz", "curve.json", "curve.svg", "evaluation.json", "config.json"}
    brought = client.download_artifacts(result["run_id"], "policy.npz", str(tmp_path))
    assert same(Network.load(brought), learnt)
    with pytest.raises(InputError, match="--resume"):
        train(TrainOptions(name="tiny", config=config, seed=4, folder=folder), play=play_here)
    # With more steps to spend it goes on, in the same run.
    more = replace(config, steps=result["simulator_steps"] + 1)
    options = TrainOptions(name="tiny", config=more, seed=4, folder=folder, resume=True)
    again = train(options, play=play_here)
    assert again["iterations"] == result["iterations"] + 1
    assert again["run_id"] == result["run_id"]


WHITENED = replace(ES, es=replace(ES.es, layers=Layers.TIED, whiten=0.5, average=0.2))
KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_learning import WHITENED
from dataclasses import replace
from foreshare.training.learning.directions import direct_basis, whitening
from foreshare.training.learning.judge import play_here
from foreshare.training.learning.train import TrainOptions, train
options = TrainOptions(name="es", config=replace(WHITENED, steps=10**9), seed=1, folder=Path(sys.argv[1]), address="")
train(options, play=play_here)
"""


def test_a_killed_training_goes_on_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_registry: str
) -> None:
    """kill -9 at some moment, resumed: the same weights as without, and no more than an iteration done twice."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", empty_registry)
    folder = tmp_path / "killed"
    child = subprocess.Popen([sys.executable, "-c", KILLED, str(folder), str(Path(__file__).parent)],
                             env=os.environ | {"MLFLOW_TRACKING_URI": empty_registry})  # fmt: skip
    while not (folder / "checkpoint.npz").exists() or load(folder)[0].iteration < 2:
        assert child.poll() is None
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    progress, _, _ = load(folder)
    steps = progress.simulator_steps + 1  # one iteration more
    config = replace(WHITENED, steps=steps)
    options = TrainOptions(name="es", config=config, seed=1, folder=folder, resume=True, address="")
    resumed = train(options, play=play_here)
    assert resumed["iterations"] == progress.iteration + 1
    assert resumed["run_id"] == progress.run_id
    straight = train(replace(options, folder=tmp_path / "straight", resume=False), play=play_here)
    one, two = load(folder), load(tmp_path / "straight")
    assert straight["best_score"] == resumed["best_score"]
    assert all((one[1][k] == two[1][k]).all() for k in one[1])
    rows = [[{k: v for k, v in row.items() if k != "steps_per_s"} for row in x[0].curve] for x in (one, two)]
    assert rows[0] == rows[1]


def test_training_ends_where_it_gets_no_better(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_registry: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", empty_registry)
    config = replace(ES, steps=10**9, es=replace(ES.es, rate=0.0), validate=replace(ES.validate, every=1, patience=2))
    options = TrainOptions(name="still", config=config, seed=0, folder=tmp_path / "x", address="")
    result = train(options, play=play_here)
    assert (result["finished"], result["iterations"], result["best_iteration"]) == ("no better", 3, 1)


# What is refused


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 1
    return err


def test_wrong_input_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "c.toml"
    for text, why in (
        ("[ppo]\nspeed = 3\n", "ppo.speed: unknown key"),
        ("[ppo]\nrunner = 'slow'\n", "must be one of fast, default"),
        ("[scenes]\nload_low = 0.9\nload_high = 0.5\n", "load_low 0.9 is above load_high 0.5"),
        ("learner = ", "is not TOML"),
    ):
        path.write_text(text)
        assert why in refused(capsys, "train", "--config", str(path))
    assert "there are champion, es, ppo, smoke" in refused(capsys, "train", "--config", "none")
    assert "checkpoint.npz" in refused(capsys, "train", "--resume", str(tmp_path))
    (tmp_path / "checkpoint.npz").write_bytes(b"PK\x03\x04 no")
    assert "damaged" in refused(capsys, "train", "--resume", str(tmp_path))


def test_a_registry_that_is_down_is_said_before_anything_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    folder = tmp_path / "out"
    for verb in ("train", "tune"):
        assert "http://127.0.0.1:9 does not answer" in refused(capsys, verb, "--config", "smoke", "--out", str(folder))
        assert not list(folder.glob("*.npz")) and not (folder / "trials").exists()


@pytest.mark.parametrize("name", ["champion", "es", "smoke"])
def test_shipped_configurations_are_read_back(name: str) -> None:
    config = load_config(name)
    assert from_values(json.loads(json.dumps(as_table(config)))) == config


@pytest.mark.parametrize(("name", "power", "low"), [("rate", HURRY, -2.0), ("standby", READY, 0.0)])
def test_a_hurrying_network_multiplies_needs_by_powers(name: str, power: float, low: float) -> None:
    names = [feature.name for feature in VM_FEATURES]
    net = hurrying(normalised(network(gain=0.0), SCENES, "triage", 0, count=2))
    vms = np.zeros((1, 5, len(names)), np.float32)
    values = np.linspace(low, 1.0, 5)
    vms[..., names.index(name)] = values
    host = np.zeros((1, len(net.arrays["host_mean"])), np.float32)
    action = net.forward(vms, np.ones((1, 5), np.float32), host)[0]
    for resource in (CPU, MEMORY, IO):
        assert LIMIT * np.arctanh(action[:, 1 + resource]) == pytest.approx(power * values, abs=1e-5)
    assert not action[:, 0].any() and not action[:, 1 + CACHE].any()


def test_a_blinded_network_answers_alike_whatever_it_does_not_see() -> None:
    names = [feature.name for feature in VM_FEATURES]
    rng = np.random.default_rng(5)
    for group in GROUPS:
        net = hurrying(blinded(network(), [group]))
        vms = rng.normal(size=(1, 4, len(names))).astype(np.float32)
        host = rng.normal(size=(1, len(net.arrays["host_mean"]))).astype(np.float32)
        there, unseen = np.ones((1, 4), np.float32), net.arrays["vm_scale"] == 0.0
        other = np.where(unseen, rng.normal(size=vms.shape).astype(np.float32), vms)
        before = net.forward(vms, there, host).copy()
        assert unseen.sum() >= (2 if group == "standby" else 5)
        assert np.array_equal(net.forward(other, there, host), before)
        assert not np.array_equal(net.forward(vms + (~unseen), there, host), before)
    with pytest.raises(InputError, match="no group of features 'magic': there are forecast, backlog, reservations"):
        NetworkConfig(without="forecast, magic")


def test_inputs_are_normalised() -> None:
    net = normalised(network(), SCENES, "triage", 0, count=4)
    assert (net.arrays["vm_scale"] > 0).all() and net.arrays["vm_mean"].any()
