"""`pytest --workbench`, with measurements that are told what to find."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from backends.contract import Probe
from models.config import PRESETS
from models.errors import UserError
from tests.unit.builders import TRACK_TABLE
from workbench import compare
from workbench.comparing.contestants import Contestant
from workbench.comparing.entries import Entry, blank_record
from workbench.comparing.request import Request
from workbench.comparing.source import Source
from workbench.record import ProcessRun, Record
from workbench.statistics import summarise
from workbench.store import Store
from workbench.tracking import session as track_session
from workbench.tracking.floors import calibration_folder
from workbench.tracking.track import read_request

pytest.importorskip("pytest_benchmark", reason="install it: pip install 'workbench[track]'")
pytest_plugins = ["pytester"]

SOURCE = Source("tiny", Path("tiny"), PRESETS["tiny"], "abc")
ROOT = Path(__file__).resolve().parents[2]
RUN = ("-p", "workbench.tracking.pytest_plugin", "-p", "no:cacheprovider", "--workbench")


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
    (pytester.path / "pyproject.toml").write_text(TRACK_TABLE)
    return found


def keep(pytester: pytest.Pytester, harness: Harness) -> None:
    """Put the rows as they are now, and a calibration of a quiet machine, into the results."""
    request = read_request(pytester.path / "pyproject.toml")
    rows = harness.measure(request, list)
    harness.asked.clear()
    quiet = Store(calibration_folder(request.results), lambda line: None)
    for row in rows:
        Store(request.results, lambda line: None).append(replace(row, run="then"))
        quiet.append(replace(row, processes=row.processes * 2))


def test_each_row_is_a_benchmark_with_our_samples(pytester: pytest.Pytester, harness: Harness) -> None:
    done = pytester.runpytest(*RUN, "--benchmark-json=out.json")
    done.assert_outcomes(passed=4)
    assert harness.asked == [
        "eager-prefill-b1-p16",
        "compile[mode=default]-prefill-b1-p16",
        "eager-decode-b1-c32",
        "compile[mode=default]-decode-b1-c32",
    ]
    saved = json.loads((pytester.path / "out.json").read_text())
    bench = next(each for each in saved["benchmarks"] if each["name"] == "eager-decode-b1-c32")
    assert bench["fullname"] == "pyproject.toml::eager-decode-b1-c32"
    assert bench["group"] == "decode b1 c32"
    expected = [0.001 * (1 + (index + place) / 2000) for index in range(5) for place in range(4)]
    assert bench["stats"]["data"] == expected
    assert (bench["stats"]["rounds"], bench["stats"]["iterations"]) == (20, 1)
    assert bench["extra_info"]["processes"] == [4] * 5
    about = saved["machine_info"]["workbench"]
    assert {"device", "protocol", "weights", "dtype"} <= set(about)
    assert bench["extra_info"]["protocol"] == about["protocol"]
    assert {"name", "uuid"} <= set(bench["extra_info"]["gpu"])


def test_runs_are_saved_by_device_and_protocol_and_compared(
    pytester: pytest.Pytester, harness: Harness
) -> None:
    assert pytester.runpytest(*RUN, "--benchmark-save=first").ret == 0
    (saved,) = pytester.path.glob(".benchmarks/*/*/0001_first.json")
    about = json.loads(saved.read_text())["machine_info"]["workbench"]
    assert saved.parts[-3].endswith(about["protocol"][:8])
    harness.time_s *= 2
    done = pytester.runpytest(*RUN, "--benchmark-compare", "--benchmark-compare-fail=median:50%")
    assert done.ret != 0
    assert "Performance has regressed" in done.stderr.str() + done.stdout.str()


@pytest.mark.parametrize("part", ["device", "protocol", "weights", None])
def test_a_run_of_other_work_is_refused_before_anything_is_measured(
    pytester: pytest.Pytester, harness: Harness, part: str | None
) -> None:
    assert pytester.runpytest(*RUN, "--benchmark-save=first").ret == 0
    (saved,) = pytester.path.glob(".benchmarks/*/*/0001_first.json")
    content = json.loads(saved.read_text())
    if part is None:
        del content["machine_info"]["workbench"]
    else:
        content["machine_info"]["workbench"][part] = "other"
    saved.write_text(json.dumps(content))
    harness.asked.clear()
    done = pytester.runpytest(*RUN, "--benchmark-compare")
    expect_refusal(done, f"{part or 'device'}: ")
    assert harness.asked == []


def expect_refusal(done: pytest.RunResult, *words: str) -> None:
    assert done.ret == 2
    text = done.stderr.str() + done.stdout.str()
    (line,) = (line for line in text.splitlines() if "Error: " in line)
    assert "Traceback" not in text
    for word in words:
        assert word in line


def test_a_row_without_a_time_fails_with_its_reason(pytester: pytest.Pytester, harness: Harness) -> None:
    harness.failing = {"eager"}
    done = pytester.runpytest(*RUN, "--benchmark-json=out.json")
    done.assert_outcomes(passed=2, failed=2)
    assert done.ret == 1
    done.stdout.fnmatch_lines(["*eager decode b1 c32: crashed: killed by SIGSEGV*"])
    assert "Traceback" not in done.stdout.str()
    saved = json.loads((pytester.path / "out.json").read_text())
    assert {each["extra_info"]["backend"] for each in saved["benchmarks"]} == {"compile"}


def test_selected_rows_alone_are_measured(pytester: pytest.Pytester, harness: Harness) -> None:
    pytester.runpytest(*RUN, "-k", "decode and eager").assert_outcomes(passed=1, deselected=3)
    assert harness.asked == ["eager-decode-b1-c32"]
    pytester.runpytest(*RUN, "pyproject.toml::compile[mode=default]-prefill-b1-p16").assert_outcomes(passed=1)
    assert harness.asked[1:] == ["compile[mode=default]-prefill-b1-p16"]
    pytester.runpytest(*RUN, "--collect-only")
    assert len(harness.asked) == 2


def test_skipped_rows_are_not_measured(pytester: pytest.Pytester, harness: Harness) -> None:
    pytester.runpytest(*RUN, "--benchmark-skip").assert_outcomes(skipped=4)
    assert harness.asked == []
    slow = "items[0].add_marker(pytest.mark.skip(reason='is slow'))"
    pytester.makeconftest(f"import pytest\ndef pytest_collection_modifyitems(items): {slow}")
    done = pytester.runpytest(*RUN, "-rs")
    done.assert_outcomes(passed=3, skipped=1)
    done.stdout.fnmatch_lines(["SKIPPED *pyproject.toml*: is slow"])
    assert len(harness.asked) == 3


def test_a_regression_fails_where_it_is_to(pytester: pytest.Pytester, harness: Harness) -> None:
    keep(pytester, harness)
    fail_on = "--workbench-fail-on=regression"
    same = pytester.runpytest(*RUN, fail_on)
    same.assert_outcomes(passed=4)
    same.stdout.fnmatch_lines(["*eager decode b1 c32: same: 1.000x *"])
    harness.time_s *= 1.05
    assert pytester.runpytest(*RUN, "--workbench-against=then").ret == 0
    slower = pytester.runpytest(*RUN, fail_on, "--benchmark-save=slower")
    slower.assert_outcomes(failed=4)
    assert slower.ret == 1
    slower.stdout.fnmatch_lines(["*eager decode b1 c32: slower: 0.952x *"])
    (saved,) = pytester.path.glob(".benchmarks/*/*/0001_slower.json")
    verdicts = [each["extra_info"]["verdict"] for each in json.loads(saved.read_text())["benchmarks"]]
    assert [each["verdict"] for each in verdicts] == ["slower"] * 4


@pytest.mark.parametrize("arguments", [[], ["--workbench-fail-on=regression"]])
def test_a_row_that_is_not_tracked_fails_with_the_reason(
    pytester: pytest.Pytester, harness: Harness, arguments: list[str]
) -> None:
    harness.elsewhere = {"eager"}
    done = pytester.runpytest(*RUN, *arguments, "-k", "decode and eager")
    done.assert_outcomes(failed=1, deselected=3)
    done.stdout.fnmatch_lines(["eager-decode-b1-c32: its engine runs in another process*"])
    assert "INTERNALERROR" not in done.stdout.str()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--workbench-fail-on=regression"], ["has no row of eager prefill b1 p16"]),
        (["--workbench-against=never"], ["neither a run"]),
    ],
)
def test_nothing_to_compare_with_is_refused(
    pytester: pytest.Pytester, harness: Harness, arguments: list[str], words: list[str]
) -> None:
    expect_refusal(pytester.runpytest(*RUN, *arguments), *words)
    assert harness.asked == []


@pytest.fixture
def apart(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Callable[..., pytest.RunResult]:
    """Return a function that runs pytest in a process of its own, where this project is not installed."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return pytester.runpytest_subprocess


