"""One worker process of one backend in one round, and what comes of its rows."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from workbench.entries import Entry
from workbench.job import Json, MeasureJob, RowResult, read_row_result
from workbench.machine import Device, MemorySampler, foreign_work
from workbench.process import Limits, run
from workbench.record import TIMED

MAKING = ("start", "load", "build")
"""The stages in which an engine comes to be; their memory counts for each of its rows."""


@dataclass
class Turn:
    """A process, the rows it is to measure, and whom to tell."""

    job: MeasureJob
    entries: Mapping[str, Entry]
    """By key."""
    repeat: int
    device: Device
    ceilings: Json
    """What the machine could do just before."""
    keep: Callable[[Entry, int, RowResult], None]
    """Called with each timed result at once."""
    say: Callable[[str], None]
    advance: Callable[[], None]
    """Called for each row that has come to an end in this process."""
    foreign: tuple[str, ...] = ()
    cold: bool = False
    """Whether the compilers' caches are empty at its start."""
    memory: MemorySampler = field(init=False)
    doing: str = "start"
    """The stage that the process is in, or the row it times."""
    peaks: dict[str, int] = field(default_factory=dict)
    """Highest memory of the device in each of them, in bytes; empty for a CPU."""

    def run(self, python: str, log: Path, environment: Mapping[str, str], limits: Limits) -> None:
        """Run the process to its end; rows it did not come to have that end as their reason."""
        self.foreign = foreign_work(self.device)
        with MemorySampler(self.device) as self.memory:
            outcome = run(
                self.job, python=python, environment=environment, limits=limits, on_event=self.take, log=log
            )
        if outcome.ok:
            self.fail("crashed", f"the worker ended without a result for this row (log: {log})")
        else:
            self.fail(outcome.status, outcome.reason)

    def take(self, event: Json) -> None:
        """Act on one event of the worker."""
        if event["event"] == "stage":
            self.note_memory()
            self.doing = event.get("row") or event["stage"]
            self.say(event["stage"])
        elif event["event"] == "row":
            self.take_row(read_row_result(event["result"]))

    def note_memory(self) -> None:
        """Keep the peak of what ends now, and begin another."""
        seen = self.memory.peak_bytes
        if seen is not None:
            self.peaks[self.doing] = max(seen, self.peaks.get(self.doing, 0))
            self.memory.restart()

    def peak_of(self, row: str) -> int | None:
        """Return a row's highest memory: of the engine's making and of its timing, but not of the checks."""
        return max((self.peaks[at] for at in (*MAKING, row) if at in self.peaks), default=None)

    def take_row(self, result: RowResult) -> None:
        """Keep a row's result, with what only the parent can see."""
        entry = self.entries[result.key]
        seen = self.peak_of(result.key)
        result = replace(
            result,
            cold=self.cold,
            peak_bytes=result.peak_bytes if seen is None else seen,
            warnings=result.warnings + self.foreign,
            clocks=result.clocks | {"ceilings_before": self.ceilings},
        )
        expected = entry.blank.weights
        if result.weights != expected:
            reason = f"it loaded weights {result.weights}, not those of the others ({expected})"
            result = replace(result, status="wrong", reason=reason, samples_s=(), enqueue_s=())
        if result.status in TIMED:
            self.keep(entry, self.repeat, result)
        else:
            entry.failure = result
        self.advance()

    def fail(self, status: str, reason: str | None) -> None:
        """Give every row that has no result of this process the reason why."""
        for entry in self.entries.values():
            if entry.lacks(self.repeat):
                entry.failure = RowResult(entry.key, status, reason)
                self.advance()
