"""TIR for the end of a step on a GPU: the greedy token, in two kernels, and what the engine keeps.

B sequences, V vocabulary, P parts of it. One block a sequence would leave all but B of the SMs idle.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from tvm.script import tirx as T

from backends.tvm.gpu_kernels import FULL
from backends.tvm.tir import LOWEST

PARTS = 64
WARPS = 8
THREADS = WARPS * 32


@T.inline
def join_lanes(most, place, other, there):  # type: ignore[no-untyped-def]
    """Leave in every lane of a warp the highest value and where it is, the first of equal ones."""
    for step in T.unroll(5):
        other[0] = T.tvm_warp_shuffle_xor(T.uint32(FULL), most[0], 16 >> step, 32, 32)
        there[0] = T.tvm_warp_shuffle_xor(T.uint32(FULL), place[0], 16 >> step, 32, 32)
        if other[0] > most[0] or (other[0] == most[0] and there[0] < place[0]):
            most[0] = other[0]
            place[0] = there[0]


@cache
def keep_logits(batch: int, vocab: int, dtype: str) -> Any:
    """Make what copies new logits [B, V] over the kept ones, and finds the best of each part [B, P]."""
    part = -(-vocab // PARTS)

    @T.prim_func(s_tir=True)
    def keep_logits(new_: T.handle, logits_: T.handle, mosts_: T.handle, places_: T.handle) -> None:
        T.func_attr({"tirx.is_scheduled": True})
        new = T.match_buffer(new_, (batch, vocab), dtype)
        logits = T.match_buffer(logits_, (batch, vocab), dtype)
        mosts = T.match_buffer(mosts_, (batch, PARTS), "float32")
        places = T.match_buffer(places_, (batch, PARTS), "int32")
        for p in T.thread_binding(PARTS, thread="blockIdx.x"):
            for b in T.thread_binding(batch, thread="blockIdx.y"):
                for warp in T.thread_binding(WARPS, thread="threadIdx.y"):
                    for lane in T.thread_binding(32, thread="threadIdx.x"):
                        with T.sblock("part"):
                            T.reads(new[b, 0:vocab])
                            T.writes(logits[b, 0:vocab], mosts[b, p], places[b, p])
                            most = T.sblock_alloc_buffer((1,), "float32", scope="local")
                            place = T.sblock_alloc_buffer((1,), "int32", scope="local")
                            other = T.sblock_alloc_buffer((1,), "float32", scope="local")
                            there = T.sblock_alloc_buffer((1,), "int32", scope="local")
                            warp_mosts = T.sblock_alloc_buffer((WARPS,), "float32", scope="shared")
                            warp_places = T.sblock_alloc_buffer((WARPS,), "int32", scope="shared")
                            most[0] = T.float32(LOWEST)
                            place[0] = vocab  # after every token, should this lane have none
                            for turn in T.serial(T.ceildiv(part, THREADS)):
                                at: T.let[T.int32] = turn * THREADS + warp * 32 + lane
                                v: T.let[T.int32] = p * part + at
                                if at < part and v < vocab:
                                    logits[b, v] = new[b, v]
                                    if T.Cast("float32", new[b, v]) > most[0]:
                                        most[0] = T.Cast("float32", new[b, v])
                                        place[0] = v
                            join_lanes(most, place, other, there)
                            if lane == 0:
                                warp_mosts[warp] = most[0]
                                warp_places[warp] = place[0]
                            T.tvm_storage_sync("shared")
                            most[0] = T.float32(LOWEST)
                            place[0] = vocab
                            if lane < WARPS:
                                most[0] = warp_mosts[lane]
                                place[0] = warp_places[lane]
                            join_lanes(most, place, other, there)
                            if warp == 0 and lane == 0:
                                mosts[b, p] = most[0]
                                places[b, p] = place[0]

    return keep_logits


@cache
def choose_token(batch: int, length: int) -> Any:
    """Make what chooses each row's greedy token of its parts' best [B, P], and moves the position on.

    token int32 [B] and position int64 [1] are written where they lie.
    """

    @T.prim_func(s_tir=True)
    def choose_token(
        mosts_: T.handle, places_: T.handle, start_: T.handle, token_: T.handle, position_: T.handle
    ) -> None:
        T.func_attr({"tirx.is_scheduled": True})
        mosts = T.match_buffer(mosts_, (batch, PARTS), "float32")
        places = T.match_buffer(places_, (batch, PARTS), "int32")
        start = T.match_buffer(start_, (1,), "int64")
        token = T.match_buffer(token_, (batch,), "int32")
        position = T.match_buffer(position_, (1,), "int64")
        for b in T.thread_binding(batch, thread="blockIdx.x"):
            for lane in T.thread_binding(32, thread="threadIdx.x"):
                with T.sblock("row"):
                    T.reads(mosts[b, 0:PARTS], places[b, 0:PARTS], start[0])
                    T.writes(token[b], position[0])
                    most = T.sblock_alloc_buffer((1,), "float32", scope="local")
                    place = T.sblock_alloc_buffer((1,), "int32", scope="local")
                    other = T.sblock_alloc_buffer((1,), "float32", scope="local")
                    there = T.sblock_alloc_buffer((1,), "int32", scope="local")
                    most[0] = mosts[b, lane]
                    place[0] = places[b, lane]
                    for turn in T.serial(1, PARTS // 32):
                        if mosts[b, turn * 32 + lane] > most[0]:
                            most[0] = mosts[b, turn * 32 + lane]
                            place[0] = places[b, turn * 32 + lane]
                    join_lanes(most, place, other, there)
                    if lane == 0:
                        token[b] = place[0]
                        if b == 0:
                            position[0] = start[0] + T.int64(length)

    return choose_token
