"""IREE: the definition is lowered to StableHLO by JAX and compiled by `iree-compile` ahead of time."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from backends.contract import SOURCES, Artefact, Engine, MadeFor, Option, Probe, Shapes, Target, Unsupported
from backends.probe_failure import describe_failure
from models.checkpoint import Weights
from models.config import DecoderConfig

if TYPE_CHECKING:
    from backends.iree.engine import Interface, Programs

INSTALL = (
    "pip install iree-base-compiler==3.13.0 iree-base-runtime==3.13.0 'jax>=0.10', "
    "for a GPU 'cuda-bindings>=13,<14' too"
)
PACKAGES = ("iree-base-compiler", "iree-base-runtime", "jax")
TILINGS = ("auto", "on", "off")

CALLS = "--iree-execution-model=async-external"
"""How a module is called, not how it is compiled: it takes fences, so a chain of steps needs no host."""
OPTIMISED = "--iree-opt-level=O2"
"""Without it a decode step takes ten times as long on a CPU; O3 gives nothing more."""
TILED = ("--iree-opt-data-tiling", "--iree-llvmcpu-enable-ukernels=all")
"""Pack the operands of products for IREE's own kernels, the weights too and at every call."""
TILED_ROWS = 32
"""Tokens from which that pays in bfloat16 on a CPU: only those kernels use the instructions made for it.
In float32 they are no faster than the code generated for unpacked operands, in float16 slower.
"""
DECODE, PREFILL = "decode.vmfb", "prefill-{}.vmfb"
"""Names of saved modules."""
NEWEST_CUDA = 89
"""The newest compute capability that IREE 3.13 has: a newer GPU's driver compiles that one's PTX."""


@dataclass(frozen=True)
class Plan:
    """How the programs are compiled and launched."""

    target: tuple[str, ...]
    """Flags that name the device."""
    flags: tuple[str, ...]
    """Those of every program besides."""
    tiled_rows: int | None
    """Tokens of all sequences from which a prefill is tiled; None: never."""
    on_gpu: bool
    """Whether the target is a GPU."""
    graph: bool
    """Whether a GPU is given each program as one CUDA graph."""
    imported: bool
    """Whether a torch.export graph is compiled instead of what JAX traces."""
    provenance: str


def choose(options: Mapping[str, str], target: Target) -> Plan:
    """Settle what the options leave open; raises Unsupported for what the device has not."""
    on_gpu, graph = target.on_gpu, "graph" in options
    tiling = options.get("tiling", TILINGS[0])
    if graph and not on_gpu:
        raise Unsupported(f"iree[graph] launches CUDA graphs, which {target.device} has not: use iree")
    if tiling == "on" and on_gpu:
        raise Unsupported("tiling=on is for IREE's kernels on a CPU: leave it out")
    if "stock" in options and len(options) > 1:
        raise Unsupported("iree[stock] has no settings: leave out the other options")
    device, ptx = name_target(target)
    if "stock" in options:
        return Plan(
            device, (), None, on_gpu, graph=False, imported=False, provenance=": ".join(["stock", *ptx])
        )
    automatic = TILED_ROWS if target.dtype == "bfloat16" and not on_gpu else None
    tiled_rows = {"auto": automatic, "on": 0, "off": None}[tiling]
    settings = [OPTIMISED, *ptx]
    settings += [f"prefill tiled from {tiled_rows} rows"] if tiled_rows is not None else []
    settings += ["CUDA graphs"] if graph else []
    imported = options.get("import") == "torch"
    provenance = f"configured: {', '.join(settings)}"
    return Plan(device, (OPTIMISED,), tiled_rows, on_gpu, graph, imported, provenance)


def name_target(target: Target) -> tuple[tuple[str, ...], list[str]]:
    """Return the flags that name a device, and how a GPU gets there that IREE does not know."""
    if target.device == "cpu":
        local = ("--iree-hal-target-device=local", "--iree-hal-local-target-device-backends=llvm-cpu")
        return (*local, "--iree-llvmcpu-target-cpu=host"), []
    wanted = int(target.architecture.removeprefix("sm_"))
    known = min(wanted, NEWEST_CUDA)
    flags = ("--iree-hal-target-device=cuda", f"--iree-cuda-target=sm_{known}")
    return flags, [f"by PTX sm_{known}"] if known < wanted else []


