"""XLA by way of JAX: the definition is traced with jax.numpy and compiled ahead of its first run."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from backends.contract import SOURCES, Artefact, Engine, MadeFor, Option, Probe, Shapes, Target, Unsupported
from backends.cuda_tools import tool_release
from backends.probe_failure import describe_failure
from backends.variables import set_variables
from models.checkpoint import Weights
from models.config import DecoderConfig

if TYPE_CHECKING:
    from backends.xla.engine import Lowering, Programs

INSTALL = "pip install 'jax>=0.10', or 'jax[cuda13]>=0.10' for a GPU"
ATTENTIONS = ("auto", "products", "cudnn", "pallas")
ATTENTION = "attention.txt"
"""The file of a saved engine that names its attention."""
ENVIRONMENT = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
"""Set before jax starts: three quarters of a GPU's memory, taken at once, would hide what an engine needs."""
ELSEWHERE = {"JAX_PLATFORMS": "cpu", "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1"}
"""Set besides to compile for a GPU that is not here: jax is neither to look for it nor to ask its driver."""
INSTALL_CUDA = "pip install 'jax[cuda13]>=0.11', with Python 3.12"
CUDA_PACKAGES = ("jax-cuda13-plugin", "jax-cuda13-pjrt")
LIBRARIES = ("nvidia-cudnn-cu13", "nvidia-cublas")
"""The packages whose kernels run its attention and its prefills: they shape times, and no engine."""
AUTOTUNED = "autotune_results.txtpb"
NO_RESULTS = re.compile(rb"\s*(version:\s*\d+)?\s*")
"""All that XLA writes into it where it has timed nothing."""
RUN_TIME = re.compile(r"\s*run_time \{[^}]*\}")
"""How long the kernel ran that was chosen there."""
PREFILL_FLAGS = {"xla_gpu_enable_triton_gemm": False}
"""For a GPU: all products of a prefill go to cuBLAS, which takes the residual along; with Triton's in the
choice XLA leaves the addition apart and is 4 % slower (xla_settings.txt in results/)."""


class Xla:
    """Compiles one program for each prompt length and one for every decode step."""

    name = "xla"
    machine_code = True
    made_for: MadeFor = "card"  # all that `cards` says of one goes into XLA's choices, its bandwidth too
    options: Mapping[str, Option] = {
        "attention": Option("how to attend; auto: cudnn in 16 bits on a GPU, else two products", ATTENTIONS),
        "import": Option("where the model comes from; torch: a torch.export graph by torchax", SOURCES),
    }

    def probe(self) -> Probe:
        """Tell whether jax is there, and for which devices."""
        try:
            prepare()
            import jax

            platforms = {device.platform for device in jax.devices()}
        except Exception as error:  # a jaxlib or a driver that does not fit fails in many ways
            return describe_failure("jax", error, INSTALL)
        versions = {name: version(name) for name in ("jax", "jaxlib")}
        if "gpu" in platforms:
            with suppress(Unsupported):  # a build says what is missing
                versions |= cuda_versions()
            for name in LIBRARIES:
                with suppress(PackageNotFoundError):  # then they are the system's
                    versions[name] = version(name)
        devices = ("cpu", "cuda") if "gpu" in platforms else ("cpu",)
        return Probe(versions=versions, devices=devices, dtypes=("float32", "bfloat16", "float16"))

    def check_options(self, target: Target, options: Mapping[str, str]) -> None:
        """Refuse an attention that the device has not, or beside an import's own; raises Unsupported."""
        if options.get("import") != "torch":
            attention_of(options, target)
        elif "attention" in options:
            raise Unsupported("import=torch brings its own attention: leave out attention=")

    def build(
        self, config: DecoderConfig, shapes: Shapes, target: Target, options: Mapping[str, str]
    ) -> Artefact:
        """Compile everything, here or for a GPU elsewhere; raises Unsupported where a kernel refuses."""
        self.check_options(target, options)
        prepare(target)
        flags = {}
        if target.tuning is not None:
            flags["xla_gpu_load_autotune_results_from"] = str(Path(target.tuning) / AUTOTUNED)
        programs = compile_all(config, shapes, target, options, flags)
        imported = options.get("import") == "torch"
        settings = f"attention={attention_of(options, target)}, products of one row as sums"
        settings += f", prefill with {', '.join(PREFILL_FLAGS)}=false"
        return Artefact(
            config,
            shapes,
            target,
            options,
            definition="imported" if imported else "common",
            provenance=f"configured: {settings}" if target.on_gpu and not imported else "stock",
            payload=programs,
            untuned=target.card is not None and target.tuning is None,
        )

    def compilers(self, target: Target, options: Mapping[str, str]) -> Mapping[str, str]:
        """Tell the versions of jax, of its plugin for CUDA and of ptxas, and XLA's flags."""
        packages = ["jax", "jaxlib", *(("torch", "torchax") if options.get("import") == "torch" else ())]
        found = {name: version(name) for name in packages} | set_variables(("XLA_FLAGS",))
        return found | cuda_versions() if target.on_gpu else found

    def save(self, artefact: Artefact, folder: Path) -> None:
        """Write a file for each program, and one that names the attention: `auto` may differ elsewhere."""
        from backends.xla.saved import save_programs

        save_programs(artefact.payload, folder)
        (folder / ATTENTION).write_text(attention_of(artefact.options, artefact.target))

    def open(self, artefact: Artefact, folder: Path) -> Artefact:
        """Load the programs that were saved."""
        prepare(artefact.target)
        from backends.xla.saved import open_programs

        if artefact.options.get("import") == "torch":
            from backends.xla.imported import describe_import

            interface = describe_import(artefact.config, artefact.shapes)
        else:
            attention = (folder / ATTENTION).read_text()
            interface = trace(artefact.config, artefact.shapes, artefact.target, attention).interface
        return replace(artefact, payload=open_programs(interface, artefact, folder))

    def tunes(self, target: Target, options: Mapping[str, str]) -> bool:  # noqa: ARG002
        """Tell that XLA times kernels for a GPU, whatever the options."""
        return target.on_gpu

    def tune(
        self,
        config: DecoderConfig,
        shapes: Shapes,
        target: Target,
        options: Mapping[str, str],
        folder: Path,
    ) -> None:
        """Compile on the GPU and keep which kernels XLA found fastest there."""
        prepare(target)
        compile_all(
            config, shapes, target, options, {"xla_gpu_dump_autotune_results_to": str(folder / AUTOTUNED)}
        )
        kept = folder / AUTOTUNED
        if not kept.is_file() or NO_RESULTS.fullmatch(kept.read_bytes()):
            raise Unsupported("XLA timed no kernels for this model, so there is nothing to keep")

    def choices(self, folder: Path, target: Target, options: Mapping[str, str]) -> str:
        """Return how to attend, which is cuDNN's on the device alone, and the kernel of each operation."""
        attention = "" if options.get("import") == "torch" else attention_of(options, target)
        return f"{attention}\n" + RUN_TIME.sub("", (folder / AUTOTUNED).read_text())

    def load(self, artefact: Artefact, weights: Weights) -> Engine:
        """Place the weights and allocate the state."""
        from backends.xla.engine import XlaEngine

        return XlaEngine(artefact, weights)


