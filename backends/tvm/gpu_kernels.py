"""TIR for a GPU, scheduled by hand: norms, the gate, rope with the write to the cache.

B sequences, T tokens, D hidden and F intermediate size, H query and K key/value heads, Dh head size,
C capacity. The position is read on the device, so that one CUDA graph serves every length.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from tvm.script import tirx as T

from backends.tvm.tir import SCHEDULED
from models.layout import NUMPY_DTYPES

FULL = 0xFFFFFFFF  # every lane of a warp


@cache
def add_rms_norm(rows: int, width: int, dtype: str, eps: float, added_to: bool) -> Any:
    """Make what adds residual to x [rows, D] where asked to, and norms and scales the sum by weight [D]."""
    vector = next(each for each in (16 // NUMPY_DTYPES[dtype].itemsize, 2, 1) if width % each == 0)
    warps = min(32, max(1, width // vector // 32))
    turns = -(-width // (warps * 32 * vector))

    @T.prim_func(s_tir=True)
    def add_rms_norm(
        x_: T.handle, residual_: T.handle, weight_: T.handle, normed_: T.handle, total_: T.handle
    ) -> None:
        T.func_attr(SCHEDULED)
        x = T.match_buffer(x_, (rows, width), dtype)
        residual = T.match_buffer(residual_, (rows, width), dtype)
        weight = T.match_buffer(weight_, (width,), dtype)
        normed = T.match_buffer(normed_, (rows, width), dtype)
        total = T.match_buffer(total_, (rows, width), dtype)
        for row in T.thread_binding(rows, thread="blockIdx.x"):
            for warp in T.thread_binding(warps, thread="threadIdx.y"):
                for lane in T.thread_binding(32, thread="threadIdx.x"):
                    with T.sblock("row"):
                        T.reads(x[row, 0:width], residual[row, 0:width], weight[0:width])
                        T.writes(normed[row, 0:width], total[row, 0:width])
                        added = T.sblock_alloc_buffer((turns, vector), dtype, scope="local")
                        scaled = T.sblock_alloc_buffer((vector,), dtype, scope="local")
                        square = T.sblock_alloc_buffer((1,), "float32", scope="local")
                        parts = T.sblock_alloc_buffer((warps,), "float32", scope="shared")
                        square[0] = T.float32(0)
                        for turn in T.unroll(turns):
                            start: T.let[T.int32] = ((turn * warps + warp) * 32 + lane) * vector
                            if start < width:
                                for i in T.vectorized(vector):
                                    added[turn, i] = (
                                        x[row, start + i] + residual[row, start + i]
                                        if added_to
                                        else x[row, start + i]
                                    )
                                for i in T.vectorized(vector):
                                    total[row, start + i] = added[turn, i]
                                for i in T.unroll(vector):
                                    square[0] += T.Cast("float32", added[turn, i]) * T.Cast(
                                        "float32", added[turn, i]
                                    )
                        for step in T.unroll(5):
                            square[0] += T.tvm_warp_shuffle_xor(T.uint32(FULL), square[0], 16 >> step, 32, 32)
                        if lane == 0:
                            parts[warp] = square[0]
                        T.tvm_storage_sync("shared")
                        square[0] = T.float32(0)
                        for other in T.unroll(warps):
                            square[0] += parts[other]
                        square[0] = T.rsqrt(square[0] / T.float32(width) + T.float32(eps))
                        for turn in T.unroll(turns):
                            start: T.let[T.int32] = ((turn * warps + warp) * 32 + lane) * vector
                            if start < width:
                                for i in T.vectorized(vector):
                                    scaled[i] = weight[start + i]
                                for i in T.unroll(vector):
                                    scaled[i] = T.Cast(
                                        dtype,
                                        T.Cast("float32", added[turn, i])
                                        * square[0]
                                        * T.Cast("float32", scaled[i]),
                                    )
                                for i in T.vectorized(vector):
                                    normed[row, start + i] = scaled[i]

    return add_rms_norm


@cache
def swiglu(rows: int, width: int, dtype: str) -> Any:
    """Make silu(gate) * up in float32, rounded once, of [rows, 2 F]; gives [rows, F]."""
    vector = next(each for each in (16 // NUMPY_DTYPES[dtype].itemsize, 2, 1) if width % each == 0)
    across = width // vector

    @T.prim_func(s_tir=True)
    def swiglu(gate_up_: T.handle, out_: T.handle) -> None:
        T.func_attr(SCHEDULED)
        gate_up = T.match_buffer(gate_up_, (rows, 2 * width), dtype)
        out = T.match_buffer(out_, (rows, width), dtype)
        for block in T.thread_binding(T.ceildiv(rows * across, 256), thread="blockIdx.x"):
            for thread in T.thread_binding(256, thread="threadIdx.x"):
                with T.sblock("part"):
                    T.reads(gate_up[0:rows, 0 : 2 * width])
                    T.writes(out[0:rows, 0:width])
                    gate = T.sblock_alloc_buffer((vector,), dtype, scope="local")
                    up = T.sblock_alloc_buffer((vector,), dtype, scope="local")
                    value = T.sblock_alloc_buffer((1,), "float32", scope="local")
                    part: T.let[T.int32] = block * 256 + thread
                    row: T.let[T.int32] = part // across
                    start: T.let[T.int32] = part % across * vector
                    if row < rows:
                        for i in T.vectorized(vector):
                            gate[i] = gate_up[row, start + i]
                        for i in T.vectorized(vector):
                            up[i] = gate_up[row, width + start + i]
                        for i in T.unroll(vector):
                            value[0] = T.Cast("float32", gate[i])
                            value[0] = value[0] / (T.float32(1) + T.exp(-value[0]))
                            gate[i] = T.Cast(dtype, value[0] * T.Cast("float32", up[i]))
                        for i in T.vectorized(vector):
                            out[row, start + i] = gate[i]

    return swiglu


@cache
def rotate_and_write(
    batch: int, length: int, heads: int, cached_shape: tuple[int, ...], dtype: str, eps: float | None
) -> Any:
    """Make what takes qkv [B, T, (H + 2K) Dh] apart: rotated q [B, T, H, Dh], and k and v into the cache.

    A warp takes one head of one token, whose q or k it norms first where `eps` is given.
    """
    _, kv_heads, capacity, width = cached_shape
    rows, half = heads + 2 * kv_heads, width // 2
    each = -(-half // 32)

    @T.prim_func(s_tir=True)
    def rotate_and_write(
        qkv_: T.handle, cos_: T.handle, sin_: T.handle, q_norm_: T.handle, k_norm_: T.handle,
        position_: T.handle, keys_: T.handle, values_: T.handle, q_: T.handle,
    ) -> None:  # fmt: skip
        T.func_attr({"tirx.is_scheduled": True})
        qkv = T.match_buffer(qkv_, (batch, length, rows, width), dtype)
        cos = T.match_buffer(cos_, (capacity, half), "float32")
        sin = T.match_buffer(sin_, (capacity, half), "float32")
        q_norm = T.match_buffer(q_norm_, (width,), dtype)
        k_norm = T.match_buffer(k_norm_, (width,), dtype)
        position = T.match_buffer(position_, (1,), "int64")
        keys = T.match_buffer(keys_, cached_shape, dtype)
        values = T.match_buffer(values_, cached_shape, dtype)
        q = T.match_buffer(q_, (batch, length, heads, width), dtype)
        for token in T.thread_binding(batch * length, thread="blockIdx.x"):
            for row in T.thread_binding(rows, thread="blockIdx.y"):
                for lane in T.thread_binding(32, thread="threadIdx.x"):
                    with T.sblock("head"):
                        T.reads(
                            qkv[0:batch, 0:length, 0:rows, 0:width], cos[0:capacity, 0:half],
                            sin[0:capacity, 0:half], q_norm[0:width], k_norm[0:width], position[0],
                        )  # fmt: skip
                        T.writes(
                            q[0:batch, 0:length, 0:heads, 0:width],
                            keys[0:batch, 0:kv_heads, 0:capacity, 0:width],
                            values[0:batch, 0:kv_heads, 0:capacity, 0:width],
                        )
                        first = T.sblock_alloc_buffer((each,), "float32", scope="local")
                        second = T.sblock_alloc_buffer((each,), "float32", scope="local")
                        scale = T.sblock_alloc_buffer((1,), "float32", scope="local")
                        b: T.let[T.int32] = token // length
                        t: T.let[T.int32] = token % length
                        at: T.let[T.int32] = T.Cast("int32", position[0]) + t
                        for i in T.unroll(each):
                            first[i] = T.float32(0)
                            second[i] = T.float32(0)
                            if i * 32 + lane < half:
                                first[i] = T.Cast("float32", qkv[b, t, row, i * 32 + lane])
                                second[i] = T.Cast("float32", qkv[b, t, row, half + i * 32 + lane])
                        if row < heads + kv_heads:
                            if eps is not None:
                                scale[0] = T.float32(0)
                                for i in T.unroll(each):
                                    scale[0] += first[i] * first[i] + second[i] * second[i]
                                for step in T.unroll(5):
                                    scale[0] += T.tvm_warp_shuffle_xor(
                                        T.uint32(FULL), scale[0], 16 >> step, 32, 32
                                    )
                                scale[0] = T.rsqrt(scale[0] / T.float32(width) + T.float32(eps or 0.0))
                                for i in T.unroll(each):
                                    if i * 32 + lane < half:
                                        # Rounded as the norm's result is, before it is rotated.
                                        first[i] = T.Cast(
                                            "float32",
                                            T.Cast(
                                                dtype,
                                                first[i]
                                                * scale[0]
                                                * T.Cast(
                                                    "float32",
                                                    T.if_then_else(
                                                        row < heads,
                                                        q_norm[i * 32 + lane],
                                                        k_norm[i * 32 + lane],
                                                    ),
                                                ),
                                            ),
                                        )
                                        second[i] = T.Cast(
                                            "float32",
                                            T.Cast(
                                                dtype,
                                                second[i]
                                                * scale[0]
                                                * T.Cast(
                                                    "float32",
                                                    T.if_then_else(
                                                        row < heads,
                                                        q_norm[half + i * 32 + lane],
                                                        k_norm[half + i * 32 + lane],
                                                    ),
                                                ),
                                            ),
                                        )
                            for i in T.unroll(each):
                                if i * 32 + lane < half:
                                    d: T.let[T.int32] = i * 32 + lane
                                    low: T.let[T.float32] = first[i] * cos[at, d] - second[i] * sin[at, d]
                                    high: T.let[T.float32] = second[i] * cos[at, d] + first[i] * sin[at, d]
                                    if row < heads:
                                        q[b, t, row, d] = T.Cast(dtype, low)
                                        q[b, t, row, half + d] = T.Cast(dtype, high)
                                    else:
                                        keys[b, row - heads, at, d] = T.Cast(dtype, low)
                                        keys[b, row - heads, at, half + d] = T.Cast(dtype, high)
                        else:
                            for i in T.unroll(each):
                                if i * 32 + lane < half:
                                    values[b, row - heads - kv_heads, at, i * 32 + lane] = T.Cast(
                                        dtype, first[i]
                                    )
                                    values[b, row - heads - kv_heads, at, half + i * 32 + lane] = T.Cast(
                                        dtype, second[i]
                                    )

    return rotate_and_write
