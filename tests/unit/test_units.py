"""Numbers as people read them."""

import pytest

from workbench import units


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.5, "1.50 s"),
        (0.0123, "12.3 ms"),
        (0.000456, "456 µs"),
        (3e-9, "3.00 ns"),
        (2e-10, "0.20 ns"),
        (0.99996, "1.00 s"),
        (9.996e-3, "10.0 ms"),
    ],
)
def test_seconds(value: float, text: str) -> None:
    assert units.seconds(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(1.6, "1.60"), (0.4, "0.40"), (0.004, "0.004"), (123456.0, "123,456"), (0.0, "0.00")]
)
def test_no_number_is_rounded_away(value: float, text: str) -> None:
    assert units.significant(value) == text


def test_interval_has_the_unit_of_its_middle_and_digits_enough_to_differ() -> None:
    assert units.interval(0.000998, 0.001002, 0.001) == "[0.998, 1.002]"
    assert units.interval(0.000995, 0.001002, 0.000999) == "[995.0, 1002.0]"
    assert units.interval(0.0121, 0.0126, 0.0123) == "[12.10, 12.60]"


@pytest.mark.parametrize(("value", "text"), [(512, "512 B"), (1536, "1.50 KiB"), (3 * 2**30, "3.00 GiB")])
def test_size(value: float, text: str) -> None:
    assert units.size(value) == text


@pytest.mark.parametrize(("share", "text"), [(0.844, "84 %"), (0.042, "4.2 %"), (1.0, "100 %")])
def test_percent(share: float, text: str) -> None:
    assert units.percent(share) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(9.4, "9 s"), (125, "2 min 05 s"), (119.9, "2 min 00 s"), (59.7, "1 min 00 s"), (11_230, "3 h 07 min")],
)
def test_duration(value: float, text: str) -> None:
    assert units.duration(value) == text
