import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from folders import (
    EMBEDDING,
    GATE,
    HEAD,
    INDEX,
    SMALL,
    TIED,
    make_tensors,
    refusal,
    write,
    write_index,
    write_sharded,
)

from models.checkpoint import open_checkpoint
from models.hugging_face import hf_config


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
