"""The operations as XLA compiles them best for a GPU, and attention by kernels that it does not generate.

A CPU is best left with those of `backends.jax_ops` as they are.
"""

import math

import jax
import jax.numpy as jnp
from jax import Array, lax

from backends.jax_ops import POSITIONS_FIRST, Decode, JaxOps, Prefill


class GpuOps(JaxOps):
    """Products and sums that keep a GPU's memory busy."""

    def linear(self, x: Array, weight: Array, bias: Array | None = None) -> Array:
        """Multiply x [B, T, I] by weight [O, I] transposed, add bias [O]; one rounding."""
        if bias is None:
            return multiply(x, weight)
        return super().linear(x, weight, bias)

    def lm_head(self, x: Array, weight: Array) -> Array:
        """Multiply the last position of x [B, T, D] by weight [V, D] transposed."""
        return multiply(x[:, -1], weight)

    def add_rms_norm(self, x: Array, residual: Array | None, weight: Array) -> tuple[Array, Array]:
        """Add, norm and scale; returns (normed, sum).

        The sum of one row is kept: XLA would rather add all updates up to here anew in every norm.
        """
        total = x if residual is None else x + residual
        if is_one_row(total):
            total = lax.optimization_barrier(total)
        return self.norm(total, weight), total


def is_one_row(x: Array) -> bool:
    """Tell whether x [..., D] is one vector: one token of one sequence."""
    return math.prod(x.shape[:-1]) == 1


def multiply(x: Array, weight: Array) -> Array:
    """Multiply x [..., I] by weight [O, I] transposed; accumulates in float32, rounds once to x's dtype.

    One row is written as a sum along each row of the weight: XLA compiles that to a reduction which reads
    at 0.91 of the copy bandwidth and takes the next operations along, where it makes a product a matrix
    kernel with all but one row empty. More rows are not asked for float32 results, which cuBLAS would write
    and the next operation read back; it accumulates in float32 all the same.
    """
    if is_one_row(x):
        row, wide = x.reshape(-1).astype(jnp.float32), weight.astype(jnp.float32)
        return jnp.sum(row * wide, axis=-1).astype(x.dtype).reshape(*x.shape[:-1], -1)
    return jnp.einsum("...i,oi->...o", x, weight)


class ProductsPrefill(GpuOps, Prefill):
    """Two products with a masked softmax between them, over the fresh keys and values."""


class ProductsDecode(GpuOps, Decode):
    """The same over the whole cache, masked."""


class CudnnPrefill(GpuOps, Prefill):
    """cuDNN's fused attention, causal, over the fresh keys and values."""

    layout = POSITIONS_FIRST

    def attend_cached(self, q: Array, k: Array, v: Array, keys: Array, values: Array) -> Array:  # noqa: ARG002
        """Attend with q [B, T, H, Dh], k and v [B, T, K, Dh]."""
        return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="cudnn")


class CudnnDecode(GpuOps, Decode):
    """cuDNN's fused attention; lengths instead of a mask, for which it has a slower kernel."""

    layout = POSITIONS_FIRST

    def attend_cached(self, q: Array, k: Array, v: Array, keys: Array, values: Array) -> Array:  # noqa: ARG002
        """Attend with q [B, 1, H, Dh] to the positions filled."""
        filled = jnp.full(q.shape[0], self.position + 1)
        return jax.nn.dot_product_attention(
            q,
            keys,
            values,
            query_seq_lengths=jnp.ones_like(filled),
            key_value_seq_lengths=filled,
            implementation="cudnn",
        )


class PallasDecode(GpuOps, Decode):
    """The decode kernel that comes with Pallas: split over the cache."""

    layout = POSITIONS_FIRST

    def attend_cached(self, q: Array, k: Array, v: Array, keys: Array, values: Array) -> Array:  # noqa: ARG002
        """Attend with q [B, 1, H, Dh] to the positions filled."""
        from jax.experimental.pallas.ops.gpu import decode_attention

        filled = jnp.full(q.shape[0], self.position + 1)
        scale = q.shape[-1] ** -0.5
        out: Array = decode_attention.gqa(q[:, 0], keys, values, kv_seq_len=filled, sm_scale=scale)
        return out.astype(q.dtype)


OPS: dict[str, tuple[type[JaxOps], type[JaxOps]]] = {
    "products": (ProductsPrefill, ProductsDecode),
    "cudnn": (CudnnPrefill, CudnnDecode),
    "pallas": (CudnnPrefill, PallasDecode),
}
"""The operations of prefill and of decode on a GPU, by the option's value."""
