"""The measuring itself: rounds of processes, backends in rotating order, each result on disk at once."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from models.errors import UserError
from workbench.caches import cache_root, compiler_environment, digest
from workbench.contestants import Contestant
from workbench.entries import Entry
from workbench.gate import GATE
from workbench.job import CeilingsJob, GoldenJob, GroupJob, MeasureJob, RowJob, RowResult
from workbench.machine import Device
from workbench.plan import PlannedGroup
from workbench.process import Limits, after_crash, run
from workbench.progress import Progress
from workbench.request import Settings
from workbench.rows import finish, gather
from workbench.source import Source
from workbench.store import Store, slug
from workbench.turn import Turn

Json = dict[str, Any]

SEED = 0
"""Of the tokens."""
PROCESS_S = 15.0
"""Guess for what a process does besides timing: start, load, build, gate."""
FIRST_BURST_S = 0.2
"""Length of the ceilings' bursts before the length of any timed sample is known."""


class Campaign:
    """The measuring of one `compare` call."""

    def __init__(
        self,
        settings: Settings,
        device: Device,
        source: Source,
        store: Store,
        progress: Progress,
        limits: Limits = Limits(),  # noqa: B008 (frozen)
    ) -> None:
        self.settings = settings
        self.device = device
        self.source = source
        self.store = store
        self.progress = progress
        self.limits = limits
        self.logs = cache_root() / "logs"
        self.ceilings: Json | None = None
        """As last measured."""
        self.bursts_s: list[float] = []
        """How long the timed samples took so far."""
        self.complained = False

    def measure(self, entries: Sequence[Entry]) -> None:
        """Run what is missing, round by round, and finish every row."""
        todo = [entry for entry in entries if entry.record is None]
        repeats = range(self.settings.repeats)
        missing = sum(entry.lacks(repeat) for entry in todo for repeat in repeats)
        self.progress.expect(missing, PROCESS_S + 2 * self.settings.budget_s)
        if missing:
            self.make_golden([entry.group for entry in todo])
        for repeat in repeats:
            lacking = [entry for entry in todo if entry.lacks(repeat)]
            if lacking:
                self.run_round(repeat, lacking)
        for entry in todo:
            self.complete(entry)
        for contestant in {entry.contestant.name: entry.contestant for entry in todo}.values():
            shutil.rmtree(self.build_folder(contestant), ignore_errors=True)

    def run_round(self, repeat: int, lacking: Sequence[Entry]) -> None:
        """Run a process of each backend, in an order that rotates, between two looks at the ceilings."""
        before = self.ceilings or self.measure_ceilings()
        contestants = list({entry.contestant.name: entry.contestant for entry in lacking}.values())
        turn = repeat % len(contestants)
        for contestant in contestants[turn:] + contestants[:turn]:
            own = [entry for entry in lacking if entry.contestant.name == contestant.name]
            self.run_backend(contestant, repeat, own, before)
        after = self.measure_ceilings()
        for entry in lacking:
            result = entry.results.get(repeat)
            if result is not None:
                self.keep(entry, repeat, replace(result, clocks=result.clocks | {"ceilings_after": after}))

    def run_backend(
        self, contestant: Contestant, repeat: int, entries: Sequence[Entry], ceilings: Json
    ) -> None:
        """Run one backend's process; after a crash another one takes the groups that had no turn."""
        folder = self.build_folder(contestant)
        if repeat == 0:
            shutil.rmtree(folder, ignore_errors=True)
        cold = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        log = self.logs / f"{slug(contestant.name)}.{repeat}.log"
        log.unlink(missing_ok=True)
        job: MeasureJob | None = self.job(contestant, entries)
        while job is not None:
            turn = Turn(
                job=job,
                entries={entry.key: entry for entry in entries},
                repeat=repeat,
                device=self.device,
                cold=cold,
                ceilings=ceilings,
                keep=self.keep,
                say=lambda stage: self.progress.say(f"{contestant.name}, process {repeat + 1}: {stage}"),
                advance=self.progress.advance,
            )
            outcome = turn.run(contestant.python, log, compiler_environment(folder), self.limits)
            job, cold = after_crash(job, outcome), False

    def job(self, contestant: Contestant, entries: Sequence[Entry]) -> MeasureJob:
        """Write down what a worker is to do."""
        rows: dict[PlannedGroup, list[RowJob]] = {}
        for entry in entries:
            row = RowJob(entry.key, entry.row.phase, entry.row.length, entry.row.steps)
            rows.setdefault(entry.group, []).append(row)
        return MeasureJob(
            backend=contestant.backend,
            options=contestant.options,
            model=str(self.source.folder),
            dtype=self.settings.dtype,
            device=self.device.device,
            seed=SEED,
            budget_s=self.settings.budget_s,
            groups=tuple(
                GroupJob(group.shapes, str(self.golden_path(group)), tuple(rows[group])) for group in rows
            ),
        )

    def keep(self, entry: Entry, repeat: int, result: RowResult) -> None:
        """Remember a timed result, on disk before anything else happens."""
        if repeat not in entry.results:
            self.bursts_s.append(median(result.samples_s) * (entry.row.steps or 1))
        entry.results[repeat] = result
        try:
            self.store.keep(self.device.name, repeat, result)
        except UserError as error:
            self.complain(error)

    def complete(self, entry: Entry) -> None:
        """Finish one row and write it; the other processes of a failed row stay for the next call."""
        results = [entry.results[repeat] for repeat in sorted(entry.results)]
        results += [entry.failure] if entry.failure else []
        evidence = gather(self.source.config, self.settings.dtype, entry.group, entry.row, results)
        entry.record = finish(entry.blank, results, evidence)
        try:
            self.store.append(entry.record)
            if entry.failure is None:
                self.store.forget(self.device.name, entry.key)
        except UserError as error:
            self.complain(error)

    def complain(self, error: UserError) -> None:
        """Say once that results cannot be written."""
        if not self.complained:
            self.progress.warn(f"{error}; this call's rows are printed all the same")
        self.complained = True

    def make_golden(self, groups: Sequence[PlannedGroup]) -> None:
        """Compute the golden files that are not there yet; raises UserError where that fails."""
        missing = [group for group in dict.fromkeys(groups) if not self.golden_path(group).exists()]
        if not missing:
            return
        self.progress.say("computing golden logits and the faults they are told apart from")
        job = GoldenJob(
            model=str(self.source.folder),
            dtype=self.settings.dtype,
            device=self.device.device,
            seed=SEED,
            groups=tuple(GroupJob(group.shapes, str(self.golden_path(group)), ()) for group in missing),
        )
        outcome = run(job, log=self.logs / "golden.log", limits=self.limits)
        if not outcome.ok:
            raise UserError(
                f"nothing can be verified, so nothing is timed: the golden logits failed: {outcome.reason}; "
                "they need torch (see `python -m workbench backends`) and memory for one layer in float32"
            )

    def measure_ceilings(self) -> Json:
        """Measure what the machine can do, in bursts as long as the samples timed so far."""
        self.progress.say("measuring the machine's ceilings")
        burst = median(self.bursts_s) if self.bursts_s else FIRST_BURST_S
        job = CeilingsJob(device=self.device.device, dtype=self.settings.dtype, burst_s=burst)
        outcome = run(job, log=self.logs / "ceilings.log", limits=self.limits)
        if outcome.result is None:
            self.progress.warn(f"the machine's ceilings could not be measured: {outcome.reason}")
        self.ceilings = outcome.result or {}
        return self.ceilings

    def golden_path(self, group: PlannedGroup) -> Path:
        """Name a group's golden file: the same weights, shapes, tokens and kind of device share one."""
        parts = {
            "gate": GATE,
            "weights": self.source.checksum,
            "dtype": self.settings.dtype,
            "shapes": group.shapes,
            "seed": SEED,
            "device": self.device.name,
        }
        return cache_root() / "golden" / f"{digest(parts)}.npz"

    def build_folder(self, contestant: Contestant) -> Path:
        """Name the folder of a backend's compiler caches for this model on this device."""
        parts = {
            "backend": contestant.name,
            "versions": dict(contestant.probe.versions),
            "weights": self.source.checksum,
            "dtype": self.settings.dtype,
            "device": self.device.identity(),
        }
        return cache_root() / "builds" / digest(parts)
