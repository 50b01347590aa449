"""The set-up scripts, run in a copy with an interpreter that only notes what it is asked to install."""

import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cli.conftest import ROOT


def heed_interrupts() -> None:
    """Undo what a shell does to what it runs in the background: no trap works where Ctrl-C is ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


FAKE = """#!/usr/bin/env bash
case "$1 $2" in
"-c import pip") exit 0 ;;
"-c "*) exec "REAL" -c "import sys; PRETENCE; $2" ;;
esac
echo "$*" >>"$NOTES"
case "$2" in
venv) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && cp "$0" "$3/bin/lint-imports" ;;
pip) eval "$ON_PIP" ;;
workbench) printf '%s\\n' "$PWD" "${@:3}" ;;
esac
"""


def write_fake(path: Path, pretence: str = "pass") -> Path:
    """Write an interpreter that notes what it is asked for; `pretence` is Python that changes `sys`."""
    path.write_text(FAKE.replace("REAL", sys.executable).replace("PRETENCE", pretence))
    path.chmod(0o755)
    return path


@dataclass(frozen=True)
class Copy:
    """A copy of the scripts beside a fake interpreter."""

    root: Path
    python: Path

    def run(self, script: str, *arguments: str, **more: str) -> "subprocess.CompletedProcess[str]":
        """Run a script in the parent folder of the copy, with the fake as `PYTHON`."""
        self.notes.write_text("")
        variables = {"PYTHON": str(self.python), "NOTES": str(self.notes), "ON_PIP": ""}
        variables["CDPATH"] = str(self.root.parent)  # with it a plain `cd` prints where it went
        return subprocess.run(
            ["bash", f"{self.root.name}/{script}", *arguments],
            cwd=self.root.parent,
            env=os.environ | variables | more,
            capture_output=True,
            text=True,
            preexec_fn=heed_interrupts,
        )

    @property
    def notes(self) -> Path:
        """Where the fake interpreter notes its arguments."""
        return self.python.with_name("notes")

    @property
    def done(self) -> list[str]:
        """What the last run asked the interpreter for."""
        return self.notes.read_text().splitlines()

    @property
    def creation(self) -> str:
        return f"-m venv {self.root}/.venv"

    def installation(self, extra: str) -> str:
        return f"-m pip install --quiet --editable {self.root}[{extra}]"


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    root = tmp_path / "a copy"
    for folder in ("scripts", ".ci"):
        shutil.copytree(ROOT / folder, root / folder)
    shutil.copy(ROOT / "pyproject.toml", root)
    return Copy(root, write_fake(tmp_path / "python"))


def test_first_run_installs_and_the_second_only_compares(copy: Copy) -> None:
    arguments = ("--results", "my results", "--dry-run")
    first = copy.run("scripts/compare.sh", *arguments)
    assert first.returncode == 0, first.stderr
    comparison = "-m workbench compare --results my results --dry-run"
    assert copy.done == [copy.creation, copy.installation("cpu"), comparison]
    # Relative paths mean what they mean to the caller, and stdout is the command's alone.
    assert first.stdout.splitlines() == [str(copy.root.parent), "compare", *arguments]
    second = copy.run("scripts/compare.sh", *arguments)
    assert copy.done == [comparison]
    assert second.stderr == ""


@pytest.mark.parametrize("script", ["scripts/test.sh", ".ci/run"])
def test_test_command_lints_checks_types_and_tests(copy: Copy, script: str) -> None:
    done = copy.run(script)
    assert done.returncode == 0, done.stderr
    checks = ["-m ruff check .", "-m ruff format --check .", "-m mypy", "--no-cache"]  # of lint-imports
    checks += ["-m pytest -n 2 --dist loadscope --no-loadscope-reorder"]
    assert copy.done == [copy.creation, copy.installation("dev"), *checks]
    copy.run("scripts/compare.sh")
    assert copy.done == ["-m workbench compare"], "what tests need contains what a comparison needs"


def test_other_extra_is_added_to_the_environment_there_is(copy: Copy) -> None:
    copy.run("scripts/compare.sh")
    copy.run("scripts/test.sh")
    assert copy.creation not in copy.done
    assert copy.installation("dev") in copy.done


def test_changed_requirements_are_installed(copy: Copy) -> None:
    copy.run("scripts/compare.sh")
    with (copy.root / "pyproject.toml").open("a") as file:
        file.write("# changed\n")
    copy.run("scripts/compare.sh")
    assert copy.done[:-1] == [copy.installation("cpu")]


@pytest.mark.parametrize(
    ("on_pip", "code"),
    [("kill -KILL $PPID", 137), ("kill -INT $PPID; exit 1", 130)],
    ids=["killed", "Ctrl-C"],
)
def test_interrupted_installation_is_made_anew(copy: Copy, on_pip: str, code: int) -> None:
    assert copy.run("scripts/compare.sh", ON_PIP=on_pip).returncode == code
    (copy.root / ".venv" / "half-written").touch()
    done = copy.run("scripts/compare.sh")
    assert done.returncode == 0, done.stderr
    assert copy.done[:-1] == [copy.creation, copy.installation("cpu")]
    assert not (copy.root / ".venv" / "half-written").exists()


def test_failed_installation_is_tried_again_in_the_environment_there_is(copy: Copy) -> None:
    failed = copy.run("scripts/compare.sh", ON_PIP="echo 'no network' >&2; exit 1")
    assert failed.returncode == 1
    assert "no network" in failed.stderr
    assert failed.stdout == ""
    copy.run("scripts/compare.sh")
    assert copy.done[:-1] == [copy.installation("cpu")]


def test_environment_whose_interpreter_is_gone_is_made_anew(copy: Copy) -> None:
    copy.run("scripts/compare.sh")
    (copy.root / ".venv" / "bin" / "python").unlink()
    copy.run("scripts/compare.sh")
    assert copy.done[:-1] == [copy.creation, copy.installation("cpu")]


def test_python3_matters_only_while_there_is_no_environment(copy: Copy) -> None:
    folder = copy.python.with_name("old")
    folder.mkdir()
    write_fake(folder / "python3", "sys.version_info = (3, 10, 14)")
    old = {"PYTHON": "", "PATH": f"{folder}:{os.environ['PATH']}"}
    refused = copy.run("scripts/compare.sh", **old)
    assert refused.returncode == 2
    assert refused.stderr.startswith("Error: python3 is no Python 3.11")
    copy.run("scripts/compare.sh")
    done = copy.run("scripts/compare.sh", **old)
    assert done.returncode == 0, done.stderr


def test_another_python_that_is_asked_for_makes_the_environment_anew(copy: Copy) -> None:
    copy.run("scripts/compare.sh")
    newer = write_fake(copy.python.with_name("newer"), "sys.version = '3.99'")
    done = copy.run("scripts/compare.sh", PYTHON=str(newer))
    assert done.returncode == 0, done.stderr
    assert copy.done[:-1] == [copy.creation, copy.installation("cpu")]
    copy.run("scripts/compare.sh", PYTHON=str(newer))
    assert copy.done == ["-m workbench compare"]


@pytest.mark.parametrize("there", [False, True], ids=["fresh", "set up"])
@pytest.mark.parametrize("name", ["old", "none"])
def test_python_that_is_too_old_or_none_is_refused_in_one_line(copy: Copy, name: str, there: bool) -> None:
    if there:
        copy.run("scripts/compare.sh")
    write_fake(copy.python.with_name("old"), "sys.version_info = (3, 10, 14)")
    python = copy.python.with_name(name)
    done = copy.run("scripts/compare.sh", PYTHON=str(python))
    assert done.returncode == 2
    assert done.stderr == f"Error: {python} is no Python 3.11 or newer: set PYTHON to one\n"
    assert (copy.root / ".venv").exists() == there
