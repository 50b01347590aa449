"""Rounds, rotation, resuming and failures, with workers that are told what to report."""

from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from models.errors import UserError
from tests.unit.campaign.workers import Call, Workers, interrupt, result, statuses
from workbench import job as jobs
from workbench.comparing import golden_files
from workbench.comparing.campaign import Campaign
from workbench.comparing.contestants import Contestant
from workbench.job import MeasureJob
from workbench.plan import PHASES, Workload
from workbench.process import Outcome
from workbench.record import UNFINISHED, UNSAVED
from workbench.store import Store


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


def test_looks_at_the_ceilings_are_pieces_of_the_work_that_is_shown(workers: Workers, call: Call) -> None:
    call(["a", "b"], repeats=3)
    (task,) = call.progress.bar.tasks
    assert task.completed == task.total == 2 * 2 * 3 + 4
    call(["a", "b"], repeats=3)
    (task,) = call.progress.bar.tasks
    assert task.completed == task.total == 0
    assert len(workers.looks) == 4


def test_rows_that_failed_are_pieces_no_longer(workers: Workers, call: Call) -> None:
    workers.scripts["a"] = lambda job, on_event: Outcome("crashed", "killed")
    call(["a", "b"], repeats=3)
    (task,) = call.progress.bar.tasks
    assert task.completed == task.total == 2 + 2 * 3 + 4
    assert task.fields["done_s"] == pytest.approx(task.fields["total_s"])


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
    interrupt(workers, call, at=2, repeats=3)
    workers.started.clear()
    entries = call(["a"], repeats=3)
    assert len(workers.started) == 2
    assert {len(entry.record.processes) for entry in entries if entry.record} == {3}


@pytest.mark.parametrize(("asked", "started"), [(2, 0), (3, 1), (4, 2)])
def test_processes_of_a_comparison_that_was_cut_off_serve_one_of_fewer_or_of_more(
    workers: Workers, call: Call, asked: int, started: int
) -> None:
    interrupt(workers, call, at=3, repeats=3)
    workers.started.clear()
    for entry in call(["a"], repeats=asked):
        assert entry.record is not None
        assert len(entry.record.processes) == entry.record.protocol["processes"] == asked
    assert len(workers.started) == started


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

    def build_folder(self: Campaign, contestant: Contestant, group: Any, engine: Any) -> Path:
        return (
            tmp_path / "file" / "x" if contestant.name == "a" else folder_of(self, contestant, group, engine)
        )

    monkeypatch.setattr(Campaign, "build_folder", build_folder)
    found = statuses(call(["a", "b"]))
    assert found["a", "decode"] == "crashed"
    assert found["b", "decode"] == "ok"


@pytest.mark.parametrize(("again", "warning"), [(False, UNFINISHED), (True, UNSAVED)])
def test_row_that_cannot_be_saved_says_whether_its_processes_are_kept(
    workers: Workers, call: Call, monkeypatch: pytest.MonkeyPatch, again: bool, warning: str
) -> None:
    with monkeypatch.context() as full:
        full.setattr(Store, "append", Mock(side_effect=UserError("cannot write: No space left on device")))
        for entry in call(["a"], again=again):
            assert entry.record is not None
            assert warning in entry.record.warnings
    workers.started.clear()
    call(["a"], again=again)
    assert bool(workers.started) == again


def test_row_of_which_nothing_can_be_saved_says_so(
    workers: Workers, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("append", "keep"):
        monkeypatch.setattr(Store, name, Mock(side_effect=UserError("cannot write")))
    for entry in call(["a"]):
        assert entry.record is not None
        assert UNSAVED in entry.record.warnings


def test_nothing_is_timed_where_nothing_can_be_verified(
    workers: Workers, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(job: Any, **rest: Any) -> Outcome:
        return (
            Outcome("crashed", "No module named torch") if job.kind == "golden" else workers.run(job, **rest)
        )

    monkeypatch.setattr(golden_files, "run", run)
    with pytest.raises(UserError, match="nothing can be verified"):
        call(["a"])
    assert workers.started == []


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
    monkeypatch.setattr(golden_files, "is_whole", lambda path: str(path) == group.golden)
    call(["b"], replace(decode, batches=(1, 2)), repeats=1)
    assert workers.goldens == []
    assert set(workers.held_against) == {group.golden}
    call(["b"], replace(decode, batches=(8,)), repeats=1)
    assert [each.shapes.batch for each in workers.goldens[0].groups] == [4]


def test_golden_of_another_torch_is_computed_again(
    workers: Workers, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: set[str] = set()
    monkeypatch.setattr(golden_files, "is_whole", lambda path: str(path) in made)
    for expected, release in [(1, "2.11.0"), (1, "2.11.0"), (2, "2.13.0+cu130")]:
        monkeypatch.setattr("importlib.metadata.version", {"torch": release}.__getitem__)
        call(["a"], repeats=1, again=True)
        made |= {group.golden for job in workers.goldens for group in job.groups}
        assert len(made) == len(workers.goldens) == expected


def test_golden_is_named_where_there_is_no_torch_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.version", Mock(side_effect=PackageNotFoundError))
    assert golden_files.torch_version() is None
