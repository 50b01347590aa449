"""torch.compile: TorchDynamo traces the definition, Inductor generates the kernels."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from backends.contract import Artefact, Engine, Option, Probe, Shapes, Target
from backends.torch_probe import probe_torch
from models.checkpoint import Weights
from models.config import DecoderConfig

if TYPE_CHECKING:
    from torch import Tensor

    from backends.torch_engine import State, Steps

MODES = ("reduce-overhead", "default", "max-autotune", "max-autotune-no-cudagraphs")


class Compile:
    """Compiles one program for each prompt length and one for every decode step."""

    name = "compile"
    options: Mapping[str, Option] = {
        "mode": Option("torch.compile's mode; the first and third replay CUDA graphs on a GPU", MODES),
    }

    def probe(self) -> Probe:
        """Tell whether torch and a C++ compiler are there, and for which devices."""
        probe = probe_torch()
        compiler = os.environ.get("CXX", "g++")  # as Inductor looks for it
        if probe.usable and shutil.which(compiler) is None:
            return replace(
                probe,
                reason=f"torch.compile needs a C++ compiler and {compiler} is not on the path",
                install="apt-get install g++, or set CXX",
            )
        return probe

    def build(
        self, config: DecoderConfig, shapes: Shapes, target: Target, options: Mapping[str, str]
    ) -> Artefact:
        """Note what to compile: torch.compile works in the process that runs the program."""
        return Artefact(config, shapes, target, options, definition="common", provenance="configured")

    def load(self, artefact: Artefact, weights: Weights) -> Engine:
        """Place the weights; each shape is compiled when it first runs."""
        from backends.torch_engine import TorchEngine

        return TorchEngine(artefact, weights, partial(lower, mode=artefact.options.get("mode", MODES[0])))


def lower(state: State, mode: str) -> Steps:
    """Compile the two steps on a static cache: all they read, the weights too, is an input of the program."""
    import torch

    from backends.torch_engine import Steps, static_decode, static_prefill

    # One entry for each prompt length, data type and batch of the process; beyond the limit it would fail.
    torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = 1024
    settings = torch._inductor.list_mode_options(mode)
    if settings.get("triton.cudagraphs") and state.position.is_cuda:
        settings["triton.cudagraph_or_error"] = True  # a step that is silently not a graph is no result
    compiled = partial(torch.compile, fullgraph=True, dynamic=False, options=settings)
    compiled_prefill, compiled_decode = compiled(static_prefill), compiled(static_decode)
    mark_static(*state.tensors())  # or a CUDA graph would copy the weights in at every replay

    def prefill(tokens: Tensor) -> None:
        mark_static(tokens)
        compiled_prefill(state, tokens)

    def decode() -> None:
        compiled_decode(state)

    return Steps(prefill, decode)


def mark_static(*tensors: Tensor) -> None:
    """Promise that these keep their addresses; unguarded, so that a second engine reuses the program."""
    import torch

    for tensor in tensors:
        torch._dynamo.mark_static_address(tensor, guard=False)
