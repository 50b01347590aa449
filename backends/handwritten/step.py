"""A decode step of one sequence as kernel launches: five a layer, and three around them."""

import math
from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from backends.handwritten import attention, kernels
from backends.torch_engine import State

TILE = 16384
"""Elements of a matrix that a program multiplies, so that a few programs keep an SM's loads busy."""
WARP_ELEMENTS = 2048
"""Elements of them that one warp holds: 64 a thread."""
BLOCK = 64
"""Cached positions in one block of attention."""
PROGRAMS = 256
"""Programs of attention at most: about two for each SM."""


@dataclass(frozen=True)
class Tile:
    """The rows and columns of a matrix that one program multiplies."""

    rows: int
    block: int
    warps: int

    @classmethod
    def choose(cls, rows: int, columns: int) -> "Tile":
        """Choose whole rows, in a number that divides `rows`."""
        block = triton.next_power_of_2(columns)
        count = max(1, TILE // block)
        while rows % count:
            count //= 2
        return cls(count, block, min(16, max(1, count * block // WARP_ELEMENTS)))


class Step:
    """Launches a decode step on a state's buffers; `pdl`: programmatic dependent launch, from sm_90 on."""

    def __init__(self, state: State, pdl: bool) -> None:
        config, table = state.config, state.weights["embed.weight"]
        self.state, self.config, self.pdl = state, config, pdl
        self.group = config.heads // config.kv_heads
        self.capacity = state.cache.keys[0].shape[2]
        self.splits = max(1, min(triton.cdiv(self.capacity, BLOCK), PROGRAMS // config.kv_heads))

        def buffer(*shape: int, dtype: torch.dtype = table.dtype) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=table.device)

        queries = config.heads * config.head_dim
        self.residual = buffer(config.hidden_size)
        self.qkv = buffer(queries + 2 * config.kv_heads * config.head_dim)
        self.attended = buffer(queries)
        self.gated = buffer(config.intermediate_size)
        sizes = (config.kv_heads, self.splits, self.group)
        self.parts = buffer(*sizes, config.head_dim, dtype=torch.float32)
        self.sizes = buffer(*sizes, dtype=torch.float32)
        self.arrived = buffer(config.kv_heads, dtype=torch.int32)
        self.best = torch.full((kernels.SLOTS,), -(2**63), dtype=torch.int64, device=table.device)

    def __call__(self) -> None:
        """Launch the step: the logits, the next token and the position are afterwards the state's."""
        table = self.state.weights["embed.weight"]
        size, block = self.config.hidden_size, 1024
        grid = (triton.cdiv(size, block),)
        kernels.embed[grid](self.state.token, table, self.residual, D=size, BLOCK=block, PDL=self.pdl)
        for layer in range(self.config.layers):
            self.project_heads(layer)
            self.attend(layer)
            self.add(self.weight(layer, "o.weight"), self.attended)
            self.project_gated(layer)
            self.add(self.weight(layer, "down.weight"), self.gated)
        self.choose_token()

    def launch(self, warps: int) -> dict[str, int | bool]:
        """Return the settings of a launch."""
        return {"PDL": self.pdl, "num_warps": warps} | ({"launch_pdl": True} if self.pdl else {})

    def weight(self, layer: int, name: str) -> Tensor | None:
        """Return a layer's weight, or None where the family has none."""
        return self.state.weights.get(f"layers.{layer}.{name}")

    def project_heads(self, layer: int) -> None:
        """Norm the residual and project it to q, k and v."""
        config = self.config
        rows = self.qkv.shape[0]
        tile = Tile.choose(rows, config.hidden_size)
        kernels.project_normed[(rows // tile.rows,)](
            self.residual,
            self.weight(layer, "attention_norm.weight"),
            self.weight(layer, "qkv.weight"),
            self.weight(layer, "qkv.bias"),
            self.qkv,
            config.norm_eps,
            K=config.hidden_size,
            ROWS=tile.rows,
            BLOCK=tile.block,
            BIAS=config.qkv_bias,
            **self.launch(tile.warps),
        )

    def attend(self, layer: int) -> None:
        """Norm and rotate q and k, extend the cache, attend."""
        config, state = self.config, self.state
        attention.attend[(config.kv_heads, self.splits)](
            self.qkv,
            self.weight(layer, "q_norm.weight"),
            self.weight(layer, "k_norm.weight"),
            state.rope.cos,
            state.rope.sin,
            state.cache.keys[layer],
            state.cache.values[layer],
            state.position,
            self.parts,
            self.sizes,
            self.arrived,
            self.attended,
            config.norm_eps,
            math.log2(math.e) / math.sqrt(config.head_dim),
            C=self.capacity,
            G=self.group,
            KV_HEADS=config.kv_heads,
            DH=config.head_dim,
            ROWS=max(16, triton.next_power_of_2(self.group)),  # what a tensor core multiplies at least
            BLOCK=BLOCK,
            SPLITS=self.splits,
            JOINED=triton.next_power_of_2(self.group),
            QK_NORM=config.qk_norm,
            **self.launch(4),
        )

    def project_gated(self, layer: int) -> None:
        """Norm the residual, project it to gate and up, multiply them."""
        config = self.config
        inner = config.intermediate_size
        tile = Tile.choose(inner, 2 * config.hidden_size)  # each row is one of gate and one of up
        kernels.project_gated[(inner // tile.rows,)](
            self.residual,
            self.weight(layer, "mlp_norm.weight"),
            self.weight(layer, "gate_up.weight"),
            self.gated,
            config.norm_eps,
            inner,
            K=config.hidden_size,
            ROWS=tile.rows,
            BLOCK=tile.block // 2,
            **self.launch(tile.warps),
        )

    def add(self, weight: Tensor | None, x: Tensor) -> None:
        """Multiply x by weight and add the product to the residual."""
        rows, columns = self.residual.shape[0], x.shape[0]
        tile = Tile.choose(rows, columns)
        kernels.project_added[(rows // tile.rows,)](
            x,
            weight,
            self.residual,
            K=columns,
            ROWS=tile.rows,
            BLOCK=tile.block,
            **self.launch(tile.warps),
        )

    def choose_token(self) -> None:
        """Norm the residual, project it to logits, take the best as next token, advance the position."""
        config, state = self.config, self.state
        head = state.weights["embed.weight" if config.tied_embeddings else "head.weight"]
        tile = Tile.choose(config.vocab_size, config.hidden_size)
        kernels.project_logits[(config.vocab_size // tile.rows,)](
            self.residual,
            state.weights["norm.weight"],
            head,
            state.logits,
            self.best,
            config.norm_eps,
            K=config.hidden_size,
            ROWS=tile.rows,
            BLOCK=tile.block,
            SLOTS=kernels.SLOTS,
            **self.launch(tile.warps),
        )
        kernels.finish[(1,)](self.best, state.token, state.position, SLOTS=kernels.SLOTS, **self.launch(1))
