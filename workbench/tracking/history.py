"""One row through time: its records in order, and the steps between levels of its time. Pure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from models.errors import UserError
from workbench.options import INSTALL_TRACK
from workbench.ratios import samples
from workbench.record import Record
from workbench.selection import identity
from workbench.store import slug
from workbench.tracking.changes import changes
from workbench.tracking.verdict import Verdict, judge, threshold


@dataclass(frozen=True)
class Wanted:
    """Which records to follow; None for all."""

    backend: str | None = None
    """With or without its options."""
    phase: str | None = None
    model: str | None = None
    batch: int | None = None
    prompt: int | None = None
    context: int | None = None
    dtype: str | None = None
    device: str | None = None
    """The device's folder under the results."""

    def holds(self, record: Record) -> bool:
        """Whether a record has a time and is one of those wanted."""
        return record.timed and all(value in facts_of(record, name) for name, value in self.asked())

    def asked(self) -> list[tuple[str, object]]:
        """List what is asked of a record: a name and the value it must have."""
        pairs = [(each.name, getattr(self, each.name)) for each in fields(self)]
        return [(name, value) for name, value in pairs if value is not None]

    def unmet(self, records: Sequence[Record]) -> str | None:
        """Name what no record meets by itself, with the values there are; None if it is the combination."""
        for name, value in self.asked():
            values = (facts_of(record, name)[-1] for record in records)
            there = {str(each) for each in values if each is not None}
            if records and not any(value in facts_of(record, name) for record in records):
                return f"none has --{name} {value}, but {', '.join(sorted(there)) or 'none at all'}"
        return None


def facts_of(record: Record, name: str) -> tuple[object, ...]:
    """Return the values that a record goes by under a name of `Wanted`, the fullest one last."""
    if name == "backend":
        return (record.backend, record.name)
    return (slug(str(record.gpu.get("name"))),) if name == "device" else (getattr(record, name),)


@dataclass(frozen=True)
class Step:
    """A row's time at a new level."""

    index: int
    """Of the first record at the new level."""
    verdict: Verdict
    """Of all processes at the new level against all at the one before."""
    changes: tuple[str, ...]
    """What is not the same about the records on either side."""


@dataclass(frozen=True)
class History:
    """One row's records, oldest first, and its steps."""

    records: tuple[Record, ...]
    steps: tuple[Step, ...]
    advice: str | None = None
    """What to do where the machine has no noise floor, so that steps cannot be told from noise."""


def group(records: Sequence[Record]) -> list[list[Record]]:
    """Put the records of each row together, oldest first."""
    rows: dict[str, list[Record]] = {}
    for record in sorted(records, key=lambda each: each.created):
        rows.setdefault(identity(record), []).append(record)
    return list(rows.values())


def find_steps(records: Sequence[Record], floor: float) -> list[Step]:
    """Find where a row's time changed its level, on a machine with this noise floor (a share of the time)."""
    medians = [record.time_s.median for record in records if record.time_s]
    ends = [0, *change_points(medians, threshold(floor)), len(records)]
    steps = []
    for start, middle, end in zip(ends, ends[1:], ends[2:], strict=False):
        before, after = (
            [process for record in level for process in samples(record)]
            for level in (records[start:middle], records[middle:end])
        )
        changed = tuple(changes(records[middle - 1], records[middle]))
        steps.append(Step(middle, judge(before, after, floor), changed))
    return steps


def change_points(times_s: Sequence[float], least_change: float) -> list[int]:
    """Return where new levels begin: least squares over the logarithms of times, a penalty for each level.

    The search is PELT (Killick, Fearnhead and Eckley, Optimal Detection of Changepoints, 2012), exact. The
    penalty is what a level of its own saves two records that differ by the least change, so that noise, of
    which that is a multiple, makes no level, and smaller steps must last to make one. Raises UserError.
    """
    if len(times_s) < 2:
        return []
    try:
        import ruptures
    except ImportError as error:
        raise UserError(f"ruptures is missing: {INSTALL_TRACK}") from error

    signal = np.log(np.asarray(times_s))
    search = ruptures.Pelt(model="l2", min_size=1, jump=1).fit(signal)
    ends = search.predict(pen=math.log1p(least_change) ** 2 / 2)
    return [int(end) for end in ends[:-1]]
