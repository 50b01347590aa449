"""The measuring itself: rounds of processes, backends in rotating order, each result on disk at once."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from models.errors import UserError
from workbench.building.store import Engine
from workbench.caches import cache_root, code_version, compiler_environment, digest
from workbench.comparing.builds import builds_root, open_build, prune_builds, recall_build, remember_build
from workbench.comparing.bursts import plan_bursts
from workbench.comparing.contestants import Contestant
from workbench.comparing.entries import Entry
from workbench.comparing.golden_files import SEED, GoldenFiles
from workbench.comparing.request import Settings
from workbench.comparing.rows import finish, gather
from workbench.comparing.source import Source
from workbench.comparing.turn import Turn
from workbench.device.machine import Device, thread_environment
from workbench.job import CeilingsJob, GroupJob, Json, MeasureJob, RowJob, RowResult
from workbench.plan import PlannedGroup
from workbench.process import Limits, run
from workbench.progress import Progress
from workbench.record import UNFINISHED, UNSAVED
from workbench.store import Store, slug

PROCESS_S = 15.0
"""Guess for what a process does besides timing: start, load, build, gate."""


def row_s(settings: Settings, group: PlannedGroup, checks_s: float = 0.0) -> float:
    """Guess the seconds that a process spends on each of its rows, which share its start and its checks."""
    return (PROCESS_S + checks_s) / len(group.rows) + 2 * settings.budget_s  # to warm up, and to sample


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
        again: bool = False,
    ) -> None:
        self.settings = settings
        self.device = device
        self.source = source
        self.store = store
        self.progress = progress
        self.limits = limits
        self.logs = cache_root() / "logs" / slug((device.is_gpu and device.uuid) or device.device)
        self.ceilings: Json | None = None
        """As last measured."""
        self.todo: list[Entry] = []
        """The rows that this call measures."""
        self.complained = False
        self.again = again
        """Whether every engine is built cold first, whatever earlier comparisons left."""
        self.built: set[Path] = set()
        """Build folders that a process of this call has used."""
        self.golden = GoldenFiles(settings, device, source, progress, self.logs, limits)

    def measure(self, entries: Sequence[Entry]) -> None:
        """Run what is missing, round by round, and finish every row."""
        self.todo = todo = [entry for entry in entries if entry.record is None]
        repeats = range(self.settings.repeats)
        missing = [
            row_s(self.settings, each.group) for each in todo for repeat in repeats if each.lacks(repeat)
        ]
        rounds = sum(any(entry.lacks(repeat) for entry in todo) for repeat in repeats)
        looks = rounds + 1 if rounds else 0
        if missing:
            self.golden.make([entry.group for entry in todo])
        self.progress.expect(len(missing) + looks, sum(missing) / max(len(missing) + looks, 1))
        for repeat in repeats:
            lacking = [entry for entry in todo if entry.lacks(repeat)]
            if lacking:
                self.run_round(repeat, lacking)
                for entry in (each for each in lacking if each.failure):
                    later = sum(each not in entry.results for each in repeats[repeat + 1 :])
                    self.progress.forgo(later, row_s(self.settings, entry.group))
        for entry in todo:
            self.complete(entry)
        prune_builds()

    def run_round(self, repeat: int, lacking: Sequence[Entry]) -> None:
        """Run a process for each engine, backends in rotating order, between two looks at the ceilings."""
        before = self.measure_ceilings() if self.ceilings is None else self.ceilings
        contestants = list({entry.contestant.name: entry.contestant for entry in lacking}.values())
        turn = repeat % len(contestants)
        for group in dict.fromkeys(entry.group for entry in lacking):
            for contestant in contestants[turn:] + contestants[:turn]:
                own = [
                    entry
                    for entry in lacking
                    if entry.group == group and entry.contestant.name == contestant.name
                ]
                if own:
                    self.run_turn(contestant, group, repeat, own, before)
        after = self.measure_ceilings()
        for entry in lacking:
            result = entry.results.get(repeat)
            if result is not None:
                self.keep(entry, repeat, replace(result, clocks=result.clocks | {"ceilings_after": after}))

    def run_turn(
        self,
        contestant: Contestant,
        group: PlannedGroup,
        repeat: int,
        entries: Sequence[Entry],
        ceilings: Json,
    ) -> None:
        """Run one process: one engine of one backend, with compiler caches of its own."""
        folder = self.build_folder(contestant, group, entries[0].engine)
        guess_s = row_s(self.settings, group)
        self.progress.begin(len(entries) * guess_s)
        turn = Turn(
            job=self.job(contestant, group, entries, kernels=self.device.is_gpu and repeat == 0),
            entries={entry.key: entry for entry in entries},
            repeat=repeat,
            device=self.device,
            ceilings=ceilings,
            keep=self.keep,
            say=lambda stage: self.progress.say(f"{contestant.name}, process {repeat + 1}: {stage}"),
            advance=lambda: self.progress.advance(guess_s),
        )
        log = self.logs / f"{slug(contestant.name)}.{group.shapes.batch}.{group.shapes.capacity}.{repeat}.log"
        try:
            cold = open_build(folder, anew=self.again and folder not in self.built)
            turn.cold = None if entries[0].engine else cold
            self.built.add(folder)
            environment = compiler_environment(folder) | thread_environment(self.device)
            turn.run(contestant.python, log, environment, self.limits)
        except (OSError, UserError) as error:  # a full disk under the cache must not cost the other rows
            turn.fail("crashed", f"the process could not do its work: {error}")

    def job(
        self, contestant: Contestant, group: PlannedGroup, entries: Sequence[Entry], kernels: bool
    ) -> MeasureJob:
        """Write down what a worker is to do."""
        golden = self.golden.of(group)
        rows = (
            RowJob(each.key, each.row.phase, each.row.length, each.row.steps, each.row.lead)
            for each in entries
        )
        return MeasureJob(
            backend=contestant.backend,
            options=contestant.options,
            model=str(self.source.folder),
            dtype=self.settings.dtype,
            device=self.device.device,
            seed=SEED,
            budget_s=self.settings.budget_s,
            group=GroupJob(group.shapes, str(golden), tuple(rows)),
            engine=str(entries[0].engine.folder) if entries[0].engine else None,
            kernels=kernels,
        )

    def keep(self, entry: Entry, repeat: int, result: RowResult) -> None:
        """Remember a timed result, on disk before anything else happens."""
        if repeat not in entry.results:
            self.remember(entry, result)
        entry.results[repeat] = result
        try:
            self.store.keep(self.device.name, repeat, result)
        except UserError as error:
            self.complain(error)

    def remember(self, entry: Entry, result: RowResult) -> None:
        """Keep what a build took with the caches it filled, which an engine built ahead may have as well."""
        if result.cold is False or result.build_s is None:
            return
        try:
            remember_build(self.build_folder(entry.contestant, entry.group, entry.engine), result.build_s)
        except OSError as error:
            self.progress.warn(f"the next comparison builds {entry.contestant.name} cold: {error.strerror}")

    def complete(self, entry: Entry) -> None:
        """Finish one row and write it; the other processes of a failed row stay for the next call."""
        results = [entry.results[repeat] for repeat in sorted(entry.results)]
        results += [entry.failure] if entry.failure else []
        before = recall_build(self.build_folder(entry.contestant, entry.group, entry.engine))
        evidence = gather(
            self.source.config, self.settings.dtype, self.device, entry.group, entry.row, results, before
        )
        entry.record = finish(entry.blank, results, evidence)
        saved = False
        try:
            self.store.append(entry.record)
            saved = True
            if entry.failure is None:
                self.store.forget(self.device.name, entry.key)
        except UserError as error:
            if not saved:
                warning = UNFINISHED if self.resumes(entry) else UNSAVED
                entry.record = replace(entry.record, warnings=(*entry.record.warnings, warning))
            self.complain(error)

    def resumes(self, entry: Entry) -> bool:
        """Tell whether the same command would find all that was measured of a row."""
        kept = self.store.kept(self.device.name, entry.key)
        return not self.again and bool(kept) and kept.keys() >= entry.results.keys()

    def complain(self, error: UserError) -> None:
        """Say once that results cannot be written."""
        if not self.complained:
            self.progress.warn(f"{error}; this call's rows are printed all the same")
        self.complained = True

    def measure_ceilings(self) -> Json:
        """Measure what the machine can do, at the duty cycle of the samples timed so far."""
        self.progress.say("measuring the machine's ceilings")
        config, dtype = self.source.config, self.settings.dtype
        bandwidth, product = (plan_bursts(config, dtype, self.todo, phase) for phase in ("decode", "prefill"))
        job = CeilingsJob(self.device.device, dtype, bandwidth, product)
        environment = thread_environment(self.device)
        outcome = run(job, log=self.logs / "ceilings.log", limits=self.limits, environment=environment)
        if outcome.result is None:
            self.progress.warn(f"the machine's ceilings could not be measured: {outcome.reason}")
        self.ceilings = outcome.result or {}
        self.progress.advance(guess_s=0.0)  # a few seconds, which count as the pace of the rows
        return self.ceilings

    def build_folder(self, contestant: Contestant, group: PlannedGroup, engine: Engine | None) -> Path:
        """Name the folder of the compiler caches of one backend's engine."""
        parts = {
            **({"engine": engine.key} if engine else {}),
            "code": code_version(contestant.backend),
            "backend": contestant.name,
            "shapes": group.shapes,
            "versions": dict(contestant.probe.versions),
            "weights": self.source.checksum,
            "dtype": self.settings.dtype,
            "device": self.device.identity(),
        }
        return builds_root() / digest(parts)