class Iree:
    """Compiles one module for each prompt length and one for every decode step."""

    name = "iree"
    machine_code = True
    made_for: MadeFor = "architecture"  # a newer one's PTX is sm_89's as well, but its provenance says so
    options: Mapping[str, Option] = {
        "stock": Option("iree-compile as it comes: no optimisation level"),
        "graph": Option("launch each program as one CUDA graph (GPU only)"),
        "tiling": Option(
            "pack the products of prefill for IREE's kernels; auto: long ones in bfloat16", TILINGS
        ),
        "import": Option("where the model comes from; torch: a torch.export graph by iree-turbine", SOURCES),
    }

    def probe(self) -> Probe:
        """Tell whether IREE and jax are there, and for which devices."""
        try:
            prepare()
            from iree import compiler, runtime  # noqa: F401

            on_gpu = has_gpu()
        except Exception as error:
            return describe_failure(self.name, error, INSTALL)
        versions = {name: version(name) for name in PACKAGES}
        devices = ("cpu", "cuda") if on_gpu else ("cpu",)
        return Probe(versions=versions, devices=devices, dtypes=("float32", "bfloat16", "float16"))

    def check_options(self, target: Target, options: Mapping[str, str]) -> None:
        """Refuse settings that the device has not, or that go without each other; raises Unsupported."""
        choose(options, target)

    def build(
        self, config: DecoderConfig, shapes: Shapes, target: Target, options: Mapping[str, str]
    ) -> Artefact:
        """Compile everything, here or for a GPU elsewhere; raises Unsupported in the compiler's words."""
        plan = choose(options, target)
        programs = compile_programs(config, shapes, target.dtype, plan)
        definition = "imported" if plan.imported else "common"
        return Artefact(config, shapes, target, options, definition, plan.provenance, payload=programs)

    def compilers(self, target: Target, options: Mapping[str, str]) -> Mapping[str, str]:  # noqa: ARG002
        """Tell the versions of the compiler and of what lowers to it."""
        importer = ("torch", "iree-turbine") if options.get("import") == "torch" else ("jax", "jaxlib")
        return {name: version(name) for name in ("iree-base-compiler", *importer)}

    def save(self, artefact: Artefact, folder: Path) -> None:
        """Write one file a module."""
        programs: Programs = artefact.payload
        (folder / DECODE).write_bytes(programs.decode)
        for length, module in programs.prefill.items():
            (folder / PREFILL.format(length)).write_bytes(module)

    def open(self, artefact: Artefact, folder: Path) -> Artefact:
        """Read the modules that were saved."""
        prepare()
        from backends.iree.engine import Programs

        plan = choose(artefact.options, artefact.target)
        prefill = {n: (folder / PREFILL.format(n)).read_bytes() for n in artefact.shapes.prompts}
        interface = describe(artefact.config, artefact.shapes, plan)
        decode = (folder / DECODE).read_bytes()
        return replace(artefact, payload=Programs(interface, prefill, decode, plan.graph))

    def load(self, artefact: Artefact, weights: Weights) -> Engine:
        """Place the weights and allocate the state."""
        from backends.iree.engine import IreeEngine

        return IreeEngine(artefact, weights)


def prepare() -> None:
    """Import jax; if it is ours alone, keep it off the GPU, on which it only traces."""
    ours = "jax" not in sys.modules
    import jax

    if ours:
        jax.config.update("jax_platforms", "cpu")


def has_gpu() -> bool:
    """Tell whether IREE finds a GPU: its driver raises without CUDA's library."""
    from iree.runtime import get_driver

    try:
        return bool(get_driver("cuda").query_available_devices())
    except RuntimeError:
        return False


def compile_programs(config: DecoderConfig, shapes: Shapes, dtype: str, plan: Plan) -> Programs:
    """Lower the model by JAX or by iree-turbine, and compile it; raises Unsupported."""
    prepare()
    from backends.iree.compiler import compile_all
    from backends.iree.engine import Programs
    from backends.iree.imported import lower_import
    from backends.iree.ops import lower_definition

    if plan.imported:
        prefills, decode = lower_import(config, shapes, dtype)
    else:
        prefills, decode = lower_definition(config, shapes, dtype, plan.on_gpu)
    flags = (*plan.target, CALLS, *plan.flags)
    tiled = [plan.tiled_rows is not None and shapes.batch * n >= plan.tiled_rows for n in shapes.prompts]
    sources = [
        (source, (*flags, *(TILED if each else ()))) for source, each in zip(prefills, tiled, strict=True)
    ]
    *modules, step = compile_all([*sources, (decode, flags)])
    prefill = dict(zip(shapes.prompts, modules, strict=True))
    return Programs(describe(config, shapes, plan), prefill, step, plan.graph)


def describe(config: DecoderConfig, shapes: Shapes, plan: Plan) -> Interface:
    """Describe how the plan's programs are called."""
    from backends.iree.imported import describe_import
    from backends.iree.ops import describe_definition

    return (describe_import if plan.imported else describe_definition)(config, shapes)
