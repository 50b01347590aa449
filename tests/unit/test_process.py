"""Worker processes that go wrong: whatever a backend does, the parent learns what it was and carries on."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from backends.contract import Shapes
from models.errors import UserError
from models.weights import write_preset
from workbench import packages, process
from workbench.job import GroupJob, MeasureJob, ProbeJob, RowJob
from workbench.process import Limits, Outcome

PLUGINS = Path(__file__).resolve().parent.parent / "plugins"
ENVIRONMENT = {"PYTHONPATH": str(PLUGINS)}
AMPLE = Limits()
SHORT = Limits(load=3, build=3, gate=3, time=3)
"""For what hangs; whatever comes to an end by itself has the time it wants, on a busy machine too."""


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    write_preset("tiny", "float32", folder)
    return folder


class Worker:
    """Runs jobs of the planted backend and keeps their events."""

    def __init__(self, model, log):
        self.model = model
        self.log = log
        self.events = []

    def job(self, rows=1, kernels=False, **options):
        jobs = tuple(RowJob(f"row{number + 1}", "decode", 4, 32) for number in range(rows))
        group = GroupJob(Shapes(1, (4,), 64), "no golden", jobs)
        return MeasureJob("planted", options, str(self.model), "float32", "cpu", 0, 0.05, group, kernels)

    def run(self, rows=1, limits=AMPLE, **options) -> Outcome:
        return self.run_job(self.job(rows, **options), limits)

    def run_job(self, job, limits=AMPLE) -> Outcome:
        return process.run(
            job, log=self.log, environment=ENVIRONMENT, limits=limits, on_event=self.events.append
        )

    def of(self, kind):
        return [event for event in self.events if event["event"] == kind]

    @property
    def rows(self):
        return {event["result"]["key"]: event["result"] for event in self.of("row")}


@pytest.fixture
def worker(model, tmp_path):
    return Worker(model, tmp_path / "logs" / "worker.log")


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
    assert row["versions"] == {"planted": "1.0"}
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


@pytest.mark.parametrize("place", ["build", "load", "gate", "time", "after"])
def test_a_hang_is_a_timeout_of_its_stage(worker, place):
    begin = time.monotonic()
    outcome = worker.run(limits=SHORT, fault="hang", at=place)
    assert time.monotonic() - begin < 60
    stage = "gate" if place == "after" else place
    assert (outcome.status, outcome.stage) == ("timeout", stage)
    assert f"no end after 3 s in stage {stage}" in outcome.reason
    assert str(worker.log) in outcome.reason
    assert worker.rows == {}


@pytest.mark.parametrize(
    ("script", "status", "words"),
    [
        ("exec sleep 600", "timeout", "no end after 0.5 s in stage start"),
        (
            "echo No module named numpy >&2; exit 1",
            "crashed",
            "exit code 1 without a result in stage start: No module",
        ),
        ("exit 0", "crashed", "exit code 0 without a result"),
        ("kill -SEGV $$", "crashed", "killed by SIGSEGV in stage start"),
    ],
)
def test_an_interpreter_that_is_none_is_told_from_its_end(tmp_path, script, status, words):
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    limits = Limits(start=0.5 if status == "timeout" else 30)
    outcome = process.run(ProbeJob("null"), python=str(python), log=tmp_path / "log", limits=limits)
    assert outcome.status == status
    assert words in outcome.reason


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


def test_what_an_event_makes_the_caller_raise_ends_the_worker_and_is_raised(worker, tmp_path, monkeypatch):
    monkeypatch.setenv("PLANTED_FILE", str(tmp_path / "pids"))

    def stumble(event):
        while not (tmp_path / "pids").exists():
            time.sleep(0.01)
        raise KeyError("a bug of the caller's")

    job = worker.job(fault="hang-with-child")
    with pytest.raises(KeyError, match="a bug of the caller's"):
        process.run(job, log=worker.log, environment=ENVIRONMENT, on_event=stumble, limits=SHORT)
    assert all(gone(int(pid)) for pid in (tmp_path / "pids").read_text().split())


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


@pytest.mark.parametrize("seed", range(5))
def test_a_worker_killed_at_any_moment_is_a_crash_or_done(worker, seed):
    delay = random.Random(seed).uniform(0.0, 1.0)
    killer = (
        "import os, sys, threading, time, signal, runpy\n"
        f"threading.Timer({delay}, os.kill, (os.getpid(), signal.SIGKILL)).start()\n"
        "sys.argv[0] = 'worker'; del sys.argv[1:3]\n"
        "runpy.run_module('workbench.worker', run_name='__main__', alter_sys=True)\n"
    )
    script = worker.log.parent.parent / "python"
    (script.parent / "killer.py").write_text(killer)
    script.write_text(f'#!/bin/sh\nshift\nexec {sys.executable} -P {script.parent}/killer.py "$@"\n')
    script.chmod(0o755)
    job = worker.job(rows=3)
    outcome = process.run(
        job, python=str(script), log=worker.log, environment=ENVIRONMENT, on_event=worker.events.append
    )
    assert outcome.ok or "killed by SIGKILL" in outcome.reason
    timed = [event["stage"] for event in worker.of("stage")].count("time")
    assert len(worker.rows) <= timed  # rows come once the engine has passed its second check
    assert not outcome.ok or len(worker.rows) == timed == 3
    assert all(len(row["samples_s"]) >= 10 for row in worker.rows.values())


def gone(pid):
    """Wait until a process is no more, or only a corpse that nobody has collected."""
    for _ in range(100):
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


def test_a_timeout_takes_what_the_worker_started_along(worker, tmp_path, monkeypatch):
    monkeypatch.setenv("PLANTED_FILE", str(tmp_path / "pids"))
    assert worker.run(limits=SHORT, fault="hang-with-child").status == "timeout"
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert len(pids) == 2
    assert all(gone(pid) for pid in pids)


def test_an_interrupt_ends_the_worker_and_is_raised_again(worker, tmp_path, monkeypatch):
    monkeypatch.setenv("PLANTED_FILE", str(tmp_path / "pids"))

    def interrupt(event):
        if event["event"] == "stage":
            while not (tmp_path / "pids").exists():
                time.sleep(0.01)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        process.run(
            worker.job(fault="hang-with-child"), log=worker.log, environment=ENVIRONMENT, on_event=interrupt
        )
    time.sleep(0.1)
    assert all(gone(int(pid)) for pid in (tmp_path / "pids").read_text().split())


def test_a_worker_does_not_outlive_a_killed_parent(worker, tmp_path):
    code = (
        "import sys; from pathlib import Path; sys.path[:0] = sys.argv[1:3]\n"
        "from tests.unit.test_process import *\n"
        "log = Path(sys.argv[4])\n"
        "process.run(Worker(sys.argv[3], log).job(fault='hang-with-child'), log=log)\n"
    )
    pids = tmp_path / "pids"
    environment = {**os.environ, "PLANTED_FILE": str(pids), "PYTHONPATH": str(PLUGINS)}
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(packages.ROOT), str(PLUGINS), str(worker.model), str(worker.log)],
        env=environment,
    )
    for _ in range(200):
        if pids.exists() and len(pids.read_text().split()) == 2:
            break
        time.sleep(0.05)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    assert all(gone(int(pid)) for pid in pids.read_text().split())


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
