"""Which records a report shows, and that nothing is compared that may not be."""

from typing import Any

import pytest

from models.errors import UserError
from tests.unit.builders import record
from workbench.selection import count_workloads, select

OLD, NEW = "2026-01-01T00:00:00+00:00", "2026-02-01T00:00:00+00:00"
H200 = {"name": "NVIDIA H200", "uuid": "GPU-a", "driver": "580.1", "power_limit_w": 700}


def test_newest_record_of_a_row_is_shown_and_the_older_ones_are_counted() -> None:
    rows = [record(created=NEW, run="new"), record(created=OLD, run="old"), record(created=OLD, run="older")]
    (setting,) = select(rows)
    assert [row.run for row in setting.report.records] == ["new"]
    assert setting.older == (2,)


def test_later_line_of_equal_age_is_the_newer() -> None:
    (setting,) = select([record(run="first"), record(run="second")])
    assert setting.first.run == "second"


@pytest.mark.parametrize(
    "change", [{"versions": {"torch": "2.13"}}, {"workbench": "0+new"}, {"gpu": H200 | {"uuid": "GPU-b"}}]
)
def test_row_measured_again_with_other_versions_or_card_is_the_same_row(change: dict[str, Any]) -> None:
    again = {"created": NEW, "gpu": H200, "run": "new"} | change
    (setting,) = select([record(created=OLD, gpu=H200), record(**again)])
    assert [row.run for row in setting.report.records] == ["new"]


def test_a_row_is_compared_with_the_baseline_of_its_own_call_though_a_newer_one_is_shown() -> None:
    rows = [
        record("eager", (4.0, 4.0), created=OLD, run="old"),
        record("tvm", (1.0, 1.0), created=OLD, run="old"),
        record("eager", (8.0, 8.0), created=NEW, run="new"),
        record("compile", (2.0, 2.0), created=NEW, run="new"),
        record("xla", (2.0, 2.0), created=OLD, run="alone"),
    ]
    (setting,) = select(rows)
    pairs = zip(setting.report.records, setting.report.ratios, strict=True)
    found = {row.name: (row.run, ratio and ratio.median) for row, ratio in pairs}
    assert found == {
        "eager": ("new", 1.0),
        "tvm": ("old", 4.0),
        "compile": ("new", 4.0),
        "xla": ("alone", 4.0),
    }


def test_the_baseline_of_a_rows_own_call_did_the_same_work() -> None:
    rows = [
        record("eager", (9.0, 9.0), created=OLD, run="old", context=256),
        record("eager", (5.0, 5.0), created=OLD, run="old", status="crashed"),
        record("eager", (4.0, 4.0), created=OLD, run="old"),
        record("tvm", (1.0, 1.0), created=OLD, run="old"),
        record("eager", (8.0, 8.0), created=NEW, run="new"),
    ]
    (setting,) = select(rows)
    pairs = zip(setting.report.records, setting.report.ratios, strict=True)
    assert [ratio and ratio.median for row, ratio in pairs if row.name == "tvm"] == [4.0]


def test_an_untuned_row_is_no_baseline_of_its_own() -> None:
    rows = [
        record("tvm", (1.0, 1.0), run="tuned"),
        record("tvm", (4.0, 4.0), run="elsewhere", engine={"key": "k", "target": "h100", "untuned": True}),
    ]
    (setting,) = select(rows, "tvm")
    found = {ratio and ratio.median for ratio in setting.report.ratios}
    assert found == {1.0, 0.25}


@pytest.mark.parametrize("change", [{"batch": 8}, {"options": {"mode": "default"}}, {"context": 256}])
def test_other_work_or_options_are_rows_of_their_own_in_one_setting(change: dict[str, Any]) -> None:
    (setting,) = select([record(), record(**change)])
    assert len(setting.report.records) == 2
    assert setting.older == (0, 0)


@pytest.mark.parametrize(
    "change",
    [
        {"gpu": H200},
        {"gpu": {"name": "Test CPU", "threads": 4}},
        {"dtype": "bfloat16"},
        {"weights": "def"},
        {"protocol": {"gate": 2, "processes": 2}},
        {"protocol": {"gate": 1, "processes": 2, "budget_s": 1.0}},
    ],
)
def test_what_may_not_be_compared_is_a_setting_of_its_own(change: dict[str, Any]) -> None:
    settings = select([record("eager", (1.0, 1.0)), record("compile", (0.5, 0.5), **change)])
    assert len(settings) == 2
    assert {ratio.to for setting in settings for ratio in setting.report.ratios if ratio} == {
        "eager",
        "compile",
    }
    assert all(ratio and ratio.median == 1 for setting in settings for ratio in setting.report.ratios)


