"""Numbers as people read them, and tables of them in Markdown."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

TIME_UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))
RATE_PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"))
BYTE_UNITS = ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))


def moment() -> str:
    """Write the time of day, in UTC and by ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def seconds(value: float) -> str:
    """Write a time with three or more significant digits: `12.3 ms`."""
    size, unit = time_unit(value)
    return f"{significant(value / size)} {unit}"


def interval(low: float, high: float, middle: float) -> str:
    """Write the ends of a time's interval in the unit that `seconds` gives the time: `[12.11, 12.60]`."""
    size, _ = time_unit(middle)
    scaled = middle / size
    digits = 1 if scaled >= 100 else 2 if scaled >= 10 else 3
    return f"[{low / size:.{digits}f}, {high / size:.{digits}f}]"


def time_unit(value: float) -> tuple[float, str]:
    """Choose the largest unit that leaves a whole part, as printed."""
    return next((pair for pair in TIME_UNITS if value >= 0.9995 * pair[0]), TIME_UNITS[-1])


def significant(value: float) -> str:
    """Write three significant digits, and never fewer digits than the whole part has."""
    if value >= 99.95:
        return f"{value:,.0f}"
    if value >= 9.995:
        return f"{value:.1f}"
    return f"{value:.2f}" if value >= 0.0995 or value == 0 else f"{value:.3g}"


def size(value: float) -> str:
    """Write a number of bytes: `1.25 GiB`."""
    for unit_size, unit in BYTE_UNITS:
        if value >= unit_size:
            return f"{significant(value / unit_size)} {unit}"
    return f"{value:.0f} B"


def percent(share: float) -> str:
    """Write a share: `84 %`."""
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.1f} %"


def rate(value: float, unit: str) -> str:
    """Write an amount a second, in powers of 1000: `4.21 TB/s`."""
    size, prefix = next((pair for pair in RATE_PREFIXES if value >= pair[0]), (1.0, ""))
    return f"{significant(value / size)} {prefix}{unit}/s"


def age(value: float) -> str:
    """Write how long something has been there: `3 days`, `5 h`, `12 min`."""
    if value >= 2 * 86400:
        return f"{value / 86400:.0f} days"
    return f"{value / 3600:.0f} h" if value >= 2 * 3600 else f"{value / 60:.0f} min"


def duration(value: float) -> str:
    """Write a coarse time: `2 min 05 s`, `3 h 07 min`."""
    minutes, rest = divmod(round(value), 60)
    if minutes >= 120:
        return f"{minutes // 60:,} h {minutes % 60:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Write a table as lines of Markdown."""
    lines = ["| " + " | ".join(cells) + " |" for cells in (headings, *rows)]
    return [lines[0], "|" + "---|" * len(headings), *lines[1:]]
