"""Modules that are imported beside other work."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from backends.imports import importing

SLOW = """
import pathlib, time
here = pathlib.Path(__file__).parent
while not (here / "body").exists():  # the body has to run meanwhile, or this waits forever
    time.sleep(0.001)
DONE = True
"""
NAMES = ("workbench_slow", "workbench_broken")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "workbench_slow.py").write_text(SLOW)
    (tmp_path / "workbench_broken.py").write_text("raise OSError('no library')")
    yield tmp_path
    for name in NAMES:
        sys.modules.pop(name, None)


def test_a_module_is_imported_while_the_body_runs_and_there_when_it_ends(folder: Path) -> None:
    with importing("workbench_broken", "workbench_slow"):
        assert not hasattr(sys.modules.get("workbench_slow"), "DONE")
        (folder / "body").touch()
    assert sys.modules["workbench_slow"].DONE
    with pytest.raises(OSError, match="no library"):
        __import__("workbench_broken")


def test_what_the_body_raises_is_raised_once_the_import_is_over(folder: Path) -> None:
    with pytest.raises(ValueError, match="body"), importing("workbench_slow"):
        (folder / "body").touch()
        raise ValueError("body")
    assert sys.modules["workbench_slow"].DONE
