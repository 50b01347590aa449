"""Starting a worker: what it may import, its log, and the files it takes."""

import errno
import os
import shutil
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from models.errors import UserError
from workbench import packages, process
from workbench.job import ProbeJob


def script(folder, lines):
    """Write a shell script that is started in place of an interpreter."""
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{lines}\n")
    path.chmod(0o755)
    return str(path)


def test_a_log_tells_of_its_own_run_alone(tmp_path):
    log = tmp_path / "log"
    log.write_text("an older run's last word\n")
    python = script(tmp_path, "exit 1")
    outcome = process.run(ProbeJob("null"), python=python, log=log)
    assert outcome.reason == f"exit code 1 without a result in stage start (log: {log})"


def test_a_log_that_cannot_be_written_is_named_not_the_interpreter(tmp_path):
    (tmp_path / "file").touch()
    for log, why in ((tmp_path, "Is a directory"), (tmp_path / "file" / "log", "File exists")):
        with pytest.raises(UserError, match=f"cannot write the log {log}: {why}; ") as caught:
            process.run(ProbeJob("null"), log=log)
        assert "Python" not in str(caught.value)
        assert str(caught.value).endswith("or set WORKBENCH_CACHE if it is in the cache")


def test_a_full_disk_under_the_job_is_named_not_the_interpreter(tmp_path, monkeypatch):
    def full(**_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    with pytest.raises(UserError, match=f"cannot write a file in {tempfile.gettempdir()}: No space left"):
        process.run(ProbeJob("null"), log=tmp_path / "log")


def test_a_want_of_pipes_is_not_blamed_on_the_interpreter(tmp_path, monkeypatch):
    def none_left():
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "pipe", none_left)
    with pytest.raises(UserError, match="cannot open a pipe: Too many open files"):
        process.run(ProbeJob("null"), log=tmp_path / "log")


@pytest.fixture
def site_packages(tmp_path, monkeypatch):
    """Lay our packages out as an installed wheel does, beside a module of another distribution."""
    root = tmp_path / "site-packages"
    root.mkdir()
    for name in packages.PACKAGES:
        shutil.copytree(packages.ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    (root / "stranger.py").touch()
    monkeypatch.setattr(packages, "ROOT", root)
    return root


def test_another_interpreter_gets_our_packages_and_no_others(tmp_path, site_packages):
    look = "from importlib.util import find_spec as find; print(find('stranger'), find('workbench').origin)"
    python = script(tmp_path, f'{sys.executable} -P -c "{look}"\nexec {sys.executable} "$@"')
    for _ in range(2):  # the links are there the second time
        outcome = process.run(ProbeJob("null"), python=python, log=tmp_path / "log")
        assert outcome.ok, outcome
        found, origin = (tmp_path / "log").read_text().split()
        assert found == "None"
        assert Path(origin).resolve() == site_packages / "workbench" / "__init__.py"


def test_links_to_our_packages_are_made_once_and_mended(site_packages):
    folder = packages.import_folder("/other/python")
    assert packages.import_folder("/other/python") == folder
    (folder / "models").unlink()
    (folder / "backends").unlink()
    (folder / "backends").symlink_to("/nowhere")
    assert packages.import_folder("/other/python") == folder
    links = {path.name: path.resolve() for path in folder.iterdir()}
    assert links == {name: site_packages / name for name in packages.PACKAGES}
    assert packages.import_folder(sys.executable) == site_packages


def test_a_cache_without_room_for_the_links_is_named(tmp_path, site_packages, monkeypatch):
    (tmp_path / "full").touch()
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "full"))
    with pytest.raises(UserError, match=r"cannot make .*full/packages/.*: Not a directory; "):
        process.run(ProbeJob("null"), python="/other/python", log=tmp_path / "log")


def test_threads_that_make_the_same_links_at_once_do_not_meet(tmp_path, site_packages, monkeypatch):
    for attempt in range(40):
        monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / str(attempt)))
        with ThreadPoolExecutor(4) as pool:
            (folder,) = set(pool.map(packages.import_folder, ["/other/python"] * 4))
        assert {path.name for path in folder.iterdir()} == set(packages.PACKAGES)


def test_a_worker_counts_gpus_as_nvml_does_whatever_the_user_prefers(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "FASTEST_FIRST")
    python = script(tmp_path, "echo $CUDA_DEVICE_ORDER")
    process.run(ProbeJob("null"), python=python, log=tmp_path / "log")
    assert (tmp_path / "log").read_text() == "PCI_BUS_ID\n"
