"""A card: one drawing with its title, its text alternative and its data table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from workbench import units
from workbench.job import Json
from workbench.record import Record


@dataclass(frozen=True)
class Card:
    """One drawing of a page."""

    chart: str
    """The name of its specification in `charts.CHARTS`."""
    title: str
    subtitle: str
    """Where it was measured."""
    text: str
    """What the drawing says, for those who do not see it."""
    rows: Sequence[Json]
    """What is drawn, in SI units, with the texts of the data table; `row` is the number of the page's row."""
    columns: Mapping[str, str]
    """Headings of the data table and the tooltip by the name of the texts in `rows`."""
    members: Sequence[int] = ()
    """Numbers of the rows it is about, if more than are drawn: with none of them left it is hidden."""
    lead: str = ""
    """The answer, in words, above the drawing."""
    more: Mapping[str, Sequence[Json]] = field(default_factory=dict)
    """Further data that the drawing names; what has no `row` is drawn whatever is filtered."""
    notes: Sequence[str] = ()
    """What stands under the drawing."""
    listing: Sequence[str] = ()
    """Lines of fixed width that the data table is followed by."""

    def as_json(self) -> Json:
        """Return what the page's script needs to draw it, numbers with the digits one can see."""
        data = {"rows": self.rows, **self.more}
        return {
            "chart": self.chart,
            "columns": dict(self.columns),
            "members": sorted({*self.members, *(row["row"] for row in self.rows)}),
            "data": {name: [_shorten(row) for row in rows] for name, rows in data.items()},
        }


def _shorten(row: Json) -> Json:
    return {
        name: rounded(value) if isinstance(value, float) else value
        for name, value in row.items()
        if value is not None
    }


def rounded(value: float) -> float:
    """Keep the five digits of a number that a drawing can show."""
    return float(f"{value:.5g}")


def time_text(record: Record) -> str:
    """Write a timed record's time with its interval."""
    time = record.time_s
    assert time is not None
    return f"{units.seconds(time.median)} {units.interval(time.low, time.high, time.median)}"
