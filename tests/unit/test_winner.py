"""Who wins a workload: never one whom a noisier rival may beat, nor by what two processes show by chance."""

from typing import Any

import pytest

from tests.unit.builders import record
from workbench.ratios import Ratio
from workbench.record import ProcessRun, Record
from workbench.report import ratio_cell
from workbench.statistics import summarise
from workbench.winner import name_winner, spread

CRASHED = record("iree", status="crashed")


def row(backend: str, *medians: float, **changes: Any) -> Record:
    """Return a row with one process for each median, its samples all but equal."""
    processes = [tuple(median * (1 + step / 1000) for step in (-1, 0, 1)) for median in medians]
    runs = tuple(ProcessRun(samples) for samples in processes)
    return record(backend, **({"processes": runs, "time_s": summarise(processes)} | changes))


def test_the_winner_is_named_with_the_lead_over_the_next() -> None:
    rows = [row("eager", 2.0, 2.0), row("compile", 1.0, 1.0), CRASHED, row("xla", 4.0, 4.0)]
    said = name_winner(rows)
    assert said.startswith("compile is fastest: 2.00x [")
    assert said.endswith("the speed of eager")


def test_a_lead_is_written_as_in_the_table() -> None:
    ratio = Ratio("a", 200.0, 0.0012, 7783852517.6, processes=2)
    assert spread(ratio) == " ".join(ratio_cell(ratio)) == "200x [0.0012, 7,783,852,518]"


def test_a_noisy_rival_behind_the_next_one_is_not_beaten() -> None:
    best, steady, noisy = row("a", *[1.0, 1.01] * 5), row("b", *[1.1, 1.11] * 5), row("c", *[0.9, 1.5] * 5)
    assert name_winner([best, steady]).startswith("a is fastest")
    said = name_winner([best, steady, noisy])
    assert said.startswith("a and c cannot be told apart (1.19x [0.89, ")
    assert "--repeats" not in said  # more would not tell


def test_all_who_may_be_fastest_are_named() -> None:
    rows = [row("a", *[1.0, 1.2] * 3), row("b", *[1.01, 1.21] * 3), row("c", *[1.02, 1.22] * 3)]
    assert name_winner(rows) == "a, b and c cannot be told apart"


def test_two_processes_that_differ_show_little() -> None:
    assert name_winner([row("a", 1.0, 1.0), row("b", 1.05, 1.05)]).startswith("a is fastest")
    said = name_winner([row("a", 1.0, 1.02), row("b", 1.05, 1.07)])
    assert said.startswith("a and b cannot be told apart")
    assert said.endswith("more processes may tell, --repeats 5 for instance")


@pytest.mark.parametrize(("repeats", "fewest", "more"), [(5, 5, False), (4, 4, True), (5, 4, True)])
def test_more_processes_are_advised_where_a_rival_has_few(repeats: int, fewest: int, more: bool) -> None:
    medians = [1.0, 1.2, 1.1, 1.3, 0.9]
    rows = [row("a", *medians[:repeats]), row("b", *medians[:repeats]), row("c", *medians[:fewest])]
    assert ("--repeats 5" in name_winner(rows)) is more


def test_one_process_shows_nothing_of_others() -> None:
    said = name_winner([row("b", 2.0), row("a", 1.0), row("c", 3.0)])
    assert said.startswith("a took least, but one process cannot tell rows apart; more processes may tell")
    assert "a, c and b cannot" in name_winner([row("a", 1.0, 1.1), row("b", 2.0), row("c", 1.0, 1.2)])


@pytest.mark.parametrize(
    ("rows", "said"),
    [([], "no row has a time"), ([CRASHED], "no row has a time"), ([row("a", 1.0)], "only a has a time")],
)
def test_without_rivals_there_is_no_winner(rows: list[Record], said: str) -> None:
    assert name_winner([*rows, CRASHED]) == said
