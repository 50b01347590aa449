"""Comparisons: like with like only, and what the interval says."""

import pytest

from models.errors import UserError
from tests.unit.builders import record
from workbench.ratios import Ratio, compare_rows, difference, find_ratios


def test_twice_as_fast_is_a_ratio_of_two() -> None:
    ratio = compare_rows(record(samples=(2.0, 2.1, 1.9)), record("compile", samples=(1.0, 1.05, 0.95)))
    assert ratio.median == pytest.approx(2.0)
    assert ratio.low < 2.0 < ratio.high
    assert ratio.real


def test_overlapping_times_are_not_told_apart() -> None:
    ratio = compare_rows(
        record(samples=(1.0, 1.3, 0.8, 1.1)), record("compile", samples=(1.1, 0.9, 1.2, 1.0))
    )
    assert ratio.low < 1.0 < ratio.high
    assert not ratio.real


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model", "other"),
        ("weights", "xyz"),
        ("phase", "prefill"),
        ("batch", 8),
        ("context", 256),
        ("steps", 64),
        ("dtype", "bfloat16"),
        ("clock", "slope"),
        ("protocol", {"gate": 2, "processes": 2}),
        ("gpu", {"name": "Another CPU", "threads": 2}),
        ("device", "cuda:0"),
    ],
)
def test_unlike_rows_are_refused_by_what_differs(field: str, value: object) -> None:
    other = record("compile", **{field: value})
    assert difference(record(), other) is not None
    with pytest.raises(UserError, match="cannot be compared") as caught:
        compare_rows(record(), other)
    assert (field if field != "gpu" else "Another CPU") in str(caught.value)


def test_a_refusal_names_what_differs_and_nothing_else() -> None:
    one, other = ({"gate": gate, "budget_s": 5.0} for gate in (1, 2))
    assert difference(record(protocol=one), record(protocol=other)) == "protocol: gate (1 and 2)"
    one, other = ({"name": "Test CPU", "threads": threads} for threads in (2, 8))
    assert difference(record(gpu=one), record(gpu=other)) == "device: threads (2 and 8)"


@pytest.mark.parametrize(
    ("low", "high", "processes", "real"),
    [
        (1.01, 1.2, 3, True),
        (1.0, 1.2, 3, False),
        (0.8, 0.99, 3, True),
        (0.8, 1.0, 3, False),
        (1.1, 1.2, 1, False),
    ],
)
def test_rows_are_told_apart_by_an_interval_without_one(
    low: float, high: float, processes: int, real: bool
) -> None:
    assert Ratio("eager", 1.1, low, high, processes).real is real


def test_number_of_threads_must_match() -> None:
    with pytest.raises(UserError, match="threads"):
        compare_rows(record(), record("compile", gpu={"name": "Test CPU", "threads": 8}))


def test_baseline_is_eager_wherever_it_stands() -> None:
    ratios = find_ratios([record("compile"), record("eager")], None)
    assert [ratio.to if ratio else None for ratio in ratios] == ["eager", "eager"]


def test_a_baseline_is_as_fast_as_itself_however_noisy() -> None:
    noisy = record(samples=(1.0, 3.0, 0.5, 9.0))
    assert find_ratios([noisy], None) == [Ratio("eager", 1.0, 1.0, 1.0, processes=2)]


def test_baseline_falls_to_the_first_ok_row() -> None:
    rows = [record("a", status="unstable"), record("b"), record("c")]
    ratios = find_ratios(rows, None)
    assert [ratio.to if ratio else None for ratio in ratios] == ["b", "b", "b"]


def test_baseline_falls_to_the_first_with_a_time_where_none_is_ok() -> None:
    rows = [record("a", status="crashed"), record("b", status="unstable"), record("c", status="unstable")]
    assert [ratio and ratio.to for ratio in find_ratios(rows, None)] == [None, "b", "b"]


def test_named_baseline_without_a_time_leaves_no_ratio() -> None:
    assert find_ratios([record("a", status="wrong"), record("eager")], "a") == [None, None]


def test_each_workload_has_its_own_baseline() -> None:
    rows = [record("eager"), record("compile", context=256), record("eager", context=256)]
    ratios = find_ratios(rows, None)
    assert all(ratio is not None and ratio.median == 1.0 for ratio in ratios)
