"""The jax.numpy operations in the forms that IREE compiles best, lowered to programs of StableHLO.

B sequences, T new tokens, H query heads, K key/value heads, N = B * K, G = H / K query heads to each
key/value head, Dh head size, C capacity.
"""

from collections.abc import Callable
from functools import partial
from math import gcd
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from backends.contract import Shapes
from backends.iree.engine import Interface
from backends.jax_ops import Decode, JaxOps, Layout, Prefill, Rope, State, prefill_step, product
from models.config import DecoderConfig
from models.decoder import forward
from models.layout import fused_layout
from models.rope import rope_tables

LAYOUT = Layout("ncd", "ncd")
"""Keys and values [N, C, Dh]: a new position is one row of each head, and no product transposes the cache."""


class IreeOps(JaxOps):
    """Rotates by reversing an axis of halves, which fuses; a concatenation is two more copies."""

    layout = LAYOUT

    def rotate(self, x: Array) -> Array:
        """Rotate heads x [B, T, *, Dh] in float32; returns x's dtype."""
        halves = x.astype(jnp.float32).reshape(*x.shape[:-1], 2, -1)
        sin = jnp.stack((-self.sin, self.sin), axis=-2)  # [T, 1, 2, Dh / 2]
        turned = halves * self.cos[..., None, :] + lax.rev(halves, (halves.ndim - 2,)) * sin
        return turned.reshape(x.shape).astype(x.dtype)

    def argmax(self, logits: Array) -> Array:
        """Choose the first of the largest logits [B, V], in parts of up to 256 that are reduced side by side.

        One reduction of values with their indices is compiled to a single thread of a GPU.
        """
        batch, vocab = logits.shape
        parts = logits.reshape(batch, -1, gcd(vocab, 256))
        largest = parts.max(axis=2).max(axis=1)[:, None, None]
        indices = lax.broadcasted_iota(jnp.int32, logits.shape, 1).reshape(parts.shape)
        return jnp.where(parts == largest, indices, vocab - 1).min(axis=2).min(axis=1)


def attend_products(q: Array, k: Array, v: Array, seen: Array) -> Array:
    """Attend with q [N, Q, Dh] to k and v [N, S, Dh] where `seen` [Q or 1, S], with the softmax in float32.

    One batch dimension: with B and K apart the products are compiled to half the speed.
    """
    scores = jnp.einsum("nqd,nsd->nqs", q, k, preferred_element_type=jnp.float32)
    return product("nqs,nsd->nqd", weigh(scores, seen, q).astype(v.dtype), v)


def attend_sums(q: Array, k: Array, v: Array, seen: Array) -> Array:
    """Attend as `attend_products` does, with each product written as a multiplication and a sum.

    For a GPU and few queries: such a sum is compiled to a warp for each number, a product of so few rows to a
    single thread for each of them, which walks through all positions.
    """
    wide_q, wide_k, wide_v = (each.astype(jnp.float32) for each in (q, k, v))
    weights = weigh((wide_q[:, :, None] * wide_k[:, None]).sum(axis=-1), seen, q).astype(v.dtype)
    return (weights.astype(jnp.float32)[..., None] * wide_v[:, None]).sum(axis=2).astype(v.dtype)


def weigh(scores: Array, seen: Array, q: Array) -> Array:
    """Return the softmax of scores [N, Q, S], scaled for heads as wide as those of q, where `seen`."""
    return jax.nn.softmax(jnp.where(seen, scores * q.shape[-1] ** -0.5, -jnp.inf), axis=-1)


class IreePrefill(IreeOps, Prefill):
    """T tokens from position 0, which see one another only."""

    def attend_cached(self, q: Array, k: Array, v: Array, keys: Array, values: Array) -> Array:  # noqa: ARG002
        """Attend causally with the G queries of a key/value head as G * T rows."""
        batch, length, heads, width = q.shape
        kv_heads = k.shape[2]
        rows = q.reshape(batch, length, kv_heads, -1, width).transpose(0, 2, 3, 1, 4)  # [B, K, G, T, Dh]
        k, v = (each.swapaxes(1, 2).reshape(-1, length, width) for each in (k, v))
        groups = heads // kv_heads
        past = lax.broadcasted_iota(jnp.int32, (groups, length, length), 1) >= lax.broadcasted_iota(
            jnp.int32, (groups, length, length), 2
        )
        out = attend_products(rows.reshape(-1, groups * length, width), k, v, past.reshape(-1, length))
        return out.reshape(batch, kv_heads, groups, length, width).transpose(0, 3, 1, 2, 4)


