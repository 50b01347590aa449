"""What people and programs read."""

import csv
import io
import json
from dataclasses import replace

import pytest
from rich.console import Console

from tests.unit.builders import record
from workbench.exports import as_csv, as_json
from workbench.ratios import find_ratios
from workbench.record import UNFINISHED, UNSAVED, ProcessRun, Record
from workbench.report import COLUMNS, WIDE, Report, markdown, notes, print_table, run_line

MODE = {"mode": "default"}
FAST = record("compile", (0.5, 0.51, 0.49), options=MODE, limit_share=0.84, error_ratio=1.02)
SLOW = record("eager", samples=(1.0, 1.01, 0.99), build_s={"cold": 2.0, "warm": None})
CRASHED = record("third", status="crashed", reason="killed by SIGSEGV")


def report(*records: Record) -> Report:
    return Report(records, tuple(find_ratios(records, None)))


def printed(result: Report) -> str:
    return printed_at(WIDE, result)


def printed_at(width: int, result: Report) -> str:
    out = io.StringIO()
    print_table(result, Console(file=out, width=width, markup=False))
    return out.getvalue()


def test_json_is_one_list_of_records_with_their_ratios() -> None:
    rows = json.loads(as_json(report(SLOW, FAST, CRASHED)))
    assert [row["backend"] for row in rows] == ["eager", "compile", "third"]
    assert set(rows[1]["ratio"]) == {"to", "median", "low", "high", "processes"}
    assert rows[1]["ratio"]["to"] == "eager"
    assert 1.9 < rows[1]["ratio"]["low"] <= rows[1]["ratio"]["high"] < 2.1
    assert rows[2]["ratio"] is None
    assert rows[2]["time_s"] is None


def test_a_ratio_of_one_process_has_no_interval_for_programs_either() -> None:
    one, other = (
        record(name, processes=(ProcessRun((time, time)),)) for name, time in (("eager", 1.0), ("b", 2.0))
    )
    assert [json.loads(as_json(report(one, other)))[1]["ratio"][end] for end in ("low", "high")] == [
        None,
        None,
    ]
    (_, row) = csv.DictReader(io.StringIO(as_csv(report(one, other))))
    assert (float(row["ratio"]), row["ratio_low"], row["ratio_high"]) == (0.5, "", "")


@pytest.mark.parametrize("warning", [UNSAVED, UNFINISHED])
def test_a_run_that_was_not_saved_is_not_offered(warning: str) -> None:
    lost = record("lost", run="20260301T101500-aaaaaa", warnings=(warning,))
    assert run_line([lost]) == ""
    kept = run_line([lost, record("kept", run="20260301T101500-bbbbbb")])
    assert "bbbbbb" in kept
    assert "aaaaaa" not in kept


def test_table_begins_with_what_was_held_equal() -> None:
    lines = printed(report(SLOW, FAST)).splitlines()
    assert lines[0] == "Held equal:"
    head = "\n".join(lines[:4])
    for fact in (
        "tiny",
        "float32",
        "Test CPU",
        "2 threads",
        "processes a row: 2",
        "verified before and after",
    ):
        assert fact in head


def test_table_shows_every_row_and_why_one_has_no_time() -> None:
    text = printed(report(SLOW, FAST, CRASHED))
    for name in ("eager", "compile[mode=default]", "third"):
        assert name in text
    assert "third decode b1 c128: crashed: killed by SIGSEGV" in text
    assert "84 %" in text
    assert "2.00x" in text


def test_narrow_terminal_cuts_no_number() -> None:
    text = printed_at(80, report(SLOW, FAST))
    assert "…" not in text
    for number in ("1.00 s", "500 ms", "2.00x", "84 %", "1.02"):
        assert number in text


def test_a_terminal_of_80_columns_cuts_neither_names_nor_statuses() -> None:
    refused = record(options={"graph": ""}, status="unsupported", reason="no graphs " * 20)
    refused = replace(refused, build_s={"cold": None, "warm": None})
    text = printed_at(80, report(record(), record("onnxruntime", (0.5e-3, 0.6e-3, 1.1398e-3)), refused))
    rows = [line.split() for line in text.splitlines()]
    assert {"onnxruntime", "eager[graph]"} <= {words[0] for words in rows if words}
    assert ["eager[graph]", *"-------", "unsupported"] in rows  # no build is one dash, as all else
    assert "1139.8]" in text
    assert f"  eager[graph] decode b1 c128: unsupported: {refused.reason}\n" in text


CEILINGS = {"bandwidth_bytes_per_s": {"median": 4.21e12}, "flops_per_s": {"median": 712e12}}


