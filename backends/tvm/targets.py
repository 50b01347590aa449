"""What TVM calls the device of a target."""

from __future__ import annotations

from tvm.target import Target as TvmTarget
from tvm.target import codegen

from backends.contract import Target

STOCK_TAGS = {"sm_80": "nvidia/nvidia-a100", "sm_90": "nvidia/nvidia-h100"}


def name_target(target: Target, stock: bool) -> TvmTarget:
    """Name this machine's CPU with all its vector instructions, or a GPU by its architecture.

    `stock` asks for what TVM calls it: no processor in particular, or the tag of a GPU.
    """
    host = {"kind": "llvm"} if stock else {"kind": "llvm", "mcpu": codegen.llvm_get_system_cpu()}
    if target.device == "cpu":
        return TvmTarget(host)
    if stock and target.architecture in STOCK_TAGS:
        return TvmTarget(STOCK_TAGS[target.architecture], host="llvm")
    limits = {"max_threads_per_block": 1024, "max_shared_memory_per_block": 49152, "thread_warp_size": 32}
    return TvmTarget({"kind": "cuda", "arch": target.architecture, **limits}, host=TvmTarget("llvm"))
