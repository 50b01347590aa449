"""Decode by XQA: one kernel that reads every length on the device, so that nothing is planned.

Letters as in backends/flashinfer/attention.py. A head's cache is split among as many blocks as its capacity
fills and as SMs are there for B * K heads; the last one of a head to finish joins what all have found.
"""

import flashinfer
import torch
from torch import Tensor

from backends.flashinfer.attention import Planned, page_count, page_table
from backends.flashinfer.kernels import PAGE
from models.config import DecoderConfig


class XqaDecode(Planned):
    """One new token a sequence over a cache of pages."""

    def __init__(
        self, config: DecoderConfig, batch: int, capacity: int, dtype: torch.dtype, workspace: Tensor
    ) -> None:
        super().__init__(config, batch, dtype, workspace)
        device = workspace.device
        self.table = page_table(batch, page_count(capacity), device)
        self.filled = torch.zeros(batch, 1, dtype=torch.int32, device=device)
        # How many blocks of a head are done; the last one sets it back to zero.
        self.done = torch.zeros(batch * config.kv_heads, dtype=torch.int32, device=device)
        # The kernel scales by the root of the head as it is padded.
        self.scale = (self.width / config.head_dim) ** 0.5

    def plan(self, length: int) -> None:
        """Plan nothing."""

    def advance(self, position: Tensor) -> None:
        """Set how much is filled once the token at `position` [1] is there; in the graph."""
        self.filled.copy_(position + 1)

    def run(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend with q [B, H, W] to pages k and v [B * P, PAGE, K, W]."""
        q = q[:, None].contiguous()
        out = torch.empty_like(q)
        flashinfer.xqa(
            q,
            k,
            v,
            self.table,
            self.filled.view(torch.uint32),
            out,
            self.workspace,
            self.done.view(torch.uint32),
            self.config.kv_heads,
            PAGE,
            q_scale=self.scale,
        )
        return out[:, 0]
