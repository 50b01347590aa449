"""TVM: the definition is emitted as Relax, and compiled with TIR schedules ahead of time."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING

from backends.contract import Artefact, Engine, Option, Probe, Shapes, Target, Unsupported
from models.checkpoint import Weights
from models.config import DecoderConfig

if TYPE_CHECKING:
    from backends.tvm.engine import Program
    from backends.tvm.ops import RelaxOps

INSTALL = "pip install apache-tvm==0.27.0.post1 apache-tvm-ffi==0.1.14.post0"
PACKAGES = ("apache-tvm", "apache-tvm-ffi")
LIBRARIES = ("none", "cublas")

CPU_KERNELS = ("RowProduct", "Elementwise", "rms_norm", "attend", "finish")
"""Schedules and TIR of ours on a CPU."""
GPU_KERNELS = (
    "skinny_product",
    "tensor_core_product",
    "prefill_attention",
    "decode_attention",
    "rotate_and_write",
    "add_rms_norm",
    "finish",
)
"""TIR of ours on a GPU."""


@dataclass(frozen=True)
class Plan:
    """How the model is lowered and compiled."""

    stock: bool
    """Whether TVM's default pipeline compiles Relax's own operators for its stock tag."""
    library: bool
    """Whether the products of a prefill are NVIDIA's."""
    provenance: str


def choose(options: Mapping[str, str], target: Target) -> Plan:
    """Settle what the options leave open; raises Unsupported for what the device has not."""
    on_gpu = target.device.startswith("cuda")
    library = options.get("library", LIBRARIES[0]) != LIBRARIES[0]
    if "stock" in options:
        if len(options) > 1:
            raise Unsupported("tvm[stock] has no settings: leave out the other options")
        return Plan(stock=True, library=False, provenance="stock")
    if library and not on_gpu:
        raise Unsupported(f"library=cublas is for products on a GPU, not on {target.device}: leave it out")
    if library and target.dtype == "float32":
        raise Unsupported("library=cublas is for products in 16 bits: leave it out in float32")
    ours = GPU_KERNELS if on_gpu else CPU_KERNELS
    named = [*ours, *(["cuBLAS for prefill"] if library else [])]
    return Plan(False, library, f"patched: {', '.join(named)}")


class Tvm:
    """Compiles one function for each prompt length and one for every decode step."""

    name = "tvm"
    options: Mapping[str, Option] = {
        "stock": Option("TVM's default pipeline and target, no kernel or pass of ours"),
        "library": Option(
            "whose products a prefill on a GPU runs; none: kernels that TVM compiles", LIBRARIES
        ),
    }

    def probe(self) -> Probe:
        """Tell whether TVM is there, and for which devices."""
        try:
            prepare()
            import tvm

            on_gpu = tvm.cuda(0).exist
        except ModuleNotFoundError as error:
            return Probe(reason=f"{error.name} is not installed", install=INSTALL)
        except Exception as error:  # a half-installed package fails in many ways
            cause = f"{type(error).__name__}: {error}".splitlines()[0]
            return Probe(reason=f"tvm cannot be used: {cause}", install=INSTALL)
        versions = {name: version(name) for name in PACKAGES}
        devices = ("cpu", "cuda") if on_gpu else ("cpu",)
        return Probe(versions=versions, devices=devices, dtypes=("float32", "bfloat16", "float16"))

    def build(
        self, config: DecoderConfig, shapes: Shapes, target: Target, options: Mapping[str, str]
    ) -> Artefact:
        """Compile everything, here or for a GPU elsewhere; raises Unsupported in the compiler's words."""
        prepare()
        plan = choose(options, target)
        program = compile_program(config, shapes, target, plan)
        return Artefact(config, shapes, target, options, "common", plan.provenance, payload=program)

    def load(self, artefact: Artefact, weights: Weights) -> Engine:
        """Place the weights and allocate the state."""
        prepare()
        from backends.tvm.engine import TvmEngine

        return TvmEngine(artefact, weights)


def prepare() -> None:
    """Set what TVM reads when it starts: as many threads as the process is given, or has processors."""
    given = os.environ.get("OMP_NUM_THREADS") or str(len(os.sched_getaffinity(0)))
    os.environ.setdefault("TVM_NUM_THREADS", given)
    if shutil.which("nvcc"):  # needs no GPU; else NVIDIA's compiler library
        os.environ.setdefault("TVM_CUDA_COMPILE_MODE", "nvcc")


def compile_program(config: DecoderConfig, shapes: Shapes, target: Target, plan: Plan) -> Program:
    """Lower the model and compile it, or take the library that was kept; raises Unsupported."""
    from backends.tvm.compiler import compile_module, kept_or
    from backends.tvm.engine import Program
    from backends.tvm.lowering import lower_definition, state_layout
    from backends.tvm.pipeline import build_pipeline
    from backends.tvm.targets import name_target
    from models.rope import rope_tables

    named = name_target(target, plan.stock)

    def compile_it() -> bytes:
        module = lower_definition(config, shapes, target.dtype, *phases_of(plan, target))
        return compile_module(module, named, "default" if plan.stock else build_pipeline(named))

    parts = {"config": config, "shapes": shapes, "target": str(named), "dtype": target.dtype, "plan": plan}
    library = kept_or(parts, compile_it)
    state = [(shape, dtype) for _, shape, dtype in state_layout(config, shapes, target.dtype)]
    return Program(rope_tables(config, shapes.capacity), library, state, plan.library)


def phases_of(plan: Plan, target: Target) -> tuple[type[RelaxOps], type[RelaxOps]]:
    """Choose the operations of a prefill and of a decode step."""
    from backends.tvm import ops, tuned_ops

    if plan.stock:
        return ops.Prefill, ops.Decode
    if target.device == "cpu":
        return tuned_ops.CpuOps, tuned_ops.CpuOps
    return tuned_ops.LibraryPrefill if plan.library else tuned_ops.GpuPrefill, tuned_ops.GpuDecode
