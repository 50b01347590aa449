"""What `[tool.workbench.track]` in a pyproject.toml asks for, and which tables are refused."""

from pathlib import Path

import pytest

from models.errors import UserError
from tests.unit.builders import TRACK_TABLE
from workbench.comparing.request import Request
from workbench.tracking.track import read_request


def read(folder: Path, text: str) -> Request:
    path = folder / "pyproject.toml"
    path.write_text(text)
    return read_request(path)


def test_table_becomes_a_request_with_seven_fresh_processes(tmp_path: Path) -> None:
    request = read(tmp_path, TRACK_TABLE)
    assert request.backends == (("eager", {}), ("compile", {"mode": "default"}))
    assert (request.prompts, request.contexts, request.batches) == ((16,), (32,), None)
    assert (request.repeats, request.again, request.results) == (7, True, tmp_path / "results")
    assert read(tmp_path, TRACK_TABLE + 'model = "my"\nrepeats = 9').model == str(tmp_path / "my")
    budgets = [read(tmp_path, TRACK_TABLE + more).budget_s for more in ("", "budget = 2", "budget = 0.5")]
    assert budgets == [None, 2.0, 0.5]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["has no [tool.workbench.track]"]),
        ("[tool]\nworkbench = 3", ["has no [tool.workbench.track]"]),
        ("[tool.workbench", ["cannot be read"]),
        (TRACK_TABLE + "batches = 1", ["no key 'batches'", "batch"]),
        (TRACK_TABLE + "batch = 0", ["batch = 0", "whole number above 0"]),
        (TRACK_TABLE + "batch = []", ["batch = []"]),
        (TRACK_TABLE + 'batch = "1"', ["batch = '1'"]),
        (TRACK_TABLE + "batch = true", ["batch = True"]),
        (TRACK_TABLE + "repeats = [1, 2]", ["repeats = [1, 2]"]),
        (TRACK_TABLE + "budget = 0", ["budget = 0", "seconds"]),
        (TRACK_TABLE + "budget = true", ["budget = True"]),
        (TRACK_TABLE + "budget = inf", ["budget = inf", "finite"]),
        (TRACK_TABLE + "model = 1", ["model = 1", "a string"]),
        ("[tool.workbench.track]\nbatch = 1", ["no backends", '["eager", "compile"]']),
        ('[tool.workbench.track]\nbackends = "eager"', ["backends = 'eager'", "a list of names"]),
        ('[tool.workbench.track]\nbackends = ["eager", "eager"]', ["eager twice"]),
    ],
)
def test_a_bad_table_is_refused(tmp_path: Path, text: str, words: list[str]) -> None:
    with pytest.raises(UserError) as refused:
        read(tmp_path, text)
    for word in words:
        assert word in str(refused.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no .*pyproject\.toml"):
        read_request(tmp_path / "pyproject.toml")
