"""Where CUDA's tools are found: on the path, else as NVIDIA's wheel brings them."""

import os
import shutil
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace

import pytest

from backends import cuda_tools
from backends.cuda_tools import offer_wheel, tool_release


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of tools of a wheel that is installed, on a path without any."""
    tools = tmp_path / "nvidia/cu13/bin"
    tools.mkdir(parents=True)
    (tools / "nvcc").write_text("#!/bin/sh\necho 'Cuda tools, release 13.5, V13.5.37'\n")
    (tools / "nvcc").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "none"))
    monkeypatch.setattr(cuda_tools, "distribution", lambda _: SimpleNamespace(locate_file=tmp_path.joinpath))
    return tools


def test_the_wheels_tools_are_found_once_they_are_offered(wheel: Path) -> None:
    assert tool_release("nvcc") is None
    offer_wheel()
    offer_wheel()
    assert os.environ["PATH"].count(str(wheel)) == 1
    assert tool_release("nvcc") == "13.5, V13.5.37"


def test_tools_on_the_path_come_first(wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "own"
    own.mkdir()
    shutil.copy(wheel / "nvcc", own)
    monkeypatch.setenv("PATH", str(own))
    offer_wheel()
    assert shutil.which("nvcc") == str(own / "nvcc")


def test_without_the_wheel_the_path_stays(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(cuda_tools, "distribution", absent)
    before = os.environ["PATH"]
    offer_wheel()
    assert os.environ["PATH"] == before
