"""Rounds, rotation, resuming and failures, with workers that are told what to report."""

import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from backends.contract import Probe
from models.config import PRESETS
from models.errors import UserError
from workbench import builds, campaign, turn
from workbench import entries as rows_on_the_way
from workbench import job as jobs
from workbench.campaign import Campaign
from workbench.contestants import Contestant
from workbench.entries import Entry, enter
from workbench.job import CeilingsJob, Finding, GoldenJob, MeasureJob, RowResult
from workbench.kernels import Activity, HostTimes, summarise
from workbench.machine import Device
from workbench.plan import PHASES, Workload, plan
from workbench.process import Outcome
from workbench.progress import Progress
from workbench.record import from_json, to_json
from workbench.request import Settings
from workbench.source import Source
from workbench.store import Store
from workbench.watch import Watch

CPU = Device("cpu", "Test CPU", "x86_64", 1 << 34, threads=2)
GPU = Device("cuda:0", "Test GPU", "sm_90", 1 << 36, uuid="GPU-1", driver="580")
CEILINGS = {"bandwidth_bytes_per_s": [1e12], "flops_per_s": [1e15], "last_level_cache_bytes": None}
BOTH = Workload(PHASES, (1,), (64,), (128,), 32)
PROBE = Probe(versions={"made": "1"}, devices=("cpu", "cuda"), dtypes=("float32",))

Script = Callable[[MeasureJob], Outcome | None]


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
        self.scripts: dict[str, Callable[[MeasureJob, Callable[[Any], None]], Outcome]] = {}

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


def report_all(job: MeasureJob, on_event: Callable[[Any], None]) -> Outcome:
    for row in job.group.rows:
        on_event({"event": "row", "result": jobs.to_json(result(row.key))})
    return Outcome("ok")


def result(key: str, **changes: Any) -> RowResult:
    values: dict[str, Any] = {"samples_s": (1.0, 1.1, 0.9), "weights": "abc", "build_s": 3.0, "load_s": 1.0}
    values["gap_s"] = 0.25
    return RowResult(**({"key": key, "status": "ok"} | values | changes))


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Workers:
    found = Workers()
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    for module in (campaign, turn):
        monkeypatch.setattr(module, "run", found.run)
    monkeypatch.setattr(turn, "foreign_work", lambda device: ())
    monkeypatch.setattr(turn, "Watch", lambda device: Watch(CPU))
    return found