class IreeDecode(IreeOps, Decode):
    """One token at a position on the device; the start of a slice IREE would fetch to the host."""

    attend_rows = staticmethod(attend_products)

    def write(self, cached: Array, new: Array, axes: str) -> Array:  # noqa: ARG002 (keys and values lie alike)
        """Scatter new [B, 1, K, Dh] to the rows at the position."""
        count, capacity, width = cached.shape
        rows = jnp.arange(count, dtype=jnp.int32) * capacity + self.position
        flat = cached.reshape(-1, width).at[rows]
        new = new.reshape(-1, width)
        written = flat.set(new, mode="promise_in_bounds", unique_indices=True, indices_are_sorted=True)
        return written.reshape(cached.shape)

    def attend_cached(self, q: Array, k: Array, v: Array, keys: Array, values: Array) -> Array:  # noqa: ARG002
        """Attend to the whole capacity, with what lies beyond the position masked."""
        filled = lax.broadcasted_iota(jnp.int32, (1, keys.shape[1]), 1) <= self.position
        return self.attend_rows(q.reshape(keys.shape[0], -1, q.shape[-1]), keys, values, filled)


class IreeGpuDecode(IreeDecode):
    """The same for a GPU."""

    attend_rows = staticmethod(attend_sums)


def decode_step(
    ops: type[IreeDecode], config: DecoderConfig, weights: dict[str, Array], rope: Rope, state: State
) -> State:
    """Run the state's token at its position; the angles are gathered, since a slice would go by the host."""
    angles = Rope(*(table.at[state.position[None]].get(mode="promise_in_bounds") for table in rope))
    made = ops(config, state.keys, state.values, angles, state.position)
    logits, token = forward(made, config, weights, state.token[:, None])
    return State(logits, token, state.position + 1, made.keys, made.values)


def lower_definition(
    config: DecoderConfig, shapes: Shapes, dtype: str, on_gpu: bool
) -> tuple[list[str], str]:
    """Return StableHLO of the prefills, in the order of the prompts, and of the decode step."""
    step = partial(prefill_step, IreePrefill, config)
    decode = partial(decode_step, IreeGpuDecode if on_gpu else IreeDecode, config)
    tokens = {length: jax.ShapeDtypeStruct((shapes.batch, length), jnp.int32) for length in shapes.prompts}
    prefills = [lower(f"prefill_{n}", step, config, shapes, dtype, tokens[n]) for n in shapes.prompts]
    return prefills, lower("decode", decode, config, shapes, dtype)


def describe_definition(config: DecoderConfig, shapes: Shapes) -> Interface:
    """Describe programs that return the whole state where they found it."""
    cache = (shapes.batch * config.kv_heads, shapes.capacity, config.head_dim)
    return Interface("main", rope_tables(config, shapes.capacity), np.zeros((), np.int32), cache)


def lower(
    name: str, step: Callable[..., State], config: DecoderConfig, shapes: Shapes, dtype: str, *tokens: Any
) -> str:
    """Lower a step whose arguments are flat and in order: each weight, cos, sin, any tokens, then the state.

    The whole state is donated, so each result is written where its argument lies. An argument that is not
    read is kept: every program takes the same.
    """
    names = [each.name for each in fused_layout(config)]
    weights = [jax.ShapeDtypeStruct(each.shape, dtype) for each in fused_layout(config)]
    angle = jax.ShapeDtypeStruct((shapes.capacity, config.head_dim // 2), jnp.float32)
    state = jax.eval_shape(lambda: State.zeros(config, shapes.batch, shapes.capacity, dtype, LAYOUT))

    def program(weights: list[Array], rope: tuple[Array, Array], *rest: Any) -> State:
        return step(dict(zip(names, weights, strict=True)), Rope(*rope), *rest)

    program.__name__ = name
    arguments = (weights, (angle, angle), *tokens, state)
    jitted = jax.jit(program, donate_argnums=len(arguments) - 1, keep_unused=True)
    return cast(str, jitted.trace(*arguments).lower(lowering_platforms=("cpu",)).as_text())
