"""TIR for products of many rows on a GPU: 16 bits through shared memory into m16n8k16, sums in float32.

x [M, K] times weight [N, K] transposed. A block makes a tile of ROWS x COLUMNS; slices of CHUNK along K come
by asynchronous copies, STAGES of them in flight. A row of a slice is eight 16-byte parts, and part p of row r
lies at p ^ (r % 8): then no eight rows that `ldmatrix` reads at once share a bank.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from tvm.script import tirx as T

from backends.tvm.gpu_products import MMA_TYPES
from backends.tvm.tir import SCHEDULED

ROWS, COLUMNS, CHUNK = 128, 256, 64
DEEP = CHUNK // 16
STAGES = 3
WARPS = 8
"""Two by four: each makes 64 x 64 of a tile."""
THREADS = WARPS * 32


@T.inline
def fetch(tile, stage, matrix, row, at, count, slice, thread):  # type: ignore[no-untyped-def]
    """Copy rows of a slice of a matrix to a stage; rows beyond the matrix repeat its last."""
    for i in T.unroll(count * 8 // THREADS):
        r: T.let[T.int32] = (i * THREADS + thread) // 8
        p: T.let[T.int32] = thread % 8
        T.evaluate(
            T.ptx["cp.async.cg.shared.global"](
                tile.ptr_to([stage, at + r, T.bitwise_xor(p, r % 8) * 8]),
                matrix.ptr_to([T.min(row + r, matrix.shape[0] - 1), slice * CHUNK + p * 8]),
                16,
            )
        )


def fits(columns: int, width: int, dtype: str) -> bool:
    """Tell whether `product` can be made for these sizes; rows may be any."""
    return dtype in MMA_TYPES and columns % 8 == 0 and width % CHUNK == 0


@cache
def product(rows: int, columns: int, width: int, dtype: str, biased: bool) -> Any:
    """Make x [M, K] times weight [N, K] transposed; bias is [N], or [1] and not read; gives [M, N]."""
    kind, slices = MMA_TYPES[dtype], width // CHUNK

    @T.inline
    def read(tile, left, right, stage, k, row0, column0, lane):  # type: ignore[no-untyped-def]
        """Read the operands of 16 elements along K to registers: every other time to the same."""
        for i in T.unroll(4):
            r: T.let[T.int32] = row0 + i * 16 + lane % 16
            p: T.let[T.int32] = k * 2 + lane // 16
            T.evaluate(
                T.ptx_legacy.ldmatrix(
                    False, 4, ".b16", left.data, k % 2 * 32 + i * 8,
                    tile.ptr_to([stage, r, T.bitwise_xor(p, r % 8) * 8]), 0, dtype=dtype,
                )
            )  # fmt: skip
        for j in T.unroll(4):
            r: T.let[T.int32] = column0 + j * 16 + lane // 16 * 8 + lane % 8
            p: T.let[T.int32] = k * 2 + lane // 8 % 2
            T.evaluate(
                T.ptx_legacy.ldmatrix(
                    False, 4, ".b16", right.data, k % 2 * 32 + j * 8,
                    tile.ptr_to([stage, ROWS + r, T.bitwise_xor(p, r % 8) * 8]), 0, dtype=dtype,
                )
            )  # fmt: skip

    @T.inline
    def multiply(sums, left, right, k):  # type: ignore[no-untyped-def]
        """Add the products of what was read last but one."""
        for i, j in T.grid(4, 8):
            T.evaluate(
                T.ptx_legacy.mma(
                    "m16n8k16", "row", "col", kind, kind, "fp32",
                    left.data, k % 2 * 32 + i * 8, right.data, k % 2 * 32 + j * 4,
                    sums.data, (i * 8 + j) * 4, False, dtype="float32",
                )
            )  # fmt: skip

    @T.prim_func(s_tir=True)
    def tensor_core_product(x_: T.handle, weight_: T.handle, bias_: T.handle, out_: T.handle) -> None:
        T.func_attr(SCHEDULED)
        x = T.match_buffer(x_, (rows, width), dtype)
        weight = T.match_buffer(weight_, (columns, width), dtype)
        bias = T.match_buffer(bias_, (columns if biased else 1,), dtype)
        out = T.match_buffer(out_, (rows, columns), dtype)
        for across in T.thread_binding((rows + ROWS - 1) // ROWS, thread="blockIdx.x"):
            for down in T.thread_binding((columns + COLUMNS - 1) // COLUMNS, thread="blockIdx.y"):
                for thread in T.thread_binding(THREADS, thread="threadIdx.x"):
                    with T.sblock("tile"):
                        T.reads(x[0:rows, 0:width], weight[0:columns, 0:width])
                        T.writes(out[0:rows, 0:columns])
                        # Rows of x, then those of the weight: the pass that merges buffers of shared memory
                        # sees no use of one whose address alone is taken.
                        tile = T.sblock_alloc_buffer(
                            (STAGES, ROWS + COLUMNS, CHUNK), dtype, scope="shared.dyn"
                        )
                        left = T.sblock_alloc_buffer((2, 4, 8), dtype, scope="local")
                        right = T.sblock_alloc_buffer((2, 4, 8), dtype, scope="local")
                        sums = T.sblock_alloc_buffer((4, 8, 4), "float32", scope="local")
                        pair = T.sblock_alloc_buffer((2,), dtype, scope="local")
                        lane: T.let[T.int32] = thread % 32
                        row0: T.let[T.int32] = thread // 128 * 64
                        column0: T.let[T.int32] = thread // 32 % 4 * 64
                        for i, j, c in T.grid(4, 8, 4):
                            sums[i, j, c] = T.float32(0)
                        for step in T.unroll(STAGES):
                            if step < slices:
                                fetch(tile, step, x, across * ROWS, 0, ROWS, step, thread)
                                fetch(tile, step, weight, down * COLUMNS, ROWS, COLUMNS, step, thread)
                            T.evaluate(T.ptx["cp.async.commit_group"]())
                        T.evaluate(T.ptx["cp.async.wait_group"](STAGES - 1))
                        T.tvm_storage_sync("shared.dyn")
                        read(tile, left, right, 0, 0, row0, column0, lane)
                        for step in T.serial(slices):
                            stage: T.let[T.int32] = step % STAGES
                            for k in T.unroll(DEEP - 1):
                                read(tile, left, right, stage, k + 1, row0, column0, lane)
                                multiply(sums, left, right, k)
                            # The slice is in registers to its end: its place is free, and the next one's
                            # first operands are read while the tensor cores are busy with its last.
                            T.evaluate(T.ptx["cp.async.wait_group"](STAGES - 2))
                            T.tvm_storage_sync("shared.dyn")
                            coming: T.let[T.int32] = step + STAGES
                            if coming < slices:
                                fetch(tile, stage, x, across * ROWS, 0, ROWS, coming, thread)
                                fetch(tile, stage, weight, down * COLUMNS, ROWS, COLUMNS, coming, thread)
                            T.evaluate(T.ptx["cp.async.commit_group"]())
                            read(tile, left, right, (step + 1) % STAGES, 0, row0, column0, lane)
                            multiply(sums, left, right, DEEP - 1)
                        for i, j, side in T.grid(4, 8, 2):
                            m: T.let[T.int32] = across * ROWS + row0 + i * 16 + side * 8 + lane // 4
                            n: T.let[T.int32] = down * COLUMNS + column0 + j * 8 + lane % 4 * 2
                            if m < rows and n < columns:
                                for c in T.unroll(2):
                                    if biased:
                                        sums[i, j, side * 2 + c] += T.Cast("float32", bias[n + c])
                                    pair[c] = T.Cast(dtype, sums[i, j, side * 2 + c])
                                for c in T.vectorized(2):
                                    out[m, n + c] = pair[c]

    return tensor_core_product
