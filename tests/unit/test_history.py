"""Steps in the history of a row: found where they are, none made up, and what changed with them."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from models.errors import UserError
from tests.unit.builders import RULES, record
from workbench.record import ProcessRun, Record
from workbench.statistics import summarise
from workbench.store import Store
from workbench.tracking.floors import calibration_folder
from workbench.tracking.follow import follow
from workbench.tracking.history import History, Wanted, change_points, find_steps, group
from workbench.tracking.history_lines import facts, step_line, title, titles, write
from workbench.tracking.verdict import threshold

pytest.importorskip("ruptures", reason="install it: pip install 'workbench[track]'")


def at(day: int, centre: float, **changes: Any) -> Record:
    """Return a row of one day with five processes that scatter by 0.3 % around a time."""
    generator = np.random.default_rng(day)
    runs = [tuple(centre * (1 + 0.003 * generator.standard_normal(5))) for _ in range(5)]
    values = {"run": f"run{day}", "created": f"2026-01-{day:02d}T00:00:00+00:00"}
    values |= {"processes": tuple(map(ProcessRun, runs)), "time_s": summarise(runs)}
    return record(**(values | changes))


def versions(day: int) -> dict[str, str]:
    return {"torch": "2.11" if day <= 6 else "2.13", "triton": "3"}


ROW = [at(day, 1.0 if day <= 6 else 0.97, versions=versions(day)) for day in range(1, 13)]


def test_a_step_is_found_with_its_interval_and_what_changed() -> None:
    (step,) = find_steps(ROW, floor=0.005)
    assert step.index == 6
    assert step.verdict.kind == "faster"
    assert step.changes == ("torch 2.11 -> 2.13",)
    line = step_line(ROW[6], step)
    assert line.startswith("2026-01-07 torch 2.11 -> 2.13: -3.")
    change = facts("", History(tuple(ROW), (step,)))["steps"][0]["change"]  # type: ignore[index]
    assert -0.035 < change["low"] < change["value"] < change["high"] < -0.025


def test_values_that_a_record_does_not_have_are_not_offered() -> None:
    rows = [record(), record(phase="prefill", prompt=64, context=None)]
    assert Wanted(prompt=999).unmet(rows) == "none has --prompt 999, but 64"
    assert Wanted(prompt=999).unmet(rows[:1]) == "none has --prompt 999, but none at all"


def test_a_level_time_has_no_step() -> None:
    generator = np.random.default_rng(0)
    # Two records differ by less than the floor 95 times in 100, so each scatters by about a third of it.
    levels = np.exp(0.007 / 3 * generator.standard_normal((60, 50)))
    assert not any(change_points(level, threshold(0.007)) for level in levels)


def test_two_steps_and_a_spike_are_told_apart() -> None:
    assert change_points([1, 1, 1, 1.1, 1.1, 1.1, 0.9, 0.9], 0.02) == [3, 6]
    assert change_points([1, 1, 1.5, 1, 1], 0.02) == [2, 3]
    assert change_points([1.0, 1.01, 1.0, 0.99], 0.02) == []
    assert change_points([1.0] * 20 + [1.012] * 20, 0.02) == [20]
    assert change_points([1.0], 0.02) == []


def test_a_step_of_few_processes_is_found_and_called_unclear() -> None:
    few = [record(run=str(index), samples=(1.0 if index < 2 else 2.0,)) for index in range(3)]
    (step,) = find_steps(few, floor=0.001)
    assert step.verdict.kind == "unclear"
    assert "(unclear: 2 of at least 5" in step_line(few[2], step)


def test_records_of_one_row_stand_together_in_order_whatever_their_versions() -> None:
    more = at(13, 1.0, protocol={"gate": 1, "processes": 9}, workbench="new")
    other = [at(1, 1.0, dtype="bfloat16"), at(2, 1.0, protocol={"gate": 2, "processes": 2})]
    rows = group([more, *reversed(ROW), *other])
    assert [len(row) for row in rows] == [13, 1, 1]
    assert [row.run for row in rows[0]] == [f"run{day}" for day in range(1, 14)]


def test_rows_of_untuned_engines_have_a_history_of_their_own_and_say_so() -> None:
    engine = {"key": "0123456789abcdef", "target": "h100", "untuned": True}
    untuned = [at(day, 2.0, engine=engine) for day in (4, 8)]
    rows = group([*ROW, *untuned])
    assert [len(row) for row in rows] == [12, 2]
    names = [title(row[0]) for row in rows]
    assert names == [f"eager{each} decode b1 c128, tiny float32, Test CPU" for each in ("", " untuned")]
    assert [facts("", History(tuple(row), ()))["untuned"] for row in rows] == [False, True]


def test_models_of_one_name_are_told_apart_by_their_weights() -> None:
    rows = [History((each,), ()) for each in (at(1, 1.0), at(2, 1.0, weights="0123456789"))]
    one, other = titles(rows)
    assert (one.removeprefix(title(rows[0].records[0])), other[-8:]) == (", weights abc", "01234567")
    assert titles(rows[:1]) == [title(rows[0].records[0])]
    assert titles([rows[0], rows[0]]) == [title(rows[0].records[0])] * 2


@pytest.mark.parametrize(
    ("wanted", "count"),
    [
        ({}, 3),
        ({"backend": "compile"}, 1),
        ({"backend": "compile[mode=fast]"}, 1),
        ({"backend": "eager", "batch": 8}, 1),
        ({"device": "test-cpu", "phase": "decode", "dtype": "float32", "model": "tiny"}, 3),
        ({"device": "test"}, 0),
        ({"prompt": 64}, 0),
    ],
)
def test_wanted_records_have_every_value_asked_for(wanted: dict[str, Any], count: int) -> None:
    rows = [record(), record(batch=8), record("compile", options={"mode": "fast"})]
    rows.append(record(status="crashed"))
    assert sum(Wanted(**wanted).holds(row) for row in rows) == count


def keep_calibration(results: Any) -> None:
    """Keep an A/A run of a quiet machine."""
    calibration = at(1, 1.0, processes=tuple(ProcessRun((1 + index / 1000,)) for index in range(10)))
    Store(calibration_folder(results), lambda line: None).append(calibration)


def test_histories_are_printed_and_bad_selections_refused(tmp_path: Any, capsys: Any) -> None:
    store = Store(tmp_path, lambda line: None)
    for row in ROW:
        store.append(row)
    with pytest.raises(UserError, match="there is eager decode b1 c128"):
        follow(Wanted(backend="tvm"), tmp_path)
    keep_calibration(tmp_path)
    found = follow(Wanted(backend="eager"), tmp_path)
    write(found, as_json=False)
    printed = capsys.readouterr().out
    assert "torch 2.11 -> 2.13" in printed
    assert printed.count("-3.0 % [") == 2
    write(found, as_json=True)
    (row,) = json.loads(capsys.readouterr().out)
    assert [len(row["records"]), len(row["steps"])] == [12, 1]
    assert row["steps"][0]["run"] == "run7"
    assert row["advice"] is None


ELSEWHERE = {"name": "Other CPU", "threads": 4}


def test_rows_without_a_noise_floor_are_listed_and_one_line_says_what_to_run(
    tmp_path: Any, capsys: Any
) -> None:
    store = Store(tmp_path, lambda line: None)
    for row in [
        *ROW,
        *(at(day, 1.0, gpu=ELSEWHERE, batch=batch, protocol=RULES) for day in (1, 2) for batch in (1, 8)),
    ]:
        store.append(row)
    keep_calibration(tmp_path)
    found = follow(Wanted(), tmp_path)
    write(found, as_json=False)
    printed = capsys.readouterr().out
    assert "torch 2.11 -> 2.13" in printed
    assert printed.count("eager decode b8 c128, tiny float32, Other CPU") == 1
    assert printed.count("no noise floor, so any step in 2 records is unknown") == 2
    advice = "Other CPU has no noise floor for decode yet, so the steps of rows there are unknown: "
    advice += f"run `python -m workbench calibrate --phases decode --device cpu --results {tmp_path}` there"
    assert printed.splitlines()[-1] == advice
    assert printed.count(advice) == 1
    write(found, as_json=True)
    rows = json.loads(capsys.readouterr().out)
    assert [(len(row["records"]), len(row["steps"]), row["advice"]) for row in rows] == [
        (2, 0, advice),
        (2, 0, advice),
        (12, 1, None),
    ]


def test_a_narrow_terminal_leaves_the_id_of_a_run_whole(
    tmp_path: Any, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workbench.report.WIDE", 60)
    Store(tmp_path, lambda line: None).append(replace(ROW[0], run="20261130T115453-8d511b"))
    write(follow(Wanted(), tmp_path), as_json=False)
    assert " 20261130T115453-8d511b " in capsys.readouterr().out


def test_a_row_with_a_single_record_needs_no_noise_floor(tmp_path: Any, capsys: Any) -> None:
    Store(tmp_path, lambda line: None).append(ROW[0])
    (found,) = follow(Wanted(), tmp_path)
    assert (found.steps, found.advice) == ((), None)
    write([found], as_json=False)
    assert "calibrate" not in capsys.readouterr().out


def test_a_wish_that_no_record_meets_is_named_with_what_there_is() -> None:
    assert Wanted(phase="foo").unmet(ROW) == "none has --phase foo, but decode"
    assert Wanted(backend="eager", device="gpu").unmet(ROW) == "none has --device gpu, but test-cpu"
    assert Wanted(backend="eager").unmet(ROW) is None
