"""Compare, change something, compare with the run before; and the same rows as benchmarks of pytest."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import ROOT, Run
from tests.unit.builders import RULES, record
from workbench.record import Record
from workbench.store import Store
from workbench.tracking.floors import calibration_folder

QUICK = ("--backends", "eager", "--phases", "decode", "--context", "32", "--repeats", "1", "--budget", "1")
TABLE = """
[tool.workbench.track]
backends = ["eager"]
prompt = 16
context = 32
device = "cpu"
repeats = 1
budget = 1
"""


def records(results: Path) -> list[Record]:
    return Store(results, lambda line: None).read_all()


def calibrate(results: Path) -> None:
    """Keep an A/A run of a quiet machine, made of rows that were measured here."""
    kept = Store(calibration_folder(results), lambda line: None)
    for row in records(results):
        kept.append(replace(row, processes=row.processes * 10))


def expect_refusal(done: "subprocess.CompletedProcess[str]", *words: str) -> None:
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("Error: ")
    assert done.stderr.count("\n") == 1
    for word in words:
        assert word in done.stderr


def test_compare_change_something_and_compare_with_the_first_run_then_track(
    workbench: Run, tmp_path: Path
) -> None:
    results = tmp_path / "results"
    first = workbench("compare", *QUICK)
    assert first.returncode == 0, first.stderr
    (row,) = records(results)
    assert row.run in first.stdout
    expect_refusal(workbench("compare", *QUICK, "--against", row.run), "python -m workbench calibrate")
    assert len(records(results)) == 1
    calibrate(results)
    changed = {"MALLOC_ARENA_MAX": "1"}  # no record knows of it, so the row's key is what it was
    second = workbench("compare", *QUICK, "--against", row.run, "--format", "json", **changed)
    assert second.returncode == 0, second.stderr
    (found,) = json.loads(second.stdout)
    check_measured_anew(found, row, records(results))
    assert found["verdict"] == "unclear"
    assert found["reason"] == "1 of at least 5 processes a side: give both --repeats 5"
    check_history(workbench)
    check_tracking(workbench, tmp_path)


def check_measured_anew(found: dict[str, Any], row: Record, rows: list[Record]) -> None:
    assert [each.run for each in rows] == [row.run, found["runs"]["now"]]
    assert found["runs"]["before"] == row.run != found["runs"]["now"]
    assert rows[0].processes[0].samples_s != rows[1].processes[0].samples_s
    assert found["time_s"]["before"]["median"] == rows[0].time_s.median  # type: ignore[union-attr]
    assert found["ratio"]["value"] > 0
    assert found["ratio"]["low"] is found["ratio"]["high"] is None  # of one process a side


def check_history(workbench: Run) -> None:
    pytest.importorskip("ruptures")
    done = workbench("history", "--backend", "eager", "--format", "json")
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)
    assert len(row["records"]) == 2
    table = workbench("history", "--phase", "decode")
    assert "eager decode b1 c32, tiny float32" in table.stdout
    expect_refusal(workbench("history", "--backend", "tvm"), "no such row", "eager decode b1 c32")


def test_history_lists_rows_without_a_noise_floor(workbench: Run, tmp_path: Path) -> None:
    kept = Store(tmp_path / "results", lambda line: None)
    for run in ("first", "second"):
        kept.append(record(run=run, protocol=RULES))
    done = workbench("history")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("Test CPU has no noise floor for decode yet") == 1
    (row,) = json.loads(workbench("history", "--format", "json").stdout)
    assert [each["run"] for each in row["records"]] == ["first", "second"]
    assert "python -m workbench calibrate" in row["advice"]


def check_tracking(workbench: Run, folder: Path) -> None:
    pytest.importorskip("pytest_benchmark")
    (folder / "pyproject.toml").write_text(TABLE)
    done = workbench("track", "-k", "decode", "--fail-on", "regression", "--benchmark-save=first")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "eager decode b1 c32: unclear: " in done.stdout
    assert "1 of at least 5 processes a side" in done.stdout
    row = records(folder / "results")[-1]
    (saved,) = folder.glob(".benchmarks/*/*/0001_first.json")
    (bench,) = json.loads(saved.read_text())["benchmarks"]
    assert bench["stats"]["rounds"] == len(row.processes[0].samples_s)
    assert bench["stats"]["min"] == min(row.processes[0].samples_s)
    command = [sys.executable, "-m", "pytest_benchmark", "compare", str(saved)]
    shown = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    assert "eager-decode-b1-c32" in shown.stdout


def test_track_runs_where_the_plugin_is_installed_and_warnings_are_errors(
    workbench: Run, tmp_path: Path
) -> None:
    pytest.importorskip("pytest_benchmark")
    (tmp_path / "pyproject.toml").write_text(
        f"[tool.pytest.ini_options]\nfilterwarnings = ['error']\n{TABLE}"
    )
    installed = tmp_path / "site" / "workbench-9.dist-info"
    installed.mkdir(parents=True)
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: workbench\nVersion: 9\n")
    name = "workbench.tracking.pytest_plugin"
    (installed / "entry_points.txt").write_text(f"[pytest11]\n{name} = {name}\n")
    (installed / "RECORD").write_text("models/__init__.py,,\nworkbench/__init__.py,,\n")
    done = workbench("track", "--collect-only", "-q", PYTHONPATH=f"{ROOT}:{installed.parent}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("pyproject.toml::eager-prefill-b1-p16\npyproject.toml::eager-decode-b1-c32")


@pytest.mark.parametrize(("error", "code"), [("KeyboardInterrupt", 130), ("pytest.UsageError", 2)])
def test_track_that_is_stopped_ends_as_other_commands_do(
    workbench: Run, tmp_path: Path, error: str, code: int
) -> None:
    pytest.importorskip("pytest_benchmark")
    (tmp_path / "pyproject.toml").write_text(TABLE)
    hook = f"import pytest\n\ndef pytest_collection_modifyitems():\n    raise {error}\n"
    (tmp_path / "conftest.py").write_text(hook)
    done = workbench("track")
    assert done.returncode == code, done.stdout + done.stderr
    assert ("stopped; " in done.stderr) == (code == 130)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("compare", *QUICK, "--against", "never"), ["'never'", "neither a run"]),
        (("compare", "--against", "never", "--kernels"), ["the tables that kernels", "leave out --kernels"]),
        (("compare", "--against", "never", "--dry-run"), ["measures nothing", "leave out --dry-run"]),
        (("compare", "--against", "x", "--baseline", "eager"), ["its own earlier", "leave out --baseline"]),
        (("compare", *QUICK, "--against", "torn.jsonl"), ["torn.jsonl:1 is no result"]),
        (("calibrate", "--repeats", "9"), ["--repeats 9", "at least 10"]),
        (("history",), ["no such row", "none at all"]),
        (("history", "--results", "torn.jsonl"), ["--results", "torn.jsonl is a file", "name a folder"]),
        (("track",), ["no [tool.workbench.track]"]),
        (("track", "--fail-on", "noise"), ["noise", "regression"]),
    ],
)
def test_mistake_is_one_line(workbench: Run, tmp_path: Path, arguments: Any, words: list[str]) -> None:
    (tmp_path / "torn.jsonl").write_text('{"schema": 2, "run": "to')
    (tmp_path / "pyproject.toml").touch()
    done = workbench(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("Error: ") == done.stderr.count("\n") == 1
    for word in words:
        assert word in done.stderr
