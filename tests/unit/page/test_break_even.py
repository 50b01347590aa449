"""When a build has paid for itself, and that "never" is said where it never has."""

import math

import pytest

from tests.unit.builders import record
from tests.unit.page.sections import sections_of
from workbench.page.break_even import break_even, break_even_cards
from workbench.statistics import Interval, saving_interval


def test_tokens_are_the_longer_build_over_the_time_saved_a_token() -> None:
    found = break_even(10.0, Interval(0.5, 0.4, 0.8), tokens=4)
    assert (found.tokens, found.low, found.high) == (80, 50, 100)
    assert str(found) == "80 [50, 100]"


@pytest.mark.parametrize(
    ("more_build_s", "saved", "text"),
    [
        (10.0, Interval(-0.5, -0.6, -0.4), "never"),
        (-10.0, Interval(-0.5, -0.6, -0.4), "at once, until 20"),
        (10.0, Interval(0.0, 0.0, 0.0), "never"),
        (10.0, Interval(0.5, -0.1, 1.0), "20 [10, never]"),
        (10.0, Interval(-0.1, -0.5, 1.0), "never [10, never]"),
        (-10.0, Interval(0.5, 0.4, 0.6), "at once"),
        (0.0, Interval(0.5, 0.4, 0.6), "at once"),
        (-10.0, Interval(0.5, -0.1, 0.6), "at once"),
        (-1.0, Interval(-1e-3, -2e-3, 1e-3), "at once, until 1,000"),
        (1.0, Interval(3e-7, 2e-7, 4e-7), "3,330,000 [2,500,000, 5,000,000]"),
    ],
)
def test_break_even_is_never_where_a_backend_is_not_faster(
    more_build_s: float, saved: Interval, text: str
) -> None:
    assert str(break_even(more_build_s, saved, tokens=1)) == text


def test_saving_is_the_difference_of_medians_with_its_interval() -> None:
    found = saving_interval([(2.0, 2.1, 1.9)] * 2, [(0.5, 0.5, 0.5)] * 2)
    assert found.value == pytest.approx(1.5)
    assert 1.4 <= found.low < found.value < found.high <= 1.6
    assert saving_interval([(1.0,)], [(3.0,)]).value == -2.0


def test_card_compares_each_build_with_the_baseline_cold_and_warm() -> None:
    rows = [
        record("eager", (1.0, 1.0), build_s={"cold": 2.0, "warm": 1.0}),
        record("compile", (0.5, 0.5), build_s={"cold": 12.0, "warm": 3.0}),
        record("slow", (2.0, 2.0), build_s={"cold": 50.0, "warm": None}),
    ]
    (card,) = break_even_cards(sections_of(*rows))
    said = {row["backend"]: (row["cold_even"], row["warm_even"]) for row in card.rows}
    assert said == {
        "eager": ("baseline", "baseline"),
        "compile": ("20", "4"),
        "slow": ("never", "-"),
    }
    marked = {row["backend"]: row.get("even") for row in card.rows}
    assert marked == {"eager": None, "compile": 20, "slow": None}
    meeting = next(row["spent"] for row in card.rows if row["backend"] == "compile")
    assert meeting == pytest.approx(2.0 + 20 * 1.0)
    assert all(math.isfinite(point["spent"]) for point in card.more["lines"])


def test_tokens_of_a_call_are_those_of_all_sequences() -> None:
    work = {"phase": "prefill", "prompt": 64, "context": None, "steps": None, "batch": 4}
    rows = [
        record("eager", (1.0, 1.0), build_s={"cold": 0.0}, **work),
        record("compile", (0.5, 0.5), build_s={"cold": 1.0}, **work),
    ]
    (card,) = break_even_cards(sections_of(*rows))
    assert {row["cold_even"] for row in card.rows} == {"baseline", "512"}


def test_workload_without_a_second_build_or_a_baseline_has_no_card() -> None:
    build = {"cold": 1.0, "warm": None}
    assert break_even_cards(sections_of(record(build_s=build))) == []
    assert break_even_cards(sections_of(record(), record("compile", build_s=build))) == []
    assert break_even_cards(sections_of(record(build_s=build), record("compile", status="oom"))) == []
