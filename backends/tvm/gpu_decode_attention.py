"""TIR for decode attention on a GPU, split over the cache, and for the sum over the splits.

B sequences, H query heads, K key/value heads, G = H / K, Dh head size, C capacity, S splits. A split keeps a
softmax of its own positions: the largest score, the sum of exponentials and the weighted sum of values.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

from tvm.script import tirx as T

from backends.tvm.gpu_kernels import FULL
from backends.tvm.tir import LOWEST, SCHEDULED

WARPS = 4
BLOCKS = 264
"""Blocks that fill a GPU of 132 multiprocessors twice."""
SHORTEST = 64
"""Positions of the capacity to a split, at least."""


def fits(width: int) -> bool:
    """Tell whether `attend` can be made for this head size."""
    return width in (16, 32, 64, 128, 256)


def count_splits(batch: int, cached_shape: tuple[int, ...]) -> int:
    """Choose into how many parts the cache of each key/value head is split."""
    _, kv_heads, capacity, _ = cached_shape
    return max(1, min(BLOCKS // (batch * kv_heads), capacity // SHORTEST))


@cache
def attend(batch: int, heads: int, cached_shape: tuple[int, ...], dtype: str, splits: int) -> Any:
    """Make the attention of q [B, H, Dh] to cached [B, K, C, Dh] up to a position int64 [1], in S parts.

    Returns [B, H, S, Dh + 2] in float32: the weighted sum of values, the largest score and the sum. A block
    takes one key/value head and one split, a few lanes of a warp one position, each 8 neighbours of Dh.
    """
    _, kv_heads, capacity, width = cached_shape
    groups, lanes = heads // kv_heads, width // 8
    at_once = WARPS * 32 // lanes  # positions
    scale = width**-0.5 * math.log2(math.e)
    steps = lanes.bit_length() - 1

    @T.prim_func(s_tir=True)
    def decode_attention(
        q_: T.handle, keys_: T.handle, values_: T.handle, position_: T.handle, out_: T.handle
    ) -> None:
        T.func_attr(SCHEDULED)
        q = T.match_buffer(q_, (batch, 1, heads, width), dtype)
        keys = T.match_buffer(keys_, cached_shape, dtype)
        values = T.match_buffer(values_, cached_shape, dtype)
        position = T.match_buffer(position_, (1,), "int64")
        out = T.match_buffer(out_, (batch, heads, splits, width + 2), "float32")
        for split in T.thread_binding(splits, thread="blockIdx.x"):
            for pair in T.thread_binding(batch * kv_heads, thread="blockIdx.y"):
                for thread in T.thread_binding(WARPS * 32, thread="threadIdx.x"):
                    with T.sblock("split"):
                        T.reads(
                            q[0:batch, 0, 0:heads, 0:width], position[0],
                            keys[0:batch, 0:kv_heads, 0:capacity, 0:width],
                            values[0:batch, 0:kv_heads, 0:capacity, 0:width],
                        )  # fmt: skip
                        T.writes(out[0:batch, 0:heads, 0:splits, 0 : width + 2])
                        query = T.sblock_alloc_buffer((groups, 8), "float32", scope="local")
                        loaded = T.sblock_alloc_buffer((8,), dtype, scope="local")
                        key = T.sblock_alloc_buffer((8,), dtype, scope="local")
                        value = T.sblock_alloc_buffer((8,), dtype, scope="local")
                        sums = T.sblock_alloc_buffer((groups, 8), "float32", scope="local")
                        most = T.sblock_alloc_buffer((groups,), "float32", scope="local")
                        total = T.sblock_alloc_buffer((groups,), "float32", scope="local")
                        score = T.sblock_alloc_buffer((1,), "float32", scope="local")
                        kept = T.sblock_alloc_buffer((1,), "float32", scope="local")
                        result = T.sblock_alloc_buffer((3,), "float32", scope="local")
                        states = T.sblock_alloc_buffer(
                            (at_once, groups, width + 2), "float32", scope="shared"
                        )
                        b: T.let[T.int32] = pair // kv_heads
                        h: T.let[T.int32] = pair % kv_heads
                        slot: T.let[T.int32] = thread // lanes
                        d: T.let[T.int32] = thread % lanes * 8
                        filled: T.let[T.int32] = T.Cast("int32", position[0]) + 1
                        share: T.let[T.int32] = (filled + splits - 1) // splits
                        begin: T.let[T.int32] = split * share
                        end: T.let[T.int32] = T.min(begin + share, filled)
                        for g in T.unroll(groups):
                            for i in T.vectorized(8):
                                loaded[i] = q[b, 0, h * groups + g, d + i]
                            for i in T.unroll(8):
                                query[g, i] = T.Cast("float32", loaded[i]) * T.float32(scale)
                                sums[g, i] = T.float32(0)
                            most[g] = T.float32(LOWEST)
                            total[g] = T.float32(0)
                        for turn in T.serial((T.max(end - begin, 0) + at_once - 1) // at_once):
                            s: T.let[T.int32] = begin + turn * at_once + slot
                            at: T.let[T.int32] = T.min(s, filled - 1)
                            for i in T.vectorized(8):
                                key[i] = keys[b, h, at, d + i]
                            for i in T.vectorized(8):
                                value[i] = values[b, h, at, d + i]
                            for g in T.unroll(groups):
                                score[0] = T.float32(0)
                                for i in T.unroll(8):
                                    score[0] += query[g, i] * T.Cast("float32", key[i])
                                for step in T.unroll(steps):
                                    score[0] += T.tvm_warp_shuffle_xor(
                                        T.uint32(FULL), score[0], (lanes // 2) >> step, 32, 32
                                    )
                                if s >= end:
                                    score[0] = T.float32(LOWEST)
                                kept[0] = most[g]
                                most[g] = T.max(most[g], score[0])
                                kept[0] = T.exp2(kept[0] - most[g])
                                score[0] = T.if_then_else(s < end, T.exp2(score[0] - most[g]), T.float32(0))
                                total[g] = total[g] * kept[0] + score[0]
                                for i in T.unroll(8):
                                    sums[g, i] = sums[g, i] * kept[0] + score[0] * T.Cast("float32", value[i])
                        for g in T.unroll(groups):
                            for i in T.unroll(8):
                                states[slot, g, d + i] = sums[g, i]
                            if d == 0:
                                states[slot, g, width] = most[g]
                                states[slot, g, width + 1] = total[g]
                        T.tvm_storage_sync("shared")
                        for turn in T.serial((groups * width + WARPS * 32 - 1) // (WARPS * 32)):
                            entry: T.let[T.int32] = turn * WARPS * 32 + thread
                            if entry < groups * width:
                                g: T.let[T.int32] = entry // width
                                column: T.let[T.int32] = entry % width
                                result[0] = T.float32(0)
                                result[1] = T.float32(LOWEST)
                                result[2] = T.float32(0)
                                for other in T.serial(at_once):
                                    result[1] = T.max(result[1], states[other, g, width])
                                for other in T.serial(at_once):
                                    kept[0] = T.exp2(states[other, g, width] - result[1])
                                    result[0] += states[other, g, column] * kept[0]
                                    result[2] += states[other, g, width + 1] * kept[0]
                                out[b, h * groups + g, split, column] = result[0]
                                if column == 0:
                                    out[b, h * groups + g, split, width] = result[1]
                                    out[b, h * groups + g, split, width + 1] = result[2]

    return decode_attention


@cache
def combine(batch: int, heads: int, width: int, dtype: str, splits: int) -> Any:
    """Make what joins the parts [B, H, S, Dh + 2] of `attend`; returns [B, 1, H, Dh]."""

    @T.prim_func(s_tir=True)
    def combine_splits(parts_: T.handle, out_: T.handle) -> None:
        T.func_attr(SCHEDULED)
        parts = T.match_buffer(parts_, (batch, heads, splits, width + 2), "float32")
        out = T.match_buffer(out_, (batch, 1, heads, width), dtype)
        for pair in T.thread_binding(batch * heads, thread="blockIdx.x"):
            for d in T.thread_binding(width, thread="threadIdx.x"):
                with T.sblock("head"):
                    T.reads(parts[0:batch, 0:heads, 0:splits, 0 : width + 2])
                    T.writes(out[0:batch, 0, 0:heads, 0:width])
                    most = T.sblock_alloc_buffer((1,), "float32", scope="local")
                    total = T.sblock_alloc_buffer((1,), "float32", scope="local")
                    summed = T.sblock_alloc_buffer((1,), "float32", scope="local")
                    weight = T.sblock_alloc_buffer((1,), "float32", scope="local")
                    b: T.let[T.int32] = pair // heads
                    h: T.let[T.int32] = pair % heads
                    most[0] = T.float32(LOWEST)
                    total[0] = T.float32(0)
                    summed[0] = T.float32(0)
                    for split in T.unroll(splits):
                        most[0] = T.max(most[0], parts[b, h, split, width])
                    for split in T.unroll(splits):
                        weight[0] = T.exp2(parts[b, h, split, width] - most[0])
                        total[0] += parts[b, h, split, width + 1] * weight[0]
                        summed[0] += parts[b, h, split, d] * weight[0]
                    out[b, 0, h, d] = T.Cast(dtype, summed[0] / total[0])

    return combine_splits
