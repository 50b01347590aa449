"""The operations with TIR of ours where Relax's own operators are slow, for a CPU and for a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
from tvm import relax

from backends.tvm import (
    cpu_kernels,
    gpu_decode_attention,
    gpu_kernels,
    gpu_next_token,
    gpu_prefill_attention,
    gpu_products,
    gpu_tensor_cores,
)
from backends.tvm.ops import Decode, Prefill, RelaxOps, Var, add_function, call_inplace, op, sizes
from models.layout import NUMPY_DTYPES

LIBRARY_PRODUCT = "workbench.library_product"
"""What compiled code calls a product of NVIDIA's library."""


class CpuOps(RelaxOps):
    """Norms and attention in one pass each; prefill and decode attend by the same kernel."""

    def norm(self, x: Var, weight: Var) -> Var:
        """Norm x over its last dimension and scale it, in float32, rounded once."""
        *rows, width = sizes(x)
        flat = self.emit(op.reshape(x, (prod(rows), width)))
        kernel = cpu_kernels.rms_norm(prod(rows), width, self.dtype, self.config.norm_eps)
        normed = self.call(kernel, [flat, weight], (prod(rows), width))
        return self.emit(op.reshape(normed, (*rows, width)))

    def attend_cached(self, q: Var, keys: Var, values: Var) -> Var:
        """Attend with q [B, T, H, Dh] to all that is cached up to each token."""
        kernel = cpu_kernels.attend(sizes(q), sizes(keys), self.dtype)
        return self.call(kernel, [q, keys, values, self.position], sizes(q))

    def argmax(self, logits: Var) -> Var:
        """Return the logits themselves: `finish` chooses while it copies them."""
        return logits

    def finish(self, step: tuple[Var, Var], length: int, state: Sequence[Var]) -> list[Var]:
        """Keep the logits, choose the next token and move the position on."""
        batch, vocab = sizes(step[0])
        kernel = cpu_kernels.finish(batch, vocab, self.dtype, length)
        return call_inplace(self.builder, kernel, [step[0], self.position, *state], [2, 3, 4])


