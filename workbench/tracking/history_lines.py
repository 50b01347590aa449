"""Histories as people and programs read them."""

import json
from collections.abc import Sequence
from dataclasses import asdict

from rich.console import Console

from workbench import units
from workbench.record import Record
from workbench.report import foldable, short_title, stdout
from workbench.statistics import Interval
from workbench.tracking.history import History, Step
from workbench.tracking.verdict import SAME, UNCLEAR, Verdict

COLUMNS = ("finished", "run", "code", "processes", "time", "step")


def write(rows: Sequence[History], as_json: bool) -> None:
    """Print rows with their steps to stdout, then what is needed to find those that are unknown."""
    named = list(zip(titles(rows), rows, strict=True))
    if as_json:
        print(json.dumps([facts(name, row) for name, row in named], indent=1))
        return
    console = stdout()
    for name, row in named:
        print_row(name, row, console)
    for line in dict.fromkeys(row.advice for row in rows if row.advice):
        console.print(line, soft_wrap=True)


def titles(rows: Sequence[History]) -> list[str]:
    """Name each row; those of two models of one name, as two folders may be called, by weights too."""
    records = [row.records[0] for row in rows]
    weights: dict[str, set[str]] = {}
    for record in records:
        weights.setdefault(title(record), set()).add(record.weights)
    return [
        f"{name}, weights {record.weights[:8]}" if len(weights[name]) > 1 else name
        for record, name in zip(records, map(title, records), strict=True)
    ]


def print_row(name: str, history: History, console: Console) -> None:
    """Print the records of one row, and under them its steps."""
    records, steps = history.records, history.steps
    table = foldable(COLUMNS, name, whole=("run",))  # which `--against` takes
    at = {step.index: step for step in steps}
    for index, record in enumerate(records):
        table.add_row(*cells(record), change_text(at[index].verdict) if index in at else "")
    console.print(table)
    for step in steps:
        console.print(f"  {step_line(records[step.index], step)}")
    if history.advice:
        console.print(f"  no noise floor, so any step in {len(records)} records is unknown")
    elif not steps:
        console.print(f"  no step in {len(records)} record{'s' * (len(records) > 1)}")


def title(record: Record) -> str:
    """Name a row and where it runs: rows of untuned engines are apart."""
    name = f"{record.name} untuned" if record.untuned else record.name
    return f"{name} {short_title(record)}, {record.model} {record.dtype}, {record.gpu.get('name')}"


def cells(record: Record) -> list[str]:
    """Write one record in the order of COLUMNS, less the step."""
    time = record.time_s
    assert time is not None
    spread = units.interval(time.low, time.high, time.median)
    created = record.created[:16].replace("T", " ")
    count = str(len(record.processes))
    return [created, record.run, record.workbench, count, f"{units.seconds(time.median)} {spread}"]


def step_line(record: Record, step: Step) -> str:
    """Write one step: `2026-03-01 torch 2.11 -> 2.13: -3.1 % [-3.7, -2.6]`."""
    changed = ", ".join(step.changes) or "nothing that a record knows of changed"
    reason = f": {step.verdict.reason}" if step.verdict.reason else ""
    doubt = f" ({step.verdict.kind}{reason})" if step.verdict.kind in (SAME, UNCLEAR) else ""
    return f"{record.created[:10]} {changed}: {change_text(step.verdict)}{doubt}"


def change_text(verdict: Verdict) -> str:
    """Write by how much the time changed, with its interval."""
    change = change_of(verdict)
    value, low, high = (100 * each for each in (change.value, change.low, change.high))
    return f"{value:+.1f} % [{low:+.1f}, {high:+.1f}]"


def change_of(verdict: Verdict) -> Interval:
    """Turn the ratio of a verdict into the change of the time, a share of it: below 0 is faster."""
    ratio = verdict.ratio
    return Interval(1 / ratio.value - 1, 1 / ratio.high - 1, 1 / ratio.low - 1)


def facts(name: str, history: History) -> dict[str, object]:
    """Return one row's history as plain values."""
    records = history.records
    names = ("run", "created", "workbench", "versions")
    return {
        "row": name,
        "untuned": records[0].untuned,
        "records": [
            {name: getattr(record, name) for name in names}
            | {"time_s": asdict(record.time_s) if record.time_s else None, "processes": len(record.processes)}
            for record in records
        ],
        "steps": [
            {
                "run": records[step.index].run,
                "change": asdict(change_of(step.verdict)),
                "verdict": step.verdict.kind,
                "reason": step.verdict.reason,
                "changes": step.changes,
            }
            for step in history.steps
        ],
        "advice": history.advice,
    }
