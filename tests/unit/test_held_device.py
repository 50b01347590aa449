"""A command that measures is refused on a held device before it starts anything beside the holder."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from models.errors import UserError
from tests.unit.builders import TRACK_TABLE
from workbench import compare
from workbench.comparing.request import Named, Request
from workbench.device.locks import DeviceLock
from workbench.device.machine import describe
from workbench.tracking import session
from workbench.tracking.against import compare_against
from workbench.tracking.calibrate import calibrate
from workbench.tracking.track import run_pytest

pytest.importorskip("pytest_benchmark", reason="install it: pip install 'workbench[track]'")

COMMANDS: dict[str, Callable[[Request], object]] = {
    "compare": lambda request: compare.compare(request, "table"),
    "compare --again": lambda request: compare.compare(Request(again=True, device="cpu"), "table"),
    "compare --against": lambda request: compare_against(request, "first", "table"),
    "calibrate": lambda request: calibrate(request, as_json=False),
}


def start(*_: object, **__: object) -> NoReturn:
    raise AssertionError("a process was started beside the holder's measurement")


@pytest.fixture(autouse=True)
def held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Hold the CPU."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    for module in (compare, session):
        monkeypatch.setattr(module, "LOCKS", tmp_path / "locks")
    with DeviceLock(describe("cpu"), tmp_path / "locks"):
        yield


@pytest.mark.parametrize("command", COMMANDS)
def test_a_held_device_is_refused_before_anything_is_run(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "Popen", start)
    with pytest.raises(UserError, match=r"in use by another measurement \(process \d+\): wait for it to end"):
        COMMANDS[command](Request(device="cpu", results=tmp_path / "results"))
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("named", "baseline", "words"),
    [
        (("eagr", {}), None, "did you mean 'eager'"),
        (("eager", {"graf": ""}), None, "has no option 'graf'"),
        (("eager", {}), "xla", "--baseline 'xla' is not among the rows"),
    ],
)
def test_a_mistake_is_told_before_the_device_is_waited_for(
    named: Named, baseline: str | None, words: str
) -> None:
    with pytest.raises(UserError, match=words):
        compare.measure(Request(backends=(named,), baseline=baseline, device="cpu"))


def test_track_is_refused_with_one_line_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "pyproject.toml").write_text(TRACK_TABLE)
    assert run_pytest(None, None, ["-p", "no:cacheprovider", "-p", "no:xdist"]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.count("\n") == told.err.count("Error: cpu (") == told.err.count("in use by") == 1
    assert not (tmp_path / "cache").exists()
