"""The decoder-only transformer that every backend lowers: one forward pass, written over `Ops`.

Read it top to bottom. Shapes: B sequences, T new tokens a sequence, D hidden size, H query heads,
K key/value heads, Dh head size, F feed-forward size, V vocabulary. Position, rope and cache belong
to `attend`, so the same function serves prefill (T = prompt length) and decode (T = 1).

Numerics, the same for all: values are stored in the model's dtype; products accumulate in float32;
norms, softmax and rope angles are computed in float32 and rounded to the stored dtype once.
"""

from collections.abc import Mapping
from typing import Any, Protocol

from models.config import DecoderConfig

Array = Any  # whatever the backend calls a tensor, traced or real


class Ops(Protocol):
    """The coarse operations that a backend implements in its own best form."""

    def embed(self, tokens: Array, table: Array) -> Array:
        """Look up tokens [B, T] in table [V, D]; returns [B, T, D]."""

    def linear(self, x: Array, weight: Array, bias: Array | None = None) -> Array:
        """Multiply x [B, T, I] by weight [O, I] transposed, add bias [O]; returns [B, T, O]."""

    def add_rms_norm(self, x: Array, residual: Array | None, weight: Array) -> tuple[Array, Array]:
        """Add x and residual [B, T, D] in the stored dtype, then norm the sum over D and scale by weight [D].

        Returns (normed, sum). Without a residual the sum is x itself.
        """

    def split_heads(self, qkv: Array) -> tuple[Array, Array, Array]:
        """Split [B, T, (H + 2K) * Dh] into q [B, T, H, Dh], k and v [B, T, K, Dh]."""

    def attend(
        self, q: Array, k: Array, v: Array, layer: int, q_norm: Array | None, k_norm: Array | None
    ) -> Array:
        """Norm each head of q and k where q_norm, k_norm [Dh] are given, rotate q and k to their positions,
        write k and v into this layer's cache, and attend causally to everything cached.

        The one seam that attention libraries replace. Returns [B, T, H * Dh].
        """

    def swiglu(self, gate_up: Array) -> Array:
        """Compute silu(gate) * up in float32; gate_up [B, T, 2F] has the gate first; returns [B, T, F]."""

    def lm_head(self, x: Array, weight: Array) -> Array:
        """Multiply the last position of x [B, T, D] by weight [V, D] transposed; returns [B, V]."""

    def argmax(self, logits: Array) -> Array:
        """Choose the greedy next token: the index of the largest of logits [B, V], as int32 [B]."""


def forward(
    ops: Ops, config: DecoderConfig, weights: Mapping[str, Array], tokens: Array
) -> tuple[Array, Array]:
    """Run tokens [B, T] through the model; returns the last position's logits [B, V] and next token [B]."""
    x = ops.embed(tokens, weights["embed.weight"])  # [B, T, D]
    residual = None
    for layer in range(config.layers):
        x, residual = decode_layer(ops, config, weights, layer, x, residual)
    return choose_token(ops, config, weights, x, residual)


def decode_layer(
    ops: Ops,
    config: DecoderConfig,
    weights: Mapping[str, Array],
    layer: int,
    x: Array,
    residual: Array | None,
) -> tuple[Array, Array]:
    """Run one layer; x [B, T, D] is the last update, not yet added to the residual stream [B, T, D]."""

    def weight(name: str) -> Array:
        return weights[f"layers.{layer}.{name}"]

    x, residual = ops.add_rms_norm(x, residual, weight("attention_norm.weight"))
    qkv = ops.linear(x, weight("qkv.weight"), weight("qkv.bias") if config.qkv_bias else None)
    q, k, v = ops.split_heads(qkv)  # [B, T, H, Dh], [B, T, K, Dh], [B, T, K, Dh]
    q_norm, k_norm = (weight("q_norm.weight"), weight("k_norm.weight")) if config.qk_norm else (None, None)
    x = ops.attend(q, k, v, layer, q_norm, k_norm)  # [B, T, H * Dh]
    x = ops.linear(x, weight("o.weight"))  # [B, T, D]

    x, residual = ops.add_rms_norm(x, residual, weight("mlp_norm.weight"))
    x = ops.swiglu(ops.linear(x, weight("gate_up.weight")))  # [B, T, F]
    return ops.linear(x, weight("down.weight")), residual


def choose_token(
    ops: Ops, config: DecoderConfig, weights: Mapping[str, Array], x: Array, residual: Array | None
) -> tuple[Array, Array]:
    """Turn the last layer's update x and residual stream [B, T, D] into logits [B, V] and next token [B]."""
    x, _ = ops.add_rms_norm(x, residual, weights["norm.weight"])
    head = weights["embed.weight" if config.tied_embeddings else "head.weight"]
    logits = ops.lm_head(x, head)  # [B, V]
    return logits, ops.argmax(logits)
