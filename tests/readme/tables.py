"""The README's tables of results, and what the records here make of the same rows."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

from tests.cli.conftest import ROOT
from tests.readme.document import TEXT
from workbench import units
from workbench.ratios import find_ratios
from workbench.record import UNSTABLE, Record, from_json
from workbench.report import cells, title
from workbench.winner import name_winner

TABLE = re.compile(r"^\*\*(.+)\*\*\n\n\|.*\n\|[-|]+\n((?:\|.*\n)+)\n(.+)\n", re.MULTILINE)

SUMMARY = re.compile(r"^\| work \| (.+) \|\n\|[-|]+\n((?:\|.*\n)+)", re.MULTILINE)
"""A table of one line a workload, with a column for each backend."""


@dataclass(frozen=True)
class Shown:
    """A table as the README has it."""

    title: str
    rows: tuple[str, ...]
    winner: str
    """The line beneath it, which may go on after what the report says."""


def shown() -> list[Shown]:
    """Read every table of results."""
    return [Shown(name, tuple(rows.splitlines()), winner) for name, rows, winner in TABLE.findall(TEXT)]


def records() -> Iterator[Record]:
    """Read all records, the newest first."""
    for path in sorted((ROOT / "results").glob("*/*.jsonl")):
        yield from (from_json(json.loads(line)) for line in reversed(path.read_text().splitlines()))


def written(record: Record) -> tuple[str, str, str]:
    """Tell a row by its title, name, and time, whatever it is compared with."""
    found = [" ".join(cell).strip() for cell in cells(record, None)]
    return title(record), found[0], found[1]


def report(table: Shown, kept: list[Record]) -> tuple[list[str], str]:
    """Return the rows and the winner as the report would write them for the records that a table shows."""
    chosen = []
    for row in table.rows:
        name, time = (cell.strip() for cell in row.split("|")[1:3])
        found = [record for record in kept if written(record) == (table.title, name, time)]
        assert found, f"no record for {table.title}: {row}"
        chosen.append(found[0])
    pairs = zip(chosen, find_ratios(chosen, None), strict=True)
    lines = [" | ".join(" ".join(cell).strip() for cell in cells(*pair)) for pair in pairs]
    return [f"| {line} |" for line in lines], name_winner(chosen)


def summaries() -> Iterator[tuple[str, str, str]]:
    """Read the tables of one line a workload: title, as far as it is written, backend, and its cell."""
    for header, lines in SUMMARY.findall(TEXT):
        names = header.split(" | ")
        for line in lines.splitlines():
            work, *found = line.strip("| ").split(" | ")
            yield from ((work, name, cell) for name, cell in zip(names, found, strict=True) if cell != "-")


def summary(record: Record) -> str:
    """Write a record as such a table has it: time, share of the limit, and a star if it is unstable."""
    assert record.time_s is not None and record.limit_share is not None
    star = "*" if record.status == UNSTABLE else ""
    return f"{units.seconds(record.time_s.median)} {units.percent(record.limit_share)}{star}"
