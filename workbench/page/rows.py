"""The rows of a page: each has a number, a place to be filtered by, and its cells in the comparison table."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle

from workbench.page.charts import BACKENDS
from workbench.ratios import Ratio, workload_of
from workbench.record import Record
from workbench.report import MIXED, cells, of_several_calls, short_title
from workbench.selection import Setting

FILTERS = ("device", "model", "phase", "batch", "dtype")


@dataclass(frozen=True)
class Row:
    """One record as the page shows it."""

    number: int
    """By which drawings and filters name it."""
    record: Record
    ratio: Ratio | None
    older: int
    colour: str
    """A colour of the style sheet: one for each backend."""

    @property
    def place(self) -> dict[str, str]:
        """What the row is filtered by."""
        record = self.record
        return {
            "device": device_name(record),
            "model": record.model,
            "phase": record.phase,
            "batch": str(record.batch),
            "dtype": record.dtype,
        }

    @property
    def length(self) -> str:
        """Tokens of a prompt, or positions before a decode."""
        record = self.record
        return f"{record.prompt} tokens" if record.phase == "prefill" else f"context {record.context}"

    @property
    def title(self) -> str:
        """The row in one line."""
        record = self.record
        return f"{record.name}, {short_title(record)}, {record.model} {record.dtype}, {device_name(record)}"

    @property
    def told_apart(self) -> str:
        """Whether its ratio is real: `faster`, `slower`, `same` where it cannot be told, or nothing."""
        if self.ratio is None or self.is_baseline:
            return ""
        return ("faster" if self.ratio.median > 1 else "slower") if self.ratio.real else "same"

    @property
    def is_baseline(self) -> bool:
        """Whether the others of its workload are compared with it."""
        if self.ratio is None or self.ratio.to != self.record.name:
            return False  # an untuned row may have its name as well, but not a ratio of just 1
        return self.ratio.low == self.ratio.high == 1.0

    @property
    def cells(self) -> dict[str, "Cell"]:
        """What the numbers' columns show, by column."""
        record, time = self.record, self.record.time_s
        values = (
            time.median if time else None,
            self.ratio.median if self.ratio else None,
            record.tokens_per_s,
            record.limit_share,
            record.build_s.get("cold"),
            record.peak_bytes.get("total"),
            record.error_ratio,
        )
        texts = cells(record, self.ratio)[1:-1]
        return {
            name: Cell(text, below, value)
            for name, (text, below), value in zip(NUMBERS, texts, values, strict=True)
        }


NUMBERS = ("time", "ratio", "tokens/s", "limit", "build", "memory", "error")
"""The columns of `report.cells` between backend and status."""


@dataclass(frozen=True)
class Cell:
    """A number as it is read, and as it is sorted by."""

    text: str
    below: str
    value: float | None


@dataclass(frozen=True)
class Section:
    """The rows of one workload."""

    setting: Setting
    rows: tuple[Row, ...]

    @property
    def first(self) -> Record:
        """The record that speaks for what all share."""
        return self.rows[0].record

    @property
    def pairs(self) -> list[tuple[Record, Ratio | None]]:
        """The rows as `workbench.report` takes them."""
        return [(row.record, row.ratio) for row in self.rows]

    @property
    def mixed(self) -> list[str]:
        """A line of warning where timed rows of different calls are held against each other."""
        return [MIXED] if of_several_calls([row.record for row in self.rows]) else []


def number_rows(settings: Sequence[Setting]) -> list[Section]:
    """Give each row its number and each backend its colour, and cut the settings into workloads."""
    names = dict.fromkeys(record.name for setting in settings for record in setting.report.records)
    colours = dict(zip(names, cycle(BACKENDS), strict=False))  # names stand beside those that come again
    sections: list[Section] = []
    number = 0
    for setting in settings:
        older = iter(setting.older)
        for pairs in setting.report.sections():
            rows = tuple(
                Row(number + index, record, ratio, next(older), colours[record.name])
                for index, (record, ratio) in enumerate(pairs)
            )
            number += len(rows)
            sections.append(Section(setting, rows))
    return sections


def device_name(record: Record) -> str:
    """Name a kind of device as far as rows on others are not compared with it."""
    gpu = record.gpu
    details = [f"{gpu['threads']} threads"] if gpu.get("threads") else []
    details += [f"{gpu['power_limit_w']} W"] if gpu.get("power_limit_w") else []
    return ", ".join([str(gpu.get("name", "unknown device")), *details])


def family_of(record: Record) -> tuple[object, ...]:
    """Name what rows share that differ in batch alone."""
    phase, _, *lengths = workload_of(record)
    return (phase, *lengths)
