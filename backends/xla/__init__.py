"""XLA by way of JAX: the definition is traced with jax.numpy and compiled ahead of its first run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING

from backends.contract import Artefact, Engine, Option, Probe, Shapes, Target, Unsupported
from models.checkpoint import Weights
from models.config import DecoderConfig

if TYPE_CHECKING:
    from backends.xla.engine import Lowering

INSTALL = "pip install 'jax>=0.10', or 'jax[cuda13]>=0.10' for a GPU"
ATTENTIONS = ("auto", "products", "cudnn", "pallas")
SOURCES = ("definition", "torch")
ENVIRONMENT = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
"""Set before jax starts: three quarters of a GPU's memory, taken at once, would hide what an engine needs."""


class Xla:
    """Compiles one program for each prompt length and one for every decode step."""

    name = "xla"
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
        except ModuleNotFoundError:
            return Probe(reason="jax is not installed", install=INSTALL)
        except Exception as error:  # a jaxlib or a driver that does not fit fails in many ways
            cause = f"{type(error).__name__}: {error}".splitlines()[0]
            return Probe(reason=f"jax cannot be used: {cause}", install=INSTALL)
        versions = {name: version(name) for name in ("jax", "jaxlib")}
        if "XLA_FLAGS" in os.environ:
            versions["XLA_FLAGS"] = os.environ["XLA_FLAGS"]
        devices = ("cpu", "cuda") if "gpu" in platforms else ("cpu",)
        return Probe(versions=versions, devices=devices, dtypes=("float32", "bfloat16", "float16"))

    def build(
        self, config: DecoderConfig, shapes: Shapes, target: Target, options: Mapping[str, str]
    ) -> Artefact:
        """Compile everything; raises Unsupported where a kernel asked for does not take the model."""
        prepare()
        from backends.xla.engine import compile_programs
        from backends.xla.imported import trace_import

        if options.get("import") == "torch":
            if "attention" in options:
                raise Unsupported("import=torch brings its own attention: leave out attention=")
            programs = compile_programs(config, shapes, target, trace_import(config, shapes, target.dtype))
            return Artefact(config, shapes, target, options, "imported", "stock", payload=programs)
        attention = choose_attention(options.get("attention", ATTENTIONS[0]), target)
        try:
            programs = compile_programs(config, shapes, target, trace(config, shapes, target, attention))
        except (NotImplementedError, ValueError) as refusal:  # how jax's kernels say so
            if attention == "products":
                raise
            raise Unsupported(f"attention={attention}: {refusal}") from refusal
        settings = f"attention={attention}, products of one row as sums"
        provenance = f"configured: {settings}" if on_gpu(target) else "stock"
        return Artefact(config, shapes, target, options, "common", provenance, payload=programs)

    def load(self, artefact: Artefact, weights: Weights) -> Engine:
        """Place the weights and allocate the state."""
        from backends.xla.engine import XlaEngine

        return XlaEngine(artefact, weights)


def prepare() -> None:
    """Set what jax reads when it starts: no preallocation, as many threads as the process is given."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if "OMP_NUM_THREADS" in os.environ:
        os.environ.setdefault("NPROC", os.environ["OMP_NUM_THREADS"])


def on_gpu(target: Target) -> bool:
    """Tell whether the target is a GPU."""
    return target.device.startswith("cuda")


def choose_attention(asked: str, target: Target) -> str:
    """Settle `auto`; raises Unsupported for kernels that the device or the data type has not."""
    if asked == "auto":
        return "cudnn" if on_gpu(target) and target.dtype != "float32" else "products"
    if asked != "products" and not on_gpu(target):
        raise Unsupported(f"attention={asked} is a kernel for GPUs, not for {target.device}: use products")
    if asked == "cudnn" and target.dtype == "float32":
        raise Unsupported("cuDNN's fused attention takes 16 bits, not float32: use attention=products")
    return asked


def trace(config: DecoderConfig, shapes: Shapes, target: Target, attention: str) -> Lowering:
    """Lower the definition for the target's kind of device, with this attention."""
    from backends.jax_ops import Decode, Prefill
    from backends.xla.engine import trace_definition
    from backends.xla.ops import OPS

    prefill, decode = OPS[attention] if on_gpu(target) else (Prefill, Decode)
    return trace_definition(config, shapes, prefill, decode)
