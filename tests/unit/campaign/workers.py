"""Worker processes that are told what to report, and `compare` calls that start them."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from backends.contract import Probe
from models.config import PRESETS
from workbench import job as jobs
from workbench.building.store import Engine
from workbench.comparing.campaign import Campaign
from workbench.comparing.contestants import Contestant
from workbench.comparing.entries import Entry, enter
from workbench.comparing.request import Settings
from workbench.comparing.source import Source
from workbench.device.machine import Device
from workbench.job import CeilingsJob, GoldenJob, MeasureJob, RowResult
from workbench.plan import PHASES, Workload, plan
from workbench.process import Outcome
from workbench.progress import Progress
from workbench.record import from_json, to_json
from workbench.store import Store

CPU = Device("cpu", "Test CPU", "x86_64", 1 << 34, threads=2)
GPU = Device("cuda:0", "Test GPU", "sm_90", 1 << 36, uuid="GPU-1", driver="580")
CEILINGS = {"bandwidth_bytes_per_s": [1e12], "flops_per_s": [1e15], "last_level_cache_bytes": None}
BOTH = Workload(PHASES, (1,), (64,), (128,), 32)
PROBE = Probe(versions={"made": "1"}, devices=("cpu", "cuda"), dtypes=("float32",))


Script = Callable[[MeasureJob, Callable[[Any], None]], Outcome]


class Workers:
    """Stands in for worker processes: times every row, unless the script of a backend says otherwise."""

    def __init__(self) -> None:
        self.started: list[tuple[str, str]] = []
        """Backend and keys of the rows of each measuring process, in order."""
        self.kinds: list[str] = []
        self.looks: list[CeilingsJob] = []
        self.goldens: list[GoldenJob] = []
        self.held_against: list[str] = []
        """Golden file of each measuring process."""
        self.scripts: dict[str, Script] = {}

    def run(self, job: Any, *, on_event: Any = None, environment: Any = None, **_: Any) -> Outcome:
        self.kinds.append(job.kind)
        if isinstance(job, CeilingsJob):
            self.looks.append(job)
            return Outcome("ok", result=CEILINGS)
        if isinstance(job, GoldenJob):
            self.goldens.append(job)
            return Outcome("ok")
        self.held_against.append(job.group.golden)
        self.started.append((job.backend, "+".join(row.phase for row in job.group.rows)))
        assert environment.get("OMP_NUM_THREADS") == ("2" if job.device == "cpu" else None)
        script = self.scripts.get(job.backend, report_all)
        return script(job, on_event)


def interrupt(
    workers: Workers, call: "Call", at: int, script: Script | None = None, **arguments: Any
) -> None:
    """Interrupt a call by its measuring process `at`, counted from 1; those before it follow the script."""

    def interrupted(job: MeasureJob, on_event: Callable[[Any], None]) -> Outcome:
        if len(workers.started) == at:
            raise KeyboardInterrupt
        return (script or report_all)(job, on_event)

    workers.scripts["a"] = interrupted
    with pytest.raises(KeyboardInterrupt):
        call(["a"], **arguments)
    del workers.scripts["a"]


def report_all(job: MeasureJob, on_event: Callable[[Any], None]) -> Outcome:
    for row in job.group.rows:
        on_event({"event": "row", "result": jobs.to_json(result(row.key))})
    return Outcome("ok")


def result(key: str, **changes: Any) -> RowResult:
    values: dict[str, Any] = {"samples_s": (1.0, 1.1, 0.9), "weights": "abc", "build_s": 3.0, "load_s": 1.0}
    values["gap_s"] = 0.25
    return RowResult(**({"key": key, "status": "ok"} | values | changes))


class Call:
    """One `compare` call after another on the same results."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.warnings: list[str] = []
        self.progress = Progress(Console(quiet=True))
        """Of the last call."""

    def __call__(
        self,
        names: Iterable[str],
        workload: Workload = BOTH,
        repeats: int = 2,
        again: bool = False,
        device: Device = CPU,
        engine: Engine | None = None,
    ) -> list[Entry]:
        settings = Settings("tiny", workload, "float32", device.device, repeats, 1.0)
        source = Source("tiny", self.root, PRESETS["tiny"], "abc")
        store = Store(self.root / "results", self.warnings.append)
        contestants = [Contestant(name, {}, "python", PROBE) for name in names]
        groups = plan(source.config, workload)
        ahead = {(name, group.shapes): engine for name in names for group in groups} if engine else {}
        entries = enter(settings, device, source, store, contestants, groups, again, ahead)
        self.progress = Progress(Console(quiet=True))
        Campaign(settings, device, source, store, self.progress, again=again).measure(entries)
        for entry in entries:
            assert entry.record is not None
            assert from_json(to_json(entry.record)) == entry.record
        return entries


def statuses(entries: list[Entry]) -> dict[tuple[str, str], str]:
    return {
        (each.record.backend, each.record.phase): each.record.status
        for each in entries
        if each.record is not None
    }
