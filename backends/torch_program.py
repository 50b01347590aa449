"""The definition as `torch.export` programs: what a compiler's own importer is given for `[import=torch]`.

Plain PyTorch as a user would write it for export: weights, cache and position are arguments, the new cache
is a result, and nothing is mutated. B sequences, T tokens, K key/value heads, Dh head size, C capacity.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.export import ExportedProgram

from backends.contract import Shapes
from backends.torch_ops import Cache, Rope, TorchOps, fold_heads
from models.config import DecoderConfig
from models.decoder import forward
from models.layout import fused_layout

Weights = Mapping[str, Tensor]


class Step(NamedTuple):
    """What either program returns, in this order."""

    logits: Tensor
    """Of the last position, [B, V]."""
    token: Tensor
    """The greedy next of each sequence, int32 [B]."""
    position: Tensor
    """Where the next decode writes, int64 [1]."""
    keys: list[Tensor]
    """Of each layer, [B, K, C, Dh]."""
    values: list[Tensor]


class ExportedOps(TorchOps):
    """Takes the cache through the layers as values."""

    def __init__(self, config: DecoderConfig, cache: Cache, rope: Rope, positions: Tensor) -> None:
        """Take the positions [T] of the tokens."""
        super().__init__(config, cache, rope.cos[positions], rope.sin[positions])
        self.positions = positions
        self.keys, self.values = list(cache.keys), list(cache.values)

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, layer: int, q_norm: Tensor | None, k_norm: Tensor | None
    ) -> Tensor:
        """Norm and rotate q and k, put k and v into the cache, attend; returns [B, T, H * Dh]."""
        if q_norm is not None and k_norm is not None:
            q, k = self.norm(q, q_norm), self.norm(k, k_norm)
        q, k = rotate_halves(q, self.cos, self.sin), rotate_halves(k, self.cos, self.sin)
        self.keys[layer] = self.put(self.keys[layer], k)
        self.values[layer] = self.put(self.values[layer], v)
        return self.attend_cached(q, k, v, self.keys[layer], self.values[layer])

    def put(self, cached: Tensor, new: Tensor) -> Tensor:
        """Return cached [B, K, C, Dh] with new [B, T, K, Dh] at the positions.

        A scatter, which more importers take than an index copy.
        """
        new = new.transpose(1, 2)
        return cached.scatter(2, self.positions[:, None].expand(new.shape), new)

    def lm_head(self, x: Tensor, weight: Tensor) -> Tensor:
        """Multiply the last position of x [B, T, D] by weight [V, D] transposed.

        Counted from the first: Relax's importer reads in front of x for an index of -1.
        """
        return F.linear(x[:, x.shape[1] - 1], weight)

    def argmax(self, logits: Tensor) -> Tensor:
        """Choose the greedy next token of each row, int32 [B]; ONNX Runtime does not of bfloat16."""
        return super().argmax(logits.float())

    def swiglu(self, gate_up: Tensor) -> Tensor:
        """Compute silu(gate) * up in float32, rounded once."""
        gate, up = gate_up.chunk(2, dim=-1)
        return (F.silu(gate.float()) * up.float()).to(gate_up.dtype)


class ExportedPrefill(ExportedOps):
    """Attends causally to the fresh keys and values."""

    def attend_cached(self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor) -> Tensor:  # noqa: ARG002
        """Attend with q [B, T, H, Dh], k and v [B, T, K, Dh]."""
        groups = q.shape[2] // k.shape[2]
        k, v = (each.transpose(1, 2).repeat_interleave(groups, dim=1) for each in (k, v))
        out = F.scaled_dot_product_attention(q.transpose(1, 2), k, v, is_causal=True)
        return out.transpose(1, 2).flatten(2)


class SlicedPrefill(ExportedPrefill):
    """Writes the beginning of the cache as one slice, not position by position."""

    def put(self, cached: Tensor, new: Tensor) -> Tensor:
        """Return cached [B, K, C, Dh] that begins with new [B, T, K, Dh]."""
        return cached.slice_scatter(new.transpose(1, 2), dim=2, start=0, end=new.shape[1])


class ExportedDecode(ExportedOps):
    """Attends to the whole capacity, with what lies beyond the position masked."""

    def attend_cached(self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor) -> Tensor:  # noqa: ARG002
        """Attend with q [B, 1, H, Dh], G queries to each of the K heads of [B, K, C, Dh]."""
        filled = torch.arange(keys.shape[2], device=keys.device) <= self.positions  # [C]
        q = fold_heads(q, keys.shape[1])
        mask = filled.expand(q.shape[0], q.shape[1], q.shape[2], -1)
        out = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)  # [B, K, G, Dh]
        return out.reshape(q.shape[0], 1, -1)


def rotate_halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate heads x [B, T, *, Dh] in float32 by angles [T, 1, Dh], the sine's first half with its minus."""
    wide = x.float()
    first, second = wide.chunk(2, dim=-1)
    return (wide * cos + torch.cat((second, first), dim=-1) * sin).to(x.dtype)


