"""TIR for causal attention of a prefill on a GPU, by tensor cores and without a matrix of scores in memory.

B sequences, T tokens from position 0, H query heads, K key/value heads, Dh head size, C capacity. A block
takes QUERIES tokens of one head, 16 to a warp, and goes through keys and values in tiles up to its last
token; scores, their softmax so far and the weighted sum of values stay in registers.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

from tvm.script import tirx as T

from backends.tvm.gpu_kernels import FULL
from backends.tvm.gpu_products import MMA_TYPES
from backends.tvm.tir import LOWEST, SCHEDULED

QUERIES = KEYS = 64
WARPS = QUERIES // 16
THREADS = WARPS * 32


def fits(width: int, dtype: str) -> bool:
    """Tell whether `attend` can be made for this head size."""
    return dtype in MMA_TYPES and width % 64 == 0 and width <= 128


@T.inline
def fetch(tile, stage, part, cached, b, h, start, last, width, thread):  # type: ignore[no-untyped-def]
    """Copy KEYS positions of one head to a part of a stage; those beyond the last repeat it."""
    for i in T.unroll(KEYS * width // 8 // THREADS):
        r: T.let[T.int32] = (i * THREADS + thread) // (width // 8)
        p: T.let[T.int32] = (i * THREADS + thread) % (width // 8)
        T.evaluate(
            T.ptx["cp.async.cg.shared.global"](
                tile.ptr_to([stage, part * KEYS + r, T.bitwise_xor(p, r % 8) * 8]),
                cached.ptr_to([b, h, T.min(start + r, last), p * 8]),
                16,
            )
        )


@cache
def attend(batch: int, length: int, heads: int, cached_shape: tuple[int, ...], dtype: str) -> Any:
    """Make the causal attention of q [B, T, H, Dh] to cached [B, K, C, Dh]; returns [B, T, H, Dh]."""
    width, groups, kind = cached_shape[3], heads // cached_shape[1], MMA_TYPES[dtype]
    scale = width**-0.5 * math.log2(math.e)
    blocks, steps = -(-length // QUERIES), width // 16

    @T.prim_func(s_tir=True)
    def prefill_attention(q_: T.handle, keys_: T.handle, values_: T.handle, out_: T.handle) -> None:
        T.func_attr(SCHEDULED)
        q = T.match_buffer(q_, (batch, length, heads, width), dtype)
        keys = T.match_buffer(keys_, cached_shape, dtype)
        values = T.match_buffer(values_, cached_shape, dtype)
        out = T.match_buffer(out_, (batch, length, heads, width), dtype)
        for pair_index in T.thread_binding(batch * heads, thread="blockIdx.x"):
            for turn in T.thread_binding(blocks, thread="blockIdx.y"):
                for thread in T.thread_binding(THREADS, thread="threadIdx.x"):
                    with T.sblock("queries"):
                        T.reads(
                            q[0:batch, 0:length, 0:heads, 0:width],
                            keys[0:batch, 0 : heads // groups, 0:length, 0:width],
                            values[0:batch, 0 : heads // groups, 0:length, 0:width],
                        )
                        T.writes(out[0:batch, 0:length, 0:heads, 0:width])
                        # Keys, then values, of each stage.
                        tile = T.sblock_alloc_buffer((2, 2 * KEYS, width), dtype, scope="shared.dyn")
                        query = T.sblock_alloc_buffer((steps, 8), dtype, scope="local")
                        pair = T.sblock_alloc_buffer((2,), dtype, scope="local")
                        left = T.sblock_alloc_buffer((8,), dtype, scope="local")
                        right = T.sblock_alloc_buffer((8,), dtype, scope="local")
                        scores = T.sblock_alloc_buffer((KEYS // 8, 4), "float32", scope="local")
                        sums = T.sblock_alloc_buffer((width // 8, 4), "float32", scope="local")
                        most = T.sblock_alloc_buffer((2,), "float32", scope="local")
                        total = T.sblock_alloc_buffer((2,), "float32", scope="local")
                        kept = T.sblock_alloc_buffer((2,), "float32", scope="local")
                        b: T.let[T.int32] = pair_index // heads
                        h: T.let[T.int32] = pair_index % heads
                        lane: T.let[T.int32] = thread % 32
                        last_tile: T.let[T.int32] = blocks - 1 - turn  # the longest first
                        row: T.let[T.int32] = last_tile * QUERIES + thread // 32 * 16 + lane // 4
                        fetch(tile, 0, 0, keys, b, h // groups, 0, length - 1, width, thread)
                        fetch(tile, 0, 1, values, b, h // groups, 0, length - 1, width, thread)
                        T.evaluate(T.ptx["cp.async.commit_group"]())
                        # Elements 0, 1: row, first 8 columns of a step; 2, 3: row + 8; 4 to 7: the others.
                        for k, part in T.grid(steps, 4):
                            for i in T.vectorized(2):
                                pair[i] = q[
                                    b,
                                    T.min(row + part % 2 * 8, length - 1),
                                    h,
                                    k * 16 + part // 2 * 8 + lane % 4 * 2 + i,
                                ]
                            for i in T.unroll(2):
                                query[k, part * 2 + i] = pair[i]
                        for n, c in T.grid(width // 8, 4):
                            sums[n, c] = T.float32(0)
                        for side in T.unroll(2):
                            most[side] = T.float32(LOWEST)
                            total[side] = T.float32(0)
                        for step in T.serial(last_tile + 1):
                            T.evaluate(T.ptx["cp.async.wait_group"](0))
                            T.tvm_storage_sync("shared.dyn")
                            stage: T.let[T.int32] = step % 2
                            if step < last_tile:
                                into: T.let[T.int32] = (step + 1) % 2
                                start: T.let[T.int32] = (step + 1) * KEYS
                                fetch(tile, into, 0, keys, b, h // groups, start, length - 1, width, thread)
                                fetch(tile, into, 1, values, b, h // groups, start, length - 1, width, thread)
                            T.evaluate(T.ptx["cp.async.commit_group"]())
                            for n, c in T.grid(KEYS // 8, 4):
                                scores[n, c] = T.float32(0)
                            for k, n in T.grid(steps, KEYS // 16):
                                r: T.let[T.int32] = n * 16 + lane // 16 * 8 + lane % 8
                                p: T.let[T.int32] = k * 2 + lane // 8 % 2
                                T.evaluate(
                                    T.ptx_legacy.ldmatrix(
                                        False, 4, ".b16", right.data, 0,
                                        tile.ptr_to([stage, r, T.bitwise_xor(p, r % 8) * 8]), 0, dtype=dtype,
                                    )
                                )  # fmt: skip
                                for each in T.unroll(2):
                                    T.evaluate(
                                        T.ptx_legacy.mma(
                                            "m16n8k16", "row", "col", kind, kind, "fp32",
                                            query.data, k * 8, right.data, each * 4,
                                            scores.data, (n * 2 + each) * 4, False, dtype="float32",
                                        )
                                    )  # fmt: skip
                            if step == last_tile:
                                for n, c in T.grid(KEYS // 8, 4):
                                    if step * KEYS + n * 8 + lane % 4 * 2 + c % 2 > row + c // 2 * 8:
                                        scores[n, c] = T.float32(LOWEST)
                            for side in T.unroll(2):
                                kept[side] = most[side]
                                for n, c in T.grid(KEYS // 8, 2):
                                    most[side] = T.max(most[side], scores[n, side * 2 + c])
                                most[side] = T.max(
                                    most[side], T.tvm_warp_shuffle_xor(T.uint32(FULL), most[side], 1, 32, 32)
                                )
                                most[side] = T.max(
                                    most[side], T.tvm_warp_shuffle_xor(T.uint32(FULL), most[side], 2, 32, 32)
                                )
                                kept[side] = T.exp2((kept[side] - most[side]) * T.float32(scale))
                                total[side] = total[side] * kept[side]
                                for n, c in T.grid(KEYS // 8, 2):
                                    scores[n, side * 2 + c] = T.exp2(
                                        (scores[n, side * 2 + c] - most[side]) * T.float32(scale)
                                    )
                                    total[side] += scores[n, side * 2 + c]
                                for n, c in T.grid(width // 8, 2):
                                    sums[n, side * 2 + c] = sums[n, side * 2 + c] * kept[side]
                            for k in T.unroll(KEYS // 16):
                                # A lane holds of the scores what it needs of the next left side.
                                for i in T.unroll(8):
                                    left[i] = T.Cast(dtype, scores[k * 2 + i // 4, i % 4])
                                for n in T.unroll(steps):
                                    r: T.let[T.int32] = k * 16 + lane // 8 % 2 * 8 + lane % 8
                                    p: T.let[T.int32] = n * 2 + lane // 16
                                    T.evaluate(
                                        T.ptx_legacy.ldmatrix(
                                            True, 4, ".b16", right.data, 0,
                                            tile.ptr_to([stage, KEYS + r, T.bitwise_xor(p, r % 8) * 8]), 0,
                                            dtype=dtype,
                                        )
                                    )  # fmt: skip
                                    for each in T.unroll(2):
                                        T.evaluate(
                                            T.ptx_legacy.mma(
                                                "m16n8k16", "row", "col", kind, kind, "fp32",
                                                left.data, 0, right.data, each * 4,
                                                sums.data, (n * 2 + each) * 4, False, dtype="float32",
                                            )
                                        )  # fmt: skip
                        for side in T.unroll(2):
                            total[side] += T.tvm_warp_shuffle_xor(T.uint32(FULL), total[side], 1, 32, 32)
                            total[side] += T.tvm_warp_shuffle_xor(T.uint32(FULL), total[side], 2, 32, 32)
                            if row + side * 8 < length:
                                for n in T.unroll(width // 8):
                                    for c in T.unroll(2):
                                        pair[c] = T.Cast(dtype, sums[n, side * 2 + c] / total[side])
                                    for c in T.vectorized(2):
                                        out[b, row + side * 8, h, n * 8 + lane % 4 * 2 + c] = pair[c]

    return prefill_attention
