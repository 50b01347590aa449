"""The model's arithmetic for golden and for torch's own error: plain torch, whatever the dtype; needs torch.

It shares no operation with the backends, since a fault both had would go unseen.
R rows, T positions, S keys, D hidden size, H query heads, K key/value heads, G = H / K, Dh head size.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from models.config import DecoderConfig
from models.rope import rope_tables

CHUNK_TOKENS = 8192
"""Tokens that go through a feed-forward at a time."""
CHUNK_SCORES = 2**25
"""Attention scores held at a time."""


class Model:
    """The parts of a layer, on hidden states [R, T, D] of whatever dtype they and the weights have."""

    def __init__(self, config: DecoderConfig, positions: int, device: torch.device) -> None:
        self.config = config
        self.cos, self.sin = (torch.from_numpy(table).to(device) for table in rope_tables(config, positions))

    def norm(self, x: Tensor, weight: Tensor) -> Tensor:
        """Scale the last dimension to unit mean square in float32, round once."""
        wide = x.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.config.norm_eps)
        return (wide * scale * weight.float()).to(x.dtype)

    def rotate(self, x: Tensor, positions: Tensor) -> Tensor:
        """Turn heads x [R, T, heads, Dh] to positions [T] in float32, round once."""
        cos, sin = self.cos[positions][:, None], self.sin[positions][:, None]  # [T, 1, Dh / 2]
        first, second = x.float().chunk(2, dim=-1)
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)

    def project(
        self, hidden: Tensor, weights: dict[str, Tensor], query_positions: Tensor, key_positions: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Compute a layer's q [R, T, H, Dh], k and v [R, T, K, Dh], normed and turned."""
        config = self.config
        x = self.norm(hidden, weights["attention_norm.weight"])
        qkv = F.linear(x, weights["qkv.weight"], weights.get("qkv.bias"))
        heads = qkv.view(*qkv.shape[:2], -1, config.head_dim)
        q, k, v = heads.split_with_sizes((config.heads, config.kv_heads, config.kv_heads), dim=2)
        if config.qk_norm:
            q, k = self.norm(q, weights["q_norm.weight"]), self.norm(k, weights["k_norm.weight"])
        return self.rotate(q, query_positions), self.rotate(k, key_positions), v

    def finish(self, hidden: Tensor, attended: Tensor, weights: dict[str, Tensor]) -> None:
        """Add a layer's attention [R, T, H * Dh], then its feed-forward, to the hidden states in place."""
        hidden += F.linear(attended, weights["o.weight"])
        step = max(1, CHUNK_TOKENS // len(hidden))
        for first in range(0, hidden.shape[1], step):
            chunk = hidden[:, first : first + step]
            x = self.norm(chunk, weights["mlp_norm.weight"])
            gate, up = F.linear(x, weights["gate_up.weight"]).float().chunk(2, dim=-1)
            chunk += F.linear((F.silu(gate) * up).to(x.dtype), weights["down.weight"])


def attend(q: Tensor, keys: Tensor, values: Tensor, seen: list[int]) -> Tensor:
    """Attend with q [R, T, H, Dh] to keys and values [R, S, K, Dh]; query i sees the first seen[i] keys.

    `seen` ascends. Queries are taken in chunks, each with the keys that its last query sees. All in float32.
    """
    rows, steps, heads, head_dim = q.shape
    kv_heads = keys.shape[2]
    q = (
        q.view(rows, steps, kv_heads, -1, head_dim).permute(0, 2, 3, 1, 4) * head_dim**-0.5
    )  # [R, K, G, T, Dh]
    keys, values = keys.permute(0, 2, 3, 1), values.transpose(1, 2)  # [R, K, Dh, S], [R, K, S, Dh]
    limits = torch.tensor(seen, device=q.device)
    step = max(1, CHUNK_SCORES // (rows * heads * seen[-1]))
    outputs = []
    for first in range(0, steps, step):
        end = min(seen[min(first + step, steps) - 1], keys.shape[-1])
        chunk = q[:, :, :, first : first + step]
        scores = (chunk.flatten(2, 3) @ keys[..., :end]).view(*chunk.shape[:4], end)  # [R, K, G, chunk, end]
        unseen = torch.arange(end, device=q.device) >= limits[first : first + step, None]
        weights = scores.masked_fill_(unseen, float("-inf")).softmax(-1)
        out = weights.flatten(2, 3) @ values[:, :, :end]  # [R, K, G * chunk, Dh]
        outputs.append(out.view(chunk.shape).permute(0, 3, 1, 2, 4).flatten(2))
    return torch.cat(outputs, dim=1)


def attend_plainly(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend causally as torch's users do, in the stored dtype; returns [R, T, H * Dh]."""
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(1, 2).flatten(2)
