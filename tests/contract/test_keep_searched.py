"""When `compile` compiles in its own process, so that what a search found is not searched again."""

import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from backends.compile.lower import keep_searched  # noqa: E402


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    with torch._inductor.config.patch(compile_threads=7):
        yield tmp_path / "inductor/ab"


def test_kernels_that_were_searched_are_loaded_here(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "cd.best_config").touch()
    keep_searched()
    assert torch._inductor.config.compile_threads == 1


def test_others_are_compiled_side_by_side(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep_searched()
    folder.mkdir(parents=True)
    (folder / "cd.py").touch()
    keep_searched()
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    keep_searched()
    assert torch._inductor.config.compile_threads == 7


def test_the_mark_of_a_search_is_lost_on_the_way_from_another_process() -> None:
    """Triton might mend this: then nothing is to be done any more."""
    config = pytest.importorskip("triton", reason="torch for CPUs comes without Triton").Config({"XBLOCK": 8})
    config.found_by_coordesc = True
    assert not hasattr(pickle.loads(pickle.dumps(config)), "found_by_coordesc")
