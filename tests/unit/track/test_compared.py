"""`--benchmark-compare`: what is saved where, and what nothing can be compared with."""

import json

import pytest

from tests.unit.builders import TRACK_TABLE
from tests.unit.track.conftest import RUN, Apart, Harness, expect_refusal

pytest.importorskip("pytest_benchmark", reason="install it: pip install 'workbench[track]'")
pytest_plugins = ["pytester"]


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


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["--benchmark-compare"],
            ["nothing of this device and protocol is in ./.benchmarks/", "-save=NAME"],
        ),
        (["--benchmark-compare=0007"], ["--benchmark-compare=0007: no such file", "--benchmark-save=NAME"]),
        (["--benchmark-compare=gone/to/nowhere.json"], ["=gone/to/nowhere.json: no such file"]),
        (["--benchmark-compare=/gone.json"], ["=/gone.json: no such file"]),
        (["--benchmark-compare-fail=mean:5%"], ["give --benchmark-compare as well"]),
    ],
)
def test_nothing_saved_to_compare_with_is_one_line(
    pytester: pytest.Pytester, apart: Apart, arguments: list[str], words: list[str]
) -> None:
    (pytester.path / "pyproject.toml").write_text(TRACK_TABLE)
    done = apart(*RUN, *arguments)
    expect_refusal(done, *words)
    assert done.stdout.str() == ""


def test_a_name_that_is_not_among_the_saved_is_told_those_that_are(
    pytester: pytest.Pytester, harness: Harness, apart: Apart
) -> None:
    assert pytester.runpytest(*RUN, "--benchmark-save=first").ret == 0
    expect_refusal(apart(*RUN, "--benchmark-compare=0002"), "choose from 0001_first")


def test_a_file_without_any_of_the_rows_is_refused_before_they_are_measured(
    pytester: pytest.Pytester, harness: Harness
) -> None:
    assert pytester.runpytest(*RUN, "-k", "eager and decode", "--benchmark-save=decode").ret == 0
    harness.asked.clear()
    done = pytester.runpytest(*RUN, "-k", "prefill", "--benchmark-compare")
    expect_refusal(done, "0001_decode.json has none of these rows, only pyproject.toml::eager-decode-b1-c32")
    assert harness.asked == []
    assert pytester.runpytest(*RUN, "-k", "eager", "--benchmark-compare").ret == 0
    assert len(harness.asked) == 2


def test_a_file_that_cannot_be_read_is_refused(pytester: pytest.Pytester, apart: Apart) -> None:
    (pytester.path / "pyproject.toml").write_text(TRACK_TABLE)
    (pytester.path / "torn.json").write_text('{"benchmarks": [')
    expect_refusal(apart(*RUN, "--benchmark-compare=torn.json"), "Failed to load torn.json: Expecting value")
