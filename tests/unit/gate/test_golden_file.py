"""A golden on disk: whole or not there, whatever happens to who writes it."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.unit.gate.answers import (
    BATCH,
    HIDDEN,
    FakeEngine,
)
from workbench.checking.golden import Golden, is_whole, load_golden, save_golden
from workbench.gate import verify
from workbench.packages import ROOT


def test_a_saved_golden_loads_as_it_was(golden: Golden, tmp_path: Path):
    path = tmp_path / "new" / "golden.npz"
    save_golden(golden, path)
    loaded = load_golden(path)
    assert verify(FakeEngine(loaded), loaded, BATCH) == verify(FakeEngine(golden), golden, BATCH)
    assert (loaded.dtype, loaded.hidden_size) == ("bfloat16", HIDDEN)
    assert np.array_equal(loaded.decode_shift, golden.decode_shift)
    assert {each.name for each in path.parent.iterdir()} <= {"golden.npz", ".golden.npz.lock"}


def test_a_golden_that_cannot_be_written_leaves_the_old_one(
    golden: Golden, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "golden.npz"
    save_golden(golden, path)

    def full(*_: object, **__: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="no space"):
        save_golden(replace(golden, hidden_size=1), path)
    assert load_golden(path).hidden_size == HIDDEN
    assert {each.name for each in tmp_path.iterdir()} <= {"golden.npz", ".golden.npz.lock"}


def test_a_golden_is_on_disk_before_it_has_its_name(
    golden: Golden, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path, synced = tmp_path / "golden.npz", []
    monkeypatch.setattr(os, "fsync", lambda number: synced.append((os.fstat(number).st_size, path.exists())))
    save_golden(golden, path)
    assert synced == [(path.stat().st_size, False)]


def test_what_a_killed_writer_left_is_written_over(golden: Golden, tmp_path: Path):
    path = tmp_path / "new" / "golden.npz"
    save_golden(golden, tmp_path / "source.npz")
    write_and_die = (
        "import os, sys; from pathlib import Path; import numpy; from workbench.checking import golden\n"
        "source, path = map(Path, sys.argv[1:])\n"
        "numpy.savez = lambda file, **_: (file.write(b'half'), file.flush(), os._exit(7))\n"
        "golden.save_golden(golden.load_golden(source), path)\n"
    )
    command = [sys.executable, "-c", write_and_die, str(tmp_path / "source.npz"), str(path)]
    for _ in range(2):
        assert subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}).returncode == 7
        assert len([each for each in path.parent.iterdir() if not each.name.endswith(".lock")]) == 1
        assert not is_whole(path)
    save_golden(golden, path)
    assert is_whole(path)
    assert {each.name for each in path.parent.iterdir()} <= {"golden.npz", ".golden.npz.lock"}


def test_a_golden_that_was_cut_or_lacks_a_member_is_not_whole(golden: Golden, tmp_path: Path):
    path = tmp_path / "golden.npz"
    assert not is_whole(path)
    assert not is_whole(tmp_path)
    save_golden(golden, path)
    assert is_whole(path)
    content = path.read_bytes()
    for end in (0, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:end])
        assert not is_whole(path)
    path.write_bytes(bytes(len(content)))  # a file system that lost the data but kept the length
    assert not is_whole(path)
    np.savez(path, dtype="bfloat16", hidden_size=1)
    assert not is_whole(path)
