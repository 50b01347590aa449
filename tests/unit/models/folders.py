"""Small checkpoint folders as Hugging Face's libraries write them."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from models.checkpoint import open_checkpoint
from models.config import DecoderConfig
from models.errors import UserError
from models.hugging_face import hf_config
from models.layout import fused_layout

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
