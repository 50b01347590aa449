"""Which Python a backend runs in: a file where the command is called, and what is typed."""

from pathlib import Path

import pytest

from models.errors import UserError
from workbench.pythons import read_pythons


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with two interpreters."""
    for name in ("one", "two"):
        (tmp_path / name).touch()
    return tmp_path


def test_nothing_is_needed(tmp_path: Path) -> None:
    assert read_pythons([], tmp_path / "workbench.toml") == {}


def test_what_is_typed_goes_before_the_file(folder: Path) -> None:
    file = folder / "workbench.toml"
    file.write_text(f'[python]\ntrtllm = "one"\nxla = "{folder / "two"}"\n')
    one, two = str(folder / "one"), str(folder / "two")
    assert read_pythons([], file) == {"trtllm": one, "xla": two}
    assert read_pythons([f"xla={one}"], file) == {"trtllm": one, "xla": one}


def test_a_path_of_the_file_may_begin_at_home(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder))
    (folder / "workbench.toml").write_text('[python]\nxla = "~/one"\n')
    assert read_pythons([], folder / "workbench.toml") == {"xla": str(folder / "one")}
    assert read_pythons(["xla=~/two"], folder / "none.toml") == {"xla": str(folder / "two")}


@pytest.mark.parametrize(
    ("pair", "words"),
    [
        ("trtllm", "write BACKEND=PATH"),
        ("trtllm=/nowhere/python", "no such file"),
        ("trtlm=/nowhere/python", "did you mean 'trtllm'?"),
    ],
)
def test_a_pair_that_names_nothing_is_refused(tmp_path: Path, pair: str, words: str) -> None:
    with pytest.raises(UserError, match="--python") as refusal:
        read_pythons([pair], tmp_path / "workbench.toml")
    assert words in str(refusal.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[python", "cannot be read"),
        ("python = 3\n", "write a table [python]"),
        ("[pythons]\nxla = '/usr/bin/python3'\n", "has 'pythons'"),
        ("[python]\nxla = 3\n", "in quotes"),
        ("[python]\nxla = 'nowhere'\n", "no such file"),
        ("[python]\nxlaa = 'one'\n", "did you mean 'xla'?"),
    ],
)
def test_a_file_that_cannot_be_meant_is_refused(folder: Path, text: str, words: str) -> None:
    file = folder / "workbench.toml"
    file.write_text(text)
    with pytest.raises(UserError, match=r"workbench\.toml") as refusal:
        read_pythons([], file)
    assert words in str(refusal.value)
