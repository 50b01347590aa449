import dataclasses
import json
import math
import shutil
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from models import config as presets
from models import weights
from models.checkpoint import open_checkpoint
from models.config import PRESETS
from models.errors import UserError
from models.hugging_face import read_config
from models.layout import NUMPY_DTYPES, fused_layout
from models.weights import hash_bytes, tensor_elements, tensor_key, value_table, write_preset

NAME = "model.layers.0.mlp.down_proj.weight"


def found_in(folder: Path) -> list[str]:
    """List what a folder holds besides lock files, which may or may not stay."""
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


def elements(name: str, shape: tuple[int, ...], dtype: str = "float32", seed: int = 0) -> np.ndarray:
    return tensor_elements(name, shape, dtype, seed, 0, math.prod(shape))


def splitmix64(key: int, index: int) -> int:
    """Run the published algorithm in Python's unbounded integers, with its usual constants."""
    mask = (1 << 64) - 1
    word = (key + index * 0x9E3779B97F4A7C15) & mask
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & mask
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & mask
    return word ^ (word >> 31)


@pytest.mark.parametrize("key", [0, 1, -1, 2**63 - 1, -(2**63), tensor_key(0, NAME)])
def test_bytes_are_those_of_splitmix64(key: int) -> None:
    start = 2**33  # elements beyond 2**32 too
    expected = b"".join(splitmix64(key, start + i).to_bytes(8, "little") for i in range(50))
    assert hash_bytes(np, key, start, 50).tobytes() == expected


def test_pinned_bits() -> None:
    assert hash_bytes(np, 0, 1, 1).tobytes() == 0xE220A8397B1DCDAF.to_bytes(8, "little")  # published, seed 0
    assert tensor_key(0, NAME) == -1_264_672_727_742_430_638
    first = [9, -185, 25, 169]
    assert (elements(NAME, (2, 704))[:4] * 4096).tolist() == first


def test_pinned_checksums_of_tiny(tmp_path: Path) -> None:
    pinned_checksums = {
        "float32": "0bf72f57c338914dedd61cab80dd0c38",
        "bfloat16": "6cdf5a3c00a71e22f7450a45e65336f2",
        "float16": "4eed4a1487b4e143265ef0208a7303a4",
    }
    for dtype, pinned in pinned_checksums.items():
        write_preset("tiny", dtype, tmp_path / dtype)
        assert open_checkpoint(tmp_path / dtype, dtype).checksum() == pinned, dtype


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_every_dtype_holds_equal_values(dtype: str, tmp_path: Path) -> None:
    write_preset("tiny", dtype, tmp_path / dtype)
    write_preset("tiny", "float32", tmp_path / "float32")
    widened = open_checkpoint(tmp_path / dtype, "float32")
    assert widened.checksum() == open_checkpoint(tmp_path / "float32", "float32").checksum()


@pytest.mark.parametrize("preset", PRESETS)
def test_values_of_every_tensor_are_exact_in_every_dtype(preset: str) -> None:
    for name, shape in (part for tensor in fused_layout(PRESETS[preset]) for part in tensor.parts):
        table = value_table(name, shape)
        for dtype in NUMPY_DTYPES.values():
            assert np.array_equal(table.astype(dtype).astype(np.float32), table), name
        if name.endswith("norm.weight"):
            assert 0.75 <= table.min() <= table.max() <= 1.25
        elif name.endswith(".bias"):
            assert 0.1 < np.abs(table).max() <= 0.25
        else:
            odd = table / np.abs(table).min()
            assert set(odd) == set(range(-255, 256, 2))
            assert 0.7 <= table.std() * math.sqrt(shape[1]) <= 1.42


def test_elements_do_not_depend_on_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = elements(NAME, (33, 77))
    monkeypatch.setattr(weights, "CHUNK_WORDS", 3)
    assert np.array_equal(elements(NAME, (33, 77)), whole)


def test_elements_are_uniform_and_uncorrelated() -> None:
    values = elements(NAME, (512, 1024))
    table = value_table(NAME, (512, 1024))
    counts = np.unique(values, return_counts=True)[1]
    assert len(counts) == 256
    assert ((counts - 2048) ** 2 / 2048).sum() < 255 + 5 * math.sqrt(2 * 255)  # chi square, 5 sigma
    assert abs(values.mean()) < 5 * table.std() / math.sqrt(values.size)
    for lag in (1, 2, 7, 8, 64, 1024):
        assert abs(np.corrcoef(values[:-lag], values[lag:])[0, 1]) < 5 / math.sqrt(values.size), lag


def test_seeds_and_names_give_unlike_tensors() -> None:
    base = elements(NAME, (64, 64))
    for other in (elements(NAME, (64, 64), seed=1), elements(NAME.replace("0", "1"), (64, 64))):
        assert abs(np.corrcoef(base, other)[0, 1]) < 5 / 64


def test_folder_is_a_hugging_face_checkpoint(tmp_path: Path) -> None:
    write_preset("tiny", "bfloat16", tmp_path / "new" / "tiny")
    assert found_in(tmp_path / "new") == ["tiny"]  # nothing unfinished is left
    folder = tmp_path / "new" / "tiny"
    assert read_config(folder) == PRESETS["tiny"]
    assert json.loads((folder / "config.json").read_text())["torch_dtype"] == "bfloat16"
    tensors = load_file(folder / "model-00001-of-00001.safetensors")
    assert tensors[NAME].dtype == ml_dtypes.bfloat16
    assert np.array_equal(tensors[NAME].reshape(-1), elements(NAME, (256, 704), "bfloat16"))


