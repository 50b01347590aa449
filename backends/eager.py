"""PyTorch without a compiler: its own kernels, launched from Python or replayed as one CUDA graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from backends.contract import Artefact, Engine, Option, Probe, Shapes, Target, Unsupported
from backends.torch_probe import probe_torch
from models.checkpoint import Weights
from models.config import DecoderConfig

if TYPE_CHECKING:
    from torch import Tensor

    from backends.torch_engine import State, Steps


class Eager:
    """Runs the definition as it is written."""

    name = "eager"
    options: Mapping[str, Option] = {
        "graph": Option("replay each decode step as one captured CUDA graph (GPU only)"),
    }

    def probe(self) -> Probe:
        """Tell whether torch is there, and for which devices."""
        return probe_torch()

    def check_options(self, target: Target, options: Mapping[str, str]) -> None:
        """Refuse a graph where there is no GPU; raises Unsupported."""
        if "graph" in options and not target.on_gpu:
            raise Unsupported(f"eager[graph] captures a CUDA graph, which {target.device} has not: use eager")

    def build(
        self, config: DecoderConfig, shapes: Shapes, target: Target, options: Mapping[str, str]
    ) -> Artefact:
        """Note what to run: there is nothing to compile."""
        self.check_options(target, options)
        graph = "graph" in options
        sliced = "configured: decode without cuDNN attention" if target.on_gpu else "stock"
        provenance = "configured: one CUDA graph a decode step" if graph else sliced
        return Artefact(config, shapes, target, options, definition="common", provenance=provenance)

    def load(self, artefact: Artefact, weights: Weights) -> Engine:
        """Place the weights and allocate the cache; a graph is captured at the first decode step."""
        from backends.torch_engine import TorchEngine

        return TorchEngine(artefact, weights, lower_graph if "graph" in artefact.options else lower_eager)


def lower_eager(state: State) -> Steps:
    """Launch each operation from Python; the host knows the length, so the cache is sliced, not masked.

    Decode does without cuDNN's attention, torch's first choice on a Hopper: it is prepared anew for every
    length, which a chain that is timed again and again at the same lengths does not show.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel

    from backends.torch_engine import Steps, prefill_step, sliced_step

    lasting = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]

    def prefill(tokens: Tensor) -> None:
        state.logits, state.token = prefill_step(state, tokens)

    def decode() -> None:
        with sdpa_kernel(lasting):
            state.logits, state.token = sliced_step(state)

    return Steps(prefill, decode)


def lower_graph(state: State) -> Steps:
    """Capture one decode step whose position lives on the device; prefill stays as it is."""
    import torch

    from backends.torch_engine import Replay, Steps, static_decode, static_prefill
    from backends.torch_ops import MaskedDecode

    decode = Replay(state, lambda: static_decode(state, MaskedDecode), torch.cuda.graph_pool_handle())
    return Steps(lambda tokens: static_prefill(state, tokens), decode)
