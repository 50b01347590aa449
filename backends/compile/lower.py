"""The steps of `compile` as programs of torch.compile, whose inputs are all they read, the weights too."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from backends.compile import Plan
from backends.imports import importing
from backends.torch_engine import (
    MakeOps,
    PromptReplay,
    Replay,
    State,
    Steps,
    place,
    prefill_step,
    sliced_step,
    static_decode,
    static_prefill,
)
from backends.torch_ops import DeviceDecode, FlexDecode, MaskedDecode, Prefill, ProductsDecode, TorchOps
from models.checkpoint import Weights
from models.decoder import choose_token, decode_layer

Begun = tuple[TorchOps, Tensor, Tensor]
"""A step's operations, and what its first layer returns."""
ATTENTION: dict[str, type[DeviceDecode]] = {
    "flex": FlexDecode,
    "masked": MaskedDecode,
    "products": ProductsDecode,
}


def place_ahead(weights: Weights, device: str) -> None:
    """Place the weights while what compiles is imported, which takes as long on the host of a GPU."""
    with importing("torch._dynamo", "torch._inductor.compile_fx"), torch.inference_mode():
        place(weights, torch.device(device))


def keep_searched() -> None:
    """Let a process with warm caches take each kernel as the search of an earlier one left it.

    What was searched is marked, and the mark is lost on the way from another process that compiles: Triton's
    configurations do not keep it (torch 2.11, triton 3.6). The search would begin anew, and took 12 of the
    18 s of a build. Where a search has been there is little left to compile, here.
    """
    folder = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    if folder and any(Path(folder).rglob("*.best_config")):
        torch._inductor.config.compile_threads = 1


def lower_stock(state: State) -> Steps:
    """Compile what `eager` runs, and nothing else: the length is a number of the host, which torch.compile
    takes for a constant first and for a symbol once it changes.
    """
    compiled_prefill, compiled_decode = torch.compile(prefill_step), torch.compile(sliced_step)

    def prefill(tokens: Tensor) -> None:
        state.logits, state.token = compiled_prefill(state, tokens)

    def decode() -> None:
        state.logits, state.token = compiled_decode(state)

    return Steps(prefill, decode)


def compile_steps(state: State, plan: Plan) -> tuple[Callable[..., None], Callable[[MakeOps], None]]:
    """Compile prefill and decode on a static cache, each as one program or as that of a layer and two more.

    Prefill takes tokens [B, T], and both what makes a step's operations, for prefill `Prefill` unless given.
    """
    keep_searched()
    # One entry for each prompt length, data type and batch of the process; beyond the limit it would fail.
    torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = 1024
    settings = dict(torch._inductor.list_mode_options(plan.mode)) if plan.mode else {}
    if settings.get("triton.cudagraphs") and state.position.is_cuda:
        settings["triton.cudagraph_or_error"] = True  # a step that is silently not a graph is no result
    of_decode = {**settings, **plan.decode}
    mark_static(*state.tensors())  # or a CUDA graph would copy the weights in at every replay
    if plan.by_layer:
        return layered_prefill(state, settings), layered_decode(state, of_decode)
    return partial(program(static_prefill, settings), state), partial(
        program(static_decode, of_decode), state
    )


def lower(state: State, plan: Plan) -> Steps:
    """Compile the two steps, and replay each as a CUDA graph if so planned."""
    prefill, decode_by = compile_steps(state, plan)
    decode = partial(decode_by, ATTENTION[plan.attention])
    if plan.replay:
        return replayed(state, prefill, decode)

    def prefill_static(tokens: Tensor) -> None:
        mark_static(tokens)
        prefill(tokens)

    return Steps(prefill_static, decode)


def program(function: Callable[..., Any], settings: dict[str, Any]) -> Callable[..., Any]:
    """Compile a function as a whole, once for each shape, with Inductor's settings."""
    compiled: Callable[..., Any] = torch.compile(function, fullgraph=True, dynamic=False, options=settings)
    return compiled


def layered_prefill(state: State, settings: dict[str, Any]) -> Callable[..., None]:
    """Compile prefill by layers."""
    step = layered(state, begin_prefill, settings)

    def prefill(tokens: Tensor, attention: MakeOps = Prefill) -> None:
        step(tokens, attention)
        state.position.fill_(tokens.shape[1])

    return prefill


def layered_decode(state: State, settings: dict[str, Any]) -> Callable[[MakeOps], None]:
    """Compile decode by layers."""
    step = layered(state, begin_decode, settings)

    def decode(attention: MakeOps) -> None:
        step(attention)
        state.position.add_(1)

    return decode


def layered(state: State, begins: Callable[..., Begun], settings: dict[str, Any]) -> Callable[..., None]:
    """Compile a step up to the first layer, which has no residual stream yet, any other layer, and the rest.

    The other layers are alike, and to compile them takes time for each where the step is one program. What is
    lost by it is little: a layer's output is added to the residual stream by the next one's norm.
    """
    first, other, last = (program(each, settings) for each in (begins, decode_layer, finish))
    others = [(layer, weights_of(state, layer)) for layer in range(1, state.config.layers)]

    def step(*arguments: Any) -> None:
        ops, x, residual = first(state, *arguments)
        for layer, weights in others:
            x, residual = other(ops.of_layer(layer), state.config, weights, 0, x, residual)
        last(state, ops, x, residual)

    return step


def weights_of(state: State, layer: int) -> dict[str, Tensor]:
    """Return a layer's weights under the names that they have in layer 0."""
    prefix = f"layers.{layer}."
    return {
        f"layers.0.{name.removeprefix(prefix)}": weight
        for name, weight in state.weights.items()
        if name.startswith(prefix)
    }


def begin_prefill(state: State, tokens: Tensor, attention: MakeOps) -> Begun:
    """Begin a prefill of tokens [B, T]."""
    ops = attention(state.config, state.cache, state.rope, tokens.shape[1])
    return begin(state, ops, tokens)


def begin_decode(state: State, attention: MakeOps) -> Begun:
    """Begin a decode step at the state's position."""
    ops = attention(state.config, state.cache, state.rope, state.position)
    return begin(state, ops, state.token[:, None])


def begin(state: State, ops: TorchOps, tokens: Tensor) -> Begun:
    """Embed tokens and run the first layer."""
    x = ops.embed(tokens, state.weights["embed.weight"])
    return ops, *decode_layer(ops, state.config, state.weights, 0, x, None)


def finish(state: State, ops: TorchOps, x: Tensor, residual: Tensor) -> None:
    """Leave logits and next token in the state."""
    logits, token = choose_token(ops, state.config, state.weights, x, residual)
    state.logits.copy_(logits)
    state.token.copy_(token)


def replayed(state: State, prefill: Callable[[Tensor], None], decode: Callable[[], None]) -> Steps:
    """Capture each step as one CUDA graph, prefill for each prompt length."""
    pool = torch.cuda.graph_pool_handle()
    return Steps(PromptReplay(state, prefill, pool), Replay(state, decode, pool))


def mark_static(*tensors: Tensor) -> None:
    """Promise that these keep their addresses; unguarded, so that a second engine reuses the program."""
    for tensor in tensors:
        torch._dynamo.mark_static_address(tensor, guard=False)
