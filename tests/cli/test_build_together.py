"""Several processes that want one engine, and builds that the user stops."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

from filelock import FileLock

from tests.cli.conftest import PLUGINS, ROOT, Run
from tests.cli.engines import SMALL, build, rows_of


def start(environment: dict[str, str], tmp_path: Path, backend: str, **more: str) -> "subprocess.Popen[str]":
    arguments = ("build", "--backends", backend, "--target", "a100", *SMALL, "--format", "json")
    variables = environment | {
        "PYTHONPATH": f"{ROOT}{os.pathsep}{PLUGINS}",
        "KEEPER_LOG": str(tmp_path / "builds"),
    }
    return subprocess.Popen(
        [sys.executable, "-m", "workbench", *arguments, "--engines", str(tmp_path / "engines")],
        env=variables | more,
        cwd=tmp_path,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # A shell's background job ignores Ctrl-C, and so would what such a job starts.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )


def test_two_processes_build_an_engine_once(environment: dict[str, str], tmp_path: Path) -> None:
    both = [start(environment, tmp_path, "keeper", KEEPER_SECONDS="4") for _ in range(2)]
    rows = [json.loads(process.communicate(timeout=100)[0])[0] for process in both]
    assert [row["status"] for row in rows] == ["ok", "ok"]
    assert sorted(row["built"] for row in rows) == [False, True]
    assert (tmp_path / "builds").read_text() == "sm_80\n"


def test_a_build_that_is_stopped_leaves_nothing(environment: dict[str, str], tmp_path: Path) -> None:
    process = start(environment, tmp_path, "keeper[fault=hang]")
    deadline = time.monotonic() + 60
    while not (tmp_path / "builds").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130, said
    assert said.startswith("stopped; ")
    assert list((tmp_path / "engines").glob("[!.]*/*")) == []
    assert list((tmp_path / "engines" / ".unfinished").iterdir()) == []


def test_who_waits_for_anothers_build_can_be_stopped(
    keeper: Run, environment: dict[str, str], tmp_path: Path, cache: Path
) -> None:
    (row,) = rows_of(build(keeper, "keeper", "a100", "--format", "json"))
    asked = cache / "logs" / "compilers-keeper.log"
    asked.unlink()
    with FileLock(tmp_path / "engines" / ".locks" / f"{row['key']}.lock"):
        process = start(environment, tmp_path, "keeper")
        deadline = time.monotonic() + 60
        while not asked.exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(2)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=10)
    assert process.returncode == 130, said
    assert (tmp_path / "builds").read_text() == "sm_80\n"
