"""The passes between Relax and machine code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tvm
from tvm import relax
from tvm.s_tir import dlight
from tvm.s_tir.dlight.base import ScheduleRule
from tvm.target import Target as TvmTarget

from backends.tvm.cpu_schedules import Elementwise, RowProduct

CPU_RULES = (RowProduct, Elementwise)
GPU_RULES = (
    dlight.gpu.Matmul,
    dlight.gpu.GEMV,
    dlight.gpu.LowBatchGEMV,
    dlight.gpu.Reduction,
    dlight.gpu.GeneralReduction,
    dlight.gpu.Fallback,
)


def fusing_passes() -> list[Any]:
    """List TVM's default passes from operators to fused TIR, but products read weights as they lie."""
    passes = relax.transform
    return [
        passes.FuseTransposeMatmul(),
        passes.LegalizeOps(),
        passes.AnnotateTIROpPattern(),
        passes.FoldConstant(),
        passes.FuseOps(),
        passes.FuseTIR(),
    ]


def rules_for(target: TvmTarget) -> tuple[type[ScheduleRule], ...]:
    """Name the schedules of what MetaSchedule has not tuned, the first that takes a function first."""
    return GPU_RULES if target.kind.name == "cuda" else CPU_RULES


def build_pipeline(target: TvmTarget, database: Path | None = None) -> Any:
    """Return all passes, with the schedules in a database of MetaSchedule before those of the rules."""
    passes = relax.transform
    with target:  # which the database is read for
        tuned = [passes.MetaScheduleApplyDatabase(str(database))] if database else []
    return tvm.transform.Sequential(
        [
            *fusing_passes(),
            *tuned,
            dlight.ApplyDefaultSchedule(*(rule() for rule in rules_for(target))),
            passes.RewriteDataflowReshape(),
            passes.ToNonDataflow(),
            passes.RemovePurityChecking(),
            passes.CallTIRRewrite(),
            passes.StaticPlanBlockMemory(),
            passes.LowerAllocTensor(),
            passes.KillAfterLastUse(),
            passes.LowerRuntimeBuiltin(),
            passes.ComputePrimValue(),
            passes.VMShapeLower(),
            passes.AttachGlobalSymbol(),
        ]
    )
