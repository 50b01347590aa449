"""The model's operations in jax.numpy, with each way to attend: a prefill, a decode over its cache.

An ops object lives for one trace: it knows the positions of the step's tokens and takes the cache through
the layers as values. B sequences, T new tokens, D hidden size, H query heads, K key/value heads, N = B * K,
G = H / K query heads to each key/value head, Dh head size, C capacity.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from models.config import DecoderConfig
from models.decoder import forward
from models.rope import rope_tables


class Layout(NamedTuple):
    """How a layer's keys and values lie in memory, a letter an axis, as einsum has it."""

    keys: str
    values: str


FLAT = Layout("ndc", "ncd")
"""Keys [N, Dh, C] and values [N, C, Dh]: what both products take as it is. With B and K apart XLA on a CPU
keeps a second copy of the cache, and with any other order it transposes all of it at every step."""
POSITIONS_FIRST = Layout("bckd", "bckd")
"""Both [B, C, K, Dh], as fused attention kernels want them."""


class Rope(NamedTuple):
    """Rotation angles: cos and sin, float32 [C, Dh / 2] each."""

    cos: Array
    sin: Array

    @classmethod
    def tabulate(cls, config: DecoderConfig, capacity: int) -> "Rope":
        """Place the model's tables on jax's device."""
        return cls(*map(jnp.asarray, rope_tables(config, capacity)))


class State(NamedTuple):
    """What one step leaves for the next; every buffer is donated, so the cache is updated in place."""

    logits: Array
    """Of the last position, [B, V] in the stored dtype."""
    token: Array
    """The next of each sequence, int32 [B]."""
    position: Array
    """Where the next decode writes, int32 []."""
    keys: list[Array]
    """Of each layer, in the layout of the ops."""
    values: list[Array]

    @classmethod
    def zeros(cls, config: DecoderConfig, batch: int, capacity: int, dtype: str, layout: Layout) -> "State":
        """Allocate a state; under `jax.eval_shape` this only describes one."""
        sizes = {"b": batch, "k": config.kv_heads, "c": capacity, "d": config.head_dim}
        sizes["n"] = batch * config.kv_heads

        def layers(axes: str) -> list[Array]:
            return [jnp.zeros([sizes[axis] for axis in axes], dtype) for _ in range(config.layers)]

        return cls(
            jnp.zeros((batch, config.vocab_size), dtype),
            jnp.zeros(batch, jnp.int32),
            jnp.zeros((), jnp.int32),
            layers(layout.keys),
            layers(layout.values),
        )


def product(spec: str, x: Array, y: Array) -> Array:
    """Multiply as einsum does, accumulate in float32, round once to x's dtype."""
    return jnp.einsum(spec, x, y, preferred_element_type=jnp.float32).astype(x.dtype)


class JaxOps:
    """Everything but attention over the cache, which a subclass adds as `attend_cached`."""

    layout = FLAT

    def __init__(
        self,
        config: DecoderConfig,
        keys: Sequence[Array],
        values: Sequence[Array],
        angles: Rope,
        position: Array | int,
    ) -> None:
        """Take the cache, and angles [T, Dh / 2] of the tokens, of which the first is at `position`."""
        self.config = config
        self.keys, self.values = list(keys), list(values)
        self.cos, self.sin = angles.cos[:, None], angles.sin[:, None]
        self.position = position

    def embed(self, tokens: Array, table: Array) -> Array:
        """Look up tokens [B, T] in table [V, D]."""
        return table.at[tokens].get(mode="promise_in_bounds")

    def linear(self, x: Array, weight: Array, bias: Array | None = None) -> Array:
        """Multiply x [B, T, I] by weight [O, I] transposed, add bias [O]; one rounding."""
        wide = jnp.einsum("bti,oi->bto", x, weight, preferred_element_type=jnp.float32)
        return (wide if bias is None else wide + bias.astype(jnp.float32)).astype(x.dtype)

    def norm(self, x: Array, weight: Array) -> Array:
        """Norm x over its last dimension and scale it, in float32, rounded once."""
        wide = x.astype(jnp.float32)
        scale = lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.config.norm_eps)
        return (wide * scale * weight.astype(jnp.float32)).astype(x.dtype)

    def add_rms_norm(self, x: Array, residual: Array | None, weight: Array) -> tuple[Array, Array]:
        """Add, norm and scale; returns (normed, sum)."""
        total = x if residual is None else x + residual
        return self.norm(total, weight), total

    def split_heads(self, qkv: Array) -> tuple[Array, Array, Array]:
        """View qkv as q [B, T, H, Dh], k and v [B, T, K, Dh]."""
        config = self.config
        heads = qkv.reshape(*qkv.shape[:-1], -1, config.head_dim)
        q, k, v = jnp.split(heads, (config.heads, config.heads + config.kv_heads), axis=2)
        return q, k, v

    def attend(
        self, q: Array, k: Array, v: Array, layer: int, q_norm: Array | None, k_norm: Array | None
    ) -> Array:
        """Norm and rotate q and k, cache k and v, attend; returns [B, T, H * Dh]."""
        if q_norm is not None and k_norm is not None:
            q, k = self.norm(q, q_norm), self.norm(k, k_norm)
        q, k = self.rotate(q), self.rotate(k)
        self.keys[layer] = self.write(self.keys[layer], k, self.layout.keys)
        self.values[layer] = self.write(self.values[layer], v, self.layout.values)
        out = self.attend_cached(q, k, v, self.keys[layer], self.values[layer])
        return out.reshape(*q.shape[:2], -1)

    def rotate(self, x: Array) -> Array:
        """Rotate heads x [B, T, *, Dh] in float32 to the tokens' positions; returns x's dtype."""
        first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
        turned = (first * self.cos - second * self.sin, second * self.cos + first * self.sin)
        return jnp.concatenate(turned, axis=-1).astype(x.dtype)

    def write(self, cached: Array, new: Array, axes: str) -> Array:
        """Write new [B, T, K, Dh] into a layer's keys or values, from this step's position on."""
        if "n" in axes:
            flat = new.swapaxes(1, 2).reshape(-1, new.shape[1], new.shape[3])  # [N, T, Dh]
            new = jnp.einsum(f"ncd->{axes}", flat)
        return lax.dynamic_update_slice(cached, new, [self.position if axis == "c" else 0 for axis in axes])

    def attend_cached(self, q: Array, k: Array, v: Array, keys: Array, values: Array) -> Array:
        """Attend with q [B, T, H, Dh] to what is fresh, k and v [B, T, K, Dh], or to all that is cached."""
        raise NotImplementedError

    def swiglu(self, gate_up: Array) -> Array:
        """Compute silu(gate) * up in float32, rounded once."""
        gate, up = jnp.split(gate_up.astype(jnp.float32), 2, axis=-1)
        return (jax.nn.silu(gate) * up).astype(gate_up.dtype)

    def lm_head(self, x: Array, weight: Array) -> Array:
        """Multiply the last position of x [B, T, D] by weight [V, D] transposed."""
        return product("bd,vd->bv", x[:, -1], weight)

    def argmax(self, logits: Array) -> Array:
        """Choose the greedy next token of each row, int32 [B]."""
        return lax.argmax(logits, 1, jnp.int32)


