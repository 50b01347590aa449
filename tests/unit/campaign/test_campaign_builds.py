"""Which builds are cold, which are warm, and what is kept of them."""

import os
import shutil
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.unit.campaign.workers import Call, Workers, report_all, result
from tests.unit.engines import put, recipe
from workbench import job as jobs
from workbench.building.store import EngineStore
from workbench.comparing import builds, campaign, golden_files
from workbench.comparing import entries as rows_on_the_way
from workbench.job import MeasureJob
from workbench.plan import Workload
from workbench.process import Outcome


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


def test_what_processes_compile_beside_an_engine_built_ahead_is_compiled_once(
    workers: Workers, call: Call
) -> None:
    found: list[bool] = []

    def compile_rest(job: MeasureJob, on_event: Callable[[Any], None]) -> Outcome:
        (folder,) = (call.root / "cache" / "builds").iterdir()
        found.append((folder / "compiled").exists())
        (folder / "compiled").touch()
        return report_all(job, on_event)

    workers.scripts["a"] = compile_rest
    engine = put(EngineStore(call.root / "engines"), recipe())
    for entry in call(["a"], repeats=3, engine=engine):
        assert entry.record is not None
        assert entry.record.build_s == {"cached": 3.0}
    assert found == [False, True, True]


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


def test_a_golden_is_kept_while_it_is_used_and_pruned_as_builds_are(
    workers: Workers, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builds, "KEPT_BUILDS", 3)
    monkeypatch.setattr(golden_files, "is_whole", Path.is_file)

    def another_comparison_builds(job: MeasureJob, on_event: Callable[[Any], None]) -> Outcome:
        for name in ("x", "y", "z"):
            (call.root / "cache" / "builds" / name).mkdir(exist_ok=True)
            os.utime(call.root / "cache" / "builds" / name, (2, 2))
        builds.prune_builds()
        assert golden.is_file()
        os.utime(golden.parent, (1, 1))  # long ago, until the next process uses it
        return report_all(job, on_event)

    call(["a"])  # names the golden; these workers write none
    golden = Path(workers.held_against[0])
    golden.parent.mkdir()
    for path in (golden, golden.with_name(".golden.npz.lock")):
        path.touch()
    os.utime(golden.parent, (1, 1))
    workers.scripts["b"] = another_comparison_builds
    call(["b"])
    assert set(workers.held_against) == {str(golden)}
    call(["c", "d"], Workload(("decode",), (1, 2), (64,), (128,), 32), repeats=1)
    assert not golden.parent.exists()