def test_head_has_the_ceilings_and_their_share_of_the_datasheet() -> None:
    gpu = {"name": "NVIDIA H200", "driver": "580.1", "power_limit_w": 700}
    text = printed(report(record("eager", gpu=gpu, device="cuda:0", dtype="bfloat16", ceilings=CEILINGS)))
    assert "NVIDIA H200, driver 580.1, power limit 700 W" in text
    assert "ceilings 4.21 TB/s (88 % of the datasheet), 712 TFLOP/s bfloat16 (72 %)" in text


def test_head_has_the_ceilings_alone_where_no_datasheet_is_known() -> None:
    ceilings = {"bandwidth_bytes_per_s": {"median": 20.3e9}, "flops_per_s": {"median": 85.2e9}}
    text = printed(report(record("eager", ceilings=ceilings)))
    assert "ceilings 20.3 GB/s, 85.2 GFLOP/s float32\n" in text
    assert "ceilings" not in printed(report(SLOW))
    half_known = record("eager", gpu={"name": "NVIDIA L4"}, device="cuda:0", ceilings=CEILINGS)
    assert "of the datasheet), 712 TFLOP/s float32\n" in printed(report(half_known))


def test_ceilings_of_rows_measured_at_different_times_are_one_line() -> None:
    gpu = {"name": "NVIDIA H200"}
    later = {"bandwidth_bytes_per_s": {"median": 4.08e12}, "flops_per_s": {"median": 712.3e12}}
    rows = [record("eager", gpu=gpu, dtype="bfloat16", ceilings=each) for each in (CEILINGS, later, {})]
    lines = [line for line in printed(report(*rows)).splitlines() if "ceilings" in line]
    assert lines == [
        "  ceilings 4.08 TB/s to 4.21 TB/s (85 % to 88 % of the datasheet), 712 TFLOP/s bfloat16 (72 %); "
        "rows were measured at different times"
    ]
    assert "different times" not in printed(report(rows[0], rows[0]))
    cut_short = replace(rows[1], status="wrong", reason="one layer skipped", time_s=None)
    assert "different times" not in printed(report(rows[0], cut_short))
    assert "ceilings 4.08 TB/s (85 %" in printed(report(cut_short))


def test_what_fits_stands_under_the_table_of_decode_rows() -> None:
    fits = {"tokens": 500_000, "context": 131_008, "batch": 459}
    fitting = report(record("eager", fits=fits), record("compile", fits={**fits, "batch": 460}), CRASHED)
    line = (
        "fits at most, batch x context, by the memory measured at this one: "
        "eager 1 x 131008 or 459 x 128, compile 1 x 131008"
    )
    assert line in printed(fitting)
    assert line in markdown(fitting)
    assert "fits" not in printed(report(SLOW, FAST))
    assert json.loads(as_json(fitting))[0]["fits"] == fits


def test_workloads_have_sections_of_their_own() -> None:
    result = report(SLOW, record("eager", context=256), FAST)
    assert [len(section) for section in result.sections()] == [2, 1]


def test_same_warning_of_several_rows_is_printed_once() -> None:
    rows = [record("eager", warnings=("too hot",)), record("compile", warnings=("too hot",))]
    assert notes(rows) == ["eager decode b1 c128, compile decode b1 c128: too hot"]


def test_rows_of_different_calls_are_said_to_be_so() -> None:
    assert notes([record("eager"), record("compile")]) == []
    (line,) = notes([record("eager"), record("compile", run="another")])
    assert "different calls" in line


def test_ratio_column_names_the_baseline() -> None:
    assert "vs eager" in printed(report(SLOW, FAST))
    assert "vs compile[mode=default]" in printed(report(FAST, CRASHED))


def test_csv_has_one_line_a_row_and_as_many_cells_as_names() -> None:
    rows = list(csv.reader(io.StringIO(as_csv(report(SLOW, FAST, CRASHED)))))
    assert len(rows) == 4
    assert {len(row) for row in rows} == {len(rows[0])}
    table = [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]
    assert float(table[1]["time_s"]) == 0.5
    assert table[2]["status"] == "crashed"
    assert table[2]["time_s"] == ""


def test_markdown_tables_are_well_formed() -> None:
    lines = [line for line in markdown(report(SLOW, FAST)).splitlines() if line.startswith("|")]
    assert {line.count("|") for line in lines} == {len(COLUMNS) + 1}
    assert len(lines) == 4


def test_kernels_are_shown_under_each_table_when_asked_for() -> None:
    row = record("compile", device="cuda:0", no_kernels="cupti-python is missing")
    plain = report(row)
    asked = Report(plain.records, plain.ratios, kernels=True)
    for write in (printed, markdown):
        assert "not traced" not in write(plain)
        assert "compile: not traced: cupti-python is missing" in write(asked)