class Prefill(JaxOps):
    """T tokens from position 0: they see one another only, so the fresh k and v are attended, causally."""

    def attend_cached(self, q: Array, k: Array, v: Array, keys: Array, values: Array) -> Array:  # noqa: ARG002
        """Attend by two products with a masked softmax in float32 between them."""
        batch, length, _, width = q.shape
        q = q.reshape(batch, length, k.shape[2], -1, width)
        scores = jnp.einsum("btkgd,bskd->bkgts", q, k, preferred_element_type=jnp.float32) * width**-0.5
        past = lax.broadcasted_iota(jnp.int32, (length, length), 0) >= lax.broadcasted_iota(
            jnp.int32, (length, length), 1
        )
        weights = jax.nn.softmax(jnp.where(past, scores, -jnp.inf), axis=-1).astype(v.dtype)
        return product("bkgts,bskd->btkgd", weights, v)


class Decode(JaxOps):
    """One token at a position on the device, so that one program serves all lengths."""

    def attend_cached(self, q: Array, k: Array, v: Array, keys: Array, values: Array) -> Array:  # noqa: ARG002
        """Attend to the whole capacity, with what lies beyond the position masked."""
        width = q.shape[-1]
        q = q.reshape(keys.shape[0], -1, width)  # [N, G, Dh]
        scores = jnp.einsum("ngd,ndc->ngc", q, keys, preferred_element_type=jnp.float32) * width**-0.5
        filled = lax.broadcasted_iota(jnp.int32, (scores.shape[-1],), 0) <= self.position
        weights = jax.nn.softmax(jnp.where(filled, scores, -jnp.inf), axis=-1)
        return product("ngc,ncd->ngd", weights.astype(values.dtype), values)


def prefill_step(
    ops: type[JaxOps],
    config: DecoderConfig,
    weights: Mapping[str, Array],
    rope: Rope,
    tokens: Array,
    state: State,
) -> State:
    """Run tokens [B, T] from position 0; what the state holds of them is overwritten."""
    length = tokens.shape[1]
    made = ops(config, state.keys, state.values, Rope(rope.cos[:length], rope.sin[:length]), 0)
    logits, token = forward(made, config, weights, tokens)
    return State(logits, token, jnp.full_like(state.position, length), made.keys, made.values)


def decode_step(
    ops: type[JaxOps], config: DecoderConfig, weights: Mapping[str, Array], rope: Rope, state: State
) -> State:
    """Run the state's token at its position; the state returned is one position on."""
    angles = Rope(*(lax.dynamic_slice_in_dim(table, state.position, 1) for table in rope))
    made = ops(config, state.keys, state.values, angles, state.position)
    logits, token = forward(made, config, weights, state.token[:, None])
    return State(logits, token, state.position + 1, made.keys, made.values)
