"""One worker process of one backend in one round, and what comes of its rows."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from workbench.comparing.entries import Entry
from workbench.device.machine import Device
from workbench.device.watch import Watch, foreign_work
from workbench.job import Finding, Json, MeasureJob, RowResult, read_finding, read_row_result
from workbench.process import Limits, run
from workbench.record import TIMED


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
    cold: bool | None = False
    """Whether the compilers' caches are empty at its start; None if it compiles nothing of the engine."""
    watch: Watch = field(init=False)
    stage: str = "start"
    since: float = 0.0
    """When the stage began."""
    spent_s: dict[str, float] = field(default_factory=dict)
    """By stage: what the process has taken up to now."""
    first_sample_s: float | None = None
    """What the process took until the first sample of any row."""

    def run(self, python: str, log: Path, environment: Mapping[str, str], limits: Limits) -> None:
        """Run the process to its end; rows it did not come to have that end as their reason."""
        self.foreign = foreign_work(self.device)
        self.since = time.monotonic()
        with Watch(self.device) as self.watch:
            outcome = run(
                self.job, python=python, environment=environment, limits=limits, on_event=self.take, log=log
            )
        if outcome.ok:
            self.fail("crashed", f"the worker ended without a result for this row (log: {log})")
        else:
            self.fail(outcome.status, outcome.reason)
            self.excuse(f"the process ended before or while they were traced: {outcome.reason}")
        self.warn(self.watch.left_behind())

    def take(self, event: Json) -> None:
        """Act on one event of the worker."""
        if event["event"] == "stage":
            self.enter(event["stage"])
            self.watch.enter((event["stage"] == "time" and event.get("row")) or event["stage"])
            self.say(event["stage"])
        elif event["event"] == "progress" and not event["done"]:
            self.watch.begin_samples(event["row"])
            if self.first_sample_s is None:
                self.enter(self.stage)
                self.first_sample_s = round(sum(self.spent_s.values()), 3)
        elif event["event"] == "row":
            self.take_row(read_row_result(event["result"]))
        elif event["event"] == "finding":
            self.take_finding(read_finding(event["result"]))

    def enter(self, stage: str) -> None:
        """Take note of how long the stage before took."""
        now = time.monotonic()
        self.spent_s[self.stage] = self.spent_s.get(self.stage, 0.0) + now - self.since
        self.stage, self.since = stage, now

    def take_row(self, result: RowResult) -> None:
        """Keep a row's result, with what only the parent can see."""
        entry = self.entries[result.key]
        seen = self.watch.peak_of(result.key)
        self.enter(self.stage)
        stages = {"stages_s": {name: round(spent, 3) for name, spent in self.spent_s.items()}}
        result = replace(
            result,
            cold=self.cold,
            peak_bytes=result.peak_bytes if seen is None else seen,
            warnings=result.warnings + self.foreign,
            clocks=result.clocks
            | self.watch.conditions(result.key)
            | stages
            | ({} if self.first_sample_s is None else {"first_sample_s": self.first_sample_s})
            | {"ceilings_before": self.ceilings},
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

    def warn(self, warnings: tuple[str, ...]) -> None:
        """Add to the results of this process what was seen only after its end."""
        for entry in self.entries.values() if warnings else ():
            result = entry.results.get(self.repeat)
            if result is not None:
                self.keep(entry, self.repeat, replace(result, warnings=result.warnings + warnings))

    def take_finding(self, finding: Finding) -> None:
        """Add what was found to the kept result; a row without one has no use for it."""
        entry = self.entries[finding.key]
        result = entry.results.get(self.repeat)
        if result is not None:
            self.keep(entry, self.repeat, finding.added_to(result))

    def excuse(self, reason: str) -> None:
        """Say of each row that was kept why it has no kernels, if they were to be traced."""
        for key, entry in self.entries.items() if self.job.kernels else ():
            result = entry.results.get(self.repeat)
            if result is not None and result.kernels is None and result.no_kernels is None:
                warning = f"its kernels could not be traced: {reason}"
                self.take_finding(Finding(key, no_kernels=reason, warnings=(warning,)))

    def fail(self, status: str, reason: str | None) -> None:
        """Give every row that has no result of this process the reason why."""
        for entry in self.entries.values():
            if entry.lacks(self.repeat):
                entry.failure = RowResult(entry.key, status, reason)
                self.advance()
