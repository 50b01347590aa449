"""The README's commands run as they are written."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import ROOT
from tests.readme.document import commands

SET_UP = ("bash scripts/compare.sh", "bash scripts/test.sh")
ACTIVATION = "source .venv/bin/activate"


def test_both_set_up_commands_are_there() -> None:
    assert set(SET_UP) <= set(commands())


@pytest.mark.parametrize("line", [line for line in commands() if line not in (*SET_UP, ACTIVATION)])
def test_command_runs(line: str, environment: dict[str, str], tmp_path: Path) -> None:
    program, *arguments = shlex.split(line)
    assert program in ("python", ".venv/bin/python"), (
        "a command of another program: say here how it is tried out"
    )
    done = subprocess.run(
        [sys.executable, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.parametrize("script", ["compare.sh", "test.sh"])
def test_set_up_script_can_be_run(script: str) -> None:
    path = ROOT / "scripts" / script
    assert os.access(path, os.X_OK)
    subprocess.run(["bash", "-n", str(path)], check=True)


@pytest.mark.skipif(not (ROOT / ".venv").exists(), reason="no .venv here: bash scripts/test.sh makes it")
def test_compare_script_plans_the_main_job(environment: dict[str, str], tmp_path: Path) -> None:
    command = ["bash", str(ROOT / "scripts" / "compare.sh"), "--dry-run"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "eager" in done.stdout
    assert "compile" in done.stdout