class PrefillProgram(nn.Module):
    """Tokens [B, T] int32 from position 0."""

    def __init__(self, config: DecoderConfig, make_ops: type[ExportedPrefill]) -> None:
        super().__init__()
        self.config = config
        self.make_ops = make_ops

    def forward(
        self,
        weights: Weights,
        rope: Sequence[Tensor],
        tokens: Tensor,
        keys: list[Tensor],
        values: list[Tensor],
    ) -> Step:
        """Return the step; `rope` is cos and sin as `torch_ops.Rope` has them."""
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        ops = self.make_ops(self.config, Cache(keys, values), Rope(*rope), positions)
        logits, token = forward(ops, self.config, weights, tokens)
        return Step(logits, token, positions[-1:] + 1, ops.keys, ops.values)


class DecodeProgram(nn.Module):
    """One token of each sequence, int32 [B], at a position, int64 [1]."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config

    def forward(
        self,
        weights: Weights,
        rope: Sequence[Tensor],
        token: Tensor,
        position: Tensor,
        keys: list[Tensor],
        values: list[Tensor],
    ) -> Step:
        """Return the step; `rope` is cos and sin as `torch_ops.Rope` has them."""
        ops = ExportedDecode(self.config, Cache(keys, values), Rope(*rope), position)
        logits, token = forward(ops, self.config, weights, token[:, None])
        return Step(logits, token, position + 1, ops.keys, ops.values)


def export_prefill(
    config: DecoderConfig,
    shapes: Shapes,
    dtype: str,
    length: int,
    make_ops: type[ExportedPrefill] = ExportedPrefill,
) -> ExportedProgram:
    """Export the prefill of `length` tokens; no weight is allocated."""
    with FakeTensorMode():
        weights, rope, keys, values = describe(config, shapes, dtype)
        tokens = torch.zeros(shapes.batch, length, dtype=torch.int32)
        return export(PrefillProgram(config, make_ops), (weights, rope, tokens, keys, values))


def export_decode(config: DecoderConfig, shapes: Shapes, dtype: str) -> ExportedProgram:
    """Export one decode step; no weight is allocated."""
    with FakeTensorMode():
        weights, rope, keys, values = describe(config, shapes, dtype)
        token = torch.zeros(shapes.batch, dtype=torch.int32)
        position = torch.zeros(1, dtype=torch.int64)
        return export(DecodeProgram(config), (weights, rope, token, position, keys, values))


def describe(
    config: DecoderConfig, shapes: Shapes, dtype: str
) -> tuple[dict[str, Tensor], list[Tensor], list[Tensor], list[Tensor]]:
    """Make the weights, the tables of angles, keys and values that the programs take."""
    stored: torch.dtype = getattr(torch, dtype)
    weights = {each.name: torch.empty(each.shape, dtype=stored) for each in fused_layout(config)}
    rope = [torch.empty(shapes.capacity, 1, config.head_dim) for _ in ("cos", "sin")]
    cached = (shapes.batch, config.kv_heads, shapes.capacity, config.head_dim)
    keys, values = ([torch.empty(cached, dtype=stored) for _ in range(config.layers)] for _ in "kv")
    return weights, rope, keys, values


def export(program: nn.Module, arguments: tuple[object, ...]) -> ExportedProgram:
    """Export a program with fixed shapes; importers decompose its operators as they like."""
    with torch.no_grad():
        return torch.export.export(program, arguments, strict=False)
