"""TIR for a CPU where Relax's operators would go through memory many times: norms, attention, the next token.

B sequences, T new tokens, D hidden size, H query heads, K key/value heads, G = H / K, Dh head size, C
capacity, V vocabulary. Sums are kept in LANES parts, as vector registers hold them.
"""

from __future__ import annotations

from functools import cache
from math import gcd
from typing import Any

from tvm.script import tirx as T

from backends.tvm.tir import LOWEST, SCHEDULED

LANES = 16


@cache  # each takes long to parse, and every layer has the same
def rms_norm(rows: int, width: int, dtype: str, eps: float) -> Any:
    """Make what norms x [rows, width] and scales it by weight [width], in float32, rounded once."""
    lanes = gcd(width, LANES)

    @T.prim_func(s_tir=True)
    def rms_norm(x_: T.handle, weight_: T.handle, normed_: T.handle) -> None:
        T.func_attr(SCHEDULED)
        x = T.match_buffer(x_, (rows, width), dtype)
        weight = T.match_buffer(weight_, (width,), dtype)
        normed = T.match_buffer(normed_, (rows, width), dtype)
        for row in T.parallel(rows):
            with T.sblock("row"):
                T.reads(x[row, 0:width], weight[0:width])
                T.writes(normed[row, 0:width])
                parts = T.sblock_alloc_buffer((lanes,), "float32", scope="local")
                scale = T.sblock_alloc_buffer((1,), "float32", scope="local")
                for lane in T.vectorized(lanes):
                    parts[lane] = T.float32(0)
                for i in T.serial(width // lanes):
                    for lane in T.vectorized(lanes):
                        parts[lane] += T.Cast("float32", x[row, i * lanes + lane]) * T.Cast(
                            "float32", x[row, i * lanes + lane]
                        )
                scale[0] = T.float32(0)
                for lane in T.serial(lanes):
                    scale[0] += parts[lane]
                scale[0] = T.float32(1) / T.sqrt(scale[0] / T.float32(width) + T.float32(eps))
                for i in T.serial(width // lanes):
                    for lane in T.vectorized(lanes):
                        normed[row, i * lanes + lane] = T.Cast(
                            dtype,
                            T.Cast("float32", x[row, i * lanes + lane])
                            * scale[0]
                            * T.Cast("float32", weight[i * lanes + lane]),
                        )

    return rms_norm


@cache
def attend(q_shape: tuple[int, ...], cached_shape: tuple[int, ...], dtype: str) -> Any:
    """Make the attention of q [B, T, H, Dh], from a position int64 [1] on, to cached [B, K, C, Dh].

    One query head of one token at a time: scores of all positions, their softmax, then the weighted sum.
    """
    batch, length, heads, width = q_shape
    capacity = cached_shape[2]
    groups, lanes = heads // cached_shape[1], gcd(width, LANES)
    steps = width // lanes
    scale = width**-0.5

    @T.prim_func(s_tir=True)
    def attend(q_: T.handle, keys_: T.handle, values_: T.handle, position_: T.handle, out_: T.handle) -> None:
        T.func_attr(SCHEDULED)
        q = T.match_buffer(q_, q_shape, dtype)
        keys = T.match_buffer(keys_, cached_shape, dtype)
        values = T.match_buffer(values_, cached_shape, dtype)
        position = T.match_buffer(position_, (1,), "int64")
        out = T.match_buffer(out_, q_shape, dtype)
        for task in T.parallel(batch * heads * length):
            with T.sblock("head"):
                T.reads(q[0:batch, 0:length, 0:heads, 0:width], position[0], keys[0, 0, 0, 0])
                T.writes(out[0:batch, 0:length, 0:heads, 0:width])
                scores = T.sblock_alloc_buffer((capacity,), "float32")
                query = T.sblock_alloc_buffer((width,), "float32", scope="local")
                sums = T.sblock_alloc_buffer((width,), "float32", scope="local")
                parts = T.sblock_alloc_buffer((lanes,), "float32", scope="local")
                most = T.sblock_alloc_buffer((1,), "float32", scope="local")
                total = T.sblock_alloc_buffer((1,), "float32", scope="local")
                b: T.let[T.int32] = task // (heads * length)
                h: T.let[T.int32] = task // length % heads
                t: T.let[T.int32] = task % length
                filled: T.let[T.int32] = T.Cast("int32", position[0]) + t + 1
                for d in T.vectorized(width):
                    query[d] = T.Cast("float32", q[b, t, h, d]) * T.float32(scale)
                    sums[d] = T.float32(0)
                most[0] = T.float32(LOWEST)
                total[0] = T.float32(0)
                for s in T.serial(filled):
                    for lane in T.vectorized(lanes):
                        parts[lane] = T.float32(0)
                    for i in T.unroll(steps):
                        for lane in T.vectorized(lanes):
                            parts[lane] += query[i * lanes + lane] * T.Cast(
                                "float32", keys[b, h // groups, s, i * lanes + lane]
                            )
                    scores[s] = T.float32(0)
                    for lane in T.unroll(lanes):
                        scores[s] += parts[lane]
                    most[0] = T.max(most[0], scores[s])
                for s in T.serial(filled):
                    scores[s] = T.exp(scores[s] - most[0])
                    total[0] += scores[s]
                    for i in T.unroll(steps):
                        for lane in T.vectorized(lanes):
                            sums[i * lanes + lane] += scores[s] * T.Cast(
                                "float32", values[b, h // groups, s, i * lanes + lane]
                            )
                for d in T.vectorized(width):
                    out[b, t, h, d] = T.Cast(dtype, sums[d] / total[0])

    return attend


@cache
def finish(batch: int, vocab: int, dtype: str, length: int) -> Any:
    """Make what keeps new logits [B, V], chooses each row's greedy token, and moves the position on.

    logits [B, V], token int32 [B] and position int64 [1] are written where they lie.
    """

    @T.prim_func(s_tir=True)
    def finish(
        new_: T.handle, start_: T.handle, logits_: T.handle, token_: T.handle, position_: T.handle
    ) -> None:
        T.func_attr({"tirx.is_scheduled": True})
        new = T.match_buffer(new_, (batch, vocab), dtype)
        start = T.match_buffer(start_, (1,), "int64")
        logits = T.match_buffer(logits_, (batch, vocab), dtype)
        token = T.match_buffer(token_, (batch,), "int32")
        position = T.match_buffer(position_, (1,), "int64")
        for b in T.parallel(batch):
            with T.sblock("row"):
                T.reads(new[b, 0:vocab])
                T.writes(logits[b, 0:vocab], token[b])
                most = T.sblock_alloc_buffer((1,), "float32", scope="local")
                most[0] = T.float32(LOWEST)
                token[b] = 0
                for v in T.serial(vocab):
                    logits[b, v] = new[b, v]
                    if T.Cast("float32", new[b, v]) > most[0]:
                        most[0] = T.Cast("float32", new[b, v])
                        token[b] = v
        with T.sblock("position"):
            T.reads(start[0])
            T.writes(position[0])
            position[0] = start[0] + T.int64(length)

    return finish
