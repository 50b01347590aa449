"""The model's operations with FlashInfer's attention, and with its small kernels where nothing is compiled.

Letters as in backends/torch_ops.py; W is the size that heads are padded to.
"""

import flashinfer
import torch
import torch.nn.functional as F
from torch import Tensor

from backends.flashinfer.attention import attend, pages_of
from backends.flashinfer.kernels import HEADS
from backends.torch_ops import Cache, Rope, TorchOps
from models.config import DecoderConfig


def pad(x: Tensor, width: int) -> Tensor:
    """Pad heads x [..., Dh] with zeros to [..., W], which changes no product."""
    return x if x.shape[-1] == width else F.pad(x, (0, width - x.shape[-1]))


class FlashInferOps(TorchOps):
    """Attention over the cache by FlashInfer, everything else in torch."""

    def __init__(
        self, config: DecoderConfig, cache: Cache, cos: Tensor, sin: Tensor, handle: int, width: int
    ) -> None:
        super().__init__(config, cache, cos, sin)
        self.handle, self.width = handle, width

    def run(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend with q [B, T, H, W] to what k and v hold; returns [B, T, H * Dh]."""
        out: Tensor = attend(q.flatten(0, 1), k, v, self.handle)
        return out[..., : self.config.head_dim].reshape(*q.shape[:2], -1)


class PrefillOps(FlashInferOps):
    """T tokens from position 0: the fresh k and v are attended, causally."""

    def __init__(
        self, config: DecoderConfig, cache: Cache, rope: Rope, length: int, handle: int, width: int
    ) -> None:
        super().__init__(config, cache, rope.cos[:length], rope.sin[:length], handle, width)

    def attend_cached(self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Write k and v [B, T, K, Dh] into keys and values [B, P * PAGE, K, W], attend with q."""
        q, k, v = (pad(x, self.width) for x in (q, k, v))
        length = q.shape[1]
        keys[:, :length] = k
        values[:, :length] = v
        return self.run(q, k.flatten(0, 1), v.flatten(0, 1))


class DecodeOps(FlashInferOps):
    """One token at a position [1] on the device."""

    def __init__(
        self, config: DecoderConfig, cache: Cache, rope: Rope, position: Tensor, handle: int, width: int
    ) -> None:
        super().__init__(config, cache, rope.cos[position], rope.sin[position], handle, width)
        self.position = position

    def attend_cached(self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Write k and v [B, 1, K, Dh] into keys and values [B, P * PAGE, K, W], attend with q."""
        q, k, v = (pad(x, self.width) for x in (q, k, v))
        keys.index_copy_(1, self.position, k)
        values.index_copy_(1, self.position, v)
        return self.run(q, pages_of(keys), pages_of(values))


class Kernels(TorchOps):
    """FlashInfer's norm with residual, rope and gated activation, in place where what they take is fresh."""

    positions: Tensor
    """Of every token, int64 [B * T]."""
    angles: Tensor
    """Cosines, then sines, of every position: float32 [C, Dh]."""

    def norm(self, x: Tensor, weight: Tensor) -> Tensor:
        """Norm x over its last dimension, which need not be contiguous before that."""
        rows = x.reshape(-1, x.shape[-1])
        out: Tensor = flashinfer.rmsnorm(rows, weight, self.config.norm_eps)
        return out.view(x.shape)

    def add_rms_norm(self, x: Tensor, residual: Tensor | None, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Add, norm and scale in one kernel; returns (normed, sum) in the memory of x and residual."""
        if residual is None:
            return self.norm(x, weight), x
        rows, sums = x.flatten(0, 1), residual.flatten(0, 1)
        flashinfer.fused_add_rmsnorm(rows, sums, weight, self.config.norm_eps)
        return x, residual

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, layer: int, q_norm: Tensor | None, k_norm: Tensor | None
    ) -> Tensor:
        """Norm and rotate q and k, cache k and v, attend; returns [B, T, H * Dh].

        Heads of other sizes go another way in FlashInfer, which rotates those of 16 wrongly.
        """
        if self.config.head_dim not in HEADS:
            return super().attend(q, k, v, layer, q_norm, k_norm)
        if q_norm is not None and k_norm is not None:
            q, k = self.norm(q, q_norm), self.norm(k, k_norm)
        rows = (x.view(q.shape[0] * q.shape[1], -1) for x in (q, k))  # rotated in place
        flashinfer.apply_rope_with_cos_sin_cache_inplace(
            self.positions, *rows, self.config.head_dim, self.angles
        )
        return self.attend_cached(q, k, v, self.cache.keys[layer], self.cache.values[layer])

    def swiglu(self, gate_up: Tensor) -> Tensor:
        """Compute silu(gate) * up in float32, rounded once."""
        out: Tensor = flashinfer.silu_and_mul(gate_up)
        return out


class KernelPrefill(Kernels, PrefillOps):
    """A prefill without a compiler."""

    def __init__(
        self,
        config: DecoderConfig,
        cache: Cache,
        rope: Rope,
        length: int,
        handle: int,
        width: int,
        angles: Tensor,
    ) -> None:
        super().__init__(config, cache, rope, length, handle, width)
        self.positions = torch.arange(length, device=angles.device).repeat(cache.keys[0].shape[0])
        self.angles = angles


class KernelDecode(Kernels, DecodeOps):
    """A decode step without a compiler."""

    def __init__(
        self,
        config: DecoderConfig,
        cache: Cache,
        rope: Rope,
        position: Tensor,
        handle: int,
        width: int,
        angles: Tensor,
    ) -> None:
        super().__init__(config, cache, rope, position, handle, width)
        self.positions = position.repeat(cache.keys[0].shape[0])
        self.angles = angles


def tabulate_angles(rope: Rope) -> Tensor:
    """Lay the tables out as FlashInfer reads them: cosines, then sines, of one half of the head [C, Dh]."""
    half = rope.cos.shape[-1] // 2
    return torch.cat((rope.cos[:, 0, :half], rope.sin[:, 0, half:]), dim=-1)
