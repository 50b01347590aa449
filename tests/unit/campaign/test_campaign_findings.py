"""What joins a row besides its times: conditions, memory, kernels and the other clock."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.unit.campaign.workers import CPU, GPU, Call, Workers, interrupt, report_all, result, statuses
from workbench import job as jobs
from workbench.comparing import turn
from workbench.device.kernels import Activity, HostTimes, summarise
from workbench.device.machine import Device
from workbench.device.watch import Watch
from workbench.job import Finding, MeasureJob
from workbench.process import Outcome


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
    interrupt(workers, call, at=2, script=report_findings, device=GPU)
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
