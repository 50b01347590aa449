"""The model in plain JAX, compiled by `iree-compile` and called as IREE's own examples do."""

from functools import partial
from pathlib import Path

import iree.compiler
import iree.runtime
import jax
import jax.numpy as jnp
import numpy as np

from backends.contract import Shapes
from models.checkpoint import open_checkpoint
from models.rope import rope_tables

FLAGS = [
    "--iree-hal-target-device=local",
    "--iree-hal-local-target-device-backends=llvm-cpu",
    "--iree-llvmcpu-target-cpu=host",
    "--iree-opt-level=O2",
]


def product(x, weight):
    """Multiply x [B, T, I] by weight [O, I] transposed, accumulating in float32."""
    return jnp.einsum("bti,oi->bto", x, weight, preferred_element_type=jnp.float32).astype(x.dtype)


def norm(x, weight, eps):
    """Norm over the last dimension, in float32."""
    wide = x.astype(jnp.float32)
    return (wide * jax.lax.rsqrt((wide**2).mean(-1, keepdims=True) + eps) * weight).astype(x.dtype)


def rotate(x, cos, sin):
    """Rotate heads [B, T, *, Dh] by angles [T, 1, Dh / 2]."""
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate((first * cos - second * sin, second * cos + first * sin), axis=-1).astype(x.dtype)


def step(config, weights, tokens, position, keys, values):
    """Run tokens [B, T] from a position on; returns logits, next token, new position, and the cache."""
    batch, length = tokens.shape
    capacity = keys[0].shape[2]
    cos, sin = (
        jax.lax.dynamic_slice_in_dim(weights[name], position, length)[:, None] for name in ("cos", "sin")
    )
    x = weights["embed.weight"][tokens]
    seen = jnp.arange(capacity) <= position + jnp.arange(length)[:, None]
    keys, values = list(keys), list(values)
    for layer in range(config.layers):
        p = {key.removeprefix(f"layers.{layer}."): w for key, w in weights.items() if f".{layer}." in key}
        qkv = product(norm(x, p["attention_norm.weight"], config.norm_eps), p["qkv.weight"]) + p.get(
            "qkv.bias", 0
        )
        qkv = qkv.reshape(batch, length, -1, config.head_dim).swapaxes(1, 2)
        q, k, v = jnp.split(qkv, (config.heads, config.heads + config.kv_heads), axis=1)
        if config.qk_norm:
            q, k = (
                norm(each, p[f"{name}_norm.weight"], config.norm_eps) for each, name in ((q, "q"), (k, "k"))
            )
        q, k = (rotate(each, cos[:, 0], sin[:, 0]) for each in (q, k))
        keys[layer] = jax.lax.dynamic_update_slice(keys[layer], k, (0, 0, position, 0))
        values[layer] = jax.lax.dynamic_update_slice(values[layer], v, (0, 0, position, 0))
        q = q.reshape(batch, config.kv_heads, -1, length, config.head_dim)
        scores = jnp.einsum("bkgtd,bkcd->bkgtc", q, keys[layer], preferred_element_type=jnp.float32)
        share = jax.nn.softmax(jnp.where(seen, scores * config.head_dim**-0.5, -jnp.inf)).astype(x.dtype)
        attended = jnp.einsum("bkgtc,bkcd->btkgd", share, values[layer], preferred_element_type=jnp.float32)
        x = x + product(attended.astype(x.dtype).reshape(batch, length, -1), p["o.weight"])
        gate_up = product(norm(x, p["mlp_norm.weight"], config.norm_eps), p["gate_up.weight"])
        gate, up = jnp.split(gate_up, 2, axis=-1)
        x = x + product(jax.nn.silu(gate) * up, p["down.weight"])
    head = weights["embed.weight" if config.tied_embeddings else "head.weight"]
    logits = product(norm(x[:, -1:], weights["norm.weight"], config.norm_eps), head)[:, 0]
    return logits, logits.argmax(-1).astype(jnp.int32)[:, None], position + length, keys, values


class ByHand:
    """Keeps what the step returns for the next one."""

    def __init__(self, folder: Path, dtype: str, shapes: Shapes) -> None:
        opened = open_checkpoint(folder, dtype)
        self.layers = opened.config.layers
        weights = dict(opened.arrays())
        weights["cos"], weights["sin"] = rope_tables(opened.config, shapes.capacity)
        cached = np.zeros((shapes.batch, opened.config.kv_heads, shapes.capacity, opened.config.head_dim))
        caches = [cached.astype(weights["norm.weight"].dtype)] * self.layers
        config = iree.runtime.Config("local-task")
        self.put = partial(iree.runtime.asdevicearray, config.device)
        self.weights = [
            self.put(weights[name]) for name in sorted(weights)
        ]  # the order of jax's dictionaries
        self.cache = [self.put(each) for each in caches + caches]
        self.steps = {}
        for length in (1, *shapes.prompts):
            tokens, position = np.zeros((shapes.batch, length), np.int32), np.int32(0)
            jitted = jax.jit(partial(step, opened.config), donate_argnums=(3, 4))
            program = jitted.lower(weights, tokens, position, caches, caches).as_text()
            code = iree.compiler.compile_str(program, input_type="stablehlo", extra_args=FLAGS)
            context = iree.runtime.SystemContext(config=config)
            context.add_vm_module(iree.runtime.VmModule.copy_buffer(context.instance, code))
            self.steps[length] = context.modules.jit_step["main"]
        self.rewind(0)

    def stage(self, tokens: np.ndarray) -> None:
        """Take tokens [B, T] int32."""
        self.length, self.tokens = tokens.shape[1], self.put(tokens)

    def prefill(self) -> None:
        """Run the staged tokens from position 0."""
        self.rewind(0)
        self.run(self.length, self.tokens)

    def decode(self) -> None:
        """Run one step from the greedy token."""
        self.run(1, self.next_token)

    def run(self, length: int, tokens) -> None:
        """Run one step; it returns when it is done."""
        results = self.steps[length](*self.weights, tokens, self.position, *self.cache)
        self.last, self.next_token, self.position, *self.cache = results

    def rewind(self, length: int) -> None:
        """Let the next step write at `length`."""
        self.position = self.put(np.array(length, np.int32))

    def logits(self) -> np.ndarray:
        """Return the last step's logits [B, V]."""
        return np.array(self.last.to_host(), np.float32)

    def sync(self) -> None:
        """Return at once: every call waits for its results."""
