"""Output that cannot be written is one line on stderr, and never a traceback."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.unit.builders import record
from workbench.store import Store

BUFFERED = {"PYTHONUNBUFFERED": ""}
"""So that what is short is written at the end, where Python itself would complain."""
COMMANDS = [("history",), ("history", "--format", "json"), ("report", "--format", "csv")]


def redirect(
    environment: dict[str, str], folder: Path, where: str, *arguments: str
) -> "subprocess.CompletedProcess[str]":
    """Run a command on a few records in a shell that sends its output elsewhere."""
    kept = Store(folder / "results", lambda line: None)
    kept.append(record())
    command = ["bash", "-o", "pipefail", "-c", f'"$@" {where}', "-", sys.executable, "-m", "workbench"]
    variables = environment | BUFFERED
    return subprocess.run(
        [*command, *arguments], cwd=folder, env=variables, stderr=subprocess.PIPE, text=True, timeout=100
    )


@pytest.mark.parametrize("arguments", [("backends",), *COMMANDS])
def test_closed_output_is_one_line(
    environment: dict[str, str], tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    done = redirect(environment, tmp_path, ">&-", *arguments)
    assert done.stderr == "Error: the output is closed: send it to a file, or to /dev/null\n"
    assert done.returncode == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("arguments", COMMANDS)
def test_output_on_a_full_disk_is_one_line(
    environment: dict[str, str], tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    done = redirect(environment, tmp_path, ">/dev/full", *arguments)
    assert done.stderr.startswith("Error: ")
    assert "No space left on device: free space where" in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.returncode == 2


@pytest.mark.parametrize("arguments", COMMANDS)
def test_output_that_nobody_reads_ends_without_a_word(
    environment: dict[str, str], tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    done = redirect(environment, tmp_path, "| true", *arguments)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize("arguments", COMMANDS)
def test_output_is_utf_8_whatever_the_locale_is(
    workbench: Run, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    Store(tmp_path / "results", lambda line: None).append(record(samples=(2e-6, 2e-6, 2e-6)))
    done = workbench(*arguments, PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert ("2.00 µs" in done.stdout) == (arguments == ("history",))


def test_a_mistake_in_a_name_that_is_no_text_is_one_line(workbench: Run) -> None:
    done = workbench("report", os.fsdecode(b"no\xfftext"))
    assert done.returncode == 2
    assert done.stderr.startswith("Error: there is no no\\udcfftext: name")
