"""FlashInfer: attention kernels on a cache of pages, with the rest of the model in torch."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from backends import compile as compiled
from backends.contract import Artefact, Engine, MadeFor, Option, Probe, Shapes, Target, Unsupported
from backends.cuda_tools import tool_release
from backends.torch_probe import probe_torch
from backends.variables import set_variables
from models.checkpoint import Weights
from models.config import DecoderConfig

INSTALL = "pip install 'flashinfer-python==0.7.2.post1'"

TOOLS = {"ninja": "pip install ninja", "nvcc": "install the CUDA toolkit, or set CUDA_HOME"}
"""What it compiles with, and how to get that."""
ATTENTIONS = ("paged", "block-sparse", "xqa")


def choose_attention(options: Mapping[str, str]) -> str:
    """Return which of FlashInfer's wrappers decode attends by."""
    return options.get("attention", ATTENTIONS[0])


def name_attention(target: Target, options: Mapping[str, str]) -> str:
    """Name the kernels that attend."""
    from backends.flashinfer.kernels import prefill_kernel

    attention = choose_attention(options)
    decode = attention if attention == "xqa" else f"fa2 {attention}"
    return f"{decode} decode, {prefill_kernel(target.architecture)} prefill"


def name_graphs(options: Mapping[str, str]) -> str:
    """Name what is replayed as a CUDA graph; a plan of the block-sparse wrapper moves what one would read."""
    if choose_attention(options) == "block-sparse":
        return "one CUDA graph a prefill, none of decode"
    return "one CUDA graph a step"


def plan_around(target: Target, options: Mapping[str, str]) -> compiled.Plan:
    """Plan how torch.compile makes all but the attention."""
    named = f"{name_attention(target, options)}, {name_graphs(options)}"
    # The engine captures what can be captured, hence `replay` says nothing here.
    return compiled.Plan(named, None, compiled.TUNED_DECODE, replay=False, by_layer=True)


def with_plan(artefact: Artefact) -> Artefact:
    """Add how it is made, and how torch.compile makes all but the attention, if it does."""
    if "compile" not in artefact.options:
        kernels = f"attention={name_attention(artefact.target, artefact.options)}, rope, norm, gate"
        return replace(artefact, provenance=f"configured: {kernels}, {name_graphs(artefact.options)}")
    plan = plan_around(artefact.target, artefact.options)
    return replace(artefact, provenance=plan.provenance, payload=plan, warnings=plan.warnings)


def nvcc_release() -> str:
    """Tell the release of the compiler that FlashInfer will find; raises Unsupported."""
    path = find_nvcc()
    found = None if path is None else tool_release(path)
    if found is None:
        raise Unsupported("FlashInfer compiles its kernels and finds no nvcc")
    return found


def find_nvcc() -> str | None:
    """Return where FlashInfer finds nvcc, looking where it does."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda"
    beside = Path(home, "bin/nvcc")
    return str(beside) if beside.exists() else shutil.which("nvcc")


def missing_tool() -> str | None:
    """Name what FlashInfer would not find."""
    if shutil.which("ninja") is None:
        return "ninja"
    return None if find_nvcc() else "nvcc"


class FlashInfer:
    """Attends by FlashInfer; norm, rope and gate are its own as well, or compiled."""

    name = "flashinfer"
    machine_code = True
    made_for: MadeFor = "architecture"  # plans, which count SMs, are made when it runs
    shaped_by = ("head_dim", "heads", "kv_heads")
    idle = ("compile",)
    options: Mapping[str, Option] = {
        "compile": Option("all but attention through torch.compile, settings as compile's"),
        "attention": Option(
            "how decode attends; block-sparse: without a CUDA graph; xqa: without plans", ATTENTIONS
        ),
    }

    def probe(self) -> Probe:
        """Tell whether torch, FlashInfer, its compiler and a GPU are there."""
        probe = replace(probe_torch(), dtypes=("bfloat16", "float16"))
        if not probe.usable:
            return probe
        found = "cuda" in probe.devices
        probe = replace(probe, devices=())
        try:
            versions = {**probe.versions, "flashinfer": version("flashinfer-python")}
        except PackageNotFoundError:
            return replace(probe, reason="flashinfer is not installed", install=INSTALL)
        if not found:
            return replace(probe, reason="FlashInfer's kernels are for NVIDIA GPUs, and torch finds none")
        missing = missing_tool()
        if missing:
            reason = f"FlashInfer compiles its kernels and finds no {missing}"
            return replace(probe, reason=reason, install=TOOLS[missing])
        versions |= {"apache-tvm-ffi": version("apache-tvm-ffi"), "nvcc": nvcc_release()}
        return replace(probe, versions=versions, devices=("cuda",))

    def check_options(self, target: Target, options: Mapping[str, str]) -> None:
        """Refuse what there are no kernels for; raises Unsupported."""
        from backends.flashinfer.kernels import check_architecture

        if not target.on_gpu:
            raise Unsupported(f"FlashInfer's kernels are for NVIDIA GPUs, not for {target.device}")
        if target.dtype == "float32":
            raise Unsupported("FlashInfer has no attention kernel for float32: use bfloat16 or float16")
        if choose_attention(options) == "xqa":
            check_architecture(target)

    def build(
        self, config: DecoderConfig, shapes: Shapes, target: Target, options: Mapping[str, str]
    ) -> Artefact:
        """Compile the kernels for the target; what torch.compile makes is compiled when it first runs."""
        from backends.flashinfer.kernels import compile_kernels

        self.check_options(target, options)
        if missing := missing_tool():
            raise Unsupported(f"FlashInfer compiles its kernels and finds no {missing}: {TOOLS[missing]}")
        compile_kernels(config, target, choose_attention(options))
        return with_plan(Artefact(config, shapes, target, options, "common", "stock"))

    def compilers(self, target: Target, options: Mapping[str, str]) -> Mapping[str, str]:  # noqa: ARG002
        """Tell the versions of FlashInfer, of what its libraries are linked to, of nvcc, and their flags."""
        found = {name: version(name) for name in ("flashinfer-python", "apache-tvm-ffi")}
        return found | {"nvcc": nvcc_release()} | set_variables(("NVCC_", "FLASHINFER_"))

    def save(self, artefact: Artefact, folder: Path) -> None:
        """Copy the libraries of kernels; what torch.compile makes around them is not built ahead."""
        from backends.flashinfer.kernels import save_kernels

        save_kernels(artefact.config, artefact.target, choose_attention(artefact.options), folder)

    def open(self, artefact: Artefact, folder: Path) -> Artefact:
        """Take the libraries from the folder, so that nothing is compiled for them; raises Unsupported."""
        from backends.flashinfer.kernels import use_kernels

        use_kernels(artefact.config, artefact.target, choose_attention(artefact.options), folder)
        return with_plan(artefact)

    def load(self, artefact: Artefact, weights: Weights) -> Engine:
        """Place the weights; graphs are captured when they first run."""
        from backends.flashinfer.kernels import set_target

        set_target(artefact.target.architecture)
        from backends.compile.lower import place_ahead
        from backends.flashinfer.engine import FlashInferEngine

        if artefact.payload:
            place_ahead(weights, artefact.target.device)
        return FlashInferEngine(artefact, weights)
