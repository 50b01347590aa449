"""Decode by FlashInfer's block-sparse attention: the mask is what is filled of the cache, in blocks.

Letters as in backends/flashinfer/attention.py. The mask has a row of blocks for each sequence, each of PAGE
queries, all of them the new token, by the PAGE positions of a page. FlashInfer's causal mask shows each query
one position of the last page more than the one before it, so the one at the newest position's place in its
page sees exactly what is filled. A mask by elements would need a plan for every position.
"""

import flashinfer
import torch
from torch import Tensor

from backends.flashinfer.attention import Planned, page_count, page_table
from backends.flashinfer.kernels import PAGE
from models.config import DecoderConfig


def block_mask(batch: int, pages: int, used: int) -> tuple[Tensor, Tensor]:
    """Return row pointers [B + 1] and columns [B * used], int32, where sequences own so many pages each."""
    pointers = torch.arange(batch + 1, dtype=torch.int32) * used
    columns = page_table(batch, pages)[:, :used]
    return pointers, columns.flatten()


class BlockSparseDecode(Planned):
    """One new token a sequence; planned by the number of pages in use, all sequences in one call."""

    in_place = False

    def __init__(
        self, config: DecoderConfig, batch: int, capacity: int, dtype: torch.dtype, workspace: Tensor
    ) -> None:
        super().__init__(config, batch, dtype, workspace)
        self.pages = page_count(capacity)
        self.place = torch.zeros(1, dtype=torch.int64, device=workspace.device)  # in its page, of the newest
        self.wrapper = flashinfer.BlockSparseAttentionWrapper(workspace, backend="fa2")

    def plan(self, length: int) -> None:
        """Plan for so many positions, the newest included; the plan of an equal number of pages is kept."""
        used = page_count(length)
        if used == self.planned:
            return
        config, rows = self.config, self.batch * PAGE
        self.settle(
            *block_mask(self.batch, self.pages, used),
            rows,
            rows * self.pages,
            PAGE,
            PAGE,
            config.heads,
            config.kv_heads,
            self.width,
            causal=True,
            o_data_type=self.dtype,
        )
        self.planned = used

    def advance(self, position: Tensor) -> None:
        """Set which query counts once the token at `position` [1] is there."""
        torch.remainder(position, PAGE, out=self.place)

    def run(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend with q [B, H, W] to pages k and v [B * P, PAGE, K, W]."""
        queries = q[:, None].expand(-1, PAGE, -1, -1).flatten(0, 1)  # [B * PAGE, H, W]
        out: Tensor = self.wrapper.run(queries, k, v)
        return out.view(self.batch, PAGE, *q.shape[1:]).index_select(1, self.place).squeeze(1)
