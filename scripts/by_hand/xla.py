"""The model in plain JAX, as one would write it for oneself: a dictionary of arrays and one jitted step."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from backends.contract import Shapes
from models.checkpoint import open_checkpoint
from models.rope import rope_tables


def norm(x, weight, eps):
    """Norm over the last dimension, in float32."""
    wide = x.astype(jnp.float32)
    return (wide * jax.lax.rsqrt((wide**2).mean(-1, keepdims=True) + eps) * weight).astype(x.dtype)


def rotate(x, cos, sin):
    """Rotate heads [B, T, *, Dh] by angles [T, 1, Dh / 2]."""
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate((first * cos - second * sin, second * cos + first * sin), axis=-1).astype(x.dtype)


@partial(jax.jit, static_argnums=0, donate_argnums=3)
def step(config, weights, tokens, cache, position):
    """Run tokens [B, T] from a position on; returns logits, next token, cache, new position."""
    batch, length = tokens.shape
    cos, sin = (
        jax.lax.dynamic_slice_in_dim(weights[name], position, length)[:, None] for name in ("cos", "sin")
    )
    x = weights["embed.weight"][tokens]
    seen = jnp.arange(cache[0][0].shape[1]) <= position + jnp.arange(length)[:, None]
    updated = []
    for layer, (keys, values) in enumerate(cache):
        p = {key.removeprefix(f"layers.{layer}."): w for key, w in weights.items() if f".{layer}." in key}
        h = norm(x, p["attention_norm.weight"], config.norm_eps)
        qkv = h @ p["qkv.weight"].T + p.get("qkv.bias", 0)
        qkv = qkv.reshape(batch, length, -1, config.head_dim)
        q, k, v = jnp.split(qkv, (config.heads, config.heads + config.kv_heads), axis=2)
        if config.qk_norm:
            q, k = (
                norm(q, p["q_norm.weight"], config.norm_eps),
                norm(k, p["k_norm.weight"], config.norm_eps),
            )
        start = (0, position, 0, 0)
        keys = jax.lax.dynamic_update_slice(keys, rotate(k, cos, sin), start)
        values = jax.lax.dynamic_update_slice(values, v, start)
        updated.append((keys, values))
        attended = jax.nn.dot_product_attention(rotate(q, cos, sin), keys, values, mask=seen[None, None])
        x = x + attended.reshape(batch, length, -1) @ p["o.weight"].T
        gate, up = jnp.split(
            norm(x, p["mlp_norm.weight"], config.norm_eps) @ p["gate_up.weight"].T, 2, axis=-1
        )
        x = x + (jax.nn.silu(gate) * up) @ p["down.weight"].T
    head = weights["embed.weight" if config.tied_embeddings else "head.weight"]
    logits = norm(x[:, -1], weights["norm.weight"], config.norm_eps) @ head.T
    return logits, logits.argmax(-1), updated, position + length


class ByHand:
    """Keeps what the step returns for the next one."""

    def __init__(self, folder: Path, dtype: str, shapes: Shapes) -> None:
        weights = open_checkpoint(folder, dtype)
        self.config = weights.config
        cos, sin = rope_tables(self.config, shapes.capacity)
        self.weights = {name: jnp.asarray(array) for name, array in weights.arrays()} | {
            "cos": jnp.asarray(cos),
            "sin": jnp.asarray(sin),
        }
        cached = (shapes.batch, shapes.capacity, self.config.kv_heads, self.config.head_dim)
        self.cache = [(jnp.zeros(cached, dtype), jnp.zeros(cached, dtype)) for _ in range(self.config.layers)]

    def stage(self, tokens: np.ndarray) -> None:
        """Take tokens [B, T] int32."""
        self.tokens = jnp.array(tokens)

    def prefill(self) -> None:
        """Run the staged tokens from position 0."""
        self.run(self.tokens, 0)

    def decode(self) -> None:
        """Run one step from the greedy token."""
        self.run(self.next_token[:, None], self.position)

    def run(self, tokens, position) -> None:
        """Run one step."""
        self.last, self.next_token, self.cache, self.position = step(
            self.config, self.weights, tokens, self.cache, position
        )

    def rewind(self, length: int) -> None:
        """Let the next step write at `length`."""
        self.position = jnp.int32(length)

    def logits(self) -> np.ndarray:
        """Return the last step's logits [B, V]."""
        return np.array(self.last, np.float32)

    def sync(self) -> None:
        """Return when the device is idle."""
        jax.block_until_ready((self.last, self.next_token))
