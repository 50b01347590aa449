"""An A/A run: rows measured in many processes of the very same code, for what chance alone makes of them."""

import json
from collections.abc import Sequence
from dataclasses import replace

from models.errors import UserError
from workbench import units
from workbench.compare import measure
from workbench.comparing.request import Request
from workbench.record import Record
from workbench.report import foldable, print_lines, row_title, short_title, stdout
from workbench.tracking.floors import calibration_folder, floor_of
from workbench.tracking.verdict import LEAST_CALIBRATION, MOST_THRESHOLD, NOISY, threshold


def calibrate(request: Request, as_json: bool) -> bool:
    """Measure rows in many processes, print their noise floors; returns whether every row has a time."""
    count = request.repeats if request.repeats is not None else LEAST_CALIBRATION
    if count < LEAST_CALIBRATION:
        raise UserError(f"--repeats {count}: an A/A run needs at least {LEAST_CALIBRATION} processes")
    apart = calibration_folder(request.results)
    records = measure(replace(request, results=apart, repeats=count))
    write(records, as_json)
    return all(record.timed for record in records)


def write(records: Sequence[Record], as_json: bool) -> None:
    """Print each row's noise floor and the least change that gets a verdict; both are shares of the time."""
    floors = [floor_of(record) if record.timed else None for record in records]
    if as_json:
        print(json.dumps([describe(*each) for each in zip(records, floors, strict=True)], indent=1))
        return
    console = stdout()
    table = foldable(("row", "processes", "noise floor", "least change"))
    for record, floor in zip(records, floors, strict=True):
        cells = ["-", "-"] if floor is None else [units.percent(floor), units.percent(threshold(floor))]
        table.add_row(row_title(record), str(len(record.processes)), *cells)
    console.print(table)
    for record, floor in zip(records, floors, strict=True):
        print_lines(console, (f"{row_title(record)}: {line}" for line in remarks(record, floor)))


def remarks(record: Record, floor: float | None) -> list[str]:
    """Say why a row has no time or is unstable, and whether the machine is too noisy."""
    reason = [f"{record.status}: {record.reason}"] if record.reason else []
    return reason + ([NOISY] if floor is not None and threshold(floor) > MOST_THRESHOLD else [])


def describe(record: Record, floor: float | None) -> dict[str, object]:
    """Return what a program is told of one row."""
    return {
        "backend": record.name,
        "row": short_title(record),
        "processes": len(record.processes),
        "status": record.status,
        "reason": record.reason,
        "noise_floor": floor,
        "threshold": None if floor is None else threshold(floor),
    }
