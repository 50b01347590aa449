"""TVM: the definition is emitted as Relax, and compiled with TIR schedules ahead of time."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backends.contract import (
    ANY_NUMBER,
    SOURCES,
    Artefact,
    Engine,
    MadeFor,
    Option,
    Probe,
    Shapes,
    Target,
    Unsupported,
)
from backends.cuda_tools import offer_wheel, tool_release
from backends.probe_failure import describe_failure
from backends.tvm.database import TRIALS, choose_fastest, read_database
from backends.tvm.plan import LIBRARIES, Plan, choose
from backends.variables import set_variables
from models.checkpoint import Weights
from models.config import DecoderConfig

if TYPE_CHECKING:
    from backends.tvm.engine import Program
    from backends.tvm.ops import RelaxOps

INSTALL = (
    "pip install apache-tvm==0.27.0.post1 apache-tvm-ffi==0.1.14.post0, for a GPU 'cuda-bindings>=13,<14' too"
)
PACKAGES = ("apache-tvm", "apache-tvm-ffi")


class Tvm:
    """Compiles one function for each prompt length and one for every decode step."""

    name = "tvm"
    machine_code = True
    made_for: MadeFor = "architecture"  # kernels of ours split work for 132 SMs whatever the card has
    options: Mapping[str, Option] = {
        "stock": Option("TVM's default pipeline and target, no kernel or pass of ours"),
        "library": Option(
            "whose products a prefill on a GPU runs; none: kernels that TVM compiles", LIBRARIES
        ),
        "tune": Option("how many schedules of products MetaSchedule times on the device", ANY_NUMBER),
        "import": Option(
            "where the model comes from; torch: a torch.export graph by Relax's importer", SOURCES
        ),
    }

    def probe(self) -> Probe:
        """Tell whether TVM is there, and for which devices."""
        try:
            prepare()
            import tvm

            has_gpu = tvm.cuda(0).exist
        except Exception as error:
            return describe_failure(self.name, error, INSTALL)
        versions = {name: version(name) for name in PACKAGES}
        if has_gpu:
            with suppress(Unsupported):  # a build says so
                versions["nvcc"] = nvcc_release()
        devices = ("cpu", "cuda") if has_gpu else ("cpu",)
        return Probe(versions=versions, devices=devices, dtypes=("float32", "bfloat16", "float16"))

    def check_options(self, target: Target, options: Mapping[str, str]) -> None:
        """Refuse settings that the device has not, or that go without each other; raises Unsupported."""
        choose(options, target)

    def build(
        self, config: DecoderConfig, shapes: Shapes, target: Target, options: Mapping[str, str]
    ) -> Artefact:
        """Compile everything, here or for a GPU elsewhere; raises Unsupported in the compiler's words."""
        prepare()
        plan = choose(options, target)
        program = compile_program(config, shapes, target, plan)
        return Artefact(
            config,
            shapes,
            target,
            options,
            definition="imported" if plan.imported else "common",
            provenance=plan.provenance,
            payload=program,
            untuned=plan.untuned,
        )

    def compilers(self, target: Target, options: Mapping[str, str]) -> Mapping[str, str]:
        """Tell the versions of TVM, of torch for what it exports, and for a GPU of nvcc, with its flags."""
        packages = [*PACKAGES, *(["torch"] if choose(options, target).imported else [])]
        found = {name: version(name) for name in packages}
        if not target.on_gpu:
            return found
        return found | {"nvcc": nvcc_release()} | set_variables(("NVCC_",))

    def save(self, artefact: Artefact, folder: Path) -> None:
        """Write the shared library, which has all functions, and the database of trials if there were any."""
        program: Program = artefact.payload
        for name, content in program.files.items():
            (folder / name).write_bytes(content)

    def open(self, artefact: Artefact, folder: Path) -> Artefact:
        """Read the library that was saved."""
        prepare()
        from backends.tvm.compiler import LIBRARY

        plan = choose(artefact.options, artefact.target)
        files = {LIBRARY: (folder / LIBRARY).read_bytes()}
        config, shapes, dtype = artefact.config, artefact.shapes, artefact.target.dtype
        return replace(artefact, payload=describe(config, shapes, dtype, plan, files))

    def tunes(self, target: Target, options: Mapping[str, str]) -> bool:  # noqa: ARG002
        """Tell whether trials were asked for."""
        return "tune" in options

    def tune(
        self,
        config: DecoderConfig,
        shapes: Shapes,
        target: Target,
        options: Mapping[str, str],
        folder: Path,
    ) -> None:
        """Spend the trials on the device and keep the database."""
        prepare()
        from backends.tvm.targets import name_target
        from backends.tvm.tuning import tune_products

        plan = choose(options, target)
        module = lower(config, shapes, target, plan)
        tune_products(module, name_target(target, plan.stock), plan.trials, folder)
        if not (folder / TRIALS).read_text().strip():
            raise Unsupported("tune= timed no schedule of a product, so there is nothing to keep")

    def choices(self, folder: Path, target: Target, options: Mapping[str, str]) -> str:  # noqa: ARG002
        """Return the fastest schedule of each product."""
        return choose_fastest(read_database(folder))

    def load(self, artefact: Artefact, weights: Weights) -> Engine:
        """Place the weights and allocate the state."""
        prepare()
        from backends.tvm.engine import TvmEngine
        from backends.tvm.imported import ImportedEngine

        return (TvmEngine if artefact.payload.in_place else ImportedEngine)(artefact, weights)


