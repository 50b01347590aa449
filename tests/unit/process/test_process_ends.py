"""Worker processes that hang, are killed or are interrupted: they end, and nothing of them stays."""

import os
import random
import signal
import subprocess
import sys
import time

import psutil
import pytest

from tests.unit.process.planted_jobs import ENVIRONMENT, PLUGINS, SHORT
from workbench import packages, process
from workbench.job import ProbeJob
from workbench.process import Limits


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
        "from tests.unit.process.planted_jobs import Worker\n"
        "from workbench import process\n"
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
