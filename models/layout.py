"""Which tensors a decoder has, in which order and of which parts of a Hugging Face checkpoint.

Every backend gets the same tensors under the names `models.decoder` reads: q, k and v in one matrix,
gate and up in another.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from models.config import DecoderConfig

Array = npt.NDArray[Any]
Shape = tuple[int, ...]

NUMPY_DTYPES: dict[str, np.dtype[Any]] = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
}
"""Dtypes a model can be stored and run in."""

SAFETENSORS_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
"""The types of safetensors files that can be read, under the names used here."""

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"


@dataclass(frozen=True)
class FusedTensor:
    """One tensor the definition reads, and the checkpoint tensors it is joined from along axis 0."""

    name: str
    shape: Shape
    parts: tuple[tuple[str, Shape], ...]


def fused_layout(config: DecoderConfig) -> tuple[FusedTensor, ...]:
    """List every tensor of the model, in the canonical order."""
    hidden = config.hidden_size
    layout = [_fuse("embed.weight", (EMBEDDING, (config.vocab_size, hidden)))]
    for layer in range(config.layers):
        layout += _layer_layout(config, layer)
    layout.append(_fuse("norm.weight", ("model.norm.weight", (hidden,))))
    if not config.tied_embeddings:
        layout.append(_fuse("head.weight", (HEAD, (config.vocab_size, hidden))))
    return tuple(layout)


def _layer_layout(config: DecoderConfig, layer: int) -> Iterator[FusedTensor]:
    hidden, inner = config.hidden_size, config.intermediate_size
    queries, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim

    def fuse(name: str, *parts: tuple[str, Shape]) -> FusedTensor:
        full = [(f"model.layers.{layer}.{part}", shape) for part, shape in parts]
        return _fuse(f"layers.{layer}.{name}", *full)

    projections = (("q_proj", queries), ("k_proj", keys), ("v_proj", keys))
    yield fuse("attention_norm.weight", ("input_layernorm.weight", (hidden,)))
    yield fuse("qkv.weight", *((f"self_attn.{name}.weight", (rows, hidden)) for name, rows in projections))
    if config.qkv_bias:
        yield fuse("qkv.bias", *((f"self_attn.{name}.bias", (rows,)) for name, rows in projections))
    if config.qk_norm:
        yield fuse("q_norm.weight", ("self_attn.q_norm.weight", (config.head_dim,)))
        yield fuse("k_norm.weight", ("self_attn.k_norm.weight", (config.head_dim,)))
    yield fuse("o.weight", ("self_attn.o_proj.weight", (hidden, queries)))
    yield fuse("mlp_norm.weight", ("post_attention_layernorm.weight", (hidden,)))
    gate_up = (("mlp.gate_proj.weight", (inner, hidden)), ("mlp.up_proj.weight", (inner, hidden)))
    yield fuse("gate_up.weight", *gate_up)
    yield fuse("down.weight", ("mlp.down_proj.weight", (hidden, inner)))


def _fuse(name: str, *parts: tuple[str, Shape]) -> FusedTensor:
    rows = sum(shape[0] for _, shape in parts)
    return FusedTensor(name, (rows, *parts[0][1][1:]), parts)
