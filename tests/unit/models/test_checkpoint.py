import dataclasses
import tracemalloc
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import xxhash
from folders import (
    EMBEDDING,
    GATE,
    HEAD,
    QWEN2,
    QWEN3,
    SMALL,
    TIED,
    make_tensors,
    refusal,
    write,
    write_sharded,
)

from models import shards
from models.checkpoint import open_checkpoint
from models.config import DecoderConfig, RopeScaling
from models.errors import UserError


@pytest.mark.parametrize("config", [SMALL, TIED, QWEN2, QWEN3])
def test_arrays_are_the_tensors_joined(config: DecoderConfig, tmp_path: Path) -> None:
    tensors = make_tensors(config)
    weights = open_checkpoint(write(tmp_path, config, tensors), "float32")
    arrays = dict(weights.arrays())
    assert weights.config == config
    assert list(arrays) == [tensor.name for tensor in weights.layout]
    assert [array.shape for array in arrays.values()] == [tensor.shape for tensor in weights.layout]
    assert sum(array.nbytes for array in arrays.values()) == weights.nbytes
    attention = "model.layers.1.self_attn"
    joined = np.concatenate([tensors[f"{attention}.{side}_proj.weight"] for side in "qkv"])
    assert np.array_equal(arrays["layers.1.qkv.weight"], joined)
    up = tensors["model.layers.1.mlp.up_proj.weight"]
    assert np.array_equal(arrays["layers.1.gate_up.weight"], np.concatenate([tensors[GATE], up]))
    assert np.array_equal(arrays["layers.0.o.weight"], tensors["model.layers.0.self_attn.o_proj.weight"])
    assert all(array.flags.writeable for array in arrays.values())


def test_shards_hold_the_same_model(tmp_path: Path) -> None:
    tensors = make_tensors(QWEN2)
    (tmp_path / "one").mkdir()
    (tmp_path / "three").mkdir()
    write_sharded(tmp_path / "three", QWEN2, tensors)
    one = open_checkpoint(write(tmp_path / "one", QWEN2, tensors), "float32")
    assert open_checkpoint(tmp_path / "three", "float32").checksum() == one.checksum()


def test_conversion_rounds_to_nearest_even(tmp_path: Path) -> None:
    tensors = make_tensors(SMALL)
    # bfloat16 has 7 fraction bits: the two halves of 1/128 are ties, and go to the even neighbour.
    tensors["model.norm.weight"][:4] = [1 + 1 / 256, 1 + 3 / 256, 1 + 1 / 256 + 2**-20, -1 - 1 / 256]
    arrays = dict(open_checkpoint(write(tmp_path, SMALL, tensors), "bfloat16").arrays())
    assert {array.dtype for array in arrays.values()} == {np.dtype(ml_dtypes.bfloat16)}
    assert arrays["norm.weight"][:4].astype(float).tolist() == [1.0, 1 + 4 / 256, 1 + 2 / 256, -1.0]


