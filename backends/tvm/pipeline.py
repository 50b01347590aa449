"""The passes between Relax and machine code."""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax
from tvm.s_tir import dlight
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


def build_pipeline(target: TvmTarget) -> Any:
    """Return TVM's default passes, but products read weights as they lie, and these schedules come first."""
    passes = relax.transform
    rules = GPU_RULES if target.kind.name == "cuda" else CPU_RULES
    return tvm.transform.Sequential(
        [
            passes.FuseTransposeMatmul(),
            passes.LegalizeOps(),
            passes.AnnotateTIROpPattern(),
            passes.FoldConstant(),
            passes.FuseOps(),
            passes.FuseTIR(),
            dlight.ApplyDefaultSchedule(*(rule() for rule in rules)),
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