class GpuOps(RelaxOps):
    """Products by tensor cores where they can be; rope and the write to the cache as one kernel."""

    def multiply(self, x: Var, weight: Var, bias: Var | None = None) -> Var:
        """Multiply a matrix x [M, I] by weight [O, I] transposed, add bias [O]; one rounding."""
        (rows, width), columns = sizes(x), sizes(weight)[0]
        size = (rows, columns, width, self.dtype)
        if gpu_products.fits(*size):
            kernel = gpu_products.product(*size, bias is not None)
        elif gpu_tensor_cores.fits(*size[1:]):
            kernel = gpu_tensor_cores.product(*size, bias is not None)
        else:
            return super().multiply(x, weight, bias)
        return self.call(kernel, [x, weight, self.unread(1) if bias is None else bias], (rows, columns))

    def unread(self, size: int) -> Var:
        """Return a vector for an argument that a kernel does not read."""
        return relax.const(np.zeros(size, NUMPY_DTYPES[self.dtype]), self.dtype)

    def add_rms_norm(self, x: Var, residual: Var | None, weight: Var) -> tuple[Var, Var]:
        """Add, norm and scale; returns (normed, sum)."""
        batch, length, width = sizes(x)
        shape = (batch * length, width)
        flat = [self.emit(op.reshape(each, shape)) for each in (x, x if residual is None else residual)]
        kernel = gpu_kernels.add_rms_norm(*shape, self.dtype, self.config.norm_eps, residual is not None)
        normed, total = self.call_several(kernel, [*flat, weight], [shape, shape])
        return self.emit(op.reshape(normed, sizes(x))), self.emit(op.reshape(total, sizes(x)))

    def swiglu(self, gate_up: Var) -> Var:
        """Compute silu(gate) * up in float32, rounded once."""
        batch, length, width = sizes(gate_up)
        flat = self.emit(op.reshape(gate_up, (batch * length, width)))
        kernel = gpu_kernels.swiglu(batch * length, width // 2, self.dtype)
        gated = self.call(kernel, [flat], (batch * length, width // 2))
        return self.emit(op.reshape(gated, (batch, length, width // 2)))

    def call_several(
        self, function: Any, inputs: Sequence[Var], shapes: Sequence[Sequence[int]]
    ) -> list[Var]:
        """Call a TIR function that writes its last arguments, new tensors."""
        types = [relax.TensorType(shape, self.dtype) for shape in shapes]
        results = self.emit(relax.call_tir(add_function(self.builder, function), list(inputs), types))
        return [self.emit(results[index]) for index in range(len(shapes))]

    def split_heads(self, qkv: Var) -> tuple[Var, Var, Var]:
        """View qkv as heads [B, T, H + 2K, Dh], three times: `attend` takes them apart."""
        batch, length, _ = sizes(qkv)
        heads = self.emit(op.reshape(qkv, (batch, length, -1, self.config.head_dim)))
        return heads, heads, heads

    def attend(
        self,
        q: Var,
        k: Var,  # noqa: ARG002 (q is all of them)
        v: Var,  # noqa: ARG002
        layer: int,
        q_norm: Var | None,
        k_norm: Var | None,
    ) -> Var:
        """Norm and rotate q and k, cache k and v, attend; returns [B, T, H * Dh]."""
        config, keys, values = self.config, self.keys[layer], self.values[layer]
        batch, length, _, width = sizes(q)
        shape = (batch, length, config.heads, width)
        eps = None if q_norm is None else config.norm_eps
        kernel = gpu_kernels.rotate_and_write(*shape[:3], tuple(sizes(keys)), self.dtype, eps)
        norms = [self.unread(width) if each is None else each for each in (q_norm, k_norm)]
        arguments = [q, *self.rope, *norms, self.position, keys, values]
        new = relax.TensorType(shape, self.dtype)
        q, keys, values = call_inplace(self.builder, kernel, arguments, [6, 7], new)
        self.keys[layer], self.values[layer] = keys, values
        return self.emit(op.reshape(self.attend_cached(q, keys, values), (batch, length, -1)))

    def argmax(self, logits: Var) -> Var:
        """Return the logits themselves: `finish` chooses while it copies them."""
        return logits

    def finish(self, step: tuple[Var, Var], length: int, state: Sequence[Var]) -> list[Var]:
        """Keep the logits, choose the next token and move the position on."""
        (batch, vocab), (logits, token, position) = sizes(step[0]), state
        kernel = gpu_next_token.keep_logits(batch, vocab, self.dtype)
        parts = [relax.TensorType((batch, gpu_next_token.PARTS), dtype) for dtype in ("float32", "int32")]
        mosts, places, logits = call_inplace(self.builder, kernel, [step[0], logits], [1], *parts)
        chosen = gpu_next_token.choose_token(batch, length)
        arguments = [mosts, places, self.position, token, position]
        return [logits, *call_inplace(self.builder, chosen, arguments, [3, 4])]


class GpuPrefill(GpuOps, Prefill):
    """T tokens from position 0, which see one another only."""

    def attend_cached(self, q: Var, keys: Var, values: Var) -> Var:
        """Attend causally, by tensor cores where they can."""
        batch, length, heads, width = sizes(q)
        if not gpu_prefill_attention.fits(width, self.dtype):
            return super().attend_cached(q, keys, values)
        kernel = gpu_prefill_attention.attend(batch, length, heads, tuple(sizes(keys)), self.dtype)
        return self.call(kernel, [q, keys, values], sizes(q))


class LibraryPrefill(GpuPrefill):
    """The same with the products of all tokens left to NVIDIA's library, which TVM calls by a name."""

    def multiply(self, x: Var, weight: Var, bias: Var | None = None) -> Var:
        """Multiply a matrix x [M, I] by weight [O, I] transposed, add bias [O]; one rounding."""
        rows, columns = sizes(x)[0], sizes(weight)[0]
        if rows <= gpu_products.TILE:
            return super().multiply(x, weight, bias)
        arguments = [x, weight, self.unread(1) if bias is None else bias]
        return self.emit(
            op.call_dps_packed(LIBRARY_PRODUCT, arguments, relax.TensorType((rows, columns), self.dtype))
        )


class GpuDecode(GpuOps, Decode):
    """One token at a position on the device."""

    def attend_cached(self, q: Var, keys: Var, values: Var) -> Var:
        """Attend to what is filled, split over the cache."""
        batch, _, heads, width = sizes(q)
        shape = tuple(sizes(keys))
        if not gpu_decode_attention.fits(width):
            return super().attend_cached(q, keys, values)
        splits = gpu_decode_attention.count_splits(batch, shape)
        kernel = gpu_decode_attention.attend(batch, heads, shape, self.dtype, splits)
        parts = self.call(
            kernel, [q, keys, values, self.position], (batch, heads, splits, width + 2), "float32"
        )
        joined = gpu_decode_attention.combine(batch, heads, width, self.dtype, splits)
        return self.call(joined, [parts], sizes(q))


class PlainGpuDecode(GpuDecode):
    """The same with Relax's own products, for MetaSchedule to schedule."""

    def multiply(self, x: Var, weight: Var, bias: Var | None = None) -> Var:
        """Multiply a matrix x [M, I] by weight [O, I] transposed, add bias [O]; one rounding."""
        return RelaxOps.multiply(self, x, weight, bias)