@pytest.mark.parametrize(
    ("table", "more", "words"),
    [
        (TRACK_TABLE + "batch = 0", [], ["batch = 0"]),
        (TRACK_TABLE + 'dtype = "int4"', [], ["--dtype int4"]),
        (TRACK_TABLE, ["-p", "no:benchmark"], ["pytest-benchmark", "pip install"]),
    ],
)
def test_bad_tables_and_missing_parts_are_one_line(
    pytester: pytest.Pytester,
    apart: Callable[..., pytest.RunResult],
    table: str,
    more: list[str],
    words: list[str],
) -> None:
    (pytester.path / "pyproject.toml").write_text(table)
    done = apart(*RUN, *more)
    expect_refusal(done, *words)
    assert done.stdout.str() == ""


def test_a_folder_with_packages_of_the_same_names_is_one_line(
    pytester: pytest.Pytester, apart: Callable[..., pytest.RunResult]
) -> None:
    (pytester.path / "pyproject.toml").write_text(TRACK_TABLE)
    (pytester.path / "models").mkdir()
    (pytester.path / "models" / "__init__.py").touch()
    expect_refusal(apart(*RUN), "models", str(pytester.path))


def test_nothing_is_measured_where_other_tests_cannot_be_collected(
    pytester: pytest.Pytester, harness: Harness
) -> None:
    pytester.makepyfile(test_broken="import nowhere")
    assert pytester.runpytest(*RUN, "pyproject.toml", "test_broken.py").ret == 2
    assert harness.asked == []


def test_without_its_option_the_plugin_does_and_imports_nothing(
    pytester: pytest.Pytester, apart: Callable[..., pytest.RunResult]
) -> None:
    (pytester.path / "pyproject.toml").write_text("[tool.workbench.track]\nnonsense = 1")
    pytester.makepyfile(
        """
        import sys
        def test_nothing_is_there():
            ours = {name for name in sys.modules if name.split(".")[0] in ("workbench", "backends", "models")}
            assert ours == {"workbench", "workbench.tracking", "workbench.tracking.pytest_plugin"}, ours
            assert not {"numpy", "typer", "rich"} & set(sys.modules)
        """
    )
    apart("-p", "workbench.tracking.pytest_plugin", "-p", "no:benchmark").assert_outcomes(passed=1)


def test_samples_of_a_disabled_benchmark_are_not_asked_for(
    pytester: pytest.Pytester, harness: Harness
) -> None:
    pytester.runpytest(*RUN, "--benchmark-disable").assert_outcomes(passed=4)


def test_rows_are_refused_side_by_side() -> None:
    config: Any = SimpleNamespace(option=SimpleNamespace(benchmark_storage="x"), getoption=lambda *_: "load")
    with pytest.raises(UserError, match="never run side by side"):
        track_session.check(config)
