"""Rows judged by earlier ones, and how verdicts are written."""

import csv
import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from backends.contract import Probe
from models.errors import UserError
from tests.unit.builders import record
from workbench.comparing.contestants import Contestant
from workbench.comparing.entries import Entry
from workbench.comparing.request import Request
from workbench.plan import PlannedGroup, PlannedRow
from workbench.record import ProcessRun, Record
from workbench.store import Store
from workbench.tracking import against, verdict_lines
from workbench.tracking.against import Judge, compare_against
from workbench.tracking.changes import changes
from workbench.tracking.floors import calibration_folder

GPU = {"name": "Test GPU", "uuid": "GPU-1", "driver": "580", "power_limit_w": 700}
HOT = {"reasons": {"hw_thermal_slowdown": 0.2}, "temperature_c": {"high": 91}}


def row(sample_s: float = 1.0, count: int = 5, clocks: Any = None, **changes: Any) -> Record:
    """Return a GPU row of some processes that hardly differ."""
    runs = tuple(
        ProcessRun(tuple(sample_s * (1 + (index + place) / 5000) for place in range(5)), clocks=clocks or {})
        for index in range(count)
    )
    return record(**({"gpu": GPU, "device": "cuda:0", "processes": runs} | changes))


def entry(found: Record) -> Entry:
    planned = PlannedRow("decode", 1, 128, 32)
    group: Any = PlannedGroup(None, (planned,))  # type: ignore[arg-type]
    return Entry(Contestant(found.backend, {}, sys.executable, Probe()), group, planned, found)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Return results with one row, of a machine with hardly any noise."""
    Store(tmp_path, print).append(row(run="first", workbench="0+a"))
    Store(calibration_folder(tmp_path), print).append(row(count=10))
    return tmp_path


def judged(results: Path, later: Record) -> Any:
    judge = Judge("first", results)
    judge.settle([entry(later)])
    return judge.judge(later)


@pytest.mark.parametrize(
    ("later", "kind", "regressed"),
    [
        (row(), "same", False),
        (row(1.05), "slower", True),
        (row(0.95), "faster", False),
        (row(1.05, count=4), "unclear", False),
        (row(1.05, clocks=HOT), "unclear", False),
        (row(1.0, clocks=HOT), "same", False),
    ],
)
def test_rows_are_judged_by_their_earlier_ones(
    results: Path, later: Record, kind: str, regressed: bool
) -> None:
    found = judged(results, later)
    assert (found.verdict.kind, found.regressed) == (kind, regressed)


def test_a_gpu_that_held_back_is_why_a_change_is_none_of_the_codes(results: Path) -> None:
    for later, unclear in ((row(1.05, clocks=HOT), True), (row(1.05), False)):
        reason = judged(results, later).verdict.reason
        assert ("hw_thermal_slowdown" in str(reason)) is unclear
    Store(results, print).append(row(run="hot", clocks=HOT))
    judge = Judge("hot", results)
    judge.settle([entry(row())])
    assert "hw_thermal_slowdown" in str(judge.judge(row(1.05)).verdict.reason)  # the earlier row's, too


def test_one_process_a_side_has_a_ratio_without_an_interval(tmp_path: Path) -> None:
    Store(tmp_path, print).append(row(run="first", count=1))
    Store(calibration_folder(tmp_path), print).append(row(count=10))
    found = judged(tmp_path, row(2.0, count=1))
    assert (found.verdict.kind, found.interval) == ("unclear", (None, None))
    assert verdict_lines.cells(found)[3] == "0.500x"
    assert json.loads(verdict_lines.as_json([found]))[0]["ratio"] == {"value": 0.5, "low": None, "high": None}


def test_a_row_that_lost_its_time_has_regressed(results: Path) -> None:
    judge = Judge("first", results)
    judge.settle([entry(row())])
    found = judge.judge(row(status="crashed", reason="killed", time_s=None, processes=()))
    assert found.base is not None
    assert found.regressed


def test_what_cannot_be_judged_is_refused_before_anything_is_measured(results: Path) -> None:
    with pytest.raises(UserError, match="no row of compile"):
        Judge("first", results).settle([entry(row(backend="compile"))])
    elsewhere = row(gpu=GPU | {"uuid": "GPU-2"})
    with pytest.raises(UserError, match="has no noise floor for decode yet"):
        Judge("first", results).settle([entry(elsewhere)])


MISSING = row(backend="absent", status="missing", reason="not installed", time_s=None, processes=())


@pytest.mark.parametrize("form", ["table", "json", "csv", "md"])
def test_verdicts_are_written_in_every_form(
    results: Path, form: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    later = row(1.05, run="second", workbench="0+b")

    def measure(request: Request, select: Any) -> list[Record]:
        missing = entry(MISSING)
        missing.record = MISSING
        select([entry(later), missing])
        return [later, MISSING]

    monkeypatch.setattr(against, "measure", measure)
    assert compare_against(Request(results=results), "first", form) is False
    printed = capsys.readouterr().out
    if form == "json":
        slower, missing = json.loads(printed)
        assert (slower["verdict"], missing["verdict"]) == ("slower", None)
        assert slower["runs"] == {"before": "first", "now": "second"}
        assert slower["changes"] == ["workbench 0+a -> 0+b"]
        assert missing["reason"] == "missing: not installed"
    elif form == "csv":
        rows = list(csv.DictReader(io.StringIO(printed)))
        assert [each["verdict"] for each in rows] == ["slower", "missing"]
        assert float(rows[0]["ratio_low"]) < 1 / 1.05 < float(rows[0]["ratio_high"])
    else:
        assert ("Held equal:\n" in printed, "| --- |" in printed or "|---|" in printed) == (
            (True, False) if form == "table" else (False, True)
        )
        for part in ("against run first", "slower", "0.952x [0.95", "2.0 %", "changed: workbench 0+a -> 0+b"):
            assert part in printed
        assert "absent decode b1 c128: missing: not installed" in printed


@pytest.mark.parametrize(
    ("times", "unharmed"),
    [((1.0, 1.05), False), ((1.05, 1.0), False), ((1.0, 1.0), True), ((0.9, 1.0), True)],
)
def test_one_row_that_is_slower_fails_the_whole_run(
    results: Path, times: tuple[float, ...], unharmed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    Store(results, print).append(row(run="first", batch=8))
    later = [row(time, batch=batch) for time, batch in zip(times, (1, 8), strict=True)]

    def measure(request: Request, select: Any) -> list[Record]:
        select([entry(each) for each in later])
        return later

    monkeypatch.setattr(against, "measure", measure)
    assert compare_against(Request(results=results), "first", "json") is unharmed


def test_changes_name_versions_driver_and_code() -> None:
    before = row(versions={"torch": "2.11", "triton": "3"}, gpu=GPU | {"driver": "570"})
    after = row(versions={"torch": "2.13", "numpy": "2"}, workbench="1", provenance="patched: x")
    assert changes(before, after) == [
        "torch 2.11 -> 2.13",
        "triton 3 -> none",
        "driver 570 -> 580",
        "provenance stock -> patched: x",
        "workbench 0 -> 1",
        "numpy none -> 2",
    ]
    assert changes(before, before) == []
    assert changes(row(gpu={"name": "Test GPU"}), row()) == ["card none -> GPU-1", "driver none -> 580"]


def test_changes_name_the_card_or_the_machine() -> None:
    cards = [row(gpu=GPU | {"uuid": f"GPU-{digit * 8}-0000"}) for digit in "12"]
    assert changes(*cards) == ["card GPU-11111111 -> GPU-22222222"]
    machines = [row(device="cpu", gpu={"name": "CPU", "uuid": digit * 16}) for digit in "12"]
    assert changes(*machines) == ["machine 111111111111 -> 222222222222"]


def test_changes_name_an_engine_that_was_built_ahead() -> None:
    tuned = {"key": "0123456789abcdef", "target": "h100", "untuned": False}
    untuned = tuned | {"key": "f" * 16, "untuned": True}
    assert changes(row(), row(engine=tuned)) == ["engine built here -> 0123456789abcdef for h100"]
    assert changes(row(engine=untuned), row(engine=tuned)) == [
        "engine ffffffffffffffff for h100 untuned -> 0123456789abcdef for h100"
    ]
