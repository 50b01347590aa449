"""Measurements that are told what to find, for the tests of `pytest --workbench`."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from backends.contract import Probe
from models.config import PRESETS
from tests.unit.builders import TRACK_TABLE
from workbench import compare
from workbench.comparing.contestants import Contestant
from workbench.comparing.entries import Entry, blank_record
from workbench.comparing.request import Request
from workbench.comparing.source import Source
from workbench.record import ProcessRun, Record
from workbench.statistics import summarise
from workbench.tracking import session as track_session

SOURCE = Source("tiny", Path("tiny"), PRESETS["tiny"], "abc")
ROOT = Path(__file__).resolve().parents[3]
RUN = ("-p", "workbench.tracking.pytest_plugin", "-p", "no:cacheprovider", "--workbench")

Apart = Callable[..., pytest.RunResult]


class Harness:
    """Stands in for the measuring: every row takes `time_s`, the rows in `failing` have none.

    Engines of `elsewhere` run in another process, so they have no chained rows.
    """

    def __init__(self) -> None:
        self.time_s = 0.001
        self.failing: set[str] = set()
        self.elsewhere: set[str] = set()
        self.asked: list[str] = []
        """Rows that were measured."""

    def measure(self, request: Request, select: Callable[[list[Entry]], list[Entry]]) -> list[Record]:
        device, settings, groups = compare.resolve(request)
        entries = []
        for group in groups:
            for row in group.rows:
                for backend, options in request.backends or ():
                    if backend in self.elsewhere and row.clock == "chained":
                        continue
                    contestant = Contestant(backend, options, sys.executable, Probe())
                    blank = blank_record("now", settings, device, SOURCE, contestant, row)
                    entries.append(Entry(contestant, group, row, blank))
        chosen = [self.finish(entry.blank) for entry in select(entries)]
        self.asked += [track_session.row_name(record.name, record) for record in chosen]
        return chosen

    def finish(self, blank: Record) -> Record:
        if blank.name in self.failing:
            return replace(blank, status="crashed", reason="killed by SIGSEGV")
        runs = [tuple(self.time_s * (1 + (index + place) / 2000) for place in range(4)) for index in range(5)]
        runs_kept = tuple(map(ProcessRun, runs))
        return replace(blank, status="ok", reason=None, processes=runs_kept, time_s=summarise(runs))


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch, pytester: pytest.Pytester) -> Harness:
    found = Harness()
    monkeypatch.setattr(track_session, "measure", found.measure)
    monkeypatch.setattr(track_session, "prepare", lambda *_: SOURCE)
    monkeypatch.setattr(track_session, "LOCKS", pytester.path / "locks")
    (pytester.path / "pyproject.toml").write_text(TRACK_TABLE)
    return found


@pytest.fixture
def apart(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Apart:
    """Return a function that runs pytest in a process of its own, where this project is not installed."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return pytester.runpytest_subprocess


def expect_refusal(done: pytest.RunResult, *words: str) -> None:
    assert done.ret == 2
    text = done.stderr.str() + done.stdout.str()
    (line,) = (line for line in text.splitlines() if "Error: " in line)
    assert "Traceback" not in text
    for word in words:
        assert word in line
