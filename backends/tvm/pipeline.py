"""The passes between Relax and machine code."""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax
from tvm.s_tir import dlight

from backends.tvm.cpu_schedules import Elementwise, RowProduct


def build_pipeline() -> Any:
    """Return TVM's default passes, but products read weights as they lie, and these schedules come first."""
    passes = relax.transform
    return tvm.transform.Sequential(
        [
            passes.FuseTransposeMatmul(),
            passes.LegalizeOps(),
            passes.AnnotateTIROpPattern(),
            passes.FoldConstant(),
            passes.FuseOps(),
            passes.FuseTIR(),
            dlight.ApplyDefaultSchedule(RowProduct(), Elementwise()),
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
