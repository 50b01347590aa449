"""A decode step written by hand for one sequence: what the device allows, whatever a compiler makes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from backends import compile as compiled
from backends.contract import Artefact, Engine, Option, Probe, Shapes, Target, Unsupported
from models.checkpoint import Weights
from models.config import DecoderConfig

if TYPE_CHECKING:
    from backends.torch_engine import State, Steps


class Handwritten:
    """Decodes a batch of one by kernels of its own; prefill and larger batches are `compile`'s programs."""

    name = "handwritten"
    options: Mapping[str, Option] = {}

    def probe(self) -> Probe:
        """Tell whether torch, Triton and a GPU are there."""
        probe = compiled.Compile().probe()
        if not probe.usable:
            return probe
        if "cuda" not in probe.devices:
            reason = "its kernels are for NVIDIA GPUs, and torch finds none"
            return replace(probe, reason=reason, devices=())
        if "triton" not in probe.versions:
            return replace(probe, reason="triton is not installed", install="pip install triton", devices=())
        return replace(probe, devices=("cuda",))

    def build(
        self, config: DecoderConfig, shapes: Shapes, target: Target, options: Mapping[str, str]
    ) -> Artefact:
        """Note what to run: Triton compiles in the process that runs the kernels."""
        if not target.on_gpu:
            raise Unsupported(f"the handwritten kernels are for NVIDIA GPUs, not for {target.device}")
        plan = compiled.choose({}, target.device)
        if shapes.batch > 1:
            provenance = f"{plan.provenance} (compile's program: the kernels are for a batch of one)"
            return Artefact(config, shapes, target, options, "common", provenance, plan, plan.warnings)
        if config.head_dim < 16 or config.head_dim & (config.head_dim - 1):
            raise Unsupported(
                f"the attention kernel needs heads of 16, 32, 64, ... elements, not {config.head_dim}"
            )
        provenance = "patched: decode in seven Triton kernels, prefill as compile"
        return Artefact(config, shapes, target, options, "own", provenance, payload=plan)

    def load(self, artefact: Artefact, weights: Weights) -> Engine:
        """Place the weights; kernels are compiled when they first run."""
        from backends.compile import lower as compiled_lower
        from backends.torch_engine import TorchEngine

        compiled_lower.place_ahead(weights, artefact.target.device)
        if artefact.shapes.batch > 1:
            return TorchEngine(artefact, weights, partial(compiled_lower.lower, plan=artefact.payload))
        pdl = int(artefact.target.architecture.removeprefix("sm_")) >= 90
        return TorchEngine(artefact, weights, partial(lower, plan=artefact.payload, pdl=pdl))


def lower(state: State, plan: compiled.Plan, pdl: bool) -> Steps:
    """Prefill as `compile` does; decode by one captured graph of the kernels."""
    import torch

    from backends.compile import lower as compiled_lower
    from backends.handwritten.step import Step
    from backends.torch_engine import Replay, Steps

    decode = Replay(state, Step(state, pdl), torch.cuda.graph_pool_handle())
    return Steps(compiled_lower.lower(state, plan).prefill, decode)
