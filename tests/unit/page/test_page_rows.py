"""The rows of a page, their samples and their conditions."""

from dataclasses import replace

import numpy as np

from tests.unit.builders import record
from tests.unit.page.sections import sections_of
from workbench.page.conditions import HEADINGS, conditions_of
from workbench.page.samples import DRAWN, LEAST, row_samples, share_out, thin
from workbench.record import ProcessRun
from workbench.selection import select

H200 = {"name": "NVIDIA H200", "uuid": "GPU-a", "driver": "580.1", "power_limit_w": 700}


def test_each_row_has_a_number_and_each_backend_a_colour() -> None:
    sections = sections_of(record(), record("compile"), record(batch=8))
    rows = [row for section in sections for row in section.rows]
    assert [row.number for row in rows] == [0, 1, 2]
    colours = {row.record.name: row.colour for row in rows}
    assert len(set(colours.values())) == 2
    assert len(sections) == 2


def test_more_backends_than_colours_take_them_again() -> None:
    (section,) = sections_of(*(record(f"b{index}") for index in range(13)))
    assert len({row.colour for row in section.rows}) == 10


def test_row_is_filtered_by_what_it_was_measured_on() -> None:
    ((row,),) = (section.rows for section in sections_of(record(device="cuda:1", gpu=H200)))
    assert row.place == {
        "device": "NVIDIA H200, 700 W",
        "model": "tiny",
        "phase": "decode",
        "batch": "1",
        "dtype": "float32",
    }


def test_ratio_says_whether_it_is_real() -> None:
    close = record("close", (1.0, 1.2, 0.9, 1.1))
    rows = [record("eager", (1.0, 0.9, 1.1, 1.2)), close, record("fast", (0.5,)), record("slow", (3.0,))]
    (section,) = sections_of(*rows, record("none", status="oom"))
    said = {row.record.name: row.told_apart for row in section.rows}
    assert said == {"eager": "", "close": "same", "fast": "faster", "slow": "slower", "none": ""}


def test_cells_sort_by_numbers_and_missing_ones_have_none() -> None:
    (section,) = sections_of(record(limit_share=0.5), record("none", status="oom"))
    timed, untimed = (row.cells for row in section.rows)
    assert (timed["time"].text, timed["time"].value) == ("1.00 s", 1.0)
    assert (timed["limit"].text, timed["limit"].value) == ("50 %", 0.5)
    assert {name: cell.value for name, cell in untimed.items()} == dict.fromkeys(timed)


def test_few_samples_are_drawn_all_in_order() -> None:
    (section,) = sections_of(record(samples=(3.0, 1.0, 2.0)))
    assert share_out(section.rows) is None
    drawn = row_samples(section.rows[0], None)
    assert [run["samples"] for run in drawn["processes"]] == [[3.0, 1.0, 2.0]] * 2
    assert all("at" not in run for run in drawn["processes"])


def test_many_samples_are_thinned_but_every_spike_stays_and_statistics_are_of_all() -> None:
    generator = np.random.default_rng(0)
    samples = generator.normal(1.0, 0.01, DRAWN).tolist()
    samples[12_345] = 9.0
    (section,) = sections_of(record(processes=(ProcessRun(tuple(samples)), ProcessRun(tuple(samples)))))
    most = share_out(section.rows)
    assert most == DRAWN // 2
    (run, _) = row_samples(section.rows[0], most)["processes"]
    assert len(run["samples"]) <= most
    assert run["at"] == sorted(run["at"])
    assert run["samples"][run["at"].index(12_345)] == 9.0
    assert run["count"] == DRAWN
    assert run["quantiles"][0] == float(f"{min(samples):.5g}")
    assert run["quantiles"][20] == float(f"{np.median(samples):.5g}")


def test_each_process_keeps_some_samples_however_many_rows_there_are() -> None:
    row = record(samples=(1.0,) * 60)
    sections = sections_of(*(replace(row, batch=batch) for batch in range(1, 600)))
    assert share_out([row for section in sections for row in section.rows]) == LEAST


def test_thinning_keeps_the_least_and_the_greatest_of_each_stretch() -> None:
    assert thin([5.0, 1.0, 3.0, 2.0, 9.0, 4.0], 4) == [0, 1, 3, 4]
    assert thin([1.0, 2.0], 4) == [0, 1]


def test_clocks_come_with_the_samples_where_the_record_has_them() -> None:
    clocks = {
        "sm_mhz": {"low": 1, "median": 2, "high": 3, "halves": [2, 2]},
        "memory_mhz": None,
        "samples": 3,
    }
    run = ProcessRun((1.0, 1.0), (), clocks)
    (section,) = sections_of(record(processes=(run, ProcessRun((1.0,)))))
    seen, unseen = row_samples(section.rows[0], None)["processes"]
    assert seen["clocks"] == {"sm_mhz": clocks["sm_mhz"]}
    assert "clocks" not in unseen


def test_conditions_say_what_was_held_equal_and_what_differs() -> None:
    rows = [
        record(gpu=H200, device="cuda:0", versions={"torch": "2.11"}),
        record("xla", gpu=H200 | {"driver": "570.2"}, device="cuda:0", warnings=("too hot",)),
    ]
    (setting,) = select(rows)
    found = conditions_of(setting)
    assert found.differing == ["backend", "versions", "driver"]
    assert [line[0] for line in found.unlike] == ["eager", "xla"]
    assert all(len(line) == len(HEADINGS) for line in found.unlike)
    assert any("driver 580.1 and 570.2" in line for line in found.equal)
    assert any("too hot" in line for line in found.notes)
