"""Schedules for a CPU, which TVM 0.27 leaves to tuning: products by rows of both operands, and the rest."""

from __future__ import annotations

from math import gcd
from typing import Any

from tvm import s_tir, tirx
from tvm.s_tir.dlight.analysis import normalize_prim_func
from tvm.s_tir.dlight.base import ScheduleRule, try_inline
from tvm.target import Target

LANES = 16
"""Partial sums of one dot product: a vector register of float32, or two."""
TILE = (4, 4)
"""Rows of x and of the weight whose dot products are taken at once: 16 registers of partial sums."""
SINGLE = 8
"""Rows of the weight where x has one row."""
PARALLEL = 256
"""Vectors from which an elementwise loop is shared among threads, so many to a task."""


class RowProduct(ScheduleRule):
    """x [M, K] times weight [N, K] transposed: both are read along K, so nothing is packed or transposed."""

    def apply(self, func: Any, target: Target, tunable: bool) -> Any:  # noqa: ARG002
        """Schedule a function with one such product and what is fused to its result; None for others."""
        if not isinstance(func, tirx.PrimFunc):
            return None
        schedule = s_tir.Schedule(func)
        infos = normalize_prim_func(schedule)
        if not infos:
            return None
        products = [info for info in infos if info.is_reduction()]
        if len(products) != 1 or not is_row_product(schedule.get(products[0].block_rv)):
            return None
        product = products[0].block_rv
        after = [info.block_rv for info in infos[infos.index(products[0]) + 1 :]]
        if infos[0] is not products[0] or not all(info.is_injective() for info in infos[1:]):
            return None
        for block in after[:-1]:
            schedule.compute_inline(block)
        schedule_product(schedule, product, after[-1] if after else None)
        return schedule


class Elementwise(ScheduleRule):
    """Whatever computes each element by itself, in one loop over all: parallel, and by vectors."""

    def apply(self, func: Any, target: Target, tunable: bool) -> Any:  # noqa: ARG002
        """Schedule a function of such blocks; None for others."""
        if not isinstance(func, tirx.PrimFunc):
            return None
        schedule = s_tir.Schedule(func)
        infos = normalize_prim_func(schedule)
        if not infos or not all(info.is_injective() for info in infos):
            return None
        for info in try_inline(schedule, infos):
            spread(schedule, schedule.get_loops(info.block_rv))
        return schedule


def spread(schedule: Any, loops: list[Any]) -> None:
    """Run loops that depend on nothing as one: by vectors, and in parallel where it is long."""
    if not loops:
        return
    loop = schedule.fuse(*loops) if len(loops) > 1 else loops[0]
    size = int(schedule.get(loop).extent)
    lanes = gcd(size, LANES)
    task, _, lane = schedule.split(loop, (None, divisor(size // lanes, PARALLEL), lanes))
    if size // lanes >= PARALLEL:
        schedule.parallel(task)
    schedule.vectorize(lane)


def is_row_product(block: Any) -> bool:
    """Tell whether both operands are read along the reduction, a multiple of LANES, in their last axis."""
    reduced = [each for each in block.iter_vars if each.iter_type == tirx.IterVar.CommReduce]
    if len(reduced) != 1 or len(block.reads) != 2 or int(reduced[0].dom.extent) % LANES:
        return False
    return all(region.region[-1].min.same_as(reduced[0].var) for region in block.reads)


def schedule_product(schedule: Any, product: Any, epilogue: Any | None) -> None:
    """Take the dot products of a tile at once, in LANES partial sums each, and its columns in parallel."""
    *spatial, column, reduced = schedule.get_loops(product)
    *outer, row = spatial or [schedule.add_unit_loop(column)]
    rows, columns = int(schedule.get(row).extent), int(schedule.get(column).extent)
    tall = divisor(rows, TILE[0])
    wide = divisor(columns, TILE[1] if tall > 1 else SINGLE)
    row, row_in = schedule.split(row, (None, tall))
    column, column_in = schedule.split(column, (None, wide))
    reduced, lane = schedule.split(reduced, (None, LANES))
    schedule.reorder(column, *outer, row, reduced, row_in, column_in, lane)
    partial = schedule.rfactor(lane, len(schedule.get(product).writes[0].source.shape))
    column, *_, row, reduced, row_in, column_in, lane = schedule.get_loops(partial)
    schedule.set_scope(partial, 0, "local")
    schedule.reverse_compute_at(product, row)
    if epilogue is not None:
        schedule.reverse_compute_at(epilogue, row)
        schedule.set_scope(product, 0, "local")
    schedule.unroll(row_in)
    schedule.unroll(column_in)
    schedule.vectorize(lane)
    schedule.parallel(column)
    schedule.decompose_reduction(partial, reduced)
    lane, *tile = schedule.get_loops(product)[2 + len(outer) :]
    schedule.reorder(*tile, lane)


def divisor(size: int, most: int) -> int:
    """Return the largest divisor of a size up to `most`."""
    return max(each for each in range(1, most + 1) if size % each == 0)
