"""Times of each workload with their intervals, and who wins."""

from collections.abc import Sequence

from workbench import units
from workbench.job import Json
from workbench.page.cards import Card, time_text
from workbench.page.rows import Row, Section, device_name
from workbench.report import room, title
from workbench.winner import name_winner

COLUMNS = {"backend": "backend", "time_text": "time, 95 % interval", "limit_text": "share of the limit"}

LABEL_ROOM = 1.35
"""How far the axis goes on beyond an interval, as a factor, for the label beside it."""


def time_cards(sections: Sequence[Section]) -> list[Card]:
    """Draw each workload's times; the rows without one are in the table and in the card's notes."""
    return [_card(section) for section in sections]


def _card(section: Section) -> Card:
    timed = [row for row in section.rows if row.record.timed]
    first = section.first
    untimed = [row.record for row in section.rows if not row.record.timed]
    said = ", ".join(f"{row.record.name} {time_text(row.record)}" for row in timed)
    return Card(
        chart="times",
        title=title(first),
        subtitle=f"{first.model}, {first.dtype}, {device_name(first)}",
        lead=name_winner([row.record for row in section.rows]),
        text=f"Times with 95 % intervals: {said}." if timed else "",
        rows=[_drawn(row) for row in timed],
        columns=COLUMNS,
        members=[row.number for row in section.rows],
        notes=[f"{each.name}: {each.status}" for each in untimed] + room(section.pairs) + section.mixed,
    )


def _drawn(row: Row) -> Json:
    record = row.record
    time = record.time_s
    assert time is not None
    share = record.limit_share
    return {
        "row": row.number,
        "colour": row.colour,
        "backend": record.name,
        "time": time.median,
        "low": time.low,
        "high": time.high,
        "room": time.high * LABEL_ROOM,
        "least": time.median * share if share is not None else None,
        "label": units.seconds(time.median),
        "time_text": time_text(record),
        "limit_text": units.percent(share) if share is not None else "-",
    }
