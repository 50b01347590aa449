"""The operations of the definition as Relax emits them, and the plain TIR that writes the cache in place.

B sequences, T new tokens, H query heads, K key/value heads, G = H / K query heads to each of them, Dh head
size, C capacity.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any

import numpy as np
from tvm import relax, te
from tvm.script import tirx as T

from models.config import DecoderConfig

Var = Any  # of a block builder
op = relax.op
OPAQUE = 8
"""What TVM calls a function that it must not fuse."""


class RelaxOps:
    """Everything in Relax's own operators; a phase adds `attend_cached`, a faster one replaces more."""

    def __init__(
        self,
        builder: Any,
        config: DecoderConfig,
        keys: Sequence[Var],
        values: Sequence[Var],
        rope: tuple[Var, Var],
        position: Var,
    ) -> None:
        """Take the cache, [B, K, C, Dh] each, and cos and sin [C, Dh / 2]; `position` int64 [1] is the first
        token's.
        """
        self.builder, self.config = builder, config
        self.keys, self.values = list(keys), list(values)
        self.rope, self.position = rope, position
        self.dtype = str(keys[0].ty.dtype)

    def emit(self, expression: Any) -> Var:
        """Bind an expression."""
        return self.builder.emit(expression)

    def call(
        self, function: Any, inputs: Sequence[Var], shape: Sequence[int], dtype: str | None = None
    ) -> Var:
        """Call a TIR function that writes its last argument, a new tensor."""
        name = add_function(self.builder, function)
        return self.emit(relax.call_tir(name, list(inputs), relax.TensorType(shape, dtype or self.dtype)))

    def widen(self, x: Var) -> Var:
        """Cast to float32."""
        return x if str(x.ty.dtype) == "float32" else self.emit(op.astype(x, "float32"))

    def narrow(self, x: Var) -> Var:
        """Round to the stored dtype."""
        return x if str(x.ty.dtype) == self.dtype else self.emit(op.astype(x, self.dtype))

    def embed(self, tokens: Var, table: Var) -> Var:
        """Look up tokens [B, T] in table [V, D]."""
        return self.emit(op.take(table, tokens, axis=0, mode="clip"))

    def linear(self, x: Var, weight: Var, bias: Var | None = None) -> Var:
        """Multiply x [B, T, I] by weight [O, I] transposed, add bias [O]; one rounding."""
        batch, length, width = sizes(x)
        rows = self.emit(op.reshape(x, (batch * length, width)))
        return self.emit(op.reshape(self.multiply(rows, weight, bias), (batch, length, -1)))

    def multiply(self, x: Var, weight: Var, bias: Var | None = None) -> Var:
        """Multiply a matrix x [M, I] by weight [O, I] transposed, add bias [O]; one rounding."""
        wide = self.emit(op.matmul(x, self.emit(op.permute_dims(weight)), out_dtype="float32"))
        return self.narrow(wide if bias is None else self.emit(op.add(wide, self.widen(bias))))

    def norm(self, x: Var, weight: Var) -> Var:
        """Norm x over its last dimension and scale it, in float32, rounded once."""
        wide = self.widen(x)
        squares = self.emit(op.mean(self.emit(op.square(wide)), axis=-1, keepdims=True))
        scale = self.emit(op.rsqrt(self.emit(op.add(squares, constant(self.config.norm_eps)))))
        normed = self.emit(op.multiply(wide, scale))
        return self.narrow(self.emit(op.multiply(normed, self.widen(weight))))

    def add_rms_norm(self, x: Var, residual: Var | None, weight: Var) -> tuple[Var, Var]:
        """Add, norm and scale; returns (normed, sum)."""
        total = x if residual is None else self.emit(op.add(x, residual))
        return self.norm(total, weight), total

    def split_heads(self, qkv: Var) -> tuple[Var, Var, Var]:
        """Split qkv into q [B, T, H, Dh], k and v [B, T, K, Dh]."""
        config, (batch, length, _) = self.config, sizes(qkv)
        heads = self.emit(op.reshape(qkv, (batch, length, -1, config.head_dim)))
        parts = self.emit(op.split(heads, [config.heads, config.heads + config.kv_heads], axis=2))
        q, k, v = (self.emit(parts[index]) for index in range(3))
        return q, k, v

    def attend(self, q: Var, k: Var, v: Var, layer: int, q_norm: Var | None, k_norm: Var | None) -> Var:
        """Norm and rotate q and k, cache k and v, attend; returns [B, T, H * Dh]."""
        if q_norm is not None and k_norm is not None:
            q, k = self.norm(q, q_norm), self.norm(k, k_norm)
        q, k = self.rotate(q), self.rotate(k)
        self.keys[layer] = self.write(k, self.keys[layer])
        self.values[layer] = self.write(v, self.values[layer])
        out = self.attend_cached(q, self.keys[layer], self.values[layer])
        return self.emit(op.reshape(out, (*sizes(q)[:2], -1)))

    def rotate(self, x: Var) -> Var:
        """Rotate heads x [B, T, *, Dh] in float32 to the tokens' positions."""
        cos, sin = (self.emit(op.expand_dims(table, [1])) for table in self.angles(sizes(x)[1]))
        halves = self.emit(op.split(self.widen(x), 2, axis=-1))
        first, second = self.emit(halves[0]), self.emit(halves[1])
        turned = [
            self.emit(op.subtract(self.emit(op.multiply(first, cos)), self.emit(op.multiply(second, sin)))),
            self.emit(op.add(self.emit(op.multiply(second, cos)), self.emit(op.multiply(first, sin)))),
        ]
        return self.narrow(self.emit(op.concat(turned, axis=-1)))

    def angles(self, length: int) -> list[Var]:
        """Take the rows [T, Dh / 2] of cos and sin at the tokens' positions."""
        rows = self.emit(op.add(self.position, integers(np.arange(length))))
        return [self.emit(op.take(table, rows, axis=0, mode="clip")) for table in self.rope]

    def write(self, new: Var, cached: Var) -> Var:
        """Write new [B, T, K, Dh] into cached from the position on, where it lies."""
        function = write_cache(sizes(new), sizes(cached), self.dtype)
        return call_inplace(self.builder, function, [new, cached, self.position], [1])[0]

    def attend_cached(self, q: Var, keys: Var, values: Var) -> Var:
        """Attend with q [B, T, H, Dh] to keys and values [B, K, C, Dh], which hold the new ones too."""
        raise NotImplementedError

    def attend_products(self, q: Var, keys: Var, values: Var, mask: Var) -> Var:
        """Attend with q [B, K, R, Dh] to keys and values [B, K, S, Dh]; float32 `mask` [R or 1, S] is added.

        It is not of bools: TVM's CUDA reads two neighbours of a tensor of them as 16 bits each, not 8.
        """
        turned = self.emit(op.permute_dims(keys, (0, 1, 3, 2)))
        scores = self.emit(op.matmul(q, turned, out_dtype="float32"))
        scaled = self.emit(op.multiply(scores, constant(self.config.head_dim**-0.5)))
        weights = self.narrow(self.emit(op.nn.softmax(self.emit(op.add(scaled, mask)), axis=-1)))
        return self.narrow(self.emit(op.matmul(weights, values, out_dtype="float32")))

    def swiglu(self, gate_up: Var) -> Var:
        """Compute silu(gate) * up in float32, rounded once."""
        halves = self.emit(op.split(self.widen(gate_up), 2, axis=-1))
        gate = self.emit(op.nn.silu(self.emit(halves[0])))
        return self.narrow(self.emit(op.multiply(gate, self.emit(halves[1]))))

    def lm_head(self, x: Var, weight: Var) -> Var:
        """Multiply the last position of x [B, T, D] by weight [V, D] transposed; returns [B, V]."""
        batch, length, width = sizes(x)
        last = self.emit(op.strided_slice(x, [1], [length - 1], [length]))
        return self.multiply(self.emit(op.reshape(last, (batch, width))), weight)

    def argmax(self, logits: Var) -> Var:
        """Choose the greedy next token of each row, int32 [B]."""
        return self.emit(op.astype(self.emit(op.argmax(logits, axis=1)), "int32"))

    def finish(self, step: tuple[Var, Var], length: int, state: Sequence[Var]) -> list[Var]:
        """Put logits and token in the place of the state's, and move its position on by the tokens run."""
        after = self.emit(op.add(self.position, integers(np.array([length]))))
        new = (*step, after)
        return [
            call_inplace(self.builder, overwrite(sizes(old), str(old.ty.dtype)), [value, old], [1])[0]
            for value, old in zip(new, state, strict=True)
        ]


