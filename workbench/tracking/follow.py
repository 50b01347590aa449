"""Find the rows to follow among all results, and their steps."""

from pathlib import Path

from rich.console import Console

from models.errors import UserError
from workbench.progress import Progress
from workbench.store import Store
from workbench.tracking.earlier import describe
from workbench.tracking.floors import calibration_folder, find_floor
from workbench.tracking.history import History, Wanted, find_steps, group


def follow(wanted: Wanted, results: Path) -> list[History]:
    """Return the history of each row wanted; raises UserError if there is none, or no noise floor for one."""
    warn = Progress(Console(stderr=True)).warn
    records = Store(results, warn).read_all()
    chosen = [record for record in records if wanted.holds(record)]
    if not chosen:
        there = describe([record for record in records if record.timed])
        raise UserError(f"no such row with a time in {results}: there is {there}")
    calibrated = Store(calibration_folder(results), warn).read_all()
    return [
        History(tuple(row), tuple(find_steps(row, find_floor(row[-1], calibrated)))) for row in group(chosen)
    ]
