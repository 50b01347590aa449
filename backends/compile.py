"""torch.compile: TorchDynamo traces the definition, Inductor generates the kernels."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from backends.contract import Artefact, Engine, Option, Probe, Shapes, Target, Unsupported
from backends.torch_probe import probe_torch
from models.checkpoint import Weights
from models.config import DecoderConfig

if TYPE_CHECKING:
    from torch import Tensor

    from backends.torch_engine import State, Steps

TUNED = "tuned"
MODES = (TUNED, "default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
TUNED_DECODE: dict[str, bool | int] = {
    "coordinate_descent_tuning": True,  # also lowers a product with one row to a reduction, and tunes that
    "triton.cooperative_reductions": True,  # a norm of one row would otherwise leave all but one SM idle
    # The residual stream and each gate are stored instead of computed anew by all who read them: then all
    # layers run the same few kernels, and a product does not repeat an activation for each of its rows.
    "realize_reads_threshold": 1,
    "realize_opcount_threshold": 8,
    "combo_kernels": True,  # what turns q, turns k into the cache and puts v there is one launch
}
"""Inductor's settings for decode on a GPU, of those tried (compile_settings.txt in results/). Prefill
is fastest with none: its products go to the vendor library, and max-autotune finds nothing better."""
SEARCHES: dict[str, dict[str, bool]] = {"steps": {}, "all": {"coordinate_descent_check_all_directions": True}}
"""How coordinate descent goes on: one field at a time, or all fields at once where that finds no better."""
ATTENTIONS = ("auto", "flex", "masked", "products")


@dataclass(frozen=True)
class Plan:
    """How the two programs are compiled and launched."""

    attention: str
    """How decode attends: `flex`, `masked` or `products`."""
    mode: str | None
    """torch.compile's mode; None: the settings below."""
    decode: Mapping[str, Any]
    """Inductor's settings for the decode program."""
    replay: bool
    """Whether prefill and decode are each captured as one CUDA graph by us."""

    @property
    def provenance(self) -> str:
        """Name every public setting that differs from plain torch.compile."""
        parts = [f"attention={self.attention}", *(str(name) for name in self.decode)]
        parts += [f"mode={self.mode}"] if self.mode else []
        parts += ["one CUDA graph a step"] if self.replay else []
        return f"configured: {', '.join(parts)}"


def choose(options: Mapping[str, str], device: str) -> Plan:
    """Settle what the options leave open; raises Unsupported for what the device has not."""
    on_gpu = device.startswith("cuda")
    attention = options.get("attention", ATTENTIONS[0])
    if attention == "auto":
        attention = "flex" if on_gpu else "masked"
    elif attention == "flex" and not on_gpu:
        raise Unsupported(
            f"flex attention's decode kernel is for GPUs, not for {device}: use attention=masked"
        )
    mode = options.get("mode", MODES[0])
    if mode != TUNED:
        return Plan(attention, mode, {}, replay=False)
    if not on_gpu:
        return Plan(attention, None, {}, replay=False)
    return Plan(attention, None, TUNED_DECODE | SEARCHES[options.get("search", "steps")], replay=True)


class Compile:
    """Compiles one program for each prompt length and one for every decode step."""

    name = "compile"
    options: Mapping[str, Option] = {
        "stock": Option("plain torch.compile of the eager program: no setting, no CUDA graph"),
        "attention": Option("how decode attends; auto: flex on a GPU, masked on a CPU", ATTENTIONS),
        "mode": Option("torch.compile's mode; tuned: the best settings found for the device", MODES),
        "search": Option("how wide mode=tuned searches for each kernel's blocks on a GPU", tuple(SEARCHES)),
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
        if "stock" in options:
            if len(options) > 1:
                raise Unsupported("compile[stock] has no settings: leave out the other options")
            return Artefact(config, shapes, target, options, definition="common", provenance="stock")
        plan = choose(options, target.device)
        return Artefact(config, shapes, target, options, "common", plan.provenance, payload=plan)

    def load(self, artefact: Artefact, weights: Weights) -> Engine:
        """Place the weights; each shape is compiled when it first runs."""
        from backends.torch_engine import TorchEngine

        plan = artefact.payload
        return TorchEngine(artefact, weights, partial(lower, plan=plan) if plan else lower_stock)


def lower_stock(state: State) -> Steps:
    """Compile what `eager` runs, and nothing else: the length is a number of the host, which torch.compile
    takes for a constant first and for a symbol once it changes.
    """
    import torch

    from backends.torch_engine import Steps, prefill_step, sliced_step

    compiled_prefill, compiled_decode = torch.compile(prefill_step), torch.compile(sliced_step)

    def prefill(tokens: Tensor) -> None:
        state.logits, state.token = compiled_prefill(state, tokens)

    def decode() -> None:
        state.logits, state.token = compiled_decode(state)

    return Steps(prefill, decode)


def compile_steps(state: State, plan: Plan) -> tuple[Callable[..., None], Callable[..., None]]:
    """Compile `static_prefill` and `static_decode`: what they read, the weights too, is an input."""
    import torch

    from backends.torch_engine import static_decode, static_prefill

    # One entry for each prompt length, data type and batch of the process; beyond the limit it would fail.
    torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = 1024
    settings = dict(torch._inductor.list_mode_options(plan.mode)) if plan.mode else {}
    if settings.get("triton.cudagraphs") and state.position.is_cuda:
        settings["triton.cudagraph_or_error"] = True  # a step that is silently not a graph is no result
    compiled = partial(torch.compile, fullgraph=True, dynamic=False)
    compiled_prefill = compiled(static_prefill, options=settings)
    compiled_decode = compiled(static_decode, options={**settings, **plan.decode})
    mark_static(*state.tensors())  # or a CUDA graph would copy the weights in at every replay
    return compiled_prefill, compiled_decode


def lower(state: State, plan: Plan) -> Steps:
    """Compile the two steps on a static cache."""
    from backends.torch_engine import Steps
    from backends.torch_ops import FlexDecode, MaskedDecode, ProductsDecode

    compiled_prefill, compiled_decode = compile_steps(state, plan)
    attention = {"flex": FlexDecode, "masked": MaskedDecode, "products": ProductsDecode}[plan.attention]
    decode = partial(compiled_decode, state, attention)
    if plan.replay:
        return replayed(state, compiled_prefill, decode)

    def prefill(tokens: Tensor) -> None:
        mark_static(tokens)
        compiled_prefill(state, tokens)

    return Steps(prefill, decode)


def replayed(state: State, prefill: Callable[[State, Tensor], None], decode: Callable[[], None]) -> Steps:
    """Capture each step as one CUDA graph, prefill for each prompt length: its buffer keeps its address."""
    import torch

    from backends.torch_engine import Replay, Steps

    pool = torch.cuda.graph_pool_handle()
    prefills: dict[int, Replay] = {}

    def replay(tokens: Tensor) -> None:
        length = tokens.shape[1]
        if length not in prefills:
            prefills[length] = Replay(state, partial(prefill, state, tokens), pool)
        prefills[length]()

    return Steps(replay, Replay(state, decode, pool))


def mark_static(*tensors: Tensor) -> None:
    """Promise that these keep their addresses; unguarded, so that a second engine reuses the program."""
    import torch

    for tensor in tensors:
        torch._dynamo.mark_static_address(tensor, guard=False)
