"""Find the rows to follow among all results, and their steps."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from models.errors import UserError
from workbench.progress import Progress
from workbench.record import Record
from workbench.store import Store
from workbench.tracking.earlier import describe
from workbench.tracking.floors import advise, calibration_folder, known_floor, lack
from workbench.tracking.history import History, Wanted, find_steps, group


def follow(wanted: Wanted, results: Path) -> list[History]:
    """Return the history of each row wanted; raises UserError if there is none."""
    warn = Progress(Console(stderr=True)).warn
    records = Store(results, warn).read_all()
    chosen = [record for record in records if wanted.holds(record)]
    if not chosen:
        timed = [record for record in records if record.timed]
        unmet = f"; {lost}" if (lost := wanted.unmet(timed)) else ""
        raise UserError(f"no such row with a time in {results}{unmet}: there is {describe(timed)}")
    calibrated = Store(calibration_folder(results), warn).read_all()
    return [trace(row, calibrated, results) for row in group(chosen)]


def trace(records: Sequence[Record], calibrated: Sequence[Record], results: Path) -> History:
    """Find the steps of one row, or say what is needed for that; a single record has none anyway."""
    last = records[-1]
    floor = known_floor(last, calibrated) if len(records) > 1 else 0.0
    if floor is None:
        advice = f"{lack(last)}, so the steps of rows there are unknown: {advise(last, results)}"
        return History(tuple(records), (), advice)
    return History(tuple(records), tuple(find_steps(records, floor)))
