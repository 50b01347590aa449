"""Starting up: fast, without a framework, and never with somebody else's packages."""

import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import pytest

from tests.cli.conftest import ROOT, Run

FRAMEWORKS = ("torch", "jax", "tvm", "iree", "onnxruntime", "tensorrt", "flashinfer", "transformers")

IN_PROCESS = f"""
import runpy, sys
sys.argv = ["workbench", *sys.argv[1:]]
try:
    runpy.run_module("workbench", run_name="__main__", alter_sys=True)
except SystemExit as end:
    assert not end.code, end.code
imported = sorted(name for name in {FRAMEWORKS} if name in sys.modules)
assert not imported, imported
"""


def seconds(command: list[str], environment: dict[str, str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, env=environment, cwd=ROOT)
    return time.perf_counter() - start


def test_help_takes_less_than_25_bare_interpreter_starts(environment: dict[str, str]) -> None:
    bare, help_ = [], []
    for _ in range(7):
        bare.append(seconds([sys.executable, "-c", "pass"], environment))
        help_.append(seconds([sys.executable, "-m", "workbench", "--help"], environment))
    assert median(help_) < 25 * median(bare)


@pytest.mark.parametrize(
    "arguments", [["--help"], ["compare", "--help"], ["backends"], ["compare", "--dry-run"]]
)
def test_parent_imports_no_framework(arguments: list[str], environment: dict[str, str]) -> None:
    command = [sys.executable, "-c", IN_PROCESS, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_no_command_is_answered_by_the_help_alone(workbench: Run) -> None:
    done = workbench()
    assert done.returncode == 2
    assert "Usage" in done.stdout + done.stderr
    assert "Error" not in done.stderr


@pytest.mark.parametrize("command", [(), ("compare",), ("engines", "list")])
def test_help_has_its_short_name_everywhere(workbench: Run, command: tuple[str, ...]) -> None:
    done = workbench(*command, "-h")
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout


@pytest.mark.parametrize("command", ["compare", "calibrate", "build"])
def test_help_says_how_an_option_of_a_backend_is_typed(workbench: Run, command: str) -> None:
    done = workbench(command, "--help", COLUMNS="200")
    assert done.returncode == 0, done.stderr
    assert "a,b[option=value]: which backends." in done.stdout


def test_folder_with_packages_of_the_same_names_does_not_disturb(workbench: Run, tmp_path: Path) -> None:
    for name in ("models", "backends"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('the wrong package was imported')")
    done = workbench("compare", "--dry-run", "--backends", "eager")
    assert done.returncode == 0, done.stderr
    assert "decode" in done.stdout


def test_foreign_models_package_is_refused_in_one_line(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "__init__.py").touch()
    code = "import models, sys; sys.argv = ['workbench', 'backends']; from workbench.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "models" in done.stderr
    assert str(tmp_path) in done.stderr
