"""Every command in the README is run, as it stands there; its configuration is used as it stands there, too."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from foreshare.envs.hal.linux.roots import Roots
from foreshare.envs.hal.linux.temporary import temporary_cgroups
from foreshare.policies.errors import ForeshareError
from foreshare.policies.learned import Network

TREE = Path(__file__).resolve().parents[2]
README = (TREE / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    line.strip()
    for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line.strip()
]
MAKE = [c for c in COMMANDS if c.startswith("make ")]
OURS = [c for c in COMMANDS if c not in MAKE]
NEEDS_CGROUPS = ("host.toml", "--hal linux")
FORECAST = [c for c in OURS if "foreshare forecast" in c or "--out simulated" in c or "--forecast" in c]
"""The first records what the others read, the last forecasts with what was fitted."""
DELIVERY = [c for c in OURS if re.search(r"foreshare (keys|models|pull)\b|\bcandidate\b", c)]
"""A network's way to a host, each step of which needs the one before."""
ANYWHERE = [
    c for c in OURS
    if not any(n in c for n in NEEDS_CGROUPS) and "trace" not in c and c not in FORECAST and c not in DELIVERY
]  # fmt: skip


def on_path() -> dict[str, str]:
    return os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


def run(command: str, cwd: Path, seconds: float = 100) -> subprocess.CompletedProcess[str]:
    argv = shlex.split(command.removeprefix("sudo "))
    return subprocess.run(argv, cwd=cwd, env=on_path(), capture_output=True, text=True, timeout=seconds, check=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the README's configuration and the recording that one of its commands plays back."""
    where = tmp_path_factory.mktemp("readme")
    block = re.search(r"```toml\n(.*?)```", README, re.DOTALL)
    assert block is not None
    text = block[1]
    (where / "host.toml").write_text(text)
    yield where


@pytest.fixture(scope="module")
def host(folder: Path) -> Iterator[None]:
    """The cgroups that the configuration names, made for the occasion."""
    try:
        with temporary_cgroups(2, Roots()) as paths:
            text = (folder / "host.toml").read_text()
            assert '"demo/redis"' in text and '"demo/batch"' in text
            text = text.replace("demo/redis", paths[0]).replace("demo/batch", paths[1])
            if not Path("/dev/vda").exists():
                text = re.sub(r"^io = .*$", "", text, flags=re.MULTILINE)
            state = folder / "state"
            (folder / "host.toml").write_text(text.replace("[host]\n", f'[host]\nstate_dir = "{state}"\n'))
            yield
    except (ForeshareError, OSError) as error:
        pytest.skip(f"no writable cgroups here: {error}")


def test_the_ten_line_configuration_has_ten_lines() -> None:
    block = re.search(r"```toml\n(.*?)```", README, re.DOTALL)
    assert block is not None
    assert len(block[1].strip().splitlines()) == 10


def test_forecasting_in_its_order(folder: Path) -> None:
    assert len(FORECAST) == 4
    for command in FORECAST:
        done = run(command, folder)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        assert done.stdout.strip(), command


@pytest.mark.timeout(400)
def test_from_a_network_to_a_host_in_its_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORESHARE_KEYS", str(tmp_path / "keys"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "runs" / "one").mkdir(parents=True)
    Network.random(1, gain=0.02).save(tmp_path / "runs" / "one" / "policy.npz")
    assert len(DELIVERY) == 7
    for command in DELIVERY:
        done = run(command, tmp_path, 300)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        assert done.stdout.strip(), command
    assert (tmp_path / "policy" / "manifest.sig").exists()


@pytest.mark.timeout(400)
@pytest.mark.parametrize("command", ANYWHERE)
def test_commands_for_any_machine(command: str, folder: Path) -> None:
    learning = "foreshare train" in command or "bench train" in command  # Ray takes its time to start
    done = run(command, folder, 380 if learning else 100)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_the_python_block_makes_environments_that_step() -> None:
    (block,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict[str, Any] = {}
    exec(block, names)
    for env in (names["one"], names["many"]):
        env.reset(seed=1)
        env.step(env.action_space.sample())
        env.close()


@pytest.mark.linux_cgroup
@pytest.mark.usefixtures("host")
def test_commands_for_a_real_host_in_their_order(folder: Path) -> None:
    shutil.rmtree(folder / "trace", ignore_errors=True)
    chosen = [c for c in OURS if any(n in c for n in NEEDS_CGROUPS) or "trace" in c]
    assert any("--dry-run" in c for c in chosen)
    assert any("restore" in c for c in chosen)
    for command in chosen:
        done = run(command, folder)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        assert done.stdout.strip(), command


@pytest.mark.timeout(400)
def test_make_run_in_a_copy_of_the_tree(tmp_path: Path) -> None:
    """The lean install, and nothing of what training needs in it."""
    assert MAKE == ["make run", "make test"]
    tree = tmp_path / "tree"
    listed = subprocess.run(["git", "ls-files"], cwd=TREE, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in listed.stdout.splitlines():
        if (TREE / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(TREE / name, tree / name)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("COVERAGE", "COV_", "MAKE", "VIRTUAL_ENV"))}
    done = subprocess.run(
        ["make", "run"], cwd=tree, env=environment, capture_output=True, text=True, timeout=390, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "SLO violations" in done.stdout
    page = (tree / "out" / "report.html").read_text(encoding="utf-8")
    assert page.count("<svg") > 10
    assert "http://" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", page)
    packages = subprocess.run(
        [tree / ".venv/bin/python", "-m", "pip", "list", "--format", "freeze"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.lower()
    for heavy in ("ray", "torch", "mlflow", "gymnasium", "pandas"):
        assert not re.search(rf"^{heavy}==", packages, re.MULTILINE), heavy


def test_make_test_is_what_ci_calls() -> None:
    assert re.search(r"^make test$", (TREE / ".ci/run").read_text(), re.MULTILINE)
    dry = subprocess.run(["make", "-n", "test"], cwd=TREE, capture_output=True, text=True, check=True).stdout
    for tool in ("ruff check", "mypy", "lint-imports", "pytest"):
        assert tool in dry
