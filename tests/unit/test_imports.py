"""What a host has to load, and what the wheel has to hold."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from bundles import bundle_files, make_keys, write

from foreshare.policies.learned import Network

ROOT = Path(__file__).parents[2]
HEAVY = {"ray", "torch", "mlflow", "gymnasium", "pandas", "pyarrow", "matplotlib", "onnx", "onnxruntime", "libvirt"}
RUN = """
import contextlib, io, json, sys
from foreshare.runtime.cli import main
with contextlib.redirect_stdout(io.StringIO()) as out:
    code = main(sys.argv[1:])
names = sorted(name.partition(".")[0] for name in sys.modules)
print(json.dumps({"code": code, "modules": names, "out": out.getvalue()}))
"""
HELP = """
import json, sys
from foreshare.runtime.cli import main
try:
    code = main(sys.argv[1:])
except SystemExit as end:
    code = end.code
print(json.dumps({"code": code, "modules": sorted(sys.modules)}))
"""


def answer(code: str, *argv: str) -> dict[str, object]:
    """Run ``code`` in a fresh interpreter and return the JSON in the last line that it prints."""
    done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, check=True, timeout=60)
    out = json.loads(done.stdout.splitlines()[-1])
    assert isinstance(out, dict)
    return out


def settings() -> dict[str, list[str]]:
    with (ROOT / "pyproject.toml").open("rb") as file:
        table = tomllib.load(file)["tool"]["setuptools"]
    return {"packages": table["packages"], "folders": [*table["package-dir"].values()]}


@pytest.mark.parametrize("extra", [["--json"], []], ids=["json", "people"])
def test_a_run_on_the_simulated_host_loads_nothing_heavy(extra: list[str]) -> None:
    got = answer(RUN, "run", "--hal", "simulated", "--ticks", "30", "--vms", "4", "--baseline", "none", *extra)
    assert got["code"] == 0
    assert not HEAVY & set(got["modules"])  # type: ignore[call-overload] # a list, as RUN prints it
    if extra:
        assert json.loads(str(got["out"]))["ticks"] == 30
        assert "rich" not in got["modules"]  # type: ignore[operator] # see above


def test_a_bundle_runs_without_what_made_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORESHARE_KEYS", str(tmp_path / "keys"))
    folder = write(bundle_files(Network.random(0), make_keys(tmp_path / "keys")), tmp_path / "bundle")
    got = answer(RUN, "run", "--policy", str(folder), "--ticks", "20", "--vms", "4", "--json")
    assert got["code"] == 0
    modules = set(got["modules"])  # type: ignore[call-overload] # a list
    assert "cryptography" in modules
    assert not HEAVY & modules


def test_the_linux_backend_loads_nothing_heavy() -> None:
    got = answer(
        "import json, sys\nimport foreshare.runtime.session, foreshare.envs.hal.linux.hal, foreshare.runtime.config\n"
        'print(json.dumps({"modules": sorted(n.partition(".")[0] for n in sys.modules)}))'
    )
    assert not (HEAVY | {"rich"}) & set(got["modules"])  # type: ignore[call-overload] # a list


@pytest.mark.parametrize("argv", [["--help"], ["--version"]])
def test_help_does_not_even_load_numpy(argv: list[str]) -> None:
    got = answer(HELP, *argv)
    assert got["code"] == 0
    modules = got["modules"]
    assert isinstance(modules, list)
    assert "foreshare.runtime.cli.main" in modules
    assert not (HEAVY | {"numpy", "rich"}) & set(modules)


def test_the_packages_that_are_listed_are_the_folders_that_there_are() -> None:
    found = {
        "foreshare." + ".".join(path.parent.relative_to(ROOT).parts)
        for folder in settings()["folders"]
        for path in (ROOT / folder).rglob("__init__.py")
    }
    assert found == set(settings()["packages"])
    modules = {p.parent for folder in settings()["folders"] for p in (ROOT / folder).rglob("*.py")}
    assert not [p for p in modules if not (p / "__init__.py").exists()], "a folder of modules that is no package"


@pytest.mark.timeout(60)
def test_the_wheel_holds_every_module_and_all_data(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    for folder in settings()["folders"]:
        shutil.copytree(ROOT / folder, tree / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    shutil.copytree(ROOT / "tests" / "unit", tree / "tests" / "unit", ignore=shutil.ignore_patterns("__pycache__"))
    (tree / "envs" / "notes.txt").write_text("no part of any package's data")
    done = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path / "out"), str(tree)],
        capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (wheel,) = (tmp_path / "out").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {n for n in archive.namelist() if ".dist-info/" not in n}
        entry = archive.read(next(n for n in archive.namelist() if n.endswith("entry_points.txt"))).decode()
    wanted = {
        f"foreshare/{path.relative_to(ROOT).as_posix()}"
        for folder in settings()["folders"]
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".pyi", ".c", ".h", ".toml", ".npz", ".onnx", ".json") or path.name == "py.typed"
    }
    built = {name for name in names if name.endswith(".abi3.so")}
    assert names - built == wanted
    assert len(built) == (3 if shutil.which("cc") else 0)
    assert {"foreshare/envs/simulator/scenarios/mixed.toml", "foreshare/envs/hal/linux/floor.c"} <= names
    assert re.search(r"^foreshare\s*=\s*foreshare\.runtime\.cli:main$", entry, re.MULTILINE)


def test_every_package_says_that_it_is_typed() -> None:
    for name in ("envs", "policies", "runtime"):
        assert (ROOT / name / "py.typed").exists(), name
