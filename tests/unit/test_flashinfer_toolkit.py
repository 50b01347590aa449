"""What FlashInfer's compilers are shown besides the toolkit."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from backends.flashinfer import toolkit

FLAGS, HEADERS = "FLASHINFER_EXTRA_LDFLAGS", "CPLUS_INCLUDE_PATH"


@pytest.fixture(autouse=True)
def _nvcc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolkit, "nvcc_release", lambda: "13.0, V13.0.88")


@pytest.fixture
def headers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    folder = tmp_path / "nvidia/cu13/include"
    folder.mkdir(parents=True)
    monkeypatch.syspath_prepend(tmp_path)
    return str(folder)


def test_what_the_user_names_comes_first_and_is_put_back(
    headers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(HEADERS, "/own/headers")
    monkeypatch.setenv(FLAGS, "-L/own")
    with toolkit.completed_toolkit():
        first, *others = os.environ[HEADERS].split(os.pathsep)
        assert first == "/own/headers"
        assert headers in others
        assert os.environ[FLAGS].startswith("-L/own -L")
    assert (os.environ[HEADERS], os.environ[FLAGS]) == ("/own/headers", "-L/own")


def test_unset_variables_are_unset_again(headers: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (HEADERS, FLAGS):
        monkeypatch.delenv(name, raising=False)
    with toolkit.completed_toolkit():
        assert headers in os.environ[HEADERS].split(os.pathsep)  # no empty part: that is the folder of work
        assert "" not in os.environ[HEADERS].split(os.pathsep)
    assert HEADERS not in os.environ
    assert FLAGS not in os.environ


@pytest.mark.skipif(shutil.which("readelf") is None, reason="readelf is not installed")
def test_a_library_links_against_the_stand_ins_and_asks_for_the_real_ones(tmp_path: Path) -> None:
    linked = tmp_path / "linked.so"
    with toolkit.completed_toolkit():
        command = ["c++", "-shared", "-Wl,--no-as-needed", "-x", "c++", os.devnull, "-o", linked]
        command += [*os.environ[FLAGS].split(), "-lcudart", "-lcuda"]
        subprocess.run(command, check=True)
    told = subprocess.run(["readelf", "-d", linked], capture_output=True, text=True, check=True).stdout
    assert "libcuda.so.1" in told
    assert "libcudart.so.13" in told