class Prefill(RelaxOps):
    """T tokens from position 0, which see one another only."""

    def attend_cached(self, q: Var, keys: Var, values: Var) -> Var:
        """Attend causally, with the G queries of a key/value head as G * T rows."""
        batch, length, heads, width = sizes(q)
        kv_heads = self.config.kv_heads
        groups = heads // kv_heads
        apart = self.emit(op.reshape(q, (batch, length, kv_heads, groups, width)))
        rows = self.emit(op.permute_dims(apart, (0, 2, 3, 1, 4)))
        rows = self.emit(op.reshape(rows, (batch, kv_heads, groups * length, width)))
        k, v = (self.emit(op.strided_slice(each, [2], [0], [length])) for each in (keys, values))
        out = self.attend_products(rows, k, v, causal_mask(length, groups))
        out = self.emit(op.reshape(out, (batch, kv_heads, groups, length, width)))
        return self.emit(op.permute_dims(out, (0, 3, 1, 2, 4)))


class Decode(RelaxOps):
    """One token at a position on the device, so that one program serves all lengths."""

    def attend_cached(self, q: Var, keys: Var, values: Var) -> Var:
        """Attend to the whole capacity, with what lies beyond the position masked."""
        batch, kv_heads, capacity, width = sizes(keys)
        filled = self.emit(op.less_equal(integers(np.arange(capacity)), self.position))
        mask = self.emit(op.where(filled, constant(0.0), constant(-np.inf)))
        rows = self.emit(op.reshape(q, (batch, kv_heads, -1, width)))
        return self.attend_products(rows, keys, values, self.emit(op.expand_dims(mask, [0])))


