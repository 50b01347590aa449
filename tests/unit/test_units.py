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
    ("value", "text"),
    [
        (123456.0, "123,456"),
        (99.96, "100"),
        (95.0, "95.0"),
        (9.996, "10.0"),
        (1.6, "1.60"),
        (0.15, "0.15"),
        (0.0996, "0.10"),
        (0.0994, "0.0994"),
        (0.004, "0.004"),
        (0.0, "0.00"),
    ],
)
def test_no_number_is_rounded_away(value: float, text: str) -> None:
    assert units.significant(value) == text


def test_interval_has_the_unit_of_its_middle_and_digits_enough_to_differ() -> None:
    assert units.interval(0.000998, 0.001002, 0.001) == "[0.998, 1.002]"
    assert units.interval(0.000995, 0.001002, 0.000999) == "[995.0, 1002.0]"
    assert units.interval(0.0121, 0.0126, 0.0123) == "[12.10, 12.60]"
    assert units.interval(0.0099, 0.0101, 0.01) == "[9.90, 10.10]"
    assert units.interval(0.0993, 0.0996, 0.0995) == "[99.30, 99.60]"


@pytest.mark.parametrize(
    ("value", "text"), [(512, "512 B"), (1536, "1.50 KiB"), (5 * 2**20, "5.00 MiB"), (3 * 2**30, "3.00 GiB")]
)
def test_size(value: float, text: str) -> None:
    assert units.size(value) == text


@pytest.mark.parametrize(
    ("share", "text"), [(0.844, "84 %"), (0.15, "15 %"), (0.1, "10 %"), (0.042, "4.2 %"), (1.0, "100 %")]
)
def test_percent(share: float, text: str) -> None:
    assert units.percent(share) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (9.4, "9 s"),
        (59.7, "1 min 00 s"),
        (119.9, "2 min 00 s"),
        (125, "2 min 05 s"),
        (7199, "119 min 59 s"),
        (7200, "2 h 00 min"),
        (11_230, "3 h 07 min"),
    ],
)
def test_duration(value: float, text: str) -> None:
    assert units.duration(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (4.213e12, "4.21 TB/s"),
        (5e9, "5.00 GB/s"),
        (1.5e6, "1.50 MB/s"),
        (1e6, "1.00 MB/s"),
        (999.0, "999 B/s"),
    ],
)
def test_rate(value: float, text: str) -> None:
    assert units.rate(value, "B") == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (720, "12 min"),
        (7199, "120 min"),
        (7200, "2 h"),
        (5.4 * 3600, "5 h"),
        (172_799, "48 h"),
        (172_800, "2 days"),
    ],
)
def test_age(value: float, text: str) -> None:
    assert units.age(value) == text