class Call:
    """One `compare` call after another on the same results."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.warnings: list[str] = []

    def __call__(
        self,
        names: Iterable[str],
        workload: Workload = BOTH,
        repeats: int = 2,
        again: bool = False,
        device: Device = CPU,
    ) -> list[Entry]:
        settings = Settings("tiny", workload, "float32", device.device, repeats, 1.0)
        source = Source("tiny", self.root, PRESETS["tiny"], "abc")
        store = Store(self.root / "results", self.warnings.append)
        contestants = [Contestant(name, {}, "python", PROBE) for name in names]
        groups = plan(source.config, workload)
        entries = enter(settings, device, source, store, contestants, groups, again)
        progress = Progress(Console(quiet=True))
        Campaign(settings, device, source, store, progress, again=again).measure(entries)
        for entry in entries:
            assert entry.record is not None
            assert from_json(to_json(entry.record)) == entry.record
        return entries


@pytest.fixture
def call(tmp_path: Path) -> Call:
    return Call(tmp_path)


def statuses(entries: list[Entry]) -> dict[tuple[str, str], str]:
    return {
        (each.record.backend, each.record.phase): each.record.status
        for each in entries
        if each.record is not None
    }


def test_every_row_is_measured_in_every_round_and_the_order_rotates(workers: Workers, call: Call) -> None:
    entries = call(["a", "b", "c"], repeats=3)
    order = [backend for backend, _ in workers.started]
    assert order == ["a", "b", "c", "b", "c", "a", "c", "a", "b"]
    assert {len(entry.record.processes) for entry in entries if entry.record} == {3}


def test_ceilings_are_looked_at_before_between_and_after_the_rounds(workers: Workers, call: Call) -> None:
    entries = call(["a"], repeats=2)
    assert workers.kinds == ["golden", "ceilings", "measure", "ceilings", "measure", "ceilings"]
    assert entries[0].record is not None
    assert entries[0].record.ceilings["bandwidth_bytes_per_s"]["median"] == 1e12


def test_ceilings_are_looked_at_in_bursts_like_the_samples_of_each_phase(
    workers: Workers, call: Call
) -> None:
    call(["a"], repeats=1)
    before, after = workers.looks
    assert before.bandwidth.burst_s is before.product.burst_s is None
    assert before.product.least != before.bandwidth.least
    assert after.bandwidth.burst_s == 32 * 1.0  # a chain of decode steps
    assert after.product.burst_s == 1.0
    assert after.product.pause_s == 0.25


def test_what_the_watch_saw_is_kept_with_each_row(
    workers: Workers, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Watch, "conditions", lambda self, row: {"samples": 3})
    monkeypatch.setattr(Watch, "left_behind", lambda self: ("another program took 3.0 GiB",))
    stages: list[str] = []
    monkeypatch.setattr(Watch, "enter", lambda self, doing: stages.append(doing))

    def report_with_stages(job: MeasureJob, on_event: Callable[[Any], None]) -> Outcome:
        key = job.group.rows[0].key
        on_event({"event": "stage", "stage": "build"})
        on_event({"event": "stage", "stage": "time", "row": key})
        on_event({"event": "row", "result": jobs.to_json(result(key))})
        return Outcome("crashed", "killed")

    workers.scripts["a"] = report_with_stages
    prefill, decode = call(["a"], repeats=1)
    assert prefill.record is not None
    clocks = prefill.record.processes[0].clocks
    assert clocks["samples"] == 3
    assert clocks["stages_s"].keys() == {"start", "build", "time"}
    assert prefill.record.warnings[0] == "another program took 3.0 GiB"
    assert decode.record is not None
    assert decode.record.status == "crashed"
    assert stages == ["build", prefill.key]


def test_second_call_measures_nothing(workers: Workers, call: Call) -> None:
    first = call(["a"])
    workers.started.clear()
    second = call(["a"])
    assert workers.started == []
    assert [entry.record for entry in second] == [entry.record for entry in first]


def test_again_measures_everything_anew(workers: Workers, call: Call) -> None:
    call(["a"])
    workers.started.clear()
    call(["a"], again=True)
    assert len(workers.started) == 2


def test_newest_verdict_counts_even_if_it_is_a_failure(workers: Workers, call: Call) -> None:
    call(["a"])
    workers.scripts["a"] = lambda job, on_event: Outcome("crashed", "killed")
    assert set(statuses(call(["a"], again=True)).values()) == {"crashed"}
    del workers.scripts["a"]
    workers.started.clear()
    assert set(statuses(call(["a"])).values()) == {"ok"}
    assert len(workers.started) == 2


def test_crash_costs_the_rows_that_had_no_result_yet(workers: Workers, call: Call) -> None:
    def crash_after_the_first(job: MeasureJob, on_event: Callable[[Any], None]) -> Outcome:
        on_event({"event": "row", "result": jobs.to_json(result(job.group.rows[0].key))})
        return Outcome("crashed", "killed by SIGSEGV")

    workers.scripts["a"] = crash_after_the_first
    entries = call(["a", "b"], repeats=1)
    assert statuses(entries) == {
        ("a", "prefill"): "ok",
        ("a", "decode"): "crashed",
        ("b", "prefill"): "ok",
        ("b", "decode"): "ok",
    }


def test_failed_row_is_not_run_again_in_this_call_but_in_the_next_one(workers: Workers, call: Call) -> None:
    workers.scripts["a"] = lambda job, on_event: Outcome("unsupported", "no")
    call(["a"], repeats=3)
    assert len(workers.started) == 1
    call(["a"], repeats=3)
    assert len(workers.started) == 2


def test_next_call_measures_only_the_processes_that_are_missing(workers: Workers, call: Call) -> None:
    def interrupted(job: MeasureJob, on_event: Callable[[Any], None]) -> Outcome:
        if len(workers.started) == 2:
            raise KeyboardInterrupt
        return report_all(job, on_event)

    workers.scripts["a"] = interrupted
    with pytest.raises(KeyboardInterrupt):
        call(["a"], repeats=3)
    del workers.scripts["a"]
    workers.started.clear()
    entries = call(["a"], repeats=3)
    assert len(workers.started) == 2
    assert {len(entry.record.processes) for entry in entries if entry.record} == {3}


def test_first_process_is_cold_and_the_later_ones_warm(workers: Workers, call: Call) -> None:
    times = iter([9.0, 2.0, 4.0])

    def build(job: MeasureJob, on_event: Callable[[Any], None]) -> Outcome:
        took = next(times)
        for row in job.group.rows:
            on_event({"event": "row", "result": jobs.to_json(result(row.key, build_s=took))})
        return Outcome("ok")

    workers.scripts["a"] = build
    for entry in call(["a"], repeats=3):
        assert entry.record is not None
        assert entry.record.build_s == {"cold": 9.0, "warm": 3.0}


def test_each_engine_is_built_cold_in_a_folder_of_its_own(workers: Workers, call: Call) -> None:
    entries = call(["a"], Workload(("decode",), (1,), (64,), (32, 64), 32), repeats=1)
    assert len(workers.started) == 2
    assert [entry.results[0].cold for entry in entries] == [True, True]


def test_resumed_comparison_starts_with_the_caches_that_the_cold_build_left(
    workers: Workers, call: Call
) -> None:
    def interrupted(job: MeasureJob, on_event: Callable[[Any], None]) -> Outcome:
        on_event({"event": "row", "result": jobs.to_json(result(job.group.rows[0].key, build_s=9.0))})
        raise KeyboardInterrupt

    workers.scripts["a"] = interrupted
    with pytest.raises(KeyboardInterrupt):
        call(["a"], repeats=2)
    del workers.scripts["a"]
    prefill, decode = call(["a"], repeats=2)
    assert [prefill.results[repeat].cold for repeat in (0, 1)] == [True, False]
    assert [decode.results[repeat].cold for repeat in (0, 1)] == [False, False]
    assert prefill.record is not None and decode.record is not None
    assert prefill.record.build_s == {"cold": 9.0, "warm": 3.0}
    assert decode.record.build_s["cold"] == 9.0
    assert len(workers.started) == 3  # the first round for the decode alone, the second for both


def test_later_comparison_of_an_engine_is_warm_and_says_when_it_was_built_cold(
    workers: Workers, call: Call
) -> None:
    prefills = Workload(("prefill",), (1,), (64, 128), (128,), 32)
    call(["a"], prefills, repeats=1)
    shutil.rmtree(call.root / "results")
    workers.scripts["a"] = report_all
    for entry in call(["a"], prefills, repeats=1):
        assert entry.results[0].cold is False
        assert entry.record is not None
        measured = entry.record.build_s.pop("cold_measured")
        assert datetime.fromisoformat(measured).tzinfo is not None
        assert entry.record.build_s == {"cold": 3.0, "warm": 3.0}


def test_again_builds_cold_once(workers: Workers, call: Call) -> None:
    call(["a"])
    for entry in call(["a"], again=True):
        assert [entry.results[repeat].cold for repeat in (0, 1)] == [True, False]


def test_edited_code_builds_cold(workers: Workers, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    call(["a"])
    for module in (campaign, rows_on_the_way):
        monkeypatch.setattr(module, "code_version", lambda *_: "edited")
    assert call(["a"])[0].results[0].cold is True


def test_build_that_was_killed_or_gave_wrong_rows_is_done_cold_again(workers: Workers, call: Call) -> None:
    def fail(job: MeasureJob, on_event: Callable[[Any], None]) -> Outcome:
        (folder,) = (call.root / "cache" / "builds").iterdir()
        (folder / "half").touch()
        wrong = result(job.group.rows[0].key, status="wrong", samples_s=())
        on_event({"event": "row", "result": jobs.to_json(wrong)})
        return Outcome("crashed", "killed")

    workers.scripts["a"] = fail
    call(["a"])
    del workers.scripts["a"]
    assert call(["a"])[0].results[0].cold is True
    assert not list((call.root / "cache" / "builds").glob("*/half"))


def test_only_the_builds_used_last_are_kept(
    workers: Workers, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builds, "KEPT_BUILDS", 2)
    folders = call.root / "cache" / "builds"
    call(["a"], repeats=1)
    call(["b"], repeats=1)
    kept = set(folders.iterdir())
    assert len(kept) == 2
    for age, folder in enumerate(sorted(kept)):
        os.utime(folder, (age, age))
    oldest, newer = sorted(kept)
    call(["c"], repeats=1)
    assert newer in set(folders.iterdir())
    assert oldest not in set(folders.iterdir())
    assert len(list(folders.iterdir())) == 2


def test_other_weights_are_refused(workers: Workers, call: Call) -> None:
    def load_others(job: MeasureJob, on_event: Callable[[Any], None]) -> Outcome:
        for row in job.group.rows:
            on_event({"event": "row", "result": jobs.to_json(result(row.key, weights="xyz"))})
        return Outcome("ok")

    workers.scripts["a"] = load_others
    assert set(statuses(call(["a"])).values()) == {"wrong"}


def test_worker_that_ends_well_without_results_is_a_failure(workers: Workers, call: Call) -> None:
    workers.scripts["a"] = lambda job, on_event: Outcome("ok")
    (first, _) = call(["a"])
    assert first.record is not None
    assert first.record.status == "crashed"
    assert "without a result" in (first.record.reason or "")


def test_cache_that_cannot_be_written_costs_one_backend_only(
    workers: Workers, call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder_of = Campaign.build_folder
    (tmp_path / "file").touch()

    def build_folder(self: Campaign, contestant: Contestant, group: Any) -> Path:
        return tmp_path / "file" / "x" if contestant.name == "a" else folder_of(self, contestant, group)

    monkeypatch.setattr(Campaign, "build_folder", build_folder)
    found = statuses(call(["a", "b"]))
    assert found["a", "decode"] == "crashed"
    assert found["b", "decode"] == "ok"


def test_nothing_is_timed_where_nothing_can_be_verified(
    workers: Workers, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(job: Any, **rest: Any) -> Outcome:
        return (
            Outcome("crashed", "No module named torch") if job.kind == "golden" else workers.run(job, **rest)
        )

    monkeypatch.setattr(campaign, "run", run)
    with pytest.raises(UserError, match="nothing can be verified"):
        call(["a"])
    assert workers.started == []


def test_kernels_are_traced_in_the_first_process_on_a_gpu_only(workers: Workers, call: Call) -> None:
    asked: list[tuple[str, bool]] = []

    def note(job: MeasureJob, on_event: Callable[[Any], None]) -> Outcome:
        asked.append((job.device, job.kernels))
        return report_all(job, on_event)

    workers.scripts["a"] = note
    call(["a"], repeats=2)
    call(["a"], repeats=3, device=GPU)
    assert asked == [("cpu", False)] * 2 + [("cuda:0", True), ("cuda:0", False), ("cuda:0", False)]


KERNELS = summarise([Activity("nvjet_tst", 0, 1000)], 1, HostTimes(5e-3, 5e-3))
CHECK = {"events_s": [1.0], "drained_s": [1.5]}


def report_findings(job: MeasureJob, on_event: Callable[[Any], None]) -> Outcome:
    outcome = report_all(job, on_event)
    for row in job.group.rows:
        found = [Finding(row.key, timer_check=CHECK)] if row.phase == "prefill" else []
        found += [Finding(row.key, kernels=KERNELS)] if job.kernels else []
        for finding in found:
            on_event({"event": "finding", "result": jobs.to_json(finding)})
    return outcome


def test_findings_join_the_row_and_what_they_say_is_warned_of(workers: Workers, call: Call) -> None:
    workers.scripts["a"] = report_findings
    prefill, decode = (entry.record for entry in call(["a"], device=GPU))
    assert prefill is not None
    assert decode is not None
    assert prefill.kernels == decode.kernels == KERNELS
    assert [run.timer_check for run in prefill.processes] == [CHECK, CHECK]
    assert [run.timer_check for run in decode.processes] == [None, None]
    assert any("waits for the host" in line for line in decode.warnings)
    assert sum("by CUDA events" in line for line in prefill.warnings) == 1
    assert not any("by CUDA events" in line for line in decode.warnings)


def test_findings_outlive_the_call_with_the_result_they_join(workers: Workers, call: Call) -> None:
    def interrupted(job: MeasureJob, on_event: Callable[[Any], None]) -> Outcome:
        if len(workers.started) == 2:
            raise KeyboardInterrupt
        return report_findings(job, on_event)

    workers.scripts["a"] = interrupted
    with pytest.raises(KeyboardInterrupt):
        call(["a"], device=GPU)
    del workers.scripts["a"]
    assert {entry.record.kernels is not None for entry in call(["a"], device=GPU) if entry.record} == {True}


def test_process_that_dies_while_kernels_are_traced_costs_no_row(workers: Workers, call: Call) -> None:
    def die(job: MeasureJob, on_event: Callable[[Any], None]) -> Outcome:
        report_all(job, on_event)
        if not job.kernels:
            return Outcome("ok")
        finding = Finding(job.group.rows[0].key, kernels=KERNELS)
        on_event({"event": "finding", "result": jobs.to_json(finding)})
        return Outcome("crashed", "killed by SIGSEGV in stage trace")

    workers.scripts["a"] = die
    entries = call(["a"], device=GPU)
    assert set(statuses(entries).values()) == {"ok"}
    prefill, decode = (entry.record for entry in entries)
    assert prefill is not None
    assert decode is not None
    assert prefill.kernels == KERNELS
    assert prefill.no_kernels is None
    assert decode.kernels is None
    assert "SIGSEGV in stage trace" in (decode.no_kernels or "")
    assert any("SIGSEGV in stage trace" in line for line in decode.warnings)


def test_findings_on_a_row_without_a_result_are_passed_over(workers: Workers, call: Call) -> None:
    def wrong(job: MeasureJob, on_event: Callable[[Any], None]) -> Outcome:
        for row in job.group.rows:
            refused = result(row.key, status="wrong", reason="no", samples_s=())
            on_event({"event": "row", "result": jobs.to_json(refused)})
            finding = Finding(row.key, kernels=KERNELS, warnings=("seen",))
            on_event({"event": "finding", "result": jobs.to_json(finding)})
        return Outcome("ok")

    workers.scripts["a"] = wrong
    for entry in call(["a"], device=GPU):
        assert entry.record is not None
        assert (entry.record.status, entry.record.kernels, entry.record.warnings) == ("wrong", None, ())


def test_memory_of_a_row_is_that_of_the_build_and_of_its_own_timing_not_of_the_checks(
    workers: Workers, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    watches: list[Watch] = []

    def watch(device: Device) -> Watch:
        watches.append(Watch(CPU))
        watches[0]._idle = 0  # as if it were a GPU's
        return watches[0]

    def use(job: MeasureJob, on_event: Callable[[Any], None]) -> Outcome:
        prefill, decode = (row.key for row in job.group.rows)
        stages = [("build", None, 30), ("gate", None, 90), ("time", prefill, 50), ("time", decode, 20)]
        for stage, row, held in (*stages, ("gate", None, 99)):
            on_event({"event": "stage", "stage": stage, "row": row})
            watches[0]._peaks[watches[0]._doing] = held
        return report_all(job, on_event)

    monkeypatch.setattr(turn, "Watch", watch)
    monkeypatch.setattr(Watch, "left_behind", lambda self: ())
    workers.scripts["a"] = use
    prefill, decode = call(["a"], repeats=1)
    assert prefill.record is not None and decode.record is not None
    assert (prefill.record.peak_bytes["total"], decode.record.peak_bytes["total"]) == (50, 30)


def test_one_golden_of_the_largest_batchs_rows_serves_every_batch(workers: Workers, call: Call) -> None:
    call(["a"], Workload(PHASES, (1, 2, 3), (64,), (128, 256), 32), repeats=1)
    (job,) = workers.goldens
    assert [(group.shapes.batch, group.shapes.prompts) for group in job.groups] == [
        (3, (64, 128)),
        (3, (256,)),
    ]
    short, long = (group.golden for group in job.groups)
    assert workers.held_against == [short, long] * 3


def test_golden_of_more_rows_than_needed_is_not_computed_again(
    workers: Workers, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = Workload(("decode",), (3,), (64,), (128,), 32)
    call(["a"], decode, repeats=1)
    (group,) = workers.goldens.pop().groups
    monkeypatch.setattr(campaign, "is_whole", lambda path: str(path) == group.golden)
    call(["b"], replace(decode, batches=(1, 2)), repeats=1)
    assert workers.goldens == []
    assert set(workers.held_against) == {group.golden}
    call(["b"], replace(decode, batches=(8,)), repeats=1)
    assert [each.shapes.batch for each in workers.goldens[0].groups] == [4]