@pytest.mark.parametrize("stored", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_every_stored_dtype_opens_as_every_other(stored: Any, dtype: str, tmp_path: Path) -> None:
    tensors = make_tensors(SMALL, stored)
    arrays = dict(open_checkpoint(write(tmp_path, SMALL, tensors), dtype).arrays())
    bits = {"float32": 24, "float16": 11, "bfloat16": 8}[dtype]
    exact = tensors[EMBEDDING].astype(np.float64)
    error = np.abs(arrays["embed.weight"].astype(np.float64) - exact)
    assert (error <= np.abs(exact) * 2.0**-bits + 2.0**-25).all()


def test_values_beyond_float16_are_refused_by_name(tmp_path: Path) -> None:
    tensors = make_tensors(SMALL, ml_dtypes.bfloat16)
    tensors[GATE][0, 0] = 1e5
    assert refusal(write(tmp_path, SMALL, tensors), "float16") == (
        f"{GATE} has values beyond float16: use --dtype bfloat16 or float32"
    )


def test_checksum_covers_configuration_name_dtype_shape_and_bytes_in_order(tmp_path: Path) -> None:
    weights = open_checkpoint(write(tmp_path, SMALL, make_tensors(SMALL)), "float32")
    digest = xxhash.xxh3_128(
        b'{"family": "llama", "head_dim": 6, "heads": 4, "hidden_size": 8, "intermediate_size": 12, '
        b'"kv_heads": 2, "layers": 2, "max_positions": 64, "norm_eps": 1e-05, "qk_norm": false, '
        b'"qkv_bias": false, "rope_scaling": null, "rope_theta": 10000.0, "tied_embeddings": false, '
        b'"vocab_size": 11}'
    )
    for name, array in weights.arrays():
        digest.update(f"{name}|float32|{array.shape}|".encode() + array.tobytes())
    assert weights.checksum() == digest.hexdigest()


def test_checksum_is_the_same_with_or_without_reading_the_arrays(tmp_path: Path) -> None:
    write(tmp_path, SMALL, make_tensors(SMALL))
    read, unread = open_checkpoint(tmp_path, "bfloat16"), open_checkpoint(tmp_path, "bfloat16")
    for _ in read.arrays():
        pass
    for file in tmp_path.iterdir():
        if file.suffix == ".safetensors":
            expected = unread.checksum()
            file.unlink()
    assert read.checksum() == expected  # known from the reading: the file is gone


def test_half_a_reading_leaves_the_checksum_right(tmp_path: Path) -> None:
    weights = open_checkpoint(write(tmp_path, SMALL, make_tensors(SMALL)), "float32")
    next(weights.arrays())
    assert weights.checksum() == open_checkpoint(tmp_path, "float32").checksum()


@pytest.mark.parametrize("name", [EMBEDDING, GATE, "model.norm.weight", HEAD])
def test_checksum_sees_one_changed_element(name: str, tmp_path: Path) -> None:
    tensors = make_tensors(SMALL)
    before = open_checkpoint(write(tmp_path, SMALL, tensors), "float32").checksum()
    tensors[name].flat[-1] += 1
    assert open_checkpoint(write(tmp_path, SMALL, tensors), "float32").checksum() != before


def test_checksum_sees_what_changes_no_tensor(tmp_path: Path) -> None:
    changes: list[dict[str, Any]] = [
        {}, {"rope_theta": 2e4}, {"norm_eps": 1e-6}, {"max_positions": 32}, {"family": "mistral"},
        {"heads": 2, "kv_heads": 1, "head_dim": 12},
        {"rope_scaling": RopeScaling(8.0, 1.0, 4.0, 32)}, {"rope_scaling": RopeScaling(8.0, 1.0, 2.0, 32)},
    ]  # fmt: skip
    tensors, checksums = make_tensors(SMALL), set()
    for change in changes:
        config = dataclasses.replace(SMALL, **change)
        weights = open_checkpoint(write(tmp_path, config, tensors), "float32")
        assert weights.config == config
        checksums.add(weights.checksum())
    assert len(checksums) == len(changes)


def test_checksum_sees_the_dtype(tmp_path: Path) -> None:
    write(tmp_path, SMALL, make_tensors(SMALL))
    assert (
        len({open_checkpoint(tmp_path, each).checksum() for each in ("float32", "bfloat16", "float16")}) == 3
    )


def test_reading_holds_a_tensor_and_the_next(tmp_path: Path) -> None:
    wide = dataclasses.replace(SMALL, hidden_size=512, intermediate_size=1024, layers=6)
    weights = open_checkpoint(write(tmp_path, wide, make_tensors(wide)), "float32")
    largest = 2 * 1024 * 512 * 4  # gate_up
    following = 512 * 1024 * 4  # down
    assert weights.nbytes > 5 * largest
    tracemalloc.start()
    for name, array in weights.arrays():
        del name, array
    weights.checksum()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert largest < peak < 1.1 * (largest + following)


def test_pieces_read_by_several_threads_are_the_tensors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path, SMALL, make_tensors(SMALL))
    whole = dict(open_checkpoint(folder, "float32").arrays())
    monkeypatch.setattr(shards, "PIECE_BYTES", 100)
    monkeypatch.setattr(shards, "READERS", 3)
    for name, array in open_checkpoint(folder, "float32").arrays():
        assert np.array_equal(array, whole[name])


@pytest.mark.parametrize("piece", [100, 1 << 20])
def test_file_cut_after_it_was_opened_is_called_damaged(
    piece: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "PIECE_BYTES", piece)
    folder = write(tmp_path, SMALL, make_tensors(SMALL))
    weights = open_checkpoint(folder, "float32")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"model.safetensors is damaged \(.*shorter\)"):
        weights.checksum()
    file.unlink()
    with pytest.raises(UserError, match="is missing"):
        weights.checksum()


def test_once_makes_a_thing_once(tmp_path: Path) -> None:
    weights = open_checkpoint(write(tmp_path, SMALL, make_tensors(SMALL)), "float32")
    first = weights.once("torch:cpu", lambda: ["placed"])
    assert weights.once("torch:cpu", lambda: ["again"]) is first
    assert weights.once("torch:cuda:0", lambda: ["other"]) == ["other"]
