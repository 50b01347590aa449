"""The model's operations in plain PyTorch, with each way to attend: a prefill, a decode over its cache.

An ops object lives for one step: it knows the positions of that step's tokens and the cache they go to.
B sequences, T new tokens, D hidden size, H query heads, K key/value heads, G = H / K query heads to each
of them, Dh head size, C capacity.
"""

from copy import copy
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, FlexKernelOptions, flex_attention

from backends.contract import POISON
from models.config import DecoderConfig
from models.rope import whole_head_tables


@dataclass(frozen=True)
class Cache:
    """Keys and values of every layer, allocated once and written in place."""

    keys: list[Tensor]
    values: list[Tensor]

    @classmethod
    def allocate(
        cls, config: DecoderConfig, batch: int, capacity: int, dtype: torch.dtype, device: torch.device
    ) -> Self:
        """Allocate [B, K, C, Dh] for each layer's keys and values."""
        return cls.zeros(config.layers, (batch, config.kv_heads, capacity, config.head_dim), dtype, device)

    @classmethod
    def zeros(cls, layers: int, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Self:
        """Allocate zeros: an additive mask hides what is finite only, and fresh memory may hold a NaN."""

        def tensors() -> list[Tensor]:
            return [torch.zeros(shape, dtype=dtype, device=device) for _ in range(layers)]

        return cls(tensors(), tensors())

    def poison(self, length: int) -> None:
        """Overwrite positions >= length."""
        for tensor in (*self.keys, *self.values):
            tensor[:, :, length:] = POISON


@dataclass(frozen=True)
class Rope:
    """Rotation angles as float32 tables [C, 1, Dh]; the sine of a head's first half has its minus sign."""

    cos: Tensor
    sin: Tensor

    @classmethod
    def tabulate(cls, config: DecoderConfig, capacity: int, device: torch.device) -> "Rope":
        """Place the model's tables on the device."""
        return cls(*(torch.from_numpy(table).to(device) for table in whole_head_tables(config, capacity)))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate heads x [B, T, *, Dh] in float32 by angles [T, 1, Dh]; returns x's dtype."""
    swapped = x.roll(x.shape[-1] // 2, dims=-1)
    return torch.addcmul(x * cos, swapped, sin).to(x.dtype)


class TorchOps:
    """Everything but attention over the cache, which a subclass adds as `attend_cached`."""

    def __init__(self, config: DecoderConfig, cache: Cache, cos: Tensor, sin: Tensor) -> None:
        self.config, self.cache, self.cos, self.sin = config, cache, cos, sin

    def of_layer(self, layer: int) -> Self:
        """Return the same operations with one layer's cache alone, as its layer 0."""
        alone = copy(self)
        alone.cache = Cache([self.cache.keys[layer]], [self.cache.values[layer]])
        return alone

    def embed(self, tokens: Tensor, table: Tensor) -> Tensor:
        """Look up tokens [B, T] in table [V, D]."""
        return F.embedding(tokens, table)

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Multiply x [B, T, I] by weight [O, I] transposed, add bias [O]."""
        return F.linear(x, weight, bias)

    def norm(self, x: Tensor, weight: Tensor) -> Tensor:
        """Norm x over its last dimension: F.rms_norm computes in float32 and rounds once."""
        return F.rms_norm(x, weight.shape, weight, self.config.norm_eps)

    def add_rms_norm(self, x: Tensor, residual: Tensor | None, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Add, norm and scale; returns (normed, sum)."""
        total = x if residual is None else x + residual
        return self.norm(total, weight), total

    def split_heads(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """View qkv as q [B, T, H, Dh], k and v [B, T, K, Dh]."""
        config = self.config
        heads = qkv.view(*qkv.shape[:-1], -1, config.head_dim)
        q, k, v = heads.split_with_sizes((config.heads, config.kv_heads, config.kv_heads), dim=2)
        return q, k, v

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, layer: int, q_norm: Tensor | None, k_norm: Tensor | None
    ) -> Tensor:
        """Norm and rotate q and k, cache k and v, attend; returns [B, T, H * Dh]."""
        if q_norm is not None and k_norm is not None:
            q, k = self.norm(q, q_norm), self.norm(k, k_norm)
        q, k = rotate(q, self.cos, self.sin), rotate(k, self.cos, self.sin)
        return self.attend_cached(q, k, v, self.cache.keys[layer], self.cache.values[layer])

    def attend_cached(self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Write k and v [B, T, K, Dh] into keys and values [B, K, C, Dh], attend with q [B, T, H, Dh]."""
        raise NotImplementedError

    def swiglu(self, gate_up: Tensor) -> Tensor:
        """Compute silu(gate) * up in float32, rounded once."""
        gate, up = gate_up.chunk(2, dim=-1)
        # The widened copy is reused: a prefill's float32 temporaries cost more than the arithmetic.
        activated = F.silu(gate.float(), inplace=gate.dtype != torch.float32)
        return torch.mul(activated, up, out=torch.empty_like(up))

    def lm_head(self, x: Tensor, weight: Tensor) -> Tensor:
        """Multiply the last position of x [B, T, D] by weight [V, D] transposed."""
        return F.linear(x[:, -1], weight)

    def argmax(self, logits: Tensor) -> Tensor:
        """Choose the greedy next token of each row, int32 [B]."""
        return logits.argmax(dim=-1).to(torch.int32)


class Prefill(TorchOps):
    """T tokens from position 0: they see one another only, so the fresh k and v are attended, causally."""

    def __init__(self, config: DecoderConfig, cache: Cache, rope: Rope, length: int) -> None:
        super().__init__(config, cache, rope.cos[:length], rope.sin[:length])

    def attend_cached(self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Attend with the flash kernel, which shares each k and v among G query heads itself."""
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        length = q.shape[2]
        keys[:, :, :length] = k
        values[:, :, :length] = v
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)  # [B, H, T, Dh]
        return out.transpose(1, 2).flatten(2)


def fold_heads(q: Tensor, kv_heads: int) -> Tensor:
    """View one token's q [B, 1, H, Dh] as [B, K, G, Dh]: G queries that share a key/value head.

    They see the same keys, so they may stand where the query length does: exact, no mask, no repeated keys.
    """
    return q.view(q.shape[0], kv_heads, -1, q.shape[-1])


class SlicedDecode(TorchOps):
    """One token at a position the host knows: the cache is sliced to what is filled, nothing is masked."""

    def __init__(self, config: DecoderConfig, cache: Cache, rope: Rope, position: int) -> None:
        super().__init__(config, cache, rope.cos[position : position + 1], rope.sin[position : position + 1])
        self.position = position

    def attend_cached(self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Attend with the flash kernel over [B, K, position + 1, Dh]."""
        end = self.position + 1
        keys[:, :, self.position : end] = k.transpose(
            1, 2
        )  # an index would make torch.compile fix the position
        values[:, :, self.position : end] = v.transpose(1, 2)
        q = fold_heads(q, keys.shape[1])
        out = F.scaled_dot_product_attention(q, keys[:, :, :end], values[:, :, :end])  # [B, K, G, Dh]
        return out.reshape(q.shape[0], 1, -1)


class DeviceDecode(TorchOps):
    """One token at a position [1] on the device, so that one program serves all lengths."""

    def __init__(self, config: DecoderConfig, cache: Cache, rope: Rope, position: Tensor) -> None:
        super().__init__(config, cache, rope.cos[position], rope.sin[position])
        self.position = position
        self.capacity = cache.keys[0].shape[2]

    def attend_cached(self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Write k and v at the position, attend with the subclass's kernel."""
        keys.index_copy_(2, self.position, k.transpose(1, 2))
        values.index_copy_(2, self.position, v.transpose(1, 2))
        out = self.attend_filled(fold_heads(q, keys.shape[1]), keys, values)
        return out.reshape(q.shape[0], 1, -1)

    def attend_filled(self, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Attend with q [B, K, G, Dh] to the positions filled of keys and values [B, K, C, Dh]."""
        raise NotImplementedError


class MaskedDecode(DeviceDecode):
    """SDPA over the whole capacity with a mask: a kernel that takes one does not split over the cache."""

    def __init__(self, config: DecoderConfig, cache: Cache, rope: Rope, position: Tensor) -> None:
        super().__init__(config, cache, rope, position)
        batch, kv_heads, capacity, _ = cache.keys[0].shape
        beyond = torch.arange(capacity, device=position.device) > position
        # Additive and in the stored dtype, once for all layers: a boolean mask is converted at every call.
        mask = torch.zeros(capacity, dtype=cache.keys[0].dtype, device=position.device)
        mask = mask.masked_fill(beyond, float("-inf"))
        self.mask = mask.expand(batch, kv_heads, config.heads // config.kv_heads, capacity)

    def attend_filled(self, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Attend with a kernel that takes a mask: flash on a CPU, memory-efficient on a GPU."""
        return F.scaled_dot_product_attention(q, keys, values, attn_mask=self.mask)


class ProductsDecode(DeviceDecode):
    """Two products with a masked softmax between them, which a compiler lowers as it likes."""

    def __init__(self, config: DecoderConfig, cache: Cache, rope: Rope, position: Tensor) -> None:
        super().__init__(config, cache, rope, position)
        self.beyond = torch.arange(self.capacity, device=position.device) > position

    def attend_filled(self, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Attend over the whole capacity, with the softmax in float32."""
        scores = (q @ keys.transpose(-1, -2)).float() * q.shape[-1] ** -0.5  # [B, K, G, C]
        weights = scores.masked_fill(self.beyond, float("-inf")).softmax(-1)
        out: Tensor = weights.to(values.dtype) @ values
        return out


class FlexDecode(DeviceDecode):
    """Flex attention's decode kernel: split over the cache, and no block beyond the position is read."""

    BLOCK = 128
    """Positions that the kernel reads or leaves out together."""
    KERNEL: ClassVar[FlexKernelOptions] = {"BLOCK_N": 64, "num_stages": 3}
    """Loads this deep keep the memory busy: on an H200 up to 1.5 times the speed of the library's choice."""

    def __init__(self, config: DecoderConfig, cache: Cache, rope: Rope, position: Tensor) -> None:
        super().__init__(config, cache, rope, position)
        self.filled = (position // self.BLOCK + 1).to(torch.int32).view(1, 1, 1)
        """Blocks that hold any position to be read."""
        count = -(-self.capacity // self.BLOCK)
        self.blocks = torch.arange(count, device=position.device, dtype=torch.int32).view(1, 1, 1, -1)

    def mask(self) -> BlockMask:
        """Name the blocks to read, and in the last of them the positions."""
        last = self.position.view(())
        return BlockMask.from_kv_blocks(
            self.filled,
            self.blocks,
            BLOCK_SIZE=(self.BLOCK, self.BLOCK),
            mask_mod=lambda batch, head, query, key: key <= last,  # noqa: ARG005 (the library's signature)
            seq_lengths=(1, self.capacity),
            compute_q_blocks=False,  # of use to a backward pass only
        )

    def attend_filled(self, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Attend; the kernel itself takes the G queries of a key/value head together."""
        heads = q.flatten(1, 2)[:, :, None]  # [B, H, 1, Dh]
        out: Tensor = flex_attention(
            heads,
            keys,
            values,
            block_mask=self.mask(),
            enable_gqa=True,
            kernel_options=self.KERNEL,
        )
        return out