def test_rows_come_by_workload_the_fastest_first_and_those_without_a_time_last() -> None:
    prefill = record("eager", phase="prefill", prompt=64, context=None, steps=None)
    rows = [record("c", status="oom"), record("b", (2.0, 2.0)), record("a"), record("a", batch=8), prefill]
    (setting,) = select(rows)
    assert [(row.phase, row.batch, row.name) for row in setting.report.records] == [
        ("prefill", 1, "eager"),
        ("decode", 1, "a"),
        ("decode", 1, "b"),
        ("decode", 1, "c"),
        ("decode", 8, "a"),
    ]


def test_workloads_come_by_phase_then_by_length_and_steps_whatever_their_times() -> None:
    prefills = [record(phase="prefill", prompt=prompt, context=None, steps=None) for prompt in (512, 64)]
    decodes = [
        record(samples=(each, each), context=context, steps=steps)
        for each, context, steps in ((1.0, 1024, 32), (2.0, 128, 64), (3.0, 128, 32))
    ]
    (setting,) = select([*decodes, *prefills])
    assert [(row.phase, row.prompt or row.context, row.steps) for row in setting.report.records] == [
        ("prefill", 64, None),
        ("prefill", 512, None),
        ("decode", 128, 32),
        ("decode", 128, 64),
        ("decode", 1024, 32),
    ]


def test_baseline_is_that_of_each_workload() -> None:
    rows = [record("eager"), record("compile", (0.5, 0.5)), record("compile", (0.5, 0.5), batch=8)]
    (setting,) = select(rows)
    assert [ratio and (ratio.to, ratio.median) for ratio in setting.report.ratios] == [
        ("eager", 2.0),
        ("eager", 1.0),
        ("compile", 1.0),
    ]
    (setting,) = select(rows, "eager")
    assert setting.report.ratios[2] is None


def test_baseline_that_no_row_has_is_refused_with_those_there_are() -> None:
    with pytest.raises(UserError, match=r"'eagre' is not among the rows: choose from compile, eager"):
        select([record("eager"), record("compile")], "eagre")


def test_baseline_of_another_protocol_is_refused_with_what_differs() -> None:
    rows = [record("eager", protocol={"gate": 1, "processes": 2}), record("compile", batch=8)]
    select(rows, "eager")
    rows.append(record("compile", protocol={"gate": 2, "processes": 2}))
    with pytest.raises(UserError, match=r"compile cannot be compared with eager.*gate \(1 and 2\)"):
        select(rows, "eager")
    assert len(select(rows)) == 2


def test_a_baseline_serves_the_rows_it_can_and_leaves_the_others_without_a_ratio() -> None:
    rows = [record("eager"), record("compile"), record("xla", protocol={"gate": 2, "processes": 2})]
    ratios = [ratio and ratio.to for setting in select(rows, "eager") for ratio in setting.report.ratios]
    assert sorted(map(str, ratios)) == ["None", "eager", "eager"]


def test_a_row_measured_again_in_more_processes_is_one_row() -> None:
    again = record("eager", created="2027-01-01", protocol={"gate": 1, "processes": 7})
    (setting,) = select([record("eager"), again, record("compile")])
    assert {each.name: each for each in setting.report.records}["eager"] is again
    assert sorted(setting.older) == [0, 1]


def test_a_row_without_a_time_needs_no_baseline_and_is_none() -> None:
    rows = [record("eager", protocol={"gate": 1, "processes": 2})]
    rows.append(record("compile", status="crashed", protocol={"gate": 2, "processes": 2}))
    assert [setting.report.ratios for setting in select(rows, "eager")][1] == (None,)
    with pytest.raises(UserError, match="'compile' is not among the rows: choose from eager"):
        select(rows, "compile")


def test_progress_is_told_of_every_workload() -> None:
    done = []
    rows = [record(), record("compile"), record(batch=8), record(gpu=H200)]
    select(rows, advance=lambda: done.append(1))
    assert len(done) == count_workloads(rows) == 3