def test_shards_stay_below_the_limit_and_hold_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_preset("tiny", "bfloat16", tmp_path / "one")
    limit = 1_500_000
    monkeypatch.setattr(weights, "SHARD_BYTES", limit)
    write_preset("tiny", "bfloat16", tmp_path / "many")
    shards = list((tmp_path / "many").glob("*.safetensors"))
    assert len(shards) > 3
    assert max(shard.stat().st_size for shard in shards) < limit + 10_000  # the header is beside the limit
    one, many = (open_checkpoint(tmp_path / each, "bfloat16").checksum() for each in ("one", "many"))
    assert one == many


def test_pieces_written_by_several_threads_hold_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_preset("tiny", "bfloat16", tmp_path / "one")
    monkeypatch.setattr(weights, "PIECE", 8 * 1001)  # ends within most tensors
    monkeypatch.setattr(weights, "THREADS", 4)
    write_preset("tiny", "bfloat16", tmp_path / "many")
    one, many = (
        [path.read_bytes() for path in sorted((tmp_path / each).iterdir())] for each in ("one", "many")
    )
    assert one == many


def test_disk_that_fills_up_under_a_thread_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(weights.os, "pwrite", fill)
    with pytest.raises(UserError, match="No space left"):
        write_preset("tiny", "float32", tmp_path / "tiny")
    assert found_in(tmp_path) == []


def test_every_family_writes_what_it_opens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, config in PRESETS.items():
        small = dataclasses.replace(
            config, vocab_size=70, hidden_size=48, intermediate_size=64, layers=2, head_dim=8
        )
        monkeypatch.setitem(presets.PRESETS, name, small)
        write_preset(name, "float32", tmp_path / name)
        assert open_checkpoint(tmp_path / name, "float32").config == small


def test_folder_written_meanwhile_by_another_process_stays(tmp_path: Path) -> None:
    write_preset("tiny", "float32", tmp_path / "tiny")
    (tmp_path / "tiny" / "mark").touch()
    write_preset("tiny", "float32", tmp_path / "tiny")
    assert (tmp_path / "tiny" / "mark").exists()
    assert found_in(tmp_path) == ["tiny"]


def test_interrupted_writing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(weights, "_write_shard", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_preset("tiny", "float32", tmp_path / "tiny")
    assert found_in(tmp_path) == []


def test_what_a_killed_process_left_is_cleared_before_the_room_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    die = """
import os, pathlib, signal, sys
from models import weights
def die(stream, *arguments):
    stream.write(bytes(100))
    stream.flush()
    os.kill(os.getpid(), signal.SIGKILL)
weights._write_shard = die
weights.write_preset("tiny", "float32", pathlib.Path(sys.argv[1]))
"""
    root = Path(weights.__file__).parent.parent
    killed = subprocess.run([sys.executable, "-c", die, tmp_path / "tiny"], cwd=root, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert found_in(tmp_path) not in ([], ["tiny"])

    def disk_usage(path: Path) -> SimpleNamespace:
        return SimpleNamespace(free=0 if found_in(path) else 1 << 40)

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    write_preset("tiny", "float32", tmp_path / "tiny")
    assert found_in(tmp_path) == ["tiny"]
    open_checkpoint(tmp_path / "tiny", "float32").checksum()


def test_second_process_waits_for_the_first_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on, calls = threading.Event(), threading.Event(), []

    def write_slowly(folder: Path, *arguments: Any) -> None:
        calls.append(folder)
        begun.set()
        assert go_on.wait(60)
        (folder / "mark").touch()

    monkeypatch.setattr(weights, "_write_shards", write_slowly)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(write_preset, "tiny", "float32", tmp_path / "tiny")
        assert begun.wait(60)
        second = pool.submit(write_preset, "tiny", "float32", tmp_path / "tiny")
        with pytest.raises(TimeoutError):
            second.result(0.3)
        go_on.set()
        first.result()
        second.result()
    assert len(calls) == 1
    assert found_in(tmp_path) == ["tiny"]
    assert (tmp_path / "tiny" / "mark").exists()


def test_disk_that_fills_up_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(weights, "_write_shard", fill)
    with pytest.raises(UserError, match="No space left on device"):
        write_preset("tiny", "float32", tmp_path / "tiny")
    assert found_in(tmp_path) == []


def test_too_small_a_disk_is_seen_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1_000_000))
    with pytest.raises(
        UserError, match=r"needs 14,\d+\.\d MB but the disk has 1\.0 MB free.*WORKBENCH_CACHE"
    ):
        write_preset("mistral-7b", "bfloat16", tmp_path / "big")
    assert found_in(tmp_path) == []


def test_unknown_preset_and_dtype_are_user_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'tiny'"):
        write_preset("tinny", "float32", tmp_path / "x")
    with pytest.raises(UserError, match="unknown dtype 'int8'"):
        write_preset("tiny", "int8", tmp_path / "x")
