"""How many tokens pay back a build that takes longer than the baseline's.

With builds b and times a token t, of a backend and of the baseline 0: b + n t = b0 + n t0, so that
n = (b - b0) / (t0 - t). Its interval is that of the time saved; a build is measured once and has none.
Loading counts as build: some runtimes make of a program what they run only then.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from workbench import units
from workbench.job import Json
from workbench.page.cards import Card
from workbench.page.rows import Row, Section, device_name
from workbench.ratios import fewest_processes, samples
from workbench.record import Record
from workbench.report import title
from workbench.statistics import Interval, saving_interval

COLUMNS = {
    "backend": "backend",
    "cold_text": "cold build and load",
    "cold_even": "paid back after tokens",
    "warm_text": "warm build and load",
    "warm_even": "warm, after tokens",
}
NEVER = "never"
POINTS = 17
"""Where a line is drawn through."""
BEYOND = 10.0
SPAN = 1e5
"""How far lines go beyond the last break-even, and how much before that they begin, as factors of tokens."""
DEFAULT_REACH = 1e5
"""Tokens that stand for the last break-even where there is none."""


@dataclass(frozen=True)
class BreakEven:
    """Tokens after which a backend has paid back its build, infinite for never, with the 95 % interval."""

    tokens: float
    low: float
    high: float
    until: float = math.inf
    """Tokens after which a backend that is built sooner but runs slower has cost more."""

    def __str__(self) -> str:
        """Write it as people read it."""
        if math.isfinite(self.until):
            return f"at once, until {_count(self.until)}"
        if math.isinf(self.low):
            return NEVER
        if self.high == 0:
            return "at once"
        middle, low, high = (_count(value) for value in (self.tokens, self.low, self.high))
        return middle if low == high else f"{middle} [{low}, {high}]"


def break_even(more_build_s: float, saved_s: Interval, tokens: int) -> BreakEven:
    """Find after how many tokens `more_build_s` is paid back by `saved_s` in each call of `tokens` tokens."""

    def after(saved: float) -> float:
        return math.inf if saved <= 0 else math.ceil(max(more_build_s, 0.0) * tokens / saved)

    if more_build_s < 0:
        slower = saved_s.value < 0
        return BreakEven(0, 0, 0, math.ceil(more_build_s * tokens / saved_s.value) if slower else math.inf)
    return BreakEven(after(saved_s.value), after(saved_s.high), after(saved_s.low))


def break_even_cards(sections: Sequence[Section], advance: Callable[[], None] = lambda: None) -> list[Card]:
    """Draw the cost over tokens of each workload that has a baseline and a build to compare.

    `advance` is called once a workload.
    """
    cards = []
    for section in sections:
        rows = [
            row for row in section.rows if row.record.timed and seconds_to(row.record, "cold") is not None
        ]
        base = next((row for row in rows if row.is_baseline), None)
        if base is not None and len(rows) > 1:
            cards.append(_card(section, base, rows))
        advance()
    return cards


def seconds_to(record: Record, kind: str) -> float | None:
    """Return the seconds of a `cold` or `warm` build and of loading; None where none was measured."""
    value = record.build_s.get(kind)
    return None if value is None else float(value) + (record.load_s or 0.0)


def _card(section: Section, base: Row, rows: Sequence[Row]) -> Card:
    drawn = [_drawn(row, base) for row in rows]
    said = ", ".join(f"{each['backend']} {each['cold_even']}" for each in drawn)
    reached = [each[name] for each in drawn for name in ("even", "high") if each.get(name)]
    furthest = BEYOND * max(reached, default=DEFAULT_REACH)
    lines = [point for row in rows for point in _line(row, furthest)]
    ahead = [row.record.name for row in section.rows if "cached" in row.record.build_s]
    left_out = f" Built ahead, so not compared here: {', '.join(ahead)}." if ahead else ""
    first = section.first
    return Card(
        chart="break_even",
        title=title(first),
        subtitle=f"{first.model}, {first.dtype}, {device_name(first)}",
        text=f"Build and run time over tokens. Tokens that pay back a build over {base.record.name}: {said}."
        + left_out,
        rows=drawn,
        columns=COLUMNS,
        more={"lines": lines},
        notes=section.mixed,
    )


def _drawn(row: Row, base: Row) -> Json:
    record = row.record
    found: Json = {"row": row.number, "colour": row.colour, "backend": record.name}
    saved = None if row is base else saving(base.record, record)
    for kind in ("cold", "warm"):
        build, base_build = seconds_to(record, kind), seconds_to(base.record, kind)
        found[f"{kind}_text"] = "-" if build is None else units.seconds(build)
        if saved is None:
            found[f"{kind}_even"] = "baseline"
        elif build is None or base_build is None:
            found[f"{kind}_even"] = "-"
        else:
            even = break_even(build - base_build, saved, record.tokens_a_call)
            found[f"{kind}_even"] = str(even)
            if kind == "cold":
                found |= _mark(even, record)
    return found


def saving(base: Record, other: Record) -> Interval:
    """Estimate the seconds that a row saves in each call; of one process a side it has no interval."""
    saved = saving_interval(samples(base), samples(other))
    alone = fewest_processes(base, other) == 1
    return Interval(saved.value, saved.value, saved.value) if alone else saved


def _mark(even: BreakEven, record: Record) -> Json:
    """Return where the drawing marks a break-even: nowhere if it is never reached or is there at once."""
    if not even.tokens or math.isinf(even.tokens):
        return {}
    return {
        "even": even.tokens,
        "low": max(even.low, 1),
        "high": None if math.isinf(even.high) else even.high,
        "spent": _spent(record, even.tokens),
    }


def _line(row: Row, furthest: float) -> list[Json]:
    return [
        {"row": row.number, "tokens": tokens, "spent": _spent(row.record, tokens)}
        for tokens in np.geomspace(max(1, furthest / SPAN), furthest, POINTS).tolist()
    ]


def _spent(record: Record, tokens: float) -> float:
    """Return the seconds that a cold build, loading and so many tokens take."""
    time, build = record.time_s, seconds_to(record, "cold")
    assert time is not None
    assert build is not None
    return build + tokens / record.tokens_a_call * time.median


def _count(value: float) -> str:
    """Write a number of tokens with three significant digits."""
    return NEVER if math.isinf(value) else f"{float(f'{value:.3g}'):,.0f}"
