"""Backends that go wrong in a worker: the parent learns what it was and carries on."""

import pytest

from models.errors import UserError
from workbench import process
from workbench.job import ProbeJob
from workbench.process import Limits


def test_a_job_passes_all_stages_and_reports_every_row(worker):
    outcome = worker.run(rows=2)
    assert outcome.ok, outcome
    stages = [event["stage"] for event in worker.of("stage")]
    assert stages == ["build", "load", "build", "gate", "time", "time", "gate"]
    assert worker.rows.keys() == {"row1", "row2"}
    row = worker.rows["row1"]
    assert row["status"] in ("ok", "unstable")
    assert len(row["samples_s"]) >= 10
    assert min(row["samples_s"]) >= 1e-4
    assert len(row["weights"]) == 32


@pytest.mark.parametrize(
    ("fault", "place", "status", "words"),
    [
        (
            "exception",
            "build",
            "build_failed",
            "RuntimeError: compiler raised: the third pass is broken (log:",
        ),
        ("exception", "load", "crashed", "the third pass is broken"),
        ("exception", "gate", "crashed", "the third pass is broken"),
        ("exception", "time", "crashed", "the third pass is broken"),
        ("memory", "build", "oom", "Unable to allocate 9 TiB"),
        ("cuda-memory", "time", "oom", "out of memory"),
        ("unsupported", "build", "unsupported", "batch of three is odd"),
        ("unsupported", "load", "unsupported", "batch of three is odd"),
    ],
)
def test_an_exception_is_the_jobs_end_and_its_reason(worker, fault, place, status, words):
    outcome = worker.run(fault=fault, at=place)
    assert outcome.status == status
    assert words in outcome.reason
    assert "\n" not in outcome.reason
    assert worker.rows == {}


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("kill", "killed by SIGKILL in stage load, usually by the kernel for want of memory (see dmesg)"),
        ("abort", "killed by SIGABRT in stage load"),
        ("exit", "exit code 0 without a result in stage load"),
        ("half", "exit code 3 without a result in stage load; 3 of its events could not be read (log:"),
        ("sys-exit", "SystemExit"),
    ],
)
def test_a_crash_says_how_and_where(worker, fault, words):
    outcome = worker.run(fault=fault, at="load")
    assert outcome.status == "crashed"
    assert words in outcome.reason
    assert worker.rows == {}


def test_what_was_timed_before_a_crash_but_not_verified_after_does_not_exist(worker):
    outcome = worker.run(rows=3, fault="kill", at="after")
    assert outcome.status == "crashed"
    assert worker.rows == {}


def test_what_a_backend_prints_goes_to_the_log_and_nowhere_else(worker, capfd):
    outcome = worker.run(fault="garbage", at="time")
    assert outcome.ok
    assert outcome.result is None
    assert worker.rows.keys() == {"row1"}
    text = worker.log.read_text(errors="replace")
    assert "garbage" in text
    assert "noise" in text
    assert "from a child" in text
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("place", "words"), [("gate", "skips a layer"), ("after", "after timing: skips a layer")]
)
def test_wrong_logits_leave_no_time_whenever_they_show(worker, place, words):
    assert worker.run(fault="wrong", at=place).ok
    row = worker.rows["row1"]
    assert (row["status"], row["reason"], row["samples_s"], row["error_ratio"]) == ("wrong", words, [], 7.0)


def test_a_fault_of_the_input_is_raised_to_the_user(worker, tmp_path):
    with pytest.raises(UserError, match="your checkpoint is damaged"):
        worker.run(fault="user")
    worker.model = tmp_path / "nowhere"
    with pytest.raises(UserError, match="nowhere"):
        worker.run()
    with pytest.raises(UserError, match="cannot start /no/python"):
        process.run(ProbeJob("null"), python="/no/python", log=tmp_path / "log")


def test_a_folder_named_models_in_the_way_is_not_imported(worker, tmp_path, monkeypatch):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "__init__.py").write_text("raise RuntimeError('a stranger')")
    monkeypatch.chdir(tmp_path)
    assert worker.run_job(ProbeJob("planted")).result["versions"] == {"planted": "1.0"}


def test_a_probe_of_an_unknown_backend_is_an_answer_not_an_error(worker):
    result = worker.run_job(ProbeJob("plantet")).result
    assert "did you mean 'planted'?" in result["reason"]


def test_the_traceback_is_shown_only_on_demand(worker, capsys, monkeypatch):
    worker.run(fault="exception")
    assert "Traceback" not in capsys.readouterr().err
    assert "Traceback" in worker.log.read_text()
    monkeypatch.setenv("WORKBENCH_DEBUG", "1")
    worker.run(fault="exception")
    assert "the third pass is broken" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("fault", "status", "words"),
    [("kill", "crashed", "SIGKILL in stage trace"), ("hang", "timeout", "no end after 5 s in stage trace")],
)
def test_a_process_that_dies_while_kernels_are_traced_has_sent_its_rows(worker, fault, status, words):
    job = worker.job(rows=2, kernels=True, fault=fault, at="trace")
    outcome = worker.run_job(job, Limits(trace=5))
    assert outcome.status == status
    assert words in outcome.reason
    assert worker.rows.keys() == {"row1", "row2"}
    assert all(row["samples_s"] for row in worker.rows.values())
    assert [finding["result"]["key"] for finding in worker.of("finding")] == ["row1"]


def test_a_trace_that_raises_costs_kernels_only(worker):
    outcome = worker.run_job(worker.job(rows=2, kernels=True, fault="exception", at="trace"))
    assert outcome.ok
    first, second = (finding["result"] for finding in worker.of("finding"))
    assert first["kernels"]["kernels"][0]["name"] == "planted_kernel"
    assert first["kernels"]["busy_s"] == pytest.approx(100e-9)  # a step of eight
    assert second["kernels"] is None
    assert "compiler raised" in second["warnings"][0]
    assert "the third pass is broken" in worker.log.read_text()
    seen = [event["event"] for event in worker.events]
    assert seen.index("finding") > max(index for index, event in enumerate(seen) if event == "row")
