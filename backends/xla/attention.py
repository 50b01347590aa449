"""Attention by kernels that XLA does not generate itself, and the choice between all ways `xla` attends."""

import jax
import jax.numpy as jnp
from jax import Array

from backends.jax_ops import POSITIONS_FIRST, Decode, JaxOps, Prefill


class CudnnPrefill(Prefill):
    """cuDNN's fused attention, causal, over the fresh keys and values."""

    layout = POSITIONS_FIRST

    def attend_cached(self, q: Array, k: Array, v: Array, keys: Array, values: Array) -> Array:  # noqa: ARG002
        """Attend with q [B, T, H, Dh], k and v [B, T, K, Dh]."""
        return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="cudnn")


class CudnnDecode(Decode):
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


class PallasDecode(Decode):
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
    "products": (Prefill, Decode),
    "cudnn": (CudnnPrefill, CudnnDecode),
    "pallas": (CudnnPrefill, PallasDecode),
}
"""The operations of prefill and of decode, by the option's value."""
