"""Rows measured anew, each judged by an earlier one: `compare --against`, and what `track` builds on."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from workbench import report
from workbench.compare import measure
from workbench.comparing.entries import Entry
from workbench.comparing.request import Request
from workbench.device.conditions import slow_down
from workbench.progress import Progress
from workbench.ratios import samples
from workbench.record import Record, row_key
from workbench.store import Store
from workbench.tracking import verdict_lines
from workbench.tracking.earlier import Earlier, find_earlier
from workbench.tracking.floors import calibration_folder, find_floor
from workbench.tracking.verdict import FASTER, SLOWER, UNCLEAR, judge
from workbench.tracking.verdict_lines import Judged


@dataclass(frozen=True)
class Grounds:
    """What a row is judged by."""

    base: Record
    floor: float
    """The noise floor, a share of the time."""


class Judge:
    """Judges rows; what each is judged by is settled before anything is measured."""

    def __init__(self, against: str | None, results: Path) -> None:
        warn = Progress(Console(stderr=True)).warn
        self.against = against
        self.results = results
        self.store = Store(results, warn)
        self.calibrations = Store(calibration_folder(results), warn)
        self.name = ""
        self.grounds: dict[str, Grounds] = {}

    def settle(self, entries: list[Entry]) -> list[Entry]:
        """Find what each row that can run is judged by; raises UserError where there is nothing."""
        if not entries:  # of a row by slope alone, which `track` does not follow and says so itself
            return entries
        earlier = self.find_earlier(entries[0].blank)
        self.name = earlier.name
        calibrated = self.calibrations.read_all()
        for entry in entries:
            if entry.record is None:
                base = earlier.match(entry.blank)
                floor = find_floor(entry.blank, calibrated, self.results)
                self.grounds[row_key(entry.blank)] = Grounds(base, floor)
        return entries

    def find_earlier(self, blank: Record) -> Earlier:
        """Find the rows the user named, else those in the results so far."""
        path = self.store.path(str(blank.gpu["name"]), blank.model)
        if self.against is not None:
            return find_earlier(self.against, self.store, path)
        return Earlier(str(path), tuple(self.store.read(str(blank.gpu["name"]), blank.model)))

    def judge(self, record: Record) -> Judged:
        """Judge a row that was settled before; one without a time has no verdict.

        A change beside a GPU that held back for heat or want of power is none of the code's.
        """
        grounds = self.grounds.get(row_key(record))
        if grounds is None or not record.timed:
            return Judged(grounds.base if grounds else None, record, None)
        found = judge(samples(grounds.base), samples(record), grounds.floor)
        held_back = [slow_down([run.clocks for run in each.processes]) for each in (grounds.base, record)]
        reason = next(filter(None, held_back), None)
        if reason and found.kind in (FASTER, SLOWER):
            found = replace(found, kind=UNCLEAR, reason=reason)
        return Judged(grounds.base, record, found)


def compare_against(request: Request, against: str, form: str) -> bool:
    """Measure, judge each row by its earlier one, print; returns whether none is worse than it was."""
    judge = Judge(against, request.results)
    judged = [judge.judge(record) for record in measure(request, judge.settle)]
    write(judged, judge.name, form)
    return not any(each.regressed for each in judged)


def write(rows: Sequence[Judged], name: str, form: str) -> None:
    """Print the verdicts to stdout in the form asked for."""
    if form == "json":
        print(verdict_lines.as_json(rows))
    elif form == "csv":
        print(verdict_lines.as_csv(rows))
    elif form == "md":
        print(verdict_lines.markdown(rows, name))
    else:
        console = report.stdout()
        held = report.held_equal([each.record for each in rows])
        report.print_lines(console, ["Held equal:", *(f"  {line}" for line in held)])
        console.print(verdict_lines.table(rows, name))
        run = report.run_line([each.record for each in rows])
        report.print_lines(console, [*verdict_lines.remarks(rows), run])
