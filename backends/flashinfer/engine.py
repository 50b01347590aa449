"""The engine of FlashInfer's attention: each call plans, then replays one CUDA graph where that can be."""

from collections.abc import Callable
from functools import partial
from statistics import median
from time import perf_counter

import torch
from torch import Tensor

from backends.compile.lower import compile_steps
from backends.contract import Artefact
from backends.flashinfer import choose_attention
from backends.flashinfer.attention import (
    WORKSPACE_BYTES,
    PagedCache,
    PagedDecode,
    Planned,
    RaggedPrefill,
    pages_of,
)
from backends.flashinfer.block_sparse import BlockSparseDecode
from backends.flashinfer.kernels import prefill_kernel
from backends.flashinfer.ops import (
    DecodeOps,
    KernelDecode,
    KernelPrefill,
    PrefillOps,
    tabulate_angles,
)
from backends.flashinfer.xqa import XqaDecode
from backends.torch_engine import (
    PromptReplay,
    Replay,
    State,
    Steps,
    TorchEngine,
    static_decode,
    static_prefill,
)
from models.checkpoint import Weights

Decode = PagedDecode | BlockSparseDecode | XqaDecode
DECODES: dict[str, type[Decode]] = {
    "paged": PagedDecode,
    "block-sparse": BlockSparseDecode,
    "xqa": XqaDecode,
}
PASSES = 10
"""How often each part of a step is timed; the median counts."""


class FlashInferEngine(TorchEngine):
    """A static cache in pages; a plan for each prompt, and for each page that a decode begins."""

    def __init__(self, artefact: Artefact, weights: Weights) -> None:
        self.artefact = artefact
        super().__init__(artefact, weights, self.lower, PagedCache)

    def lower(self, state: State) -> Steps:
        """Set up the planners and the steps, with or without a compiler."""
        config, shapes = state.config, self.artefact.shapes
        dtype = state.logits.dtype
        workspace = torch.zeros(WORKSPACE_BYTES, dtype=torch.uint8, device=self.device)
        kernel = prefill_kernel(self.artefact.target.architecture)
        attention = DECODES[choose_attention(self.artefact.options)]
        self.paged = attention(config, shapes.batch, shapes.capacity, dtype, workspace)
        self.ragged = {
            length: RaggedPrefill(config, shapes.batch, length, dtype, workspace, kernel)
            for length in shapes.prompts
        }
        if plan := self.artefact.payload:
            return self.replay(state, *compile_steps(state, plan), PrefillOps, DecodeOps)
        angles = tabulate_angles(state.rope)
        own = (partial(KernelPrefill, angles=angles), partial(KernelDecode, angles=angles))
        steps = (partial(static_prefill, state), partial(static_decode, state))
        return self.replay(state, *steps, *own)

    def replay(
        self,
        state: State,
        run_prefill: Callable[..., None],
        run_decode: Callable[..., None],
        prefill_ops: Callable[..., PrefillOps],
        decode_ops: Callable[..., DecodeOps],
    ) -> Steps:
        """Plan outside the graphs, which read the newest plan wherever they are replayed.

        A decode whose plans do not stay in one place is launched step by step.
        """
        pool = torch.cuda.graph_pool_handle()
        paged, ragged = self.paged, self.ragged
        make_decode = partial(decode_ops, handle=paged.handle, width=paged.width)

        def step() -> None:
            paged.advance(state.position)
            run_decode(make_decode)

        run_step = Replay(state, step, pool) if paged.in_place else step

        def decode() -> None:
            paged.plan(state.length + 1)
            run_step()

        def run(tokens: Tensor) -> None:
            planned = ragged[tokens.shape[1]]
            run_prefill(tokens, partial(prefill_ops, handle=planned.handle, width=planned.width))

        replay = PromptReplay(state, run, pool)

        def prefill(tokens: Tensor) -> None:
            ragged[tokens.shape[1]].plan()
            replay(tokens)

        return Steps(prefill, decode)

    def parts(self, phase: str) -> dict[str, float]:
        """Time what the plan takes the host, and the attention of all layers the device."""
        with torch.inference_mode():
            if phase == "prefill":
                return self._time_prefill(self.ragged[self.tokens.shape[1]])
            return self._time_decode(self.paged, self.state.length + 1)

    def _time_prefill(self, ragged: RaggedPrefill) -> dict[str, float]:
        config = self.state.config
        rows = self.tokens.numel()
        q, k, v = (self._noise(rows, heads) for heads in (config.heads, config.kv_heads, config.kv_heads))
        return self._time(ragged, ragged.plan, [(q, k, v)] * config.layers)

    def _time_decode(self, paged: Decode, length: int) -> dict[str, float]:
        cache = self.state.cache
        q = self._noise(paged.batch, self.state.config.heads)
        layers = zip(cache.keys, cache.values, strict=True)

        def plan() -> None:
            paged.planned = 0
            paged.plan(length)

        plan()
        paged.advance(self.state.position)
        return self._time(paged, plan, [(q, pages_of(k), pages_of(v)) for k, v in layers])

    def _noise(self, rows: int, heads: int) -> Tensor:
        return torch.randn(rows, heads, self.paged.width, dtype=self.state.logits.dtype, device=self.device)

    def _time(
        self, planned: Planned, plan: Callable[[], None], calls: list[tuple[Tensor, Tensor, Tensor]]
    ) -> dict[str, float]:
        """Time plans by the host's clock until the device has them, runs by CUDA events around a graph."""
        plans, runs = [], []
        for _ in range(PASSES):
            self.sync()
            start = perf_counter()
            plan()
            self.sync()
            plans.append(perf_counter() - start)
        planned.run(*calls[0])
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for call in calls:
                planned.run(*call)
        start_event, end_event = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        for _ in range(PASSES):
            start_event.record()
            graph.replay()
            end_event.record()
            self.sync()
            runs.append(start_event.elapsed_time(end_event) / 1e3)
        return {"plan_s": median(plans), "run_s": median(runs)}

    def close(self) -> None:
        """Free the planners too."""
        super().close()
        del self.paged, self.ragged
        torch.cuda.empty_cache()
