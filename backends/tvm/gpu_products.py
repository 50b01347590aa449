"""TIR for products of few rows on a GPU: each weight is read once, straight to tensor cores' registers.

x [M, K], M <= 16, times weight [N, K] transposed. In m16n8k16 the 16 are rows of the weight and the 8 rows
of x. Which k goes where is free as long as both operands agree, so each lane loads 16 neighbours along K of
two weight rows and of one row of x, and no shared memory is needed before the sum over warps.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from tvm.script import tirx as T

from backends.tvm.tir import SCHEDULED

TILE = 16
"""Rows of the weight to a block."""
CHUNK = 64
"""Elements along K that a warp takes at a time: 128 bytes of each row."""
MMA_TYPES = {"float16": "fp16", "bfloat16": "bf16"}


def fits(rows: int, columns: int, width: int, dtype: str) -> bool:
    """Tell whether `product` can be made for these sizes."""
    return dtype in MMA_TYPES and rows <= TILE and columns % TILE == 0 and width % CHUNK == 0


@cache
def product(rows: int, columns: int, width: int, dtype: str, biased: bool) -> Any:
    """Make x [M, K] times weight [N, K] transposed; bias is [N], or [1] and not read; gives [M, N]."""
    steps = width // CHUNK
    warps = next(each for each in (8, 4, 2, 1) if steps % each == 0)
    ahead = next(each for each in (4, 2, 1) if steps // warps % each == 0)
    groups = (rows + 7) // 8
    kind = MMA_TYPES[dtype]

    @T.prim_func(s_tir=True)
    def skinny_product(x_: T.handle, weight_: T.handle, bias_: T.handle, out_: T.handle) -> None:
        T.func_attr(SCHEDULED)
        x = T.match_buffer(x_, (rows, width), dtype)
        weight = T.match_buffer(weight_, (columns, width), dtype)
        bias = T.match_buffer(bias_, (columns if biased else 1,), dtype)
        out = T.match_buffer(out_, (rows, columns), dtype)
        for block in T.thread_binding(columns // TILE, thread="blockIdx.x"):
            for warp in T.thread_binding(warps, thread="threadIdx.y"):
                for lane in T.thread_binding(32, thread="threadIdx.x"):
                    with T.sblock("product"):
                        T.reads(x[0:rows, 0:width], weight[0:columns, 0:width])
                        T.writes(out[0:rows, 0:columns])
                        high = T.sblock_alloc_buffer((ahead, 16), dtype, scope="local")
                        low = T.sblock_alloc_buffer((ahead, 16), dtype, scope="local")
                        right = T.sblock_alloc_buffer((ahead, groups, 16), dtype, scope="local")
                        left = T.sblock_alloc_buffer((8,), dtype, scope="local")
                        pair = T.sblock_alloc_buffer((4,), dtype, scope="local")
                        sums = T.sblock_alloc_buffer((groups, 4), "float32", scope="local")
                        parts = T.sblock_alloc_buffer((warps, groups, 32, 4), "float32", scope="shared")
                        total = T.sblock_alloc_buffer((1,), "float32", scope="local")
                        for g in T.unroll(groups):
                            for i in T.unroll(4):
                                sums[g, i] = T.float32(0)
                        for outer in T.serial(steps // warps // ahead):
                            for u in T.unroll(ahead):
                                for side in T.unroll(2):
                                    for i in T.vectorized(8):
                                        high[u, side * 8 + i] = weight[
                                            block * TILE + lane // 4,
                                            ((outer * ahead + u) * warps + warp) * CHUNK
                                            + lane % 4 * 16
                                            + side * 8
                                            + i,
                                        ]
                                    for i in T.vectorized(8):
                                        low[u, side * 8 + i] = weight[
                                            block * TILE + lane // 4 + 8,
                                            ((outer * ahead + u) * warps + warp) * CHUNK
                                            + lane % 4 * 16
                                            + side * 8
                                            + i,
                                        ]
                            for u in T.unroll(ahead):
                                for g in T.unroll(groups):
                                    for side in T.unroll(2):
                                        if g * 8 + lane // 4 < rows:
                                            for i in T.vectorized(8):
                                                right[u, g, side * 8 + i] = x[
                                                    g * 8 + lane // 4,
                                                    ((outer * ahead + u) * warps + warp) * CHUNK
                                                    + lane % 4 * 16
                                                    + side * 8
                                                    + i,
                                                ]
                                        else:
                                            for i in T.vectorized(8):
                                                right[u, g, side * 8 + i] = T.Cast(dtype, T.float32(0))
                            for u in T.unroll(ahead):
                                for j in T.unroll(4):
                                    for i in T.vectorized(2):
                                        left[i] = high[u, j * 4 + i]
                                    for i in T.vectorized(2):
                                        left[2 + i] = low[u, j * 4 + i]
                                    for i in T.vectorized(2):
                                        left[4 + i] = high[u, j * 4 + 2 + i]
                                    for i in T.vectorized(2):
                                        left[6 + i] = low[u, j * 4 + 2 + i]
                                    for g in T.unroll(groups):
                                        for i in T.vectorized(4):
                                            pair[i] = right[u, g, j * 4 + i]
                                        T.evaluate(
                                            T.ptx_legacy.mma(
                                                "m16n8k16",
                                                "row",
                                                "col",
                                                kind,
                                                kind,
                                                "fp32",
                                                left.data,
                                                0,
                                                pair.data,
                                                0,
                                                sums.data,
                                                g * 4,
                                                False,
                                                dtype="float32",
                                            )
                                        )
                        for g in T.unroll(groups):
                            for i in T.vectorized(4):
                                parts[warp, g, lane, i] = sums[g, i]
                        T.tvm_storage_sync("shared")
                        # c0, c1: weight row lane // 4, x rows 2 (lane % 4) and the next; c2, c3: 8 on
                        for turn in T.serial(T.ceildiv(rows * TILE, warps * 32)):
                            entry: T.let[T.int32] = turn * warps * 32 + warp * 32 + lane
                            if entry < rows * TILE:
                                m: T.let[T.int32] = entry // TILE
                                n: T.let[T.int32] = entry % TILE
                                total[0] = T.float32(0)
                                for w in T.unroll(warps):
                                    total[0] += parts[w, m // 8, n % 8 * 4 + m % 8 // 2, n // 8 * 2 + m % 2]
                                if biased:
                                    total[0] += T.Cast("float32", bias[block * TILE + n])
                                out[m, block * TILE + n] = T.Cast(dtype, total[0])

    return skinny_product
