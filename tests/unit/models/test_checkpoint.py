import dataclasses
import json
import re
import tracemalloc
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import xxhash
from safetensors.numpy import save_file

from models.checkpoint import fused_layout, open_checkpoint
from models.config import DecoderConfig, hf_config
from models.errors import UserError

SMALL = DecoderConfig(
    "llama", 11, 8, 12, 2, heads=4, kv_heads=2, head_dim=6, max_positions=64, norm_eps=1e-5, rope_theta=1e4
)
TIED = dataclasses.replace(SMALL, tied_embeddings=True)
QWEN2 = dataclasses.replace(SMALL, family="qwen2", qkv_bias=True)
QWEN3 = dataclasses.replace(SMALL, family="qwen3", qk_norm=True)
EMBEDDING, HEAD, GATE = "model.embed_tokens.weight", "lm_head.weight", "model.layers.1.mlp.gate_proj.weight"
INDEX = "model.safetensors.index.json"

Tensors = dict[str, np.ndarray]


def make_tensors(config: DecoderConfig, dtype: Any = np.float32) -> Tensors:
    """Random tensors under the names Hugging Face gives them."""
    random = np.random.default_rng(0)
    parts = [part for tensor in fused_layout(config) for part in tensor.parts]
    return {name: random.standard_normal(shape).astype(dtype) for name, shape in parts}


def write(folder: Path, config: DecoderConfig, tensors: Tensors) -> Path:
    (folder / "config.json").write_text(json.dumps(hf_config(config, "float32")))
    save_file(tensors, folder / "model.safetensors")
    return folder


def write_sharded(folder: Path, config: DecoderConfig, tensors: Tensors) -> dict[str, str]:
    """Write every third tensor into another shard; returns the weight map."""
    write(folder, config, tensors)
    (folder / "model.safetensors").unlink()
    weight_map = {name: f"model-{i % 3 + 1}.safetensors" for i, name in enumerate(tensors)}
    for shard in set(weight_map.values()):
        save_file({name: tensors[name] for name in tensors if weight_map[name] == shard}, folder / shard)
    write_index(folder, weight_map)
    return weight_map


def write_index(folder: Path, weight_map: Any) -> None:
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def refusal(folder: Path, dtype: str = "float32") -> str:
    """Return the one line that opening, or reading, the folder ends with."""
    with pytest.raises(UserError) as caught:
        for _ in open_checkpoint(folder, dtype).arrays():
            pass
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_layout_is_in_the_canonical_order() -> None:
    assert [tensor.name for tensor in fused_layout(dataclasses.replace(SMALL, layers=1))] == [
        "embed.weight", "layers.0.attention_norm.weight", "layers.0.qkv.weight", "layers.0.o.weight",
        "layers.0.mlp_norm.weight", "layers.0.gate_up.weight", "layers.0.down.weight", "norm.weight",
        "head.weight",
    ]  # fmt: skip


def test_layout_of_biases_qk_norms_and_tied_embeddings() -> None:
    plain = {tensor.name for tensor in fused_layout(SMALL)}
    assert {tensor.name for tensor in fused_layout(QWEN2)} - plain == {
        "layers.0.qkv.bias",
        "layers.1.qkv.bias",
    }
    assert {tensor.name for tensor in fused_layout(QWEN3)} - plain == {
        f"layers.{layer}.{side}_norm.weight" for layer in (0, 1) for side in "qk"
    }
    assert plain - {tensor.name for tensor in fused_layout(TIED)} == {"head.weight"}


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


def test_checksum_covers_name_dtype_shape_and_bytes_in_order(tmp_path: Path) -> None:
    weights = open_checkpoint(write(tmp_path, SMALL, make_tensors(SMALL)), "float32")
    digest = xxhash.xxh3_128()
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


def test_checksum_sees_the_dtype(tmp_path: Path) -> None:
    write(tmp_path, SMALL, make_tensors(SMALL))
    assert (
        len({open_checkpoint(tmp_path, each).checksum() for each in ("float32", "bfloat16", "float16")}) == 3
    )


def test_reading_holds_about_one_tensor(tmp_path: Path) -> None:
    wide = dataclasses.replace(SMALL, hidden_size=512, intermediate_size=1024, layers=6)
    weights = open_checkpoint(write(tmp_path, wide, make_tensors(wide)), "float32")
    largest = 2 * 1024 * 512 * 4  # gate_up
    assert weights.nbytes > 5 * largest
    tracemalloc.start()
    for name, array in weights.arrays():
        del name, array
    weights.checksum()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert largest < peak < 1.7 * largest  # with one of its two parts beside it


def test_once_makes_a_thing_once(tmp_path: Path) -> None:
    weights = open_checkpoint(write(tmp_path, SMALL, make_tensors(SMALL)), "float32")
    first = weights.once("torch:cpu", lambda: ["placed"])
    assert weights.once("torch:cpu", lambda: ["again"]) is first
    assert weights.once("torch:cuda:0", lambda: ["other"]) == ["other"]


def test_missing_tensor_is_named(tmp_path: Path) -> None:
    tensors = make_tensors(SMALL)
    del tensors[GATE]
    assert f"has no tensor {GATE}" in refusal(write(tmp_path, SMALL, tensors))


def test_untied_checkpoint_without_head_is_refused(tmp_path: Path) -> None:
    assert f"has no tensor {HEAD}" in refusal(write(tmp_path, SMALL, make_tensors(TIED)))


def test_extra_tensor_is_named(tmp_path: Path) -> None:
    name = "model.layers.0.self_attn.q_proj.bias"
    message = refusal(write(tmp_path, SMALL, make_tensors(SMALL) | {name: np.zeros(24, np.float32)}))
    assert f"tensor {name} is not part of a llama model" in message