def prepare() -> None:
    """Set what TVM reads when it starts: as many threads as the process is given, or has processors."""
    given = os.environ.get("OMP_NUM_THREADS") or str(len(os.sched_getaffinity(0)))
    os.environ.setdefault("TVM_NUM_THREADS", given)
    offer_wheel()
    if shutil.which("nvcc"):  # needs no GPU; else NVIDIA's compiler library
        os.environ.setdefault("TVM_CUDA_COMPILE_MODE", "nvcc")


def nvcc_release() -> str:
    """Tell the release of NVIDIA's compiler; raises Unsupported."""
    offer_wheel()
    found = tool_release("nvcc")
    if found is None:
        raise Unsupported("there is no nvcc here: pip install nvidia-cuda-nvcc, or put CUDA's on the path")
    return found


def compile_program(config: DecoderConfig, shapes: Shapes, target: Target, plan: Plan) -> Program:
    """Lower the model and compile it, or take the library that was kept; raises Unsupported."""
    from backends.tvm.compiler import LIBRARY, compile_module, kept_or
    from backends.tvm.pipeline import build_pipeline
    from backends.tvm.targets import name_target
    from backends.tvm.tuning import compile_tuned

    named = name_target(target, plan.stock)
    known = read_database(Path(target.tuning)) if plan.trials and target.tuning else None

    def make_files() -> Mapping[str, bytes]:
        module = lower(config, shapes, target, plan)
        if plan.trials and not plan.untuned:
            return compile_tuned(module, named, plan.trials, known)
        return {LIBRARY: compile_module(module, named, "default" if plan.stock else build_pipeline(named))}

    parts = {"config": config, "shapes": shapes, "target": str(named), "dtype": target.dtype, "plan": plan}
    # Trials are for as many threads as they had.
    parts["tuning"] = (known, os.environ["TVM_NUM_THREADS"]) if plan.trials else None
    return describe(config, shapes, target.dtype, plan, kept_or(parts, make_files))


def lower(config: DecoderConfig, shapes: Shapes, target: Target, plan: Plan) -> Any:
    """Write the model as a Relax module, the definition's or an imported graph's; raises Unsupported."""
    from backends.tvm.imported import lower_import
    from backends.tvm.lowering import lower_definition

    if plan.imported:
        return lower_import(config, shapes, target.dtype)
    return lower_definition(config, shapes, target.dtype, *phases_of(plan, target))


def describe(
    config: DecoderConfig, shapes: Shapes, dtype: str, plan: Plan, files: Mapping[str, bytes]
) -> Program:
    """Describe how a library that was compiled by the plan is called."""
    from backends.tvm.engine import Program
    from backends.tvm.lowering import state_layout
    from models.rope import rope_tables, whole_head_tables

    state = [(shape, dtype) for _, shape, dtype in state_layout(config, shapes, dtype)]
    tables = (whole_head_tables if plan.imported else rope_tables)(config, shapes.capacity)
    return Program(tables, files, state, vendor=plan.library, in_place=not plan.imported)


def phases_of(plan: Plan, target: Target) -> tuple[type[RelaxOps], type[RelaxOps]]:
    """Choose the operations of a prefill and of a decode step."""
    from backends.tvm import ops, tuned_ops

    if plan.stock:
        return ops.Prefill, ops.Decode
    if target.device == "cpu":
        return tuned_ops.CpuOps, tuned_ops.CpuOps
    prefill = tuned_ops.LibraryPrefill if plan.library else tuned_ops.GpuPrefill
    return prefill, tuned_ops.PlainGpuDecode if plan.trials else tuned_ops.GpuDecode
