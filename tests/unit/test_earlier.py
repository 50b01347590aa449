"""Earlier rows by run, file or Git revision, and what refuses to be compared."""

import json
import subprocess
from pathlib import Path

import pytest

from models.errors import UserError
from tests.unit.builders import record
from workbench.record import Record, to_json
from workbench.store import Store
from workbench.tracking.earlier import Earlier, find_earlier


def store_of(root: Path) -> Store:
    return Store(root / "results", lambda line: None)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Return results of two runs: the first is also what Git has."""
    found = store_of(tmp_path)
    found.append(record(run="first"))
    for command in (["init"], ["add", "."], ["commit", "-m", "First"]):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", *identity, *command], cwd=tmp_path, check=True, capture_output=True)
    found.append(record(run="second"))
    return found


def path_of(store: Store) -> Path:
    return store.path("Test CPU", "tiny")


def runs(name: str, store: Store) -> list[str]:
    return [each.run for each in find_earlier(name, store, path_of(store)).records]


def test_rows_are_found_by_run_file_and_revision(store: Store) -> None:
    assert runs("second", store) == ["second"]
    assert runs(str(path_of(store)), store) == ["first", "second"]
    assert runs("HEAD", store) == ["first"]
    assert find_earlier("HEAD", store, path_of(store)).name.endswith("tiny.jsonl as of HEAD")


def test_a_revision_is_found_where_the_results_are_not_checked_out(store: Store) -> None:
    path_of(store).unlink()
    path_of(store).parent.joinpath(".lock").unlink()
    path_of(store).parent.rmdir()
    assert runs("HEAD", store) == ["first"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("third", ["'third'", "neither a run", "revision", "the last run there is"]),
        ("absent.jsonl", ["absent.jsonl", "no such file"]),
        ("--output=x", ["neither a run"]),
    ],
)
def test_an_unknown_name_is_refused(store: Store, name: str, words: list[str]) -> None:
    with pytest.raises(UserError) as refused:
        runs(name, store)
    for word in words:
        assert word in str(refused.value)


def test_a_name_is_refused_outside_git(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither a run"):
        runs("HEAD", store_of(tmp_path))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (json.dumps(to_json(record())) + "\n" + json.dumps(to_json(record()))[:300], ":2 is no result"),
        ('{"machine_info": {}}', ":1 is no result"),
        ("PNG\x00", ":1 is no result"),
        ("", "has no rows"),
        (json.dumps({"schema": 99}), "newer workbench"),
    ],
)
def test_a_truncated_or_foreign_file_is_refused_and_left_as_it_is(
    store: Store, tmp_path: Path, text: str, words: str
) -> None:
    path = tmp_path / "foreign.jsonl"
    path.write_text(text)
    with pytest.raises(UserError, match=words):
        runs(str(path), store)
    assert path.read_text() == text


def match(found: Record, *rows: Record) -> Record:
    return Earlier("run first", rows).match(found)


def test_the_last_row_of_equal_work_is_the_one_to_compare_with() -> None:
    rows = [record(run=run, workbench=run) for run in ("a", "b")]
    others = [record("compile"), record(batch=8), record(dtype="bfloat16")]
    assert match(record(versions={"torch": "2.13"}), *rows, *others).run == "b"


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (record("compile"), ["no row of compile decode b1 c128", "it has eager decode b1 c128"]),
        (record(context=256), ["no row of eager decode b1 c256"]),
        (record(options={"graph": ""}), ["no row of eager[graph]"]),
        (record(protocol={"gate": 9, "processes": 2}), ["cannot be compared with run first", "protocol"]),
        (record(weights="other"), ["cannot be compared", "weights"]),
        (record(gpu={"name": "Test CPU", "threads": 1}), ["cannot be compared", "device"]),
    ],
)
def test_what_is_not_the_same_work_on_the_same_device_is_refused(row: Record, words: list[str]) -> None:
    with pytest.raises(UserError) as refused:
        match(row, record())
    for word in words:
        assert word in str(refused.value)


UNTUNED = {"key": "0123456789abcdef", "target": "h100", "untuned": True}


def test_a_row_of_an_untuned_engine_is_no_base_and_hides_none() -> None:
    untuned, tuned = record(run="b", engine=UNTUNED), record(run="a", engine=UNTUNED | {"untuned": False})
    words = r"eager decode b1 c128 cannot be compared .* engine there is untuned, .* `compare --again`"
    with pytest.raises(UserError, match=words):
        match(record(), untuned)
    assert match(record(), tuned, untuned).run == "a"


def test_an_earlier_row_without_a_time_is_refused_with_its_reason() -> None:
    with pytest.raises(UserError, match=r"no time in run first \(crashed: because\)"):
        match(record(), record(status="crashed"))