def test_misshapen_tensor_is_named_with_both_shapes(tmp_path: Path) -> None:
    tensors = make_tensors(SMALL)
    tensors[GATE] = np.ascontiguousarray(tensors[GATE].T)
    assert f"{GATE} has shape [8, 12], config.json asks for [12, 8]" in refusal(
        write(tmp_path, SMALL, tensors)
    )


@pytest.mark.parametrize(("dtype", "code"), [(np.float64, "F64"), (np.int8, "I8"), (np.uint16, "U16")])
def test_other_stored_types_are_named(dtype: Any, code: str, tmp_path: Path) -> None:
    tensors = make_tensors(SMALL)
    tensors[GATE] = tensors[GATE].astype(dtype)
    message = refusal(write(tmp_path, SMALL, tensors))
    assert f"{GATE} is stored as {code}; supported are F32, BF16, F16" in message


def test_old_rope_buffers_are_ignored(tmp_path: Path) -> None:
    buffer = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.zeros(3, np.float64)}
    arrays = dict(open_checkpoint(write(tmp_path, SMALL, make_tensors(SMALL) | buffer), "float32").arrays())
    assert "head.weight" in arrays


def test_tied_head_that_equals_the_embedding_is_accepted(tmp_path: Path) -> None:
    tensors = make_tensors(TIED)
    write(tmp_path, TIED, tensors | {HEAD: tensors[EMBEDDING]})
    assert "head.weight" not in dict(open_checkpoint(tmp_path, "float32").arrays())


def test_tied_head_that_differs_is_refused(tmp_path: Path) -> None:
    tensors = make_tensors(TIED)
    other = tensors[EMBEDDING].copy()
    other[-1, -1] += 1
    assert f"{HEAD} differs from {EMBEDDING}" in refusal(write(tmp_path, TIED, tensors | {HEAD: other}))


def test_tied_head_of_another_shape_is_refused(tmp_path: Path) -> None:
    wrong = {HEAD: np.zeros((12, 8), np.float32)}
    assert f"{HEAD} has shape [12, 8]" in refusal(write(tmp_path, TIED, make_tensors(TIED) | wrong))


@pytest.mark.parametrize("length", [0, 5, 8, 200, -1])
def test_truncated_file_is_named(length: int, tmp_path: Path) -> None:
    file = write(tmp_path, SMALL, make_tensors(SMALL)) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:length])
    assert re.search(rf"^{file} is damaged \(.+\): download or save it again$", refusal(tmp_path))


@pytest.mark.parametrize(
    "header",
    [b"{not json", b"[]", b'{"a": 1}', b"\xff" * 9,
     b'{"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 8]}}',
     b'{"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 99999]}}'],
)  # fmt: skip
def test_damaged_header_is_named(header: bytes, tmp_path: Path) -> None:
    file = write(tmp_path, SMALL, make_tensors(SMALL)) / "model.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
    assert refusal(tmp_path).startswith(f"{file} is damaged (")


def test_index_naming_a_missing_shard(tmp_path: Path) -> None:
    write_sharded(tmp_path, SMALL, make_tensors(SMALL))
    (tmp_path / "model-2.safetensors").unlink()
    assert refusal(tmp_path).startswith(f"{tmp_path / 'model-2.safetensors'} is missing")


def test_index_listing_a_tensor_in_the_wrong_shard(tmp_path: Path) -> None:
    weight_map = write_sharded(tmp_path, SMALL, make_tensors(SMALL))
    wrong = "model-1.safetensors" if weight_map[GATE] != "model-1.safetensors" else "model-2.safetensors"
    write_index(tmp_path, weight_map | {GATE: wrong})
    assert f"lists {GATE} in {wrong}, which has no such tensor" in refusal(tmp_path)


def test_shard_holding_a_tensor_the_index_leaves_out(tmp_path: Path) -> None:
    weight_map = write_sharded(tmp_path, SMALL, make_tensors(SMALL))
    shard = weight_map.pop(GATE)
    write_index(tmp_path, weight_map)
    assert f"{tmp_path / shard} holds {GATE}, which {INDEX} does not list there" in refusal(tmp_path)


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", "null", '{"weight_map": []}', '{"weight_map": {}}', '{"weight_map": {"a": 1}}',
     '{"weight_map": {"a": "../x.safetensors"}}', '{"weight_map": {"a": ""}}', '{"weight_map": {"a": ".."}}'],
)  # fmt: skip
def test_damaged_index_is_named(content: str, tmp_path: Path) -> None:
    write_sharded(tmp_path, SMALL, make_tensors(SMALL))
    (tmp_path / INDEX).write_text(content)
    assert refusal(tmp_path).startswith(f"{tmp_path / INDEX} is damaged (")


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "consolidated.00.pth"]
)
def test_pickle_checkpoint_is_refused_with_the_way_out(name: str, tmp_path: Path) -> None:
    write(tmp_path, SMALL, make_tensors(SMALL))
    (tmp_path / "model.safetensors").rename(tmp_path / name)
    message = refusal(tmp_path)
    assert message.startswith(f"{tmp_path / name} is a pickle, which can run code")
    assert "save_pretrained" in message


def test_folder_without_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(hf_config(SMALL, "float32")))
    assert f"has neither model.safetensors nor {INDEX}" in refusal(tmp_path)


def test_unknown_dtype_offers_the_nearest(tmp_path: Path) -> None:
    assert refusal(tmp_path, "bfloat") == "unknown dtype 'bfloat': did you mean 'bfloat16'?"
