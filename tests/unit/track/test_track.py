"""`pytest --workbench`, with measurements that are told what to find."""

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from models.errors import UserError
from tests.unit.builders import TRACK_TABLE
from tests.unit.track.conftest import RUN, Apart, Harness, expect_refusal
from workbench.store import Store
from workbench.tracking import session as track_session
from workbench.tracking.floors import calibration_folder
from workbench.tracking.track import read_request

pytest.importorskip("pytest_benchmark", reason="install it: pip install 'workbench[track]'")
pytest_plugins = ["pytester"]


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
    apart: Apart,
    table: str,
    more: list[str],
    words: list[str],
) -> None:
    (pytester.path / "pyproject.toml").write_text(table)
    done = apart(*RUN, *more)
    expect_refusal(done, *words)
    assert done.stdout.str() == ""


def test_a_folder_with_packages_of_the_same_names_is_one_line(
    pytester: pytest.Pytester, apart: Apart
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
    pytester: pytest.Pytester, apart: Apart
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