def prepare(target: Target | None = None) -> None:
    """Set what jax reads when it starts: no preallocation, as many threads as the process is given."""
    for name, value in (ENVIRONMENT | (ELSEWHERE if target and target.card else {})).items():
        os.environ.setdefault(name, value)
    if "OMP_NUM_THREADS" in os.environ:
        os.environ.setdefault("NPROC", os.environ["OMP_NUM_THREADS"])


def cuda_versions() -> dict[str, str]:
    """Tell the versions of jax's plugin for CUDA and of its assembler; raises Unsupported."""
    try:
        found = {name: version(name) for name in CUDA_PACKAGES}
    except PackageNotFoundError as error:
        raise Unsupported(f"programs for a GPU need {error.name}: {INSTALL_CUDA}") from error
    return found | {"ptxas": ptxas_version()}


def ptxas_version() -> str:
    """Tell which assembler XLA will find: that of the package, else that on the path; raises Unsupported."""
    try:
        return version("nvidia-cuda-nvcc")
    except PackageNotFoundError:
        found = tool_release("ptxas")
    if found is None:
        raise Unsupported("there is no ptxas here: pip install nvidia-cuda-nvcc, or put CUDA's on the path")
    return found


def compile_all(
    config: DecoderConfig, shapes: Shapes, target: Target, options: Mapping[str, str], flags: dict[str, str]
) -> Programs:
    """Lower the definition or import it, and compile it with XLA's `flags`; raises Unsupported."""
    from backends.xla.engine import compile_programs
    from backends.xla.imported import trace_import

    if options.get("import") == "torch":
        return compile_programs(config, shapes, target, trace_import(config, shapes, target.dtype), flags)
    attention = attention_of(options, target)
    try:
        return compile_programs(config, shapes, target, trace(config, shapes, target, attention), flags)
    except (NotImplementedError, ValueError) as refusal:  # how jax's kernels say so
        if attention == "products":
            raise
        raise Unsupported(f"attention={attention}: {refusal}") from refusal


def attention_of(options: Mapping[str, str], target: Target) -> str:
    """Settle the option; raises Unsupported."""
    return choose_attention(options.get("attention", ATTENTIONS[0]), target)


def choose_attention(asked: str, target: Target) -> str:
    """Settle `auto`; raises Unsupported for kernels that the device or the data type has not.

    cuDNN plans its attention on the GPU itself: a program compiled elsewhere has no plan and fails there.
    """
    if asked == "auto":
        here = target.on_gpu and target.card is None
        return "cudnn" if here and target.dtype != "float32" else "products"
    if asked != "products" and target.card is not None:
        raise Unsupported(f"attention={asked} is planned on the GPU itself: build there, or use products")
    if asked != "products" and not target.on_gpu:
        raise Unsupported(f"attention={asked} is a kernel for GPUs, not for {target.device}: use products")
    if asked == "cudnn" and target.dtype == "float32":
        raise Unsupported("cuDNN's fused attention takes 16 bits, not float32: use attention=products")
    return asked


def trace(config: DecoderConfig, shapes: Shapes, target: Target, attention: str) -> Lowering:
    """Lower the definition for the target's kind of device, with this attention."""
    from backends.jax_ops import Decode, Prefill
    from backends.xla.engine import trace_definition
    from backends.xla.ops import OPS

    if not target.on_gpu:
        return trace_definition(config, shapes, Prefill, Decode, {})
    return trace_definition(config, shapes, *OPS[attention], PREFILL_FLAGS)
