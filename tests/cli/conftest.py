"""Run whole commands in processes of their own, with a cache that the session shares."""

import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PLUGINS = ROOT / "tests" / "plugins"

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a cache folder of this session's own: preset weights and golden files are made once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def environment(cache: Path) -> dict[str, str]:
    """Return the variables commands run with: on one thread, which what runs beside them disturbs less."""
    ours = {"WORKBENCH_CACHE": str(cache), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return {**os.environ, **ours, "CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture
def workbench(environment: dict[str, str], tmp_path: Path) -> Run:
    """Return a function that runs `python -m workbench ARGUMENTS` in an empty folder."""
    return partial(run_in, tmp_path, environment)


def run_in(
    folder: Path, environment: dict[str, str], *arguments: str, **more: str
) -> "subprocess.CompletedProcess[str]":
    """Run `python -m workbench ARGUMENTS` in a folder, with `more` variables."""
    command = [sys.executable, "-m", "workbench", *arguments]
    variables = environment | more
    return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=500)


@pytest.fixture
def keeper(workbench: Run, tmp_path: Path) -> Run:
    """Return a function that runs a command where the backend `keeper` is installed."""
    variables = {"PYTHONPATH": f"{ROOT}{os.pathsep}{PLUGINS}", "KEEPER_LOG": str(tmp_path / "builds")}

    def run(*arguments: str, **more: str) -> "subprocess.CompletedProcess[str]":
        return workbench(*arguments, "--engines", str(tmp_path / "engines"), **(variables | more))

    return run
