"""Which A/A run a row's noise floor is taken from."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from models.errors import UserError
from tests.unit.builders import RULES, record
from workbench.publish import read_records
from workbench.record import ProcessRun, Record
from workbench.store import Store
from workbench.tracking.floors import advise, calibration_folder, find_floor, floor_of

GPU = {"name": "Test CPU", "threads": 2, "uuid": "here"}


def calibration(step: float = 0.01, count: int = 10, **changes: Any) -> Record:
    """Return an A/A row whose processes differ by `step` from one to the next."""
    runs = tuple(ProcessRun((1 + index * step,) * 3) for index in range(count))
    values = {"gpu": GPU, "protocol": {**RULES, "processes": count}, "processes": runs}
    return record(**(values | changes))


ROW = record(gpu=GPU, protocol={**RULES, "processes": 2})


def test_a_row_that_was_calibrated_itself_has_its_own_floor() -> None:
    own, loud = calibration(0.002), calibration(0.05, backend="compile")
    assert find_floor(ROW, [loud, own, loud]) == floor_of(own) < floor_of(loud)


def test_the_last_calibration_counts() -> None:
    assert find_floor(ROW, [calibration(0.05), calibration(0.001)]) == floor_of(calibration(0.001))


def test_any_other_row_has_the_highest_floor_of_its_phase() -> None:
    others = [
        calibration(0.01, backend="compile", model="large", dtype="bfloat16", weights="x"),
        calibration(0.03, batch=8, context=512),
        calibration(0.2, phase="prefill", clock="drained", prompt=64, context=None, steps=None),
    ]
    assert find_floor(ROW, others) == floor_of(others[1])


def test_runs_of_the_same_code_are_no_rows_of_a_report(tmp_path: Path) -> None:
    Store(tmp_path, print).append(ROW)
    Store(calibration_folder(tmp_path), print).append(calibration())
    assert len(read_records([tmp_path])) == 1
    assert len(read_records([calibration_folder(tmp_path)])) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"gpu": GPU | {"uuid": "elsewhere"}},
        {"gpu": GPU | {"threads": 1}},
        {"protocol": {**RULES, "gate": 1, "processes": 10}},
        {"phase": "prefill", "clock": "drained"},
        {"status": "crashed", "time_s": None},
        {"count": 9},
        {"engine": {"key": "k", "untuned": True}},
    ],
)
def test_what_tells_nothing_of_the_row_is_not_taken_and_the_command_is_named(changes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"eager decode b1 c128 .* run `python -m workbench calibrate"):
        find_floor(ROW, [calibration(**changes)])


@pytest.mark.parametrize(
    ("device", "budget_s", "results", "more"),
    [
        ("cpu", 5.0, "results", ""),
        ("cuda:1", 4.0, "results", ""),
        ("cpu", 0.5, "results", " --budget 0.5"),
        ("cuda:0", 5.0, "results", " --budget 5"),
        ("cuda:0", 4.0, "./results", ""),
        ("cpu", 5.0, "my rows", " --results 'my rows'"),
    ],
)
def test_the_command_gives_a_floor_to_these_very_rows(
    device: str, budget_s: float, results: str, more: str
) -> None:
    row = replace(ROW, device=device, protocol={**ROW.protocol, "budget_s": budget_s})
    command = f"python -m workbench calibrate --phases decode --device {device}{more}"
    assert advise(row, Path(results)) == f"run `{command}` there"


def test_a_row_by_older_rules_is_to_be_measured_anew() -> None:
    row = replace(ROW, protocol={**ROW.protocol, "gate": 1})
    assert advise(row, Path("results")).endswith("measure it anew")
