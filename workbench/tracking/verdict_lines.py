"""Verdicts as people and programs read them. Pure."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from rich.table import Table

from workbench import units
from workbench.ratios import fewest_processes
from workbench.record import Record, Time
from workbench.report import foldable, held_equal, notes, row_title, short_title
from workbench.tracking.changes import changes
from workbench.tracking.verdict import SLOWER, Verdict

COLUMNS = ("row", "before", "now", "ratio", "verdict", "least change")


@dataclass(frozen=True)
class Judged:
    """A row, the earlier one it is judged by, and what comes of it."""

    base: Record | None
    """None if the row could not be run here at all."""
    record: Record
    verdict: Verdict | None
    """None if the row has no time."""

    @property
    def regressed(self) -> bool:
        """Whether the row is slower than it was, or has no time."""
        return self.verdict is None or self.verdict.kind == SLOWER

    @property
    def times(self) -> tuple[Time | None, Time | None]:
        """The earlier time and the present one."""
        return self.base.time_s if self.base else None, self.record.time_s

    @property
    def interval(self) -> tuple[float | None, float | None]:
        """The ends of the ratio's interval; None where there is no ratio, or one process a side."""
        if self.base is None or self.verdict is None or fewest_processes(self.base, self.record) == 1:
            return None, None
        return self.verdict.ratio.low, self.verdict.ratio.high

    @property
    def changes(self) -> list[str]:
        """What else is not the same."""
        return changes(self.base, self.record) if self.base else []


def cells(judged: Judged) -> list[str]:
    """Write one row in the order of COLUMNS."""
    name = row_title(judged.record)
    before, now = map(time_cell, judged.times)
    if judged.verdict is None:
        return [name, before, now, "-", judged.record.status, "-"]
    found = judged.verdict
    return [name, before, now, ratio_text(judged), found.kind, units.percent(found.threshold)]


def time_cell(time: Time | None) -> str:
    """Write a time with its interval."""
    return f"{units.seconds(time.median)} {units.interval(time.low, time.high, time.median)}" if time else "-"


def ratio_text(judged: Judged) -> str:
    """Write how many times as fast a row is as it was, with the interval."""
    assert judged.verdict is not None
    low, high = judged.interval
    interval = "" if low is None else f" [{low:.3f}, {high:.3f}]"
    return f"{judged.verdict.ratio.value:.3f}x{interval}"


def sentence(judged: Judged) -> str:
    """Write one row's verdict as a line."""
    name = row_title(judged.record)
    if judged.verdict is None:
        return f"{name}: {judged.record.status}: {judged.record.reason}"
    found = judged.verdict
    return f"{name}: {found.kind}: {ratio_text(judged)}, least change {units.percent(found.threshold)}"


def remarks(rows: Sequence[Judged]) -> list[str]:
    """Say why verdicts are unclear, what else changed, and what there is to warn of."""
    found = [
        f"{row_title(each.record)}: unclear: {each.verdict.reason}"
        for each in rows
        if each.verdict and each.verdict.reason
    ]
    changed = dict.fromkeys(line for each in rows for line in each.changes)
    return found + [f"changed: {line}" for line in changed] + notes([each.record for each in rows])


def table(rows: Sequence[Judged], name: str) -> Table:
    """Lay the rows out, judged by what the user called `name`."""
    found = foldable(COLUMNS, f"against {name}")
    for each in rows:
        found.add_row(*cells(each))
    return found


def markdown(rows: Sequence[Judged], name: str) -> str:
    """Write the same as Markdown."""
    lines = [f"- {line}" for line in held_equal([each.record for each in rows])]
    lines += ["", f"**against {name}**", ""]
    lines += units.markdown_table(COLUMNS, map(cells, rows))
    return "\n".join([*lines, "", *(f"- {line}" for line in remarks(rows))])


def facts(judged: Judged) -> dict[str, object]:
    """Return one row's verdict as plain values; `ratio` is the earlier time over the later one."""
    verdict, (low, high) = judged.verdict, judged.interval
    times = dict(zip(("before", "now"), judged.times, strict=True))
    return {
        "backend": judged.record.name,
        "row": short_title(judged.record),
        "verdict": verdict.kind if verdict else None,
        "reason": verdict.reason if verdict else f"{judged.record.status}: {judged.record.reason}",
        "ratio": {"value": verdict.ratio.value, "low": low, "high": high} if verdict else None,
        "threshold": verdict.threshold if verdict else None,
        "changes": judged.changes,
        "runs": {"before": judged.base.run if judged.base else None, "now": judged.record.run},
        "time_s": {name: asdict(time) if time else None for name, time in times.items()},
    }


def as_json(rows: Sequence[Judged]) -> str:
    """Write the verdicts as one JSON list."""
    return json.dumps([facts(each) for each in rows], indent=1)


def as_csv(rows: Sequence[Judged]) -> str:
    """Write one line a row, with SI units in the column names."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        ["backend", "row", "verdict", "ratio", "ratio_low", "ratio_high", "threshold", "before_s", "now_s"]
    )
    for each in rows:
        times = [time.median if time else None for time in each.times]
        verdict = each.verdict
        numbers = [verdict.ratio.value, *each.interval, verdict.threshold] if verdict else [None] * 4
        kind = verdict.kind if verdict else each.record.status
        writer.writerow([each.record.name, short_title(each.record), kind, *numbers, *times])
    return out.getvalue().rstrip("\n")