def add_function(builder: Any, function: Any) -> Var:
    """Add a TIR function to the module under its name, or one like it; equal ones are there once."""
    return builder.add_func(function.without_attr("global_symbol"), function.attrs["global_symbol"])


def call_inplace(
    builder: Any, function: Any, inputs: Sequence[Var], written: Sequence[int], *new: Any
) -> list[Var]:
    """Call a TIR function that writes some of its arguments where they lie, and new tensors last.

    Returns the new tensors, then the arguments written.
    """
    types = [*new, *(inputs[index].ty for index in written)]
    places, several = [*([-1] * len(new)), *written], len(types) > 1
    name = add_function(builder, function.with_attr("op_pattern", OPAQUE))
    call = op.call_tir_inplace(name, list(inputs), places, types if several else types[0])
    result = builder.emit(call)
    return [builder.emit(result[index]) for index in range(len(types))] if several else [result]


def sizes(x: Var) -> tuple[int, ...]:
    """Return a tensor's shape."""
    return tuple(int(size) for size in x.ty.shape)


def constant(value: float) -> Any:
    """Make a float32 number."""
    return relax.const(value, "float32")


@lru_cache(1)
def causal_mask(length: int, groups: int) -> Any:
    """Make [G * T, T] in float32, -inf where a key comes after the query; one tensor serves all layers."""
    future = np.triu(np.full((length, length), -np.inf, np.float32), 1)
    return relax.const(np.tile(future, (groups, 1)), "float32")


def integers(values: np.ndarray) -> Any:
    """Make int64 numbers; left alone they would become int32."""
    return relax.const(values, "int64")


@cache
def write_cache(new_shape: tuple[int, ...], cached_shape: tuple[int, ...], dtype: str) -> Any:
    """Make what writes new [B, T, K, Dh] into cached [B, K, C, Dh] from a position int64 [1] on."""
    batch, length, heads, width = new_shape

    @T.prim_func(s_tir=True)
    def write_cache(new_: T.handle, cached_: T.handle, position_: T.handle) -> None:
        new = T.match_buffer(new_, new_shape, dtype)
        cached = T.match_buffer(cached_, cached_shape, dtype)
        position = T.match_buffer(position_, (1,), "int64")
        for b, t, h, d in T.grid(batch, length, heads, width):
            with T.sblock("write"):
                vb, vt, vh, vd = T.axis.remap("SSSS", [b, t, h, d])
                cached[vb, vh, position[0] + T.Cast("int64", vt), vd] = new[vb, vt, vh, vd]

    return write_cache


@cache
def spoil_cache(shape: tuple[int, ...], dtype: str) -> Any:
    """Make what writes a row [Dh] to cached [B, K, C, Dh] from a position int64 [1] on."""
    batch, heads, capacity, width = shape

    @T.prim_func(s_tir=True)
    def spoil_cache(cached_: T.handle, length_: T.handle, row_: T.handle) -> None:
        cached = T.match_buffer(cached_, shape, dtype)
        length = T.match_buffer(length_, (1,), "int64")
        row = T.match_buffer(row_, (width,), dtype)
        for b, h, c, d in T.grid(batch, heads, capacity, width):
            with T.sblock("spoil"):
                vb, vh, vc, vd = T.axis.remap("SSSS", [b, h, c, d])
                if T.Cast("int64", vc) >= length[0]:
                    cached[vb, vh, vc, vd] = row[vd]

    return spoil_cache


@cache
def overwrite(shape: tuple[int, ...], dtype: str) -> Any:
    """Make what copies one tensor over another; opaque, since FuseTIR fails where it fuses it."""
    new = te.placeholder(shape, dtype, "new")
    old = te.compute(shape, lambda *indices: new[indices], "old")
    function = te.create_prim_func([new, old]).with_attr("global_symbol", "overwrite")
    return function.with_attr("op_pattern", OPAQUE)
